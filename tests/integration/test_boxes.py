"""Boxes as they are: limits of the SSH server, login shells, start-up files, read-only home directories."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import AgentUnusable, DiskFull, HostError, OrchError
from orchestrator.ssh import channel_command, process_command, rsync, ssh_transport
from orchestrator.ssh import start_up as start_up_check
from orchestrator.ssh.command import last_line
from remote.contract.requests import FollowRequest, HelloRequest, Request, Where
from tests.integration.conftest import Orch
from tests.support import SshdBox, left_by, sftp_server, sizes, wait_until


@pytest.fixture(params=["openssh", "fabric"])
def box(request: pytest.FixtureRequest, sshd_box: SshdBox) -> SshdBox:
    """Reach the box with each client."""
    sshd_box.client = request.param
    return sshd_box


@pytest.fixture
def orch(box: SshdBox, ssh_orch: Orch) -> Orch:
    ssh_orch.host_table += f'client = "{box.client}"\n'
    return ssh_orch


def program(path: Path, text: str) -> None:
    """Write a shell script that can be run."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


# --- limits of the SSH server ---------------------------------------------------------------------------------


def test_server_with_one_session_per_connection_serves_every_command(box: SshdBox, orch: Orch) -> None:
    box.options["MaxSessions"] = 1
    box.restart()
    orch.job("b", "end")
    orch.launch("b")
    tail = orch.start("tail", "b")
    try:
        assert orch.states() == {"b": "running"}
        orch.open("end")
        assert tail.wait(30) == 0
    finally:
        tail.kill()
        tail.wait()
    orch.run("sync")
    assert orch.mirror("b").log.read_text() == "b: end\n"


def test_request_during_a_stream_needs_no_second_session(box: SshdBox) -> None:
    box.options["MaxSessions"] = 1
    box.restart()
    folder = box.home / "there"
    folder.mkdir()
    (folder / "log").write_text("x")
    transport = box.transport()
    stream = transport._session.start("echo first; sleep 60", b"", 30)
    try:
        assert stream.stdout.readline() == b"first\n"
        other = transport._session.start("echo second", b"", 30)
        assert other.stdout.read() == b"second\n"
        other.close()
        transport.pull(str(folder), box.folder / "here", {"log": 1})
    finally:
        stream.close()
    assert sizes(box.folder / "here") == {"log": 1}


# --- code that cannot be linked ---------------------------------------------------------------------------------


def test_code_is_sent_without_links_where_linking_fails(ssh_orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with protected hard links, or a mount over the older snapshot."""
    ssh_orch.host_table += 'client = "openssh"\n'
    refuse = 'echo "rsync: link failed: Operation not permitted (1)" >&2; exit 23'
    folder = ssh_orch.project.parent / "here"
    program(folder / "rsync", f'case "$*" in *--link-dest*) {refuse};; esac\nexec {shutil.which("rsync")} "$@"')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    ssh_orch.job("b", "value")
    ssh_orch.run("launch", "b", "--wait")
    (ssh_orch.project / "value.py").write_text("VALUE = 'new'\n")

    done = ssh_orch.run("launch", "b", "--wait")

    assert "Operation not permitted (1); sending all files, without links" in done.stderr
    assert "value is new" in ssh_orch.on_box("b").log.read_text()


# --- start-up files and login shells ----------------------------------------------------------------------------


def use_shell(box: SshdBox, shell: str) -> None:
    """Give the account of the box another login shell."""
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed: .ci/packages.sh installs it")
    wrapper = box.folder / "login"
    program(wrapper, f'exec {path} -c "$SSH_ORIGINAL_COMMAND"')
    box.options["ForceCommand"] = wrapper
    box.sftp = sftp_server()  # the shell starts it; `internal-sftp` is no program
    box.restart()


HOME_OF = {"bash": ".bashrc", "tcsh": ".cshrc", "csh": ".cshrc", "zsh": ".zshenv", "fish": ".config/fish/config.fish"}


def start_up(box: SshdBox, shell: str, text: str) -> None:
    file = box.home / HOME_OF[shell]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


@pytest.mark.parametrize("shell", ["tcsh", "csh", "zsh", "fish", "dash"])
def test_login_shell_serves_requests_streams_and_copies(box: SshdBox, shell: str) -> None:
    use_shell(box, shell)
    folder = box.home / "a b"
    folder.mkdir()
    (folder / "log $HOME!").write_text("x")
    transport = box.transport()
    assert transport.call(Request(HelloRequest())).get("home") == str(box.home)
    with pytest.raises(OrchError, match="no run here"):
        list(transport.stream(Request(FollowRequest("job"), Where("~/orch", "test"))))
    transport.pull(str(folder), box.folder / "here", {"log $HOME!": 1})
    assert sizes(box.folder / "here") == {"log $HOME!": 1}
    transport.push(box.folder / "here", ["log $HOME!"], str(box.home / "back"), None)
    assert sizes(box.home / "back") == {"log $HOME!": 1}


@pytest.mark.parametrize(
    ("shell", "text", "hint"),
    [
        ("bash", "exec tmux", "start another program, such as tmux"),
        ("bash", "exit 0", "start another program, such as tmux"),
        ("bash", "read -r answer", "read the input of the command"),
        ("bash", "sleep 600", "runs no command within 1 s"),
        ("tcsh", "exec tmux", "start another program, such as tmux"),
        ("zsh", "read answer", "read the input of the command"),
    ],
)
@pytest.mark.parametrize("has_agent", [True, False])
def test_hint_names_what_the_start_up_files_do(
    box: SshdBox, monkeypatch: pytest.MonkeyPatch, shell: str, text: str, hint: str, has_agent: bool
) -> None:
    monkeypatch.setattr(start_up_check, "CHECK_S", 1.0)
    if "sleep" in text:
        monkeypatch.setattr(ssh_transport, "ANSWER_S", 1.0)
        monkeypatch.setattr(channel_command, "TICK_S", 0.05)
    use_shell(box, shell)
    if has_agent:
        with monkeypatch.context() as patient:
            patient.setattr(ssh_transport, "ANSWER_S", 60.0)
            box.transport().call(Request(HelloRequest()))
    start_up(box, shell, text)
    for ask in (
        lambda: box.transport().call(Request(HelloRequest())),
        lambda: list(box.transport().stream(Request(FollowRequest("job"), Where("~/orch", "test")))),
    ):
        with pytest.raises(HostError) as failure:
            ask()
        assert hint in failure.value.hint


def test_output_of_start_up_files_is_named_where_it_breaks_a_stream(box: SshdBox) -> None:
    use_shell(box, "bash")
    start_up(box, "bash", "echo Welcome to the cluster")
    transport = box.transport()
    transport.call(Request(HelloRequest()))
    with pytest.raises(AgentUnusable) as failure:
        list(transport.stream(Request(FollowRequest("job"), Where("~/orch", "test"))))
    assert "print something ('Welcome to the cluster')" in failure.value.hint


def test_slow_start_up_files_are_waited_for(box: SshdBox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream is silent for longer at its start than it may be later."""
    monkeypatch.setattr(ssh_transport, "STREAM_SILENCE_S", 0.5)
    monkeypatch.setattr(process_command, "QUIET_S", 0.2)
    monkeypatch.setattr(channel_command, "TICK_S", 0.05)
    use_shell(box, "bash")
    start_up(box, "bash", "sleep 2")
    transport = box.transport()
    with pytest.raises(OrchError, match="no run here"):
        list(transport.stream(Request(FollowRequest("job"), Where("~/orch", "test"))))


@pytest.mark.slow
def test_start_up_file_that_takes_33_s_is_waited_for(box: SshdBox) -> None:
    transport = box.transport()
    transport.call(Request(HelloRequest()))  # installs the agent
    start_up(box, "bash", "sleep 33")
    ends: list[str] = []

    def follow() -> None:
        with pytest.raises(OrchError) as failure:
            list(transport.stream(Request(FollowRequest("job"), Where("~/orch", "test"))))
        ends.append(failure.value.message)

    following = threading.Thread(target=follow)
    following.start()
    assert transport.call(Request(HelloRequest())).get("home") == str(box.home)
    following.join(60)
    assert len(ends) == 1 and "no run here" in ends[0]
    assert box.logins() == 1


# --- home directories that cannot be written ----------------------------------------------------------------------


def test_agent_is_installed_below_the_root_if_the_home_directory_cannot_be_written(box: SshdBox, orch: Orch) -> None:
    (box.home / ".cache").write_text("a file, which stops even root")
    orch.job("b", "metrics")
    orch.run("launch", "b", "--wait")
    orch.run("sync")
    assert orch.mirror("b").log.read_text() == "b: metrics\n"
    assert [path.suffix for path in (orch.root / ".agent").iterdir() if path.name.startswith("agent-")]


def test_unwritable_home_and_root_are_both_named(box: SshdBox) -> None:
    for name in (".cache", "orch"):
        (box.home / name).write_text("a file, which stops even root")
    with pytest.raises(AgentUnusable, match=r"\.cache/orch'.*orch/\.agent'") as failure:
        box.transport(root="~/orch").call(Request(HelloRequest()))
    assert "writable" in failure.value.hint


# --- errors that another try does not heal ------------------------------------------------------------------------


def test_watch_ends_when_the_host_refuses_the_login(box: SshdBox, orch: Orch) -> None:
    orch.job("b", "end")
    orch.launch("b")
    (box.folder / "authorized_keys").write_text("")
    box.kill_connections()
    done = orch.run("watch", code=1)
    assert "does not accept this user or key" in done.stdout


@pytest.mark.parametrize("code", [11, 12])
def test_full_disk_of_the_box_is_not_a_lost_connection(code: int) -> None:
    errors = b'rsync: [receiver] write failed on "/x": No space left on device (28)\nrsync: [sender] write error\n'
    error = rsync._failure("copying", code, errors)
    assert isinstance(error, DiskFull) and "No space left" in error.message
    assert error.hint == "free disk space on the box, then run the command again"


def test_last_line_of_ssh_is_shown_before_that_of_rsync() -> None:
    errors = b"ssh: no matching cipher\nrsync: connection unexpectedly closed (0 bytes received so far) [sender]\n"
    assert last_line(errors + b"rsync error: unexplained error (code 255) at io.c(232)\n") == "ssh: no matching cipher"


@pytest.fixture
def own_disk(box: SshdBox, orch: Orch) -> Iterator[Path]:
    """Give the root of the box a file system of its own, of which nothing takes memory but what is written."""
    orch.root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4g,mode=700", "none", str(orch.root)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield orch.root
    subprocess.run(["umount", "-l", str(orch.root)], check=True)


def fill(disk: Path, left: int) -> None:
    """Make the file system so small that `left` bytes are left in it."""
    found = os.statvfs(disk)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    subprocess.run(["mount", "-o", f"remount,size={used + left}", str(disk)], check=True)


@pytest.mark.parametrize("left", [0, 64 << 10])
def test_full_disk_of_the_box_is_reported_once(box: SshdBox, orch: Orch, own_disk: Path, left: int) -> None:
    orch.job("b", "metrics")
    orch.run("launch", "b", "--wait")
    wait_until(lambda: not left_by([orch.root]), what="the supervisor to end, which frees its reserve")
    fill(own_disk, left)
    assert orch.run("launch", "b", code=4).stderr.count("disk: ") == 1  # the code is there already
    (orch.project / "more").write_bytes(os.urandom(1 << 20))
    for command in (["launch", "b"], ["sync", "--code"]):
        said = orch.run(*command, code=3).stderr
        assert len(re.findall("No space left|disk of the box is full", said)) == 1
        assert "free disk space on the box" in said and "sending all files" not in said
    with pytest.raises(DiskFull):
        box.transport().upload(orch.project, {"more": 1 << 20}, str(own_disk / "data"), lambda size: None)
    orch.run("sync")
    assert orch.mirror("b").log.read_text() == "b: metrics\n"
    assert orch.json("status", "--on", "gpu1")["runs"][0]["state"] == "succeeded"
