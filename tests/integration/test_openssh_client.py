"""The `openssh` client over one master connection of its own: used again, replaced when it does not answer, closed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.box.retry import RetryingTransport
from orchestrator.errors import HostError, HostUnreachable
from orchestrator.ssh import master, master_check, process_command, rsync
from orchestrator.ssh.master_check import MasterCheck
from orchestrator.ssh.openssh import OpenSshTransport
from remote.contract.requests import HelloRequest, Request
from tests.integration.conftest import Orch
from tests.support import SshdBox, wait_until
from tests.test_architecture import NOT_FOR_STATUS, PROBE

HELLO = Request(HelloRequest(), None)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask after a shorter silence whether the server answers."""
    monkeypatch.setattr(process_command, "QUIET_S", 0.3)
    monkeypatch.setattr(process_command, "PROBE_S", 1.0)
    monkeypatch.setattr(master_check, "QUIET_S", 0.3)
    monkeypatch.setattr(master_check, "PROBE_S", 1.0)


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """End the processes in the list after the test, which are stopped."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def master_pid(transport: OpenSshTransport) -> int:
    command = ["ssh", *transport.master.options(), "-O", "check", "--", "box"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = re.search(r"pid=(\d+)", said)
    assert found
    return int(found[1])


def test_next_command_needs_no_login(sshd_box: SshdBox) -> None:
    sshd_box.openssh().call(HELLO)
    again = sshd_box.openssh()
    assert again.connection().startswith("openssh, connected for ")
    again.call(HELLO)
    assert sshd_box.logins() == 1


def test_one_login_for_commands_that_start_together(sshd_box: SshdBox) -> None:
    transports = [sshd_box.openssh() for _ in range(4)]
    threads = [threading.Thread(target=transport.call, args=[HELLO]) for transport in transports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sshd_box.logins() == 1


def test_files_go_through_the_same_connection(sshd_box: SshdBox, tmp_path: Path) -> None:
    transport = sshd_box.openssh()
    (tmp_path / "a").write_text("a")
    transport.push(tmp_path, ["a"], str(sshd_box.home / "code"), None)
    transport.pull(str(sshd_box.home / "code"), tmp_path / "back", {"a": 1})
    assert (tmp_path / "back" / "a").read_text() == "a" and sshd_box.logins() == 1


def test_stopped_master_is_replaced(sshd_box: SshdBox, stopped: list[int], soon: None) -> None:
    first = sshd_box.openssh()
    first.call(HELLO)
    stopped.append(master_pid(first))
    os.kill(stopped[0], signal.SIGSTOP)
    sshd_box.openssh().call(HELLO)
    assert sshd_box.logins() == 2


@pytest.mark.parametrize("way", ["push", "pull"])
def test_master_that_is_stopped_during_a_transfer_is_replaced(
    sshd_box: SshdBox, tmp_path: Path, stopped: list[int], soon: None, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The transfer, which takes some seconds, continues with the part that has arrived."""
    _own_rsync(tmp_path, 'exec {} --bwlimit=16m "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    notes: list[str] = []
    transport = sshd_box.openssh()
    retrying = RetryingTransport(transport, notes.append)
    retrying.call(HELLO)
    here, there = tmp_path / "here", sshd_box.home / "there"
    source, target = (here, there) if way == "push" else (there, here)
    source.mkdir()
    (source / "large").write_bytes(os.urandom(1 << 25))
    stopped.append(master_pid(transport))
    files = {"large": 1 << 25}

    def copy() -> None:
        if way == "push":
            retrying.upload(here, files, str(there), lambda sent: None)
        else:
            retrying.pull(str(there), here, files)

    copying = threading.Thread(target=copy)
    copying.start()
    wait_until(lambda: any(part.stat().st_size > 1 << 20 for part in target.rglob("*large*")), what="a part to arrive")
    os.kill(stopped[0], signal.SIGSTOP)
    copying.join(60)
    assert not copying.is_alive() and sshd_box.logins() == 2
    assert (target / "large").read_bytes() == (source / "large").read_bytes()
    assert len(notes) == 1 and "the connection does not answer" in notes[0]


def test_master_that_answers_is_kept_during_a_silent_transfer(
    sshd_box: SshdBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked many times, while the box sends nothing, as when it reads a large file before."""
    monkeypatch.setattr(master_check, "QUIET_S", 0.0)
    monkeypatch.setattr(rsync, "TICK_S", 0.1)
    _own_rsync(sshd_box.home, 'sleep 3; exec {} "$@"')
    sshd_box.stop()
    sshd_box.env["PATH"] = f"{sshd_box.home}:{os.environ['PATH']}"
    sshd_box.start()
    transport = sshd_box.openssh()
    (tmp_path / "a").write_text("a")
    answers: list[bool] = []
    has_answered = MasterCheck._has_answered

    def counted(check: MasterCheck) -> bool:
        answers.append(has_answered(check))
        return answers[-1]

    monkeypatch.setattr(MasterCheck, "_has_answered", counted)
    transport.push(tmp_path, ["a"], str(sshd_box.home / "code"), None)
    assert (sshd_box.home / "code/a").read_text() == "a" and sshd_box.logins() == 1
    assert answers.count(True) > 3


def _own_rsync(folder: Path, command: str) -> None:
    """Make the rsync in `folder`: a shell command, in which {} is the real one."""
    program = folder / "rsync"
    program.write_text(f"#!/bin/sh\n{command.format(shutil.which('rsync'))}\n")
    program.chmod(0o700)


def test_killed_master_is_replaced(sshd_box: SshdBox) -> None:
    first = sshd_box.openssh()
    first.call(HELLO)
    os.kill(master_pid(first), signal.SIGKILL)
    assert first.master.path().exists()
    first.call(HELLO)
    assert sshd_box.logins() == 2


def test_connection_that_another_command_has_replaced_is_kept(sshd_box: SshdBox) -> None:
    first, second = sshd_box.openssh(), sshd_box.openssh()
    first.call(HELLO)
    os.kill(master_pid(first), signal.SIGKILL)
    second.call(HELLO)
    first.master.abandon()
    first.call(HELLO)
    assert sshd_box.logins() == 2


def test_connection_that_does_not_answer_is_replaced(sshd_box: SshdBox, stopped: list[int], soon: None) -> None:
    first = sshd_box.openssh()
    first.call(HELLO)
    stopped += sshd_box.sessions()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    first.call(HELLO)
    assert sshd_box.logins() == 2


def test_new_connection_that_does_not_answer_is_an_error(sshd_box: SshdBox, stopped: list[int], soon: None) -> None:
    """The server answers while the login shell has not started anything yet, and then no more."""
    transport = sshd_box.openssh()
    (sshd_box.home / ".bashrc").write_text(f"touch {sshd_box.folder}/begun; sleep 30\n")
    errors: list[HostError] = []

    def ask() -> None:
        try:
            transport.call(HELLO)
        except HostError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until((sshd_box.folder / "begun").exists, what="the shell to start")
    sshd_box.freeze()
    stopped += sshd_box.sessions()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        asking.join(60)
        assert len(errors) == 1 and isinstance(errors[0], HostUnreachable)
        assert "does not answer" in errors[0].message
    finally:
        sshd_box.thaw()


def test_slow_start_up_file_is_waited_for(sshd_box: SshdBox, soon: None) -> None:
    (sshd_box.home / ".bashrc").write_text("sleep 2\n")
    sshd_box.openssh().call(HELLO)
    assert sshd_box.logins() == 1


def test_connection_stays_open_if_a_command_is_interrupted(sshd_box: SshdBox) -> None:
    """A request that ends does not show that the connection is broken."""
    first, start_up = sshd_box.openssh(), sshd_box.home / ".bashrc"
    first.call(HELLO)
    start_up.write_text(f"touch {sshd_box.folder}/begun; sleep 30\n")
    errors: list[HostError] = []

    def ask() -> None:
        try:
            first.call(HELLO)
        except HostError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until((sshd_box.folder / "begun").exists, what="the shell to start")
    first.close()
    asking.join(30)
    assert len(errors) == 1
    start_up.unlink()
    sshd_box.openssh().call(HELLO)
    assert sshd_box.logins() == 1


def test_alias_of_another_machine_never_uses_the_old_connection(sshd_box: SshdBox, tmp_path: Path) -> None:
    sshd_box.openssh().call(HELLO)
    (tmp_path / "other").mkdir()
    other = SshdBox(tmp_path / "other")
    other.start()
    try:
        text = sshd_box.config.read_text().replace(f"Port {sshd_box.port}", f"Port {other.port}")
        text = text.replace(str(sshd_box.folder), str(other.folder))
        sshd_box.config.write_text(text)
        sshd_box.openssh().call(HELLO)
        assert (sshd_box.logins(), other.logins()) == (1, 1)
    finally:
        other.close()


def test_connection_of_the_user_is_not_used(sshd_box: SshdBox, tmp_path: Path) -> None:
    own = tmp_path / "own"
    sshd_box.add_host("shared", ControlMaster="auto", ControlPath=own, ControlPersist="60")
    ssh = ["ssh", "-F", str(sshd_box.config), "-o", "BatchMode=yes"]
    subprocess.run([*ssh, "shared", "true"], check=True, capture_output=True)
    sshd_box.openssh(ssh="shared").call(HELLO)
    assert sshd_box.logins() == 2
    subprocess.run([*ssh, "-O", "exit", "shared"], check=True, capture_output=True)


def test_disconnect_closes_the_connection(ssh_orch: Orch) -> None:
    assert ssh_orch.box is not None
    ssh_orch.job("a", "exit=0")
    ssh_orch.run("doctor", "gpu1")
    assert "openssh, connected for" in ssh_orch.run("doctor", "gpu1").stdout
    assert ssh_orch.box.logins() == 1
    assert "gpu1: disconnected" in ssh_orch.run("disconnect").stdout
    assert "gpu1: was not connected" in ssh_orch.run("disconnect", "gpu1").stdout
    assert "this machine" in ssh_orch.run("disconnect", "local", code=2).stderr
    assert "openssh, which connects now" in ssh_orch.run("doctor", "gpu1").stdout
    assert ssh_orch.box.logins() == 2


@pytest.mark.parametrize("folder", ["with a space", "%h", "${HOME}", "quo'te", "/proc", "not/there"])
def test_runtime_directory_that_ssh_cannot_use_is_not_used(
    sshd_box: SshdBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    given = tmp_path / folder
    if folder != "not/there":
        given.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(given))
    transport = sshd_box.openssh()
    transport.call(HELLO)
    assert transport.master.path().parent == Path(f"/tmp/orch-{os.getuid()}")
    assert transport.disconnect()


def test_disconnect_goes_on_after_a_host_that_is_wrong(ssh_orch: Orch) -> None:
    with (Path.home() / ".ssh/config").open("a") as config:
        config.write("Host around\nProxyJump back\nHost back\nProxyJump around\n")
    ssh_orch.host_table = '[hosts.around]\nssh = "around"\n' + ssh_orch.host_table
    ssh_orch.job("train")
    ssh_orch.run("status", "--on", "gpu1")
    shown = ssh_orch.run("disconnect", code=3)
    assert "gpu1: disconnected" in shown.stdout and "circle" in shown.stderr


def test_directory_of_sockets_that_others_can_use_is_refused(
    sshd_box: SshdBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    monkeypatch.setattr(master, "NAME", f"orch-test-{os.getpid()}")
    folder = Path("/tmp", master.NAME)
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    try:
        with pytest.raises(HostError, match="not of this user alone"):
            sshd_box.openssh().call(HELLO)
    finally:
        folder.rmdir()
    assert sshd_box.logins() == 0


# The parts of the other client, of its libraries, and of other commands.
NOT_FOR_STATUS_OVER_OPENSSH = NOT_FOR_STATUS - {"orchestrator.ssh"} | {
    "orchestrator.box.local",
    "orchestrator.ssh.connection",
    "orchestrator.ssh.fabric",
    "orchestrator.ssh.sftp",
    "orchestrator.ssh.user_keys",
    "rich.panel",
    "rich.progress",
    "rich.traceback",
}


def test_status_imports_nothing_of_the_other_client(ssh_orch: Orch, tmp_path: Path) -> None:
    ssh_orch.host_table += 'client = "openssh"\n'
    ssh_orch.job("a", "end")
    ssh_orch.launch("a")
    probe = [sys.executable, "-c", PROBE, str(tmp_path / "modules.json"), "status"]
    for _ in range(2):  # with the connection that is open, and with a new one
        done = subprocess.run(probe, cwd=ssh_orch.project, capture_output=True, text=True, check=True)
        assert "running" in done.stdout
        modules = set(json.loads((tmp_path / "modules.json").read_text()))
        assert "orchestrator.ssh.openssh" in modules
        assert modules & NOT_FOR_STATUS_OVER_OPENSSH == set()
        ssh_orch.run("disconnect")
    ssh_orch.open("end")
