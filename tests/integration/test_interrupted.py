"""However and whenever `orch` ends, it leaves no process, temporary folder or partial file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.box.local import install_agent
from orchestrator.errors import Refused
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.system import cache
from orchestrator.system.children import Child
from tests.integration.conftest import Orch
from tests.support import SshdBox, descendants, left_by, name_of, sizes, wait_until

SIGNALS = {"INT": 130, "TERM": 143, "HUP": 129, "KILL": -9}
STAGES = {
    "call": "transport.call(toy_request('sleep'))",
    "stream": "[None for frame in transport.stream(toy_request('sleep'))]",
    "push": "transport.push(Path(sys.argv[2]) / 'code', ['large'], sys.argv[2] + '/there', None)",
    "pull": "transport.pull(sys.argv[2] + '/run', Path(sys.argv[2]) / 'mirror', {'large': 50000000})",
}
# The setup of every command, around one request to the box.
CLIENT = """
import io, sys, zipfile
from hashlib import sha256
from pathlib import Path
import typer
from orchestrator.ui.command_frame import reported
from orchestrator.ui.screen import Screen
from orchestrator.ssh.fabric import FabricTransport
from orchestrator.box.agent_bundle import AgentBundle
from tests.support import toy_request
buffer = io.BytesIO()
with zipfile.ZipFile(buffer, "w") as archive:
    archive.writestr("__main__.py", "import time; time.sleep(1000)")
bundle = AgentBundle(buffer.getvalue(), sha256(buffer.getvalue()).hexdigest())
try:
    with reported(Screen):
        transport = FabricTransport("gpu1", sys.argv[3], None, sys.executable, Path(sys.argv[1]), bundle)
        try:
            STAGE
        finally:
            transport.close()
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


def client(box: SshdBox, folder: Path, stage: str, alias: str) -> subprocess.Popen[bytes]:
    source = textwrap.dedent(CLIENT).replace("STAGE", STAGES[stage])
    command = [sys.executable, "-c", source, str(box.config), str(folder), alias]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)


def slow_proxy(box: SshdBox, *, mute_after: int) -> None:
    """Add a ProxyCommand `slow` that stops after so many bytes from the box."""
    proxy = box.folder / "proxy.py"
    proxy.write_text(
        "import os, socket, sys, threading, time\n"
        "line, left = socket.create_connection((sys.argv[1], int(sys.argv[2]))), int(sys.argv[3])\n"
        "def up():\n"
        "    while data := os.read(0, 65536): line.sendall(data)\n"
        "    time.sleep(1000)\n"  # does not notice the end of its stdin
        "threading.Thread(target=up, daemon=True).start()\n"
        "while left > 0 and (data := line.recv(min(left, 65536))): os.write(1, data); left -= len(data)\n"
        "time.sleep(1000)\n"
    )
    box.add_host("slow", ProxyCommand=f"{sys.executable} {proxy} %h %p {mute_after}")


def ours(box: SshdBox, folder: Path) -> list[int]:
    """Return the laptop's processes: all that name `folder`, except the box's."""
    theirs = {pid for pid in left_by([folder]) if name_of(pid).startswith("sshd")}
    theirs |= {child for pid in theirs for child in descendants(pid)}
    theirs |= set(left_by([box.home]))  # also if the sshd that started it is gone: this agent only sleeps
    return [pid for pid in left_by([folder]) if pid not in theirs]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a temporary folder for this test only."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "alone"])
def test_no_processes_or_files_remain_when_orch_is_ended(
    sshd_box: SshdBox, tmp_path: Path, temporary: Path, stage: str, name: str, whole_group: bool
) -> None:
    """In a call, a stream and both copies, through a proxy that does not notice the end by itself."""
    for folder in ("code", "run"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "large").write_bytes(os.urandom(1 << 20) * 48)
    slow_proxy(sshd_box, mute_after=3_000_000 if stage == "pull" else 10**9)
    if stage == "push":  # the program on the box does not read
        stalled = sshd_box.home / "rsync"
        stalled.write_text("#!/bin/sh\nexec sleep 1000\n")
        stalled.chmod(0o700)
        sshd_box.stop()
        sshd_box.sftp = str(stalled)
        sshd_box.env["PATH"] = f"{sshd_box.home}:{os.environ['PATH']}"
        sshd_box.start()
    started = client(sshd_box, tmp_path, stage, "slow")
    is_at_work: dict[str, Callable[[], object]] = {
        "call": lambda: [pid for pid in left_by([sshd_box.home]) if "python" in name_of(pid)],
        "stream": lambda: [pid for pid in left_by([sshd_box.home]) if "python" in name_of(pid)],
        "push": lambda: [pid for pid in left_by([sshd_box.home]) if name_of(pid) == "sleep"],
        "pull": lambda: any(size > 1 << 20 for size in sizes(tmp_path / "mirror").values()),
    }
    wait_until(is_at_work[stage], 60, f"{stage} to be in the middle")
    number = getattr(signal, f"SIG{name}")
    os.killpg(started.pid, number) if whole_group else started.send_signal(number)
    _, said = started.communicate(timeout=60)
    assert started.returncode == SIGNALS[name], said.decode()
    assert b"Traceback" not in said
    assert name == "KILL" or b"interrupted" in said
    wait_until(lambda: not ours(sshd_box, tmp_path), what="every process to end")
    assert not list(temporary.iterdir())
    left = [Path(path) for path in sizes(tmp_path / "mirror")] if (tmp_path / "mirror").exists() else []
    if name != "KILL":  # received data is kept only where the next copy resumes
        assert left in ([], [Path(".tmp-partial/large")])


def test_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under `nohup`."""
    source = (
        "import signal, os\nfrom orchestrator.system.interrupts import ending_cleanly\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with ending_cleanly():\n    os.kill(os.getpid(), signal.SIGHUP)\nprint('on')\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "on\n"


@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_command_that_waits_ends_with_the_code_of_its_signal(local_orch: Orch, name: str) -> None:
    local_orch.job("worker1", "gate")
    waiting = local_orch.start("launch", "worker1", "--wait", stderr=subprocess.PIPE)
    wait_until(lambda: local_orch.has_started("worker1"), 60, "the run")
    wait_until(lambda: os.read(waiting.stderr.fileno(), 0) == b"", what="")  # type: ignore[union-attr]
    waiting.send_signal(getattr(signal, f"SIG{name}"))
    _, said = waiting.communicate(timeout=60)
    assert waiting.returncode == SIGNALS[name], said.decode()
    assert b"Traceback" not in said
    assert local_orch.state("worker1")["state"] in ("starting", "running")
    local_orch.open("gate")
    local_orch.wait_for("worker1", "succeeded")


def test_child_ends_with_all_its_descendants(tmp_path: Path) -> None:
    stubborn = f"trap '' TERM; sh -c \"trap '' TERM; sleep 1000\" {tmp_path}/ & echo; wait; sleep 1000"
    child = Child(["/bin/sh", "-c", stubborn, "sh", f"{tmp_path}/"], stdout=subprocess.PIPE)
    assert child.process.stdout is not None
    child.process.stdout.readline()
    assert left_by([tmp_path])
    child.end()
    child.process.stdout.close()
    wait_until(lambda: not left_by([tmp_path]), what="all of it to end")
    child.end()  # harmless


# --- the cache -------------------------------------------------------------------------------------------


def test_ssh_configuration_is_one_private_file(sshd_box: SshdBox, home: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("orch-ssh-*"))
    files = {SshConfig(Destination("box"), None, sshd_box.config).file() for _ in range(3)}
    assert len(files) == 1
    file = files.pop()
    assert file.parent == home / ".cache" / "orch"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("ProxyCommand evil\n")
    assert "evil" not in SshConfig(Destination("box"), None, sshd_box.config).file().read_text()
    file.chmod(0o666)
    assert SshConfig(Destination("box"), None, sshd_box.config).file().stat().st_mode & 0o777 == 0o600
    assert set(Path(tempfile.gettempdir()).glob("orch-ssh-*")) == before


def test_old_cache_files_are_removed(home: Path) -> None:
    folder = install_agent().parent
    for name in ("ssh-0123456789abcdef.conf", ".tmp-0123", "agent-old.pyz"):
        (folder / name).write_text("")
        os.utime(folder / name, (1, 1))
    (folder / ".tmp-new").write_text("")
    cache.place("ssh-new.conf", b"new")
    assert {path.name for path in folder.iterdir()} == {
        install_agent().name,
        "agent-old.pyz",
        ".tmp-new",
        "ssh-new.conf",
    }


@pytest.mark.parametrize("where", ["orch", "."])
@pytest.mark.parametrize("what", ["writable", "of another user"])
def test_cache_that_others_can_write_is_refused(home: Path, where: str, what: str) -> None:
    folder = home / ".cache" / where
    (home / ".cache" / "orch").mkdir(parents=True)
    if what == "writable":
        folder.chmod(0o777)
    elif os.getuid() == 0:
        os.chown(folder, 65534, 65534)
    else:
        pytest.skip("only root can give a directory to another user")
    for use in (install_agent, SshConfig(Destination("box"), None, None).file):
        with pytest.raises(Refused, match="others could change what orch runs here") as refusal:
            use()
        assert str(folder) in refusal.value.message
        assert refusal.value.hint
    assert [path.name for path in (home / ".cache" / "orch").iterdir()] == []


def test_agent_file_that_others_can_write_is_rewritten(home: Path) -> None:
    path = install_agent()
    path.chmod(0o666)
    assert install_agent().stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert not install_agent().is_symlink()


def test_refused_cache_is_reported_once(local_orch: Orch, home: Path) -> None:
    local_orch.job("worker1")
    (home / ".cache" / "orch").mkdir(parents=True)
    (home / ".cache" / "orch").chmod(0o777)
    refused = local_orch.run("launch", "worker1", code=4)
    assert "can be written by every user" in refused.stderr
    assert "Traceback" not in refused.stderr
