"""Resume runs after a reboot: lines in a real crontab, a unit that systemd accepts, and `resume`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from remote.contract.files import read_json, write_json
from remote.contract.locks import is_held, try_lock
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Queued, Running, Stopped, Succeeded
from remote.contract.reboot_method import RebootMethod
from remote.contract.records import write_record
from remote.host import launchers, reboot
from remote.host.process import read_proc
from remote.host.run_state import read_state
from tests.remote_runs import entry_script, in_private_mounts, new_run
from tests.support import wait_until

IDS = [f"20260126T21031{number}-7f3a" for number in range(6)]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectPaths:
    monkeypatch.setattr(launchers, "ENTRY", str(entry_script(tmp_path)))
    return ProjectPaths(tmp_path / "box", "persistence")


def has_succeeded(run: RunPaths) -> bool:
    return isinstance(read_state(run), Succeeded)


# --- cron -----------------------------------------------------------------------------------------------

CRON = """
import os, subprocess
from pathlib import Path
from remote.contract.reboot_method import RebootMethod
from remote.host import launchers, reboot
from remote.contract.paths import ProjectPaths
from remote.contract.protocol import Succeeded
from remote.contract.records import write_record
from tests.remote_runs import new_run

launchers.ENTRY = "/opt/50 % off/agent.pyz"
reboot._has_cron_daemon = lambda: True  # other tests on this machine would see a real daemon of that name
paths = ProjectPaths(Path(sys.argv[1]) / "box", "persistence")
run = new_run(paths)

def table():
    done = subprocess.run(["crontab", "-l"], capture_output=True)
    return done.stdout if done.returncode == 0 else None

def line():
    (found,) = [line for line in (table() or b"").splitlines() if b"orch-" in line]
    return found
"""
needs_crontab = pytest.mark.skipif(shutil.which("crontab") is None, reason="crontab is not installed: apt install cron")


def with_crontab(tmp_path: Path, code: str) -> None:
    """Run the code with a private crontab, so that the crontab of this machine's user is not changed."""
    site = [path for path in sys.path if path.endswith("site-packages")]
    mounts = "mkdir -p /var/spool/cron\nmount -t tmpfs tmpfs /var/spool/cron\n"
    mounts += "mkdir /var/spool/cron/crontabs\nchmod 1730 /var/spool/cron/crontabs"
    in_private_mounts(mounts, f"sys.path += {site!r}\n" + CRON + code, tmp_path)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="/var/spool/cron can be replaced by root alone")


@needs_crontab
@needs_root
def test_crontab_line_is_added_once_and_removed(tmp_path: Path) -> None:
    with_crontab(
        tmp_path,
        """
from remote.contract.files import read_json
assert table() is None
os.environ.update(SSH_CONNECTION="1.2.3.4", LD_LIBRARY_PATH="/opt/cuda/lib64")
assert reboot.ensure(paths) == "cron"
kept = paths.box / "environment.json"
assert read_json(kept)["LD_LIBRARY_PATH"] == "/opt/cuda/lib64" and "SSH_CONNECTION" not in read_json(kept)
assert kept.stat().st_mode & 0o777 == 0o600
assert line().startswith(b"@reboot " + os.fsencode(sys.executable) + b" -I -S "), line()
assert b"'/opt/50 \\\\% off/agent.pyz' resume " + os.fsencode(str(paths.box)) + b" # orch-" in line(), line()
first = table()
assert reboot.ensure(paths) == "cron"
assert table() == first, "it is not idempotent"
reboot.release(paths)
assert table() == first, "a run under the root has yet to go on"
write_record(run.state, Succeeded(1.0))
reboot.release(paths)
assert table() is None, table()
assert not kept.exists()
reboot.release(paths)
""",
    )


@needs_crontab
@needs_root
def test_other_crontab_lines_stay_byte_exact(tmp_path: Path) -> None:
    with_crontab(
        tmp_path,
        """
own = b"# my jobs \\xe9\\nMAILTO=me\\n\\n  0 3 * * *   backup 100\\\\%  # orch-like\\n@reboot echo hello\\t \\n\\n"
subprocess.run(["crontab", "-"], input=own, check=True)
other = ProjectPaths(Path(sys.argv[1]) / "other", "persistence")
new_run(other)
assert reboot.ensure(paths) == "cron"
assert reboot.ensure(other) == "cron"
assert table().startswith(own) and len(table()[len(own):].splitlines()) == 2, table()
launchers.ENTRY = "/opt/agent-2.pyz"  # the line of the newer agent replaces the old one
assert reboot.ensure(paths) == "cron"
assert table().startswith(own) and table().count(b"resume") == 2 and table().count(b"agent-2.pyz") == 1, table()
write_record(run.state, Succeeded(1.0))
reboot.release(paths)
assert table().startswith(own) and table().count(b"resume") == 1, table()
for one in other.all_runs():
    write_record(one.state, Succeeded(1.0))
reboot.release(other)
assert table() == own, table()
""",
    )


@needs_crontab
@needs_root
def test_crontab_that_cannot_be_read_is_not_overwritten(tmp_path: Path) -> None:
    with_crontab(
        tmp_path,
        """
own = b"0 3 * * * backup\\n"
subprocess.run(["crontab", "-"], input=own, check=True)
real, path = subprocess.check_output(["which", "crontab"], text=True).strip(), os.environ["PATH"]
tools = Path(sys.argv[1]) / "tools"
tools.mkdir()
(tools / "crontab").write_text(f'#!/bin/sh\\n[ "$1" = -l ] || exec {real} "$@"\\necho busy >&2\\nexit 1\\n')
(tools / "crontab").chmod(0o755)
os.environ["PATH"] = f"{tools}:{path}"
assert reboot.ensure(paths) == "none"
assert not reboot._set_cron_line(paths.box, "agent")
os.environ["PATH"] = path
assert table() == own, table()
""",
    )


@needs_crontab
@needs_root
@pytest.mark.skipif(not Path("/usr/sbin/cron").exists(), reason="cron is not installed")
def test_cron_starts_unfinished_runs_after_a_reboot(tmp_path: Path) -> None:
    """Use the real daemon, under another name, with an empty /run, as just after a boot."""
    with_crontab(
        tmp_path,
        """
import shutil, time
said = Path(sys.argv[1]) / "100 % said"
program = Path(sys.argv[1]) / "50 % agent.py"
program.write_text(f"import sys; open({str(said)!r}, 'w').write(repr(sys.argv[1:]))")
launchers.ENTRY = str(program)
assert reboot.ensure(paths) == "cron"
for command in (["mount", "-t", "tmpfs", "tmpfs", "/run"], ["mount", "-t", "tmpfs", "tmpfs", "/etc/cron.d"],
                ["mount", "--bind", "/dev/null", "/etc/crontab"]):
    subprocess.run(command, check=True)
daemon = Path(sys.argv[1]) / "night"
shutil.copy("/usr/sbin/cron", daemon)
with subprocess.Popen([str(daemon), "-f"]) as process:
    until = time.monotonic() + 60
    while not (said.exists() and said.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    process.terminate()
assert said.read_text() == repr(["resume", str(paths.box)]), said.read_text()
""",
    )


# --- which method ---------------------------------------------------------------------------------------

CRONTAB = "echo 'no crontab for me' >&2; exit 1"
REFUSED = "echo 'you are not allowed to use this program' >&2; exit 1"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("tools", "has_daemon", "expected"),
    [
        ({}, True, RebootMethod("none", "no_scheduler")),
        ({"crontab": CRONTAB}, True, RebootMethod("cron")),
        ({"crontab": "echo '0 3 * * * backup'"}, True, RebootMethod("cron")),
        ({"crontab": CRONTAB}, False, RebootMethod("none", "no_daemon")),
        ({"crontab": REFUSED}, True, RebootMethod("none", "no_scheduler")),
        ({"crontab": REFUSED, "systemctl": "exit 0", "pkcheck": "exit 0"}, True, RebootMethod("systemd")),
        ({"crontab": CRONTAB, "systemctl": "exit 0", "pkcheck": "exit 0"}, False, RebootMethod("systemd")),
        ({"crontab": CRONTAB, "systemctl": "exit 0", "pkcheck": "exit 0"}, True, RebootMethod("cron")),
        ({"systemctl": "exit 1"}, False, RebootMethod("none", "no_scheduler")),
    ],
)
def test_method_follows_from_the_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tools: dict[str, str], has_daemon: bool, expected: RebootMethod
) -> None:
    """All processes are real: the programs are scripts, and the daemon is a process named cron."""
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    daemon = cron_daemon(tmp_path) if has_daemon else None
    try:
        if not has_daemon and reboot._has_cron_daemon():
            pytest.skip("a cron daemon runs on this machine")
        assert reboot.find_method() == expected
    finally:
        if daemon is not None:
            daemon.kill()
            daemon.wait()


@pytest.mark.skipif(os.getuid() == 0, reason="root may turn lingering on")
def test_systemd_without_lingering_is_no_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "systemctl").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reboot.find_method() == RebootMethod("none", "no_linger")


def cron_daemon(folder: Path) -> subprocess.Popen[bytes]:
    """Start a process named cron, since only the name is checked."""
    (folder / "daemon").mkdir()
    (folder / "daemon" / "cron").symlink_to("/bin/sleep")
    daemon = subprocess.Popen([str(folder / "daemon" / "cron"), "600"])
    wait_until(lambda: read_proc(str(daemon.pid), "comm") == b"cron\n", what="the daemon's name")
    return daemon


# --- systemd --------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(paths: ProjectPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "ENTRY", "/opt/50 % off/agent.pyz")
    unit = tmp_path / "orch-0a1b2c3d.service"
    unit.write_text(reboot.unit_text(tmp_path / "50 % box"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert unit.name not in done.stdout + done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    assert "'/opt/50 %% off/agent.pyz' resume" in unit.read_text()
    unit.write_text(unit.read_text().replace("ExecStart=", "ExecStart=no/such "))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert unit.name in done.stderr  # the check can fail


# --- resume ---------------------------------------------------------------------------------------------


def of_another_boot(run: RunPaths) -> None:
    record = read_json(run.run) or {}
    write_json(run.run, {**record, "boot": "another boot", "monotonic": 1.0})


def test_only_unfinished_runs_are_resumed(paths: ProjectPaths, tmp_path: Path) -> None:
    code = "import os; print('attempt', os.environ['ORCH_ATTEMPT'], os.environ.get('KEPT'))"
    other = ProjectPaths(paths.box, "another")
    queued = new_run(paths, code, Queued(1.0, "1 of gpu0"), IDS[0])
    over = new_run(paths, code, Succeeded(1.0), IDS[1])
    stopped = new_run(paths, code, Stopped(1.0, "asked", "by a"), IDS[2])
    running = new_run(other, code, Running(1.0, 1, os.getpid(), "1", "another boot"), IDS[3], restarts=1)
    held = new_run(paths, code, Queued(1.0, "1 of gpu0"), IDS[4])
    write_json(
        running.worker,
        {"attempt": 1, "boot": "another boot", "pid": os.getpid(), "identity": "1", "log_start": 0, "devices": []},
    )
    for run in (queued, running, held):
        of_another_boot(run)
    (paths.box / "slots").mkdir()
    (paths.box / "notes.txt").write_text("not a project")
    write_json(paths.box / "environment.json", {"KEPT": "of the login"})
    assert [run.run_id for run in reboot.unfinished(paths.box)] == [IDS[0], IDS[3], IDS[4]]
    lock = try_lock(held.supervisor_lock)
    assert lock is not None
    try:
        argv = [sys.executable, "-I", "-S", launchers.ENTRY, "resume", str(paths.box)]
        subprocess.run(argv, check=True, timeout=60, stdin=subprocess.DEVNULL)
        for run in (queued, running):
            wait_until(partial(has_succeeded, run), timeout=60, what=f"{run.root}: success")
        assert queued.log.read_text() == "attempt 1 of the login\n"
        marker, *printed = running.log.read_text().splitlines()  # the reboot ended the first attempt
        assert "attempt 2" in marker and printed == ["attempt 2 of the login"]
        assert not held.supervisor_log.exists() and not over.supervisor_log.exists()
        assert isinstance(read_state(stopped), Stopped) and stopped.log.read_text() == ""
    finally:
        os.close(lock)
    wait_until(lambda: not is_held(running.supervisor_lock) and not is_held(queued.supervisor_lock))


def test_box_without_cron_and_systemd_gets_no_helper(
    paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))  # neither crontab nor systemctl
    run = new_run(paths)
    assert reboot.ensure(paths) == "none"
    assert not (paths.box / "environment.json").exists()
    write_record(run.state, Succeeded(1.0))
    reboot.release(paths)
