"""Logins that ask: for a passphrase, a password, a one-time code. `orch` and its `ssh` run in a real terminal."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Orch
from tests.support import SshdBox, left_by, name_of, wait_until

SECRET = "open sesame"
# Of SECRET, by `openssl passwd -6 -salt saltsalt`.
HASH = "$6$saltsalt$e/5XKibXPLqVcfjpD.ouauaJrAOL5V0uo80Lt7n7EbRdRiCx3HbQ90yjOHr.G0T.mx79PEMRy8nmtr0qSYhQp1"
CODE = "123456"
PASSPHRASE = "Enter passphrase for key"
ENTER, CTRL_C = "\n", "\x03"
PAM = """\
auth required pam_exec.so quiet expose_authtok {program}
auth required pam_permit.so
account required pam_permit.so
session required pam_permit.so
"""


@dataclass
class AskingBox(SshdBox):
    """A box whose sshd can have files of its own in place of some in /etc; nobody else sees them."""

    replaced: dict[str, Path] = field(default_factory=dict)

    def daemon_command(self, sshd: list[str]) -> list[str]:
        if not self.replaced:
            return sshd
        mounts = "".join(f"mount --bind '{own}' '{path}' && " for path, own in self.replaced.items())
        return ["unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh", *sshd]

    def accept_password(self) -> None:
        """Let the user log in with the password SECRET, too. Effective at the next start."""
        lines = Path("/etc/shadow").read_text().splitlines()
        fields = [line.split(":") for line in lines]
        own = [":".join([name, HASH if name == self.user else was, *rest]) for name, was, *rest in fields]
        self._replace("/etc/shadow", "\n".join(own) + "\n")
        self.options |= {"PasswordAuthentication": "yes", "PermitRootLogin": "yes"}

    def accept_code(self) -> None:
        """Let the user log in with the one-time code CODE, too. Effective at the next start."""
        program = self.folder / "check"
        program.write_text(f'#!/bin/sh\nread -r code\n[ "$code" = {CODE} ]\n')
        program.chmod(0o755)
        self._replace("/etc/pam.d/sshd", PAM.format(program=program))
        self.options |= {"UsePAM": "yes", "KbdInteractiveAuthentication": "yes", "PermitRootLogin": "yes"}

    def _replace(self, path: str, text: str) -> None:
        if os.getuid() != 0:
            pytest.skip("the sshd of another user than root can check no password")
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
            pytest.skip("a mount namespace cannot be created here")
        if not Path(path).exists():
            pytest.skip(f"there is no {path} here")
        self.replaced[path] = self.folder / Path(path).name
        self.replaced[path].write_text(text)


class InTerminal:
    """A command in a terminal of its own, as a shell would start it."""

    def __init__(self, command: Sequence[str], folder: Path, **streams: Any) -> None:
        self._ours, self._theirs = terminal = os.openpty()
        self.shown = ""
        self._seen = 0
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(terminal[1], termios.TIOCSCTTY, 0),
            pass_fds=[self._theirs],
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
            **{name: streams.get(name, self._theirs) for name in ("stdin", "stdout", "stderr")},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def expect(self, text: str) -> str:
        """Wait until the terminal shows `text`, after what was expected before. Return what it shows in between."""
        wait_until(lambda: text in self.shown[self._seen :], 60, f"{text!r}; the terminal shows {self.shown!r}")
        before, _, _ = self.shown[self._seen :].partition(text)
        self._seen += len(before) + len(text)
        return before

    def since(self) -> str:
        """Return what the terminal shows after what was expected."""
        return self.shown[self._seen :]

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait(self) -> int:
        return self.process.wait(60)

    def echoes(self) -> bool:
        """Return whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self._theirs)[3] & termios.ECHO)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in filter(None, (self.process.stdin, self.process.stdout)):
            pipe.close()
        os.close(self._theirs)
        self._reader.join(10)
        os.close(self._ours)

    def _read(self) -> None:
        while True:
            try:
                self.shown += os.read(self._ours, 1 << 16).decode()
            except OSError:  # EIO: no process has the terminal open any more
                return


Start = Callable[..., InTerminal]


@pytest.fixture
def sshd_box(tmp_path: Path) -> Iterator[AskingBox]:
    (tmp_path / "sshd").mkdir()
    box = AskingBox(tmp_path / "sshd")
    yield box
    box.close()


@pytest.fixture
def start(ssh_orch: Orch) -> Iterator[Start]:
    """Start `orch`, or another `command`, in a terminal of its own."""
    started: list[InTerminal] = []

    def start(*arguments: str, command: Sequence[str] = (), **streams: Any) -> InTerminal:
        words = [*command, *arguments] if command else ssh_orch.command(*arguments)
        started.append(InTerminal(words, ssh_orch.project, **streams))
        return started[-1]

    ssh_orch.job("b", "exit=0")
    yield start
    for each in started:
        each.close()


@pytest.fixture
def box(sshd_box: AskingBox) -> AskingBox:
    """Protect the key of the box with the passphrase SECRET."""
    command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", SECRET, "-f", str(sshd_box.identity)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    sshd_box.start()
    return sshd_box


def add_second_host(orch: Orch, home: Path) -> None:
    """Add the host gpu2, the same box with a key of another name."""
    assert orch.box is not None
    shutil.copy(orch.box.identity, orch.box.folder / "second")
    orch.box.add_host("box2", IdentityFile=orch.box.folder / "second")
    shutil.copy(orch.box.config, home / ".ssh" / "config")
    first = orch.host_table
    orch.host_table += first.replace("gpu1", "gpu2").replace('"box"', '"box2"').replace("~/orch", "~/orch2")
    orch.job("c", "exit=0", host="gpu2")


def asking_ssh(home: Path) -> list[int]:
    return [pid for pid in left_by([home]) if name_of(pid) == "ssh"]


# --- the passphrase of a key -----------------------------------------------------------------------------------


def test_passphrase_is_asked_once_for_all_commands(ssh_orch: Orch, box: AskingBox, start: Start) -> None:
    status = start("status")
    status.expect(PASSPHRASE)
    assert not status.echoes()
    status.type(SECRET + ENTER)
    assert status.wait() == 0 and status.echoes()
    for arguments in (["launch", "b", "--wait"], ["status"], ["sync"], ["doctor", "gpu1"]):
        again = start(*arguments)
        assert again.wait() == 0
        assert PASSPHRASE not in again.shown
    assert box.logins() == 1
    ssh_orch.run("sync")  # without a terminal


def test_wrong_passphrase_is_asked_again_and_ends_in_one_error(box: AskingBox, start: Start) -> None:
    status = start("status")
    for _ in range(3):
        status.expect(PASSPHRASE)
        status.type("wrong" + ENTER)
    assert status.wait() == 3 and status.echoes()
    said = status.since()
    assert said.count("Permission denied") == 1 and "the host does not accept this user or key" in said
    assert "in a terminal" not in said  # this is one
    again = start("status")
    again.expect(PASSPHRASE)
    again.type("wrong" + ENTER)
    again.expect(PASSPHRASE)
    again.type(SECRET + ENTER)
    assert again.wait() == 0


@pytest.mark.parametrize("command", ["status", "launch b", "tail b"])
def test_ctrl_c_at_the_prompt_ends_cleanly(
    ssh_orch: Orch, box: AskingBox, start: Start, home: Path, command: str
) -> None:
    first = start("launch", "b", "--wait")
    first.expect(PASSPHRASE)
    first.type(SECRET + ENTER)
    assert first.wait() == 0
    ssh_orch.run("disconnect")
    interrupted = start(*command.split())
    interrupted.expect(PASSPHRASE)
    interrupted.type(CTRL_C)
    assert interrupted.wait() == 130
    assert interrupted.echoes()
    assert asking_ssh(home) == []
    assert interrupted.since().count("orch: ") == 1 and "hint: to " in interrupted.since()


def test_sigterm_at_the_prompt_ends_cleanly(box: AskingBox, start: Start, home: Path) -> None:
    status = start("status")
    status.expect(PASSPHRASE)
    status.process.terminate()
    assert status.wait() == 143
    assert status.echoes()
    assert asking_ssh(home) == []


def test_question_that_nobody_answers_ends_in_an_error(
    box: AskingBox, ssh_orch: Orch, start: Start, home: Path
) -> None:
    code = (
        "from orchestrator.ssh import master_login; master_login.PROMPT_S = 1; from orchestrator import cli; cli.main()"
    )
    status = start("status", command=[sys.executable, "-c", code])
    status.expect(PASSPHRASE)
    assert status.wait() == 3
    assert "its questions were not answered within 1 s" in status.since()
    assert status.echoes()
    assert asking_ssh(home) == []


def test_prompt_does_not_disturb_json(box: AskingBox, start: Start) -> None:
    status = start("status", "--json", stdout=subprocess.PIPE)
    status.expect(PASSPHRASE)
    status.type(SECRET + ENTER)
    assert status.process.stdout is not None
    assert json.loads(status.process.stdout.read())["kind"] == "status"
    assert status.wait() == 0


# --- without a terminal ------------------------------------------------------------------------------------------


def test_key_with_a_passphrase_is_an_error_without_a_terminal(ssh_orch: Orch, box: AskingBox, start: Start) -> None:
    done = ssh_orch.run("launch", "b", code=3)
    assert "run `orch doctor gpu1` in a terminal" in done.stderr
    assert ssh_orch.json("launch", "b", code=3)["error"]["code"] == "login"
    for stdin in (subprocess.DEVNULL, subprocess.PIPE):
        piped = start("launch", "b", stdin=stdin)
        assert piped.wait() == 3
        assert PASSPHRASE not in piped.shown


def test_command_in_the_background_is_not_stopped_by_a_question(ssh_orch: Orch, box: AskingBox, start: Start) -> None:
    shell = start("status", command=["sh", "-mc", '"$@" & wait $!', "sh", *ssh_orch.command()])
    assert shell.wait() == 3
    assert PASSPHRASE not in shell.shown
    assert "run `orch doctor gpu1` in a terminal" in shell.shown


# --- several at once ---------------------------------------------------------------------------------------------


AT_ONCE = 'exec 3<&0; first=$1; second=$2; shift 2; "$@" $first <&3 & "$@" $second; second=$?; wait $! && exit $second'


def test_commands_of_one_terminal_ask_for_one_host_once(ssh_orch: Orch, box: AskingBox, start: Start) -> None:
    both = start(command=["sh", "-c", AT_ONCE, "sh", "status", "status", *ssh_orch.command()])
    both.expect(PASSPHRASE)
    both.type(SECRET + ENTER)
    assert both.wait() == 0
    assert PASSPHRASE not in both.since() and box.logins() == 1


def test_command_asks_in_its_turn_if_the_other_got_no_answer(ssh_orch: Orch, box: AskingBox, start: Start) -> None:
    both = start(command=["sh", "-c", AT_ONCE, "sh", "status", "status", *ssh_orch.command()])
    for _ in range(3):
        both.expect(PASSPHRASE)
        both.type("wrong" + ENTER)
    both.expect(PASSPHRASE)
    both.type(SECRET + ENTER)
    assert both.wait() in (0, 3)
    assert box.logins() == 1 and both.shown.count("does not accept") == 1


@pytest.mark.parametrize("how", ["one command", "two commands"])
def test_hosts_ask_one_after_the_other(ssh_orch: Orch, box: AskingBox, start: Start, home: Path, how: str) -> None:
    add_second_host(ssh_orch, home)
    if how == "one command":
        both = start("status")
    else:
        commands = ("status --on gpu1", "status --on gpu2")
        both = start(command=["sh", "-c", AT_ONCE, "sh", *commands, *ssh_orch.command()])
    both.expect(PASSPHRASE)
    wait_until(lambda: box.log.read_text().count("authenticating user") >= 2, what="both refusals without a question")
    both.expect("': ")
    assert both.since() == ""
    both.type(SECRET + ENTER)
    assert PASSPHRASE not in both.expect("\n")
    both.expect(PASSPHRASE)
    both.type(SECRET + ENTER)
    assert both.wait() == 0
    names = {f"'{box.folder / 'second'}'" in both.shown, f"'{box.identity}'" in both.shown}
    assert names == {True} and box.logins() == 2


def test_table_of_other_hosts_waits_for_the_answer(ssh_orch: Orch, box: AskingBox, start: Start, home: Path) -> None:
    add_second_host(ssh_orch, home)
    launch = start("launch", "b", "--wait")
    launch.expect(PASSPHRASE)
    launch.type(SECRET + ENTER)
    assert launch.wait() == 0
    status = start("status")
    status.expect(f"{PASSPHRASE} '{box.folder / 'second'}': ")
    with pytest.raises(subprocess.TimeoutExpired):  # the table is drawn each second
        status.process.wait(2.5)
    assert status.since() == ""
    status.type(SECRET + ENTER)
    assert status.wait() == 0
    assert "succeeded" in status.since()


# --- passwords and one-time codes --------------------------------------------------------------------------------


def test_password_is_asked_once(ssh_orch: Orch, sshd_box: AskingBox, start: Start) -> None:
    sshd_box.accept_password()
    sshd_box.options["PubkeyAuthentication"] = "no"
    sshd_box.start()
    assert "run `orch doctor gpu1` in a terminal" in ssh_orch.run("status", code=3).stderr
    status = start("status")
    status.expect("password: ")
    status.type("wrong" + ENTER)
    status.expect("Permission denied, please try again.")
    status.expect("password: ")
    status.type(SECRET + ENTER)
    assert status.wait() == 0
    launch = start("launch", "b", "--wait")
    assert launch.wait() == 0
    ssh_orch.run("sync")
    assert sshd_box.log.read_text().count("Accepted password") == 1


@pytest.mark.parametrize("methods", ["keyboard-interactive:pam", "publickey,keyboard-interactive:pam"])
def test_one_time_code_is_asked_once(ssh_orch: Orch, sshd_box: AskingBox, start: Start, methods: str) -> None:
    sshd_box.accept_code()
    sshd_box.options["AuthenticationMethods"] = methods
    sshd_box.start()
    assert "run `orch doctor gpu1` in a terminal" in ssh_orch.run("status", code=3).stderr
    doctor = start("doctor", "gpu1")
    doctor.expect("Password: ")
    doctor.type("000000" + ENTER)
    doctor.expect("Password: ")
    doctor.type(CODE + ENTER)
    assert doctor.wait() == 0
    ssh_orch.run("launch", "b", "--wait")
    ssh_orch.run("sync")
    assert sshd_box.log.read_text().count("Accepted keyboard-interactive/pam") == 1


def put_behind_gate(box: AskingBox, home: Path, **options: object) -> None:
    """Let the box be reached through a jump host that asks for a password."""
    box.accept_password()
    box.start()
    box.config.write_text("")
    box.add_host("gate", PreferredAuthentications="password")
    box.add_host("box", ProxyJump="gate", **options)
    shutil.copy(box.config, home / ".ssh" / "config")


def test_jump_host_and_host_ask_in_turn(ssh_orch: Orch, sshd_box: AskingBox, start: Start, home: Path) -> None:
    put_behind_gate(sshd_box, home, PreferredAuthentications="password")
    status = start("status")
    status.expect("password: ")
    status.type(SECRET + ENTER)
    status.expect("password: ")
    status.type(SECRET + ENTER)
    assert status.wait() == 0
    ssh_orch.run("launch", "b", "--wait")
    assert sshd_box.log.read_text().count("Accepted password") == 2


def test_key_of_a_host_behind_a_jump_host_that_asks_can_be_pinned(
    ssh_orch: Orch, sshd_box: AskingBox, start: Start, home: Path
) -> None:
    put_behind_gate(sshd_box, home, UserKnownHostsFile=home / "pinned")
    trust = start("trust", "gpu1", "--fingerprint", sshd_box.fingerprint())
    trust.expect("password: ")
    trust.type(SECRET + ENTER)
    trust.expect("pinned SHA256:")
    assert trust.wait() == 0
    assert (home / "pinned").read_text() == sshd_box.known_line()
    assert "Permission denied" not in trust.shown and "Warning" not in trust.shown


def test_ctrl_c_in_a_later_command_leaves_the_jump_host_connected(
    ssh_orch: Orch, sshd_box: AskingBox, start: Start, home: Path
) -> None:
    put_behind_gate(sshd_box, home)
    ssh_orch.job("b", "end")
    launch = start("launch", "b", "--wait")
    launch.expect("password: ")
    launch.type(SECRET + ENTER)
    wait_until(lambda: ssh_orch.has_started("b"), what="the job to start")
    launch.type(CTRL_C)
    assert launch.wait() == 130
    assert ssh_orch.states() == {"b": "running"}
    ssh_orch.open("end")
    assert sshd_box.log.read_text().count("Accepted password") == 1


def test_ctrl_c_at_the_prompt_of_a_jump_host_ends_cleanly(
    ssh_orch: Orch, sshd_box: AskingBox, start: Start, home: Path
) -> None:
    put_behind_gate(sshd_box, home)
    status = start("status")
    status.expect("password: ")
    status.type(CTRL_C)
    assert status.wait() == 130
    assert status.echoes()
    wait_until(lambda: asking_ssh(home) == [], what="the end of every ssh")
