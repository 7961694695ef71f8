"""Resume runs after a reboot of the box, with a cron `@reboot` line or a systemd user unit.

The first launch under a root installs this helper. It is removed when no run under the root needs it. It runs

    python3 -I -S agent-<hash>.pyz resume ROOT
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Iterator, List, Optional

from remote.contract.choices import LAUNCHERS
from remote.contract.files import children, read_json, remove, write_atomic, write_json
from remote.contract.locks import locked
from remote.contract.ownership import check_path, check_program, refusal
from remote.contract.paths import NAME, ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.reboot_method import CRON, NO_DAEMON, NO_LINGER, NO_SCHEDULER, NONE, SYSTEMD, RebootMethod
from remote.host import launchers, run_state
from remote.host.commands import Output, run_command
from remote.host.liveness import is_live
from remote.host.logout import enable_linger, may_linger
from remote.host.process import PROC, read_proc

COMMAND_S = 5.0  # seconds for one command
CRON_DAEMONS = ("cron", "crond", "cronie")
UNIT = """\
[Unit]
Description=orch: resume the runs under {root} after a reboot

[Service]
Type=oneshot
# The processes that it starts outlive it.
KillMode=process
ExecStart={command}

[Install]
WantedBy=default.target
"""


def find_method() -> RebootMethod:
    """Return the method that this box offers. Change nothing: `orch doctor` calls this too."""
    has_crontab = _crontab_lines() is not None
    if has_crontab and _has_cron_daemon():
        return RebootMethod(CRON)
    if _has_systemd():
        return RebootMethod(SYSTEMD) if may_linger() else RebootMethod(NONE, NO_LINGER)
    return RebootMethod(NONE, NO_DAEMON if has_crontab else NO_SCHEDULER)


def ensure(paths: ProjectPaths) -> str:
    """Install the helper for this root. Return CRON or SYSTEMD, or NONE if the box has neither."""
    with locked(paths.reboot_lock):
        method = find_method().name
        if method != NONE:
            _keep_environment(paths.box)
            is_set = _set_cron_line(paths.box, _command(paths.box)) if method == CRON else _enable_unit(paths.box)
            return method if is_set else NONE
    return NONE


def release(paths: ProjectPaths) -> None:
    """Remove the helper if all runs under the root have ended."""
    if not paths.box.is_dir():
        _remove_helper(paths.box)
        return
    with locked(paths.reboot_lock):
        environment = _environment_file(paths.box)
        if not environment.exists() or any(True for _ in unfinished(paths.box)):
            return
        remove(environment)
        _remove_helper(paths.box)


def _remove_helper(root: Path) -> None:
    _set_cron_line(root, "")
    if _unit(root).exists():
        _succeeds(["systemctl", "--user", "disable", _unit(root).name])
        remove(_unit(root))


def resume(root: Path) -> None:
    """Start a supervisor for every unfinished run under `root` that has no supervisor.

    A run that another user could change is not started.

    Raises:
        SystemExit: Another user could change `root` or the agent; no run is started.
    """
    try:
        check_program()
        check_path(root)
    except AgentError as error:
        sys.exit(f"orch: runs are not resumed: {error.message}; {error.hint}")
    os.environ.update({name: str(value) for name, value in (read_json(_environment_file(root)) or {}).items()})
    for run in unfinished(root):
        try:
            if is_live(run):
                continue
            problem = refusal(run)
            if problem:
                sys.stderr.write(f"orch: {run.job} {run.run_id} is not resumed: {problem}\n")
            else:
                launchers.start(_launcher(run), run)
        except (AgentError, OSError) as error:  # still start the other runs
            sys.stderr.write(f"starting the supervisor of {run.job} {run.run_id}: {error}\n")


def _launcher(run: RunPaths) -> str:
    """Return the launcher of the run. If run.json is damaged, return a default: the supervisor reports the damage."""
    host = (read_json(run.run) or {}).get("host")
    named = host.get("launcher") if isinstance(host, dict) else None
    return str(named) if named in LAUNCHERS else "nohup"


def unfinished(root: Path) -> Iterator[RunPaths]:
    """Yield the runs of all projects under the root that have not ended, in launch order."""
    projects = [path.name for path in children(root) if NAME.fullmatch(path.name) and (path / "runs").is_dir()]
    runs = [run for project in projects for run in ProjectPaths(root, project).all_runs() if run.run.exists()]
    for run in sorted(runs, key=lambda run: run.run_id):
        if not run_state.has_recorded_end(run):  # not `has_ended`: the caller may hold the lock of a run that ended
            yield run


def _environment_file(root: Path) -> Path:
    return root / "environment.json"


def _keep_environment(root: Path) -> None:
    """Save the variables that a login sets and cron does not (such as PATH), in a file of mode 0600."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SSH_", "ORCH_", "TMUX"))}
    write_json(_environment_file(root), kept)


def _command(root: Path) -> str:
    return shlex.join([sys.executable, "-I", "-S", launchers.ENTRY, "resume", str(root)])


def _mark(root: Path) -> str:
    return "orch-" + sha256(str(root).encode()).hexdigest()[:8]


# --- cron ---------------------------------------------------------------------------------------------


def _has_cron_daemon() -> bool:
    running = PROC.iterdir() if PROC.is_dir() else ()
    names = (read_proc(entry.name, "comm").decode("utf-8", "replace") for entry in running if entry.name.isdigit())
    return any(name.strip() in CRON_DAEMONS for name in names)


def _crontab_lines() -> Optional[List[bytes]]:
    """Return the lines of this user's crontab, or None if it cannot be read; do not overwrite it then."""
    listed = _run(["crontab", "-l"])
    if listed is None or not listed.is_complete:
        return None
    if listed.code == 0:
        return listed.out.splitlines(keepends=True)
    errors = listed.err.lower()
    return [] if b"no crontab for" in errors or b"no such file" in errors else None  # the second is of BusyBox


def _set_cron_line(root: Path, command: str) -> bool:
    """Replace this root's line, or remove it if `command` is "". The user's other lines stay byte-exact.

    Return whether that succeeded.
    """
    lines = _crontab_lines()
    if lines is None:
        return False
    mark = f"# {_mark(root)}\n".encode()
    kept: List[bytes] = [line for line in lines if not line.endswith(mark)]
    if command:
        if kept and not kept[-1].endswith(b"\n"):
            kept.append(b"\n")
        kept.append(b"@reboot " + os.fsencode(command.replace("%", "\\%")) + b" " + mark)  # cron reads % as a newline
    if kept == lines:
        return True
    change = ["crontab", "-"] if kept else ["crontab", "-r"]
    return _succeeds(change, b"".join(kept))


# --- systemd ------------------------------------------------------------------------------------------


def _has_systemd() -> bool:
    """Return whether this user has a running systemd."""
    return _succeeds(["systemctl", "--user", "show-environment"])


def _unit(root: Path) -> Path:
    return Path.home() / ".config/systemd/user" / f"{_mark(root)}.service"


def unit_text(root: Path) -> str:
    """Return the content of the systemd unit."""
    root_shown, command = (text.replace("%", "%%") for text in (str(root), _command(root)))
    return UNIT.format(root=root_shown, command=command)


def _enable_unit(root: Path) -> bool:
    """Install and enable the unit. Enable lingering, so that the user's units start at boot, without a login."""
    _unit(root).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_unit(root), unit_text(root).encode())
    return enable_linger() and _succeeds(["systemctl", "--user", "enable", _unit(root).name])


def _succeeds(command: List[str], data: bytes = b"") -> bool:
    done = _run(command, data)
    return done is not None and done.code == 0


def _run(command: List[str], data: bytes = b"") -> Optional[Output]:
    """Run a command with `data` on its stdin. Return None if it is not installed or takes too long."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            return run_command(command, COMMAND_S, file)
    except (OSError, subprocess.TimeoutExpired):
        return None
