"""Runs go on by themselves after the box has been restarted: a cron `@reboot` line, or a systemd user unit.

It is installed at the first launch under a root and taken away when no run there needs it any more. What it starts is

    python3 -I -S agent-<hash>.pyz resume ROOT
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Iterator, List

from remote.contract.files import read_json, remove, write_atomic, write_json
from remote.contract.locks import locked
from remote.contract.ownership import check_path, check_program, check_run
from remote.contract.paths import NAME, ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.host import launchers, run_state
from remote.host.liveness import is_live
from remote.host.process import PROC

COMMAND_S = 10.0
UNIT = """\
[Unit]
Description=orch: runs under {root} go on after a reboot

[Service]
Type=oneshot
# What it starts outlives it.
KillMode=process
ExecStart={command}

[Install]
WantedBy=default.target
"""


def ensure(paths: ProjectPaths) -> str:
    """Install the helper for this root; `cron`, `systemd`, or `none` where the box has neither."""
    with locked(paths.box / "reboot.lock"):
        if _cron_runs():
            _keep_environment(paths.box)
            return "cron" if _set_cron_line(paths.box, _command(paths.box)) else "none"
        if _systemd_runs():
            _keep_environment(paths.box)
            return "systemd" if _enable_unit(paths.box) else "none"
    return "none"


def release(paths: ProjectPaths) -> None:
    """Take the helper away where no run under the root is unfinished."""
    if not paths.box.is_dir():
        _remove_helper(paths.box)
        return
    with locked(paths.box / "reboot.lock"):
        environment = _environment_file(paths.box)
        if not environment.exists() or any(True for _ in unfinished(paths.box)):
            return
        remove(environment)
        _remove_helper(paths.box)


def _remove_helper(root: Path) -> None:
    if _cron_runs():
        _set_cron_line(root, "")
    if _unit(root).exists():
        _said(["systemctl", "--user", "disable", _unit(root).name])
        remove(_unit(root))


def resume(root: Path) -> None:
    """Start a supervisor for every run under `root` that has not ended and has none.

    Those that somebody else can change stay down; all of them, with SystemExit, if that is true of `root`.
    """
    try:
        check_program()
        check_path(root)
    except AgentError as error:
        sys.exit(f"orch: runs are not resumed: {error.message}; {error.hint}")
    os.environ.update({name: str(value) for name, value in (read_json(_environment_file(root)) or {}).items()})
    for run in unfinished(root):
        try:
            if not is_live(run) and _is_safe(run):
                launchers.start(_launcher(run), run)
        except (AgentError, OSError) as error:  # the other runs are to go on all the same
            sys.stderr.write(f"starting the supervisor of {run.job} {run.run_id}: {error}\n")


def _launcher(run: RunPaths) -> str:
    """The one that its launch named; a supervisor says of a damaged run.json that it is damaged."""
    host = (read_json(run.run) or {}).get("host")
    named = host.get("launcher") if isinstance(host, dict) else None
    return str(named) if named in launchers.LAUNCHERS else "nohup"


def _is_safe(run: RunPaths) -> bool:
    try:
        check_run(run)
    except AgentError as error:
        sys.stderr.write(f"orch: {run.job} {run.run_id} is not resumed: {error.message}\n")
        return False
    return True


def unfinished(root: Path) -> Iterator[RunPaths]:
    """The runs of every project under the root that have not ended, in the order of their launch."""
    there = sorted(root.iterdir()) if root.is_dir() else []
    projects = [path.name for path in there if NAME.fullmatch(path.name) and (path / "runs").is_dir()]
    runs = [run for project in projects for run in ProjectPaths(root, project).all_runs() if run.run.exists()]
    for run in sorted(runs, key=lambda run: run.run_id):
        if not run_state.has_recorded_end(run):  # the caller may hold the lock of one that has just ended
            yield run


def _environment_file(root: Path) -> Path:
    return root / "environment.json"


def _keep_environment(root: Path) -> None:
    """What a login sets (PATH, library paths) and cron does not; of mode 0600, as it is the user's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SSH_", "ORCH_", "TMUX"))}
    write_json(_environment_file(root), kept)


def _command(root: Path) -> str:
    return shlex.join([sys.executable, "-I", "-S", launchers.ENTRY, "resume", str(root)])


def _mark(root: Path) -> str:
    return "orch-" + sha256(str(root).encode()).hexdigest()[:8]


# --- cron ---------------------------------------------------------------------------------------------


def _cron_runs() -> bool:
    """Whether crontab is there, and a daemon that reads it."""
    if shutil.which("crontab") is None:
        return False
    names = (_name(entry) for entry in PROC.iterdir() if entry.name.isdigit())
    return any(name in ("cron", "crond", "cronie") for name in names)


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return ""


def _set_cron_line(root: Path, command: str) -> bool:
    """Replace, or with no command remove, this root's own line; the user's other lines stay to the byte."""
    listed = subprocess.run(
        ["crontab", "-l"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    lines = listed.stdout.splitlines(keepends=True) if listed.returncode == 0 else []
    mark = f"# {_mark(root)}\n".encode()
    kept: List[bytes] = [line for line in lines if not line.endswith(mark)]
    if command:
        if kept and not kept[-1].endswith(b"\n"):
            kept.append(b"\n")
        kept.append(b"@reboot " + os.fsencode(command.replace("%", "\\%")) + b" " + mark)  # % is a newline to cron
    if kept == lines:
        return True
    change = ["crontab", "-"] if kept else ["crontab", "-r"]
    done = subprocess.run(change, input=b"".join(kept), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done.returncode == 0


# --- systemd ------------------------------------------------------------------------------------------


def _systemd_runs() -> bool:
    return shutil.which("systemctl") is not None and _said(["systemctl", "--user", "show-environment"])


def _unit(root: Path) -> Path:
    return Path.home() / ".config/systemd/user" / f"{_mark(root)}.service"


def unit_text(root: Path) -> str:
    root_shown, command = (text.replace("%", "%%") for text in (str(root), _command(root)))
    return UNIT.format(root=root_shown, command=command)


def _enable_unit(root: Path) -> bool:
    """Lingering lets the user's units start at boot, without a login."""
    _unit(root).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_unit(root), unit_text(root).encode())
    return _said(["loginctl", "enable-linger"]) and _said(["systemctl", "--user", "enable", _unit(root).name])


def _said(command: List[str]) -> bool:
    """Whether the command succeeded."""
    quiet = subprocess.DEVNULL
    try:
        return subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=COMMAND_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
