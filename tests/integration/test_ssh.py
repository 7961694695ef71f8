"""The SSH transport against a real sshd, with the real agent and with one that misbehaves on request."""

from __future__ import annotations

import contextlib
import io
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Generator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.box.agent_bundle import AgentBundle
from orchestrator.box.transport import Frame
from orchestrator.errors import (
    AgentUnusable,
    CopyFailed,
    HostError,
    HostKeyRefused,
    HostUnreachable,
    LoginRefused,
    OrchError,
    Refused,
    SpecError,
)
from orchestrator.ssh import channel_command, ssh_transport
from orchestrator.ssh.command import last_line
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.endpoint import ALIVE_S, CONNECT_S, split_paths
from orchestrator.ssh.fabric import FabricTransport
from orchestrator.ssh.known_hosts import fingerprint, parse_known_keys
from orchestrator.ssh.openssh import OpenSshTransport
from orchestrator.ssh.rsync import Rsync
from orchestrator.ssh.ssh_transport import SshTransport, bootstrap_source
from tests.support import SshdBox, fingerprint_of, left_by, make_key, sftp_server, sizes, toy_request, wait_until

PYTHON = os.path.realpath(sys.executable)
HELLO = toy_request("hello")

TOY = """
import json, os, sys, time
request = json.loads(sys.stdin.readline())
op, args = request["op"], request["args"]
out = sys.stdout.buffer
def say(value, data=b""):
    out.write(json.dumps(value).encode() + b"\\n" + data)
    out.flush()
def reply(**result):
    say({"schema": 1, "ok": True, "result": result})
if op == "echo":
    reply(**args)
elif op == "big":
    reply(text="x" * args["size"])
elif op == "refuse":
    say({"schema": 1, "ok": False, "error": {"code": "no", "message": "not today", "hint": "tomorrow"}})
elif op == "garbage":
    out.write(b"\\x1b[31mgarbage\\xff\\n")
elif op == "torn":
    out.write(b'{"schema": 1, "ok": tr')
elif op == "crash":
    sys.exit("it broke\\n\\x1b[2Jin the middle")
elif op == "die":
    os.kill(os.getpid(), 9)
elif op == "stderr":
    sys.stderr.write("e" * args["size"])
    sys.stderr.flush()
    reply(done=True)
elif op == "sleep":
    time.sleep(60)
elif op == "frames":
    for number in range(args["count"]):
        data = bytes([number % 256]) * args["size"]
        say({"bytes": len(data), "number": number}, data)
        time.sleep(args.get("pause", 0))
    if args.get("crash"):
        sys.exit("the stream broke")
    say({"end": True})
    if "mark" in args:
        open(args["mark"], "w").close()
"""


@pytest.fixture(params=["openssh", "fabric"])
def sshd_box(request: pytest.FixtureRequest, sshd_box: SshdBox) -> SshdBox:
    """Run the test with each SSH client."""
    sshd_box.client = request.param
    return sshd_box


@pytest.fixture(scope="module")
def toy() -> AgentBundle:
    """A small agent that answers or misbehaves as the request says."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("__main__.py", TOY)
    return AgentBundle(buffer.getvalue(), sha256(buffer.getvalue()).hexdigest())


@pytest.fixture(params=["fabric", "openssh"])
def either(request: pytest.FixtureRequest, sshd_box: SshdBox) -> SshTransport:
    """A transport by each client."""
    found: SshTransport = getattr(sshd_box, request.param)()
    return found


def agents(box: SshdBox) -> list[str]:
    folder = box.home / ".cache/orch"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- calls ----------------------------------------------------------------------------------------------


def test_agent_is_installed_once_and_answers_over_one_connection(sshd_box: SshdBox) -> None:
    transport = sshd_box.transport()
    for _ in range(3):
        answer = transport.call(HELLO)
        assert (answer["home"], answer["python"].split(".")[0]) == (str(sshd_box.home), "3")
    assert len(agents(sshd_box)) == 1
    assert sshd_box.logins() == 1
    assert (sshd_box.home / ".cache/orch").stat().st_mode & 0o777 == 0o700


def test_values_come_back_unchanged(sshd_box: SshdBox, toy: AgentBundle) -> None:
    args = {"text": "quote ' \" $HOME `id` \\ \n ü \u0007", "list": [1, None]}
    assert sshd_box.transport(bundle=toy).call(toy_request("echo", args)) == args


def test_refusal_by_the_box_is_raised(sshd_box: SshdBox, toy: AgentBundle) -> None:
    with pytest.raises(Refused, match="not today") as refused:
        sshd_box.transport(bundle=toy).call(toy_request("refuse"))
    assert refused.value.hint == "gpu1 says: tomorrow"


def test_large_requests_and_replies_arrive_complete(sshd_box: SshdBox, toy: AgentBundle) -> None:
    transport = sshd_box.transport(bundle=toy)
    assert len(transport.call(toy_request("big", {"size": 9_000_000}))["text"]) == 9_000_000
    assert len(transport.call(toy_request("echo", {"text": "y" * 5_000_000}))["text"]) == 5_000_000


def test_reply_over_the_size_limit_is_refused(
    sshd_box: SshdBox, toy: AgentBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.box.transport.MAX_REPLY_BYTES", 1000)
    with pytest.raises(AgentUnusable, match="longer than 1000 bytes"):
        sshd_box.transport(bundle=toy).call(toy_request("big", {"size": 5000}))


def test_large_stderr_does_not_delay_the_answer(sshd_box: SshdBox, toy: AgentBundle) -> None:
    assert sshd_box.transport(bundle=toy).call(toy_request("stderr", {"size": 5_000_000})) == {"done": True}


@pytest.mark.parametrize(
    ("op", "said"),
    [("garbage", r"garbage"), ("crash", r"exit code 1: \?\[2Jin the middle"), ("torn", r"unexpected reply")],
)
def test_malformed_reply_of_an_agent_is_an_error(sshd_box: SshdBox, toy: AgentBundle, op: str, said: str) -> None:
    with pytest.raises(AgentUnusable, match=said) as failure:
        sshd_box.transport(bundle=toy).call(toy_request(op))
    assert "\x1b" not in failure.value.message


def test_killed_agent_is_a_lost_connection(sshd_box: SshdBox, toy: AgentBundle) -> None:
    with pytest.raises(HostUnreachable, match="gpu1.*cut off"):
        sshd_box.transport(bundle=toy).call(toy_request("die"))


def test_silent_agent_is_reported(sshd_box: SshdBox, toy: AgentBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = sshd_box.transport(bundle=toy)
    transport.call(toy_request("echo"))
    monkeypatch.setattr(ssh_transport, "ANSWER_S", 0.3)
    monkeypatch.setattr(channel_command, "TICK_S", 0.05)
    with pytest.raises(HostUnreachable, match="no answer for 0.3 s"):
        transport.call(toy_request("sleep"))


def test_tcp_nodelay_is_set(sshd_box: SshdBox) -> None:
    transport = sshd_box.fabric()
    transport.call(HELLO)
    assert transport._session._connection is not None
    sock = transport._session._connection.transport.sock
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


# --- start-up files, shells and Pythons -------------------------------------------------------------------


def with_bashrc(box: SshdBox, text: str) -> None:
    """Install a .bashrc, which bash runs for every command over SSH."""
    if not pwd.getpwuid(os.getuid()).pw_shell.endswith("bash"):
        pytest.skip("the login shell is not bash")
    (box.home / ".bashrc").write_text(text)


@pytest.mark.parametrize("noise", ["echo Welcome; echo '{'", r"printf '\033]0;title\007'", "echo oops >&2"])
def test_call_finds_its_answer_behind_shell_output(sshd_box: SshdBox, toy: AgentBundle, noise: str) -> None:
    with_bashrc(sshd_box, noise)
    assert sshd_box.transport(bundle=toy).call(toy_request("echo", {"a": 1})) == {"a": 1}


@pytest.mark.parametrize("client", ["fabric", "openssh"])
def test_shell_output_that_breaks_a_stream_or_copy_is_reported(
    sshd_box: SshdBox, toy: AgentBundle, tmp_path: Path, client: str
) -> None:
    with_bashrc(sshd_box, "echo Welcome to the cluster")
    sshd_box.stop()
    sshd_box.sftp = sftp_server()
    sshd_box.start()
    transport = getattr(sshd_box, client)(bundle=toy)
    transport.call(toy_request("echo"))
    with pytest.raises(AgentUnusable, match="Welcome to the cluster") as failure:
        list(transport.stream(toy_request("frames", {"count": 1, "size": 1})))
    assert "start-up files" in failure.value.hint
    with pytest.raises(AgentUnusable) as failure:
        transport.pull(str(sshd_box.home), tmp_path / "copy", {"a": 1})
    assert "start-up files" in failure.value.hint


def test_missing_python_is_reported(sshd_box: SshdBox) -> None:
    with pytest.raises(AgentUnusable, match="exit code 127: .*no-such-python") as failure:
        sshd_box.transport(python="no-such-python").call(HELLO)
    assert "python" in failure.value.hint


def test_python_that_is_too_old_is_reported(sshd_box: SshdBox) -> None:
    """Python 2 has no -I and exits with the code of a missing agent; so does the installer."""
    old = sshd_box.home / "python2"
    old.write_text("#!/bin/sh\necho 'Unknown option: -I' >&2\nexit 2\n")
    old.chmod(0o755)
    with pytest.raises(AgentUnusable, match="installing the agent on gpu1.*Unknown option: -I"):
        sshd_box.transport(python="~/python2").call(HELLO)


@pytest.mark.parametrize("python", ["python3; id", "$(id)", "py thon", "-c", "", "p'y", "python3\n"])
def test_python_path_with_shell_characters_is_refused(python: str) -> None:
    with pytest.raises(SpecError):
        FabricTransport("gpu1", "box", None, python)


def test_installer_is_one_line_that_no_shell_changes() -> None:
    source = bootstrap_source()
    assert not set("'!\n") & set(source)
    assert set(source.replace("\\n", "").replace('\\"', "")) & {"\\"} == set()
    assert source.isascii()


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "tcsh", "ksh"])
def test_every_login_shell_runs_installer_and_agent(shell: str, home: Path, toy: AgentBundle) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    install = f"{PYTHON} -I -S -c '{bootstrap_source()}' {toy.name} {toy.sha256}"
    subprocess.run([shell, "-c", install], input=toy.data, check=True)
    assert (home / ".cache/orch" / toy.name).read_bytes() == toy.data
    line = FabricTransport("gpu1", "box", None, PYTHON, bundle=toy)._agent()
    done = subprocess.run([shell, "-c", line], input=b'{"op": "echo", "args": {}}', check=True, capture_output=True)
    assert done.stdout == b'{"schema": 1, "ok": true, "result": {}}\n'


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_truncated_upload_leaves_no_agent(sshd_box: SshdBox, toy: AgentBundle, kept: int) -> None:
    with pytest.raises(AgentUnusable, match="installing the agent on gpu1.*exit code 3"):
        sshd_box.transport(bundle=AgentBundle(toy.data[:kept], toy.sha256)).call(toy_request("echo"))
    assert agents(sshd_box) == []


# --- streams ------------------------------------------------------------------------------------------------


def test_stream_ends_when_the_box_ends_it(sshd_box: SshdBox, toy: AgentBundle) -> None:
    frames = list(sshd_box.transport(bundle=toy).stream(toy_request("frames", {"count": 5, "size": 300_000})))
    assert [frame.head["number"] for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.data for frame in frames] == [bytes([number]) * 300_000 for number in range(5)]


def test_calls_work_during_a_stream_on_the_same_connection(sshd_box: SshdBox, toy: AgentBundle) -> None:
    transport = sshd_box.transport(bundle=toy)
    for frame in transport.stream(toy_request("frames", {"count": 3, "size": 10})):
        assert transport.call(toy_request("echo", {"n": frame.head["number"]})) == {"n": frame.head["number"]}
    assert sshd_box.logins() == 1


def test_stream_can_be_refused(sshd_box: SshdBox, toy: AgentBundle) -> None:
    with pytest.raises(Refused, match="not today"):
        list(sshd_box.transport(bundle=toy).stream(toy_request("refuse")))


def test_closing_a_stream_ends_its_process(sshd_box: SshdBox, toy: AgentBundle, tmp_path: Path) -> None:
    mark = tmp_path / "reached"
    stream = sshd_box.transport(bundle=toy).stream(
        toy_request("frames", {"count": 1000, "size": 10, "pause": 0.05, "mark": str(mark)})
    )
    next(stream)
    assert left_by([sshd_box.home])
    cast(Generator[Frame, None, None], stream).close()
    wait_until(lambda: not left_by([sshd_box.home]), what="the agent to end")
    assert not mark.exists()


def test_stream_of_a_failing_agent_reports_why(sshd_box: SshdBox, toy: AgentBundle) -> None:
    stream = sshd_box.transport(bundle=toy).stream(toy_request("frames", {"count": 1, "size": 1, "crash": True}))
    assert next(stream).data == b"\0"
    with pytest.raises(AgentUnusable, match="exit code 1: the stream broke"):
        next(stream)


def test_silent_stream_is_cut_off(sshd_box: SshdBox, toy: AgentBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_transport, "STREAM_SILENCE_S", 0.5)
    monkeypatch.setattr(channel_command, "TICK_S", 0.05)
    with pytest.raises(HostUnreachable, match="no answer for 0"):
        list(sshd_box.transport(bundle=toy).stream(toy_request("frames", {"count": 2, "size": 1, "pause": 60})))


# --- broken connections -------------------------------------------------------------------------------------


def test_next_call_reconnects_after_a_stream_lost_its_connection(sshd_box: SshdBox, toy: AgentBundle) -> None:
    transport = sshd_box.transport(bundle=toy)
    stream = transport.stream(toy_request("frames", {"count": 1000, "size": 10, "pause": 0.05}))
    next(stream)
    sshd_box.kill_connections()
    with pytest.raises(HostUnreachable, match="gpu1.*cut off"):
        list(stream)
    assert transport.call(toy_request("echo", {"back": True})) == {"back": True}
    assert sshd_box.logins() == 2


def test_calls_work_again_when_a_box_returns(sshd_box: SshdBox, toy: AgentBundle) -> None:
    transport = sshd_box.transport(bundle=toy)
    transport.call(toy_request("echo"))
    sshd_box.kill_connections()
    sshd_box.stop()
    with pytest.raises(HostUnreachable, match="connecting to gpu1 .*127.0.0.1"):
        transport.call(toy_request("echo"))
    sshd_box.start()
    assert transport.call(toy_request("echo", {"back": True})) == {"back": True}


def test_call_reconnects_if_the_connection_died_unnoticed(sshd_box: SshdBox, toy: AgentBundle) -> None:
    transport = sshd_box.transport(bundle=toy)
    transport.call(toy_request("echo"))
    sshd_box.kill_connections()
    assert transport.call(toy_request("echo", {"a": 1})) == {"a": 1}


@pytest.mark.parametrize("client", [FabricTransport, OpenSshTransport])
def test_server_that_accepts_but_never_answers_is_told_from_a_closed_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: type[SshTransport]
) -> None:
    monkeypatch.setattr("orchestrator.ssh.connection.HANDSHAKE_S", 0.3)
    (tmp_path / "config").write_text("ConnectTimeout 1\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        transport = client("gpu1", f"me@127.0.0.1:{port}", None, "python3", tmp_path / "config")
        what = "connecting to gpu1.* the port accepts connections, but no SSH server answers"
        with pytest.raises(HostUnreachable, match=what) as failure:
            transport.call(HELLO)
        assert "sshd hangs" in failure.value.hint
        transport.close()


def test_closed_port_and_unknown_name_are_distinguished(sshd_box: SshdBox) -> None:
    sshd_box.stop()
    with pytest.raises(HostUnreachable, match="connecting to gpu1 .*: the port refused the connection") as failure:
        sshd_box.transport().call(HELLO)
    assert "nothing listens on that port" in failure.value.hint
    sshd_box.add_host("nowhere", HostName="no-such-host.invalid")
    with pytest.raises(HostUnreachable, match="no-such-host.invalid.*cannot resolve its name"):
        sshd_box.transport(ssh="nowhere").call(HELLO)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses")
def test_filtered_and_closed_ports_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener with a full queue does not answer connections, like a firewall that drops packets."""
    monkeypatch.setattr("orchestrator.ssh.connection.CONNECT_S", 0.3)
    (tmp_path / "config").write_text("")
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as waiting:
        port = server.getsockname()[1]
        for _ in range(4):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        transport = FabricTransport("gpu1", f"me@127.0.0.1:{port}", None, "python3", tmp_path / "config")
        with pytest.raises(HostUnreachable, match=f"127.0.0.1:{port}\\): no answer within 0.3 s: filtered") as failure:
            transport.call(HELLO)
        transport.close()
    assert "security group" in failure.value.hint


def test_route_has_its_timeouts_whatever_the_user_configured(sshd_box: SshdBox) -> None:
    sshd_box.add_host("behind", ProxyJump="box", ConnectTimeout=99, ServerAliveInterval=0, ServerAliveCountMax=9)
    jump, end = sshd_box.transport(ssh="behind").route()
    assert (jump.hostname, jump.port, end.hostname, end.port) == (
        "127.0.0.1",
        sshd_box.port,
        "127.0.0.1",
        sshd_box.port,
    )
    assert (end.connect_s, end.silence_s) == (CONNECT_S, 3 * ALIVE_S)
    assert sshd_box.logins() == 0


def test_round_trip_is_measured_with_the_ssh_server(sshd_box: SshdBox) -> None:
    transport = sshd_box.transport(python="no-such-python")  # nothing is started on the box
    assert 0 < transport.round_trip() < 10
    assert sshd_box.logins() == 1


def test_close_can_be_called_twice_and_does_not_reconnect(sshd_box: SshdBox) -> None:
    unused, transport = sshd_box.transport(), sshd_box.transport()
    transport.call(HELLO)
    for closed in (unused, transport):
        closed.close()
        closed.close()
        with pytest.raises(HostError, match="the connection was closed on this machine"):
            closed.call(HELLO)
    assert sshd_box.logins() == 1


# --- the host's identity ------------------------------------------------------------------------------------


def test_unknown_host_key_is_refused_before_anything_is_sent(sshd_box: SshdBox) -> None:
    sshd_box.known_hosts.write_text("")
    with pytest.raises(HostKeyRefused, match="gpu1.*unknown") as refusal:
        sshd_box.transport().call(HELLO)
    assert sshd_box.fingerprint() in refusal.value.message
    assert "orch trust" in refusal.value.hint
    assert sshd_box.logins() == 0
    assert "Accepted key" not in sshd_box.log.read_text()
    assert sshd_box.known_hosts.read_text() == ""


def test_changed_host_key_is_refused_with_both_fingerprints(sshd_box: SshdBox, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    kind, key, *_ = (tmp_path / "other.pub").read_text().split()
    sshd_box.known_hosts.write_text(f"[127.0.0.1]:{sshd_box.port} {kind} {key}\n")
    with pytest.raises(HostKeyRefused, match="CHANGED") as refusal:
        sshd_box.transport().call(HELLO)
    assert sshd_box.fingerprint() in refusal.value.message
    assert fingerprint_of(tmp_path / "other.pub") in refusal.value.message
    assert sshd_box.logins() == 0


def test_revoked_host_key_is_refused(sshd_box: SshdBox) -> None:
    line = sshd_box.known_line()
    sshd_box.known_hosts.write_text(f"{line}@revoked * {line.split(maxsplit=1)[1]}")
    with pytest.raises(HostKeyRefused, match="revoked"):
        sshd_box.transport().call(HELLO)


@pytest.mark.parametrize(
    "form", ["hashed", "pattern", "several files", "without the port", "alias", "second of a type"]
)
def test_known_hosts_are_read_as_openssh_does(sshd_box: SshdBox, tmp_path: Path, form: str) -> None:
    key = sshd_box.known_line().split(maxsplit=1)[1]
    if form == "hashed":
        subprocess.run(["ssh-keygen", "-H", "-f", str(sshd_box.known_hosts)], check=True, capture_output=True)
        assert "127.0.0.1" not in sshd_box.known_hosts.read_text()
    elif form == "pattern":
        sshd_box.known_hosts.write_text(f"[127.0.*]:{sshd_box.port} {key}")
    elif form == "without the port":
        sshd_box.known_hosts.write_text(f"127.0.0.1 {key}")
    elif form == "second of a type":
        make_key(tmp_path / "other")
        other = " ".join((tmp_path / "other.pub").read_text().split()[:2])
        sshd_box.known_hosts.write_text(f"[127.0.0.1]:{sshd_box.port} {other}\n{sshd_box.known_line()}")
    elif form == "alias":
        sshd_box.known_hosts.write_text(f"my-box {key}")
        sshd_box.add_host("other", HostKeyAlias="my-box")
    else:
        spaced = tmp_path / "known hosts"
        spaced.write_text(sshd_box.known_hosts.read_text())
        sshd_box.add_host("other", UserKnownHostsFile=f'{tmp_path}/none "{spaced}"')
    transport = sshd_box.transport(ssh="other" if form in ("alias", "several files") else "box")
    transport.call(HELLO)
    transport.push(tmp_path, [], str(sshd_box.home / "code"), None)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_server_is_asked_for_the_known_key_type(sshd_box: SshdBox, kind: str) -> None:
    sshd_box.stop()
    sshd_box.host_key_types = ("ed25519", "ecdsa", "rsa")
    for more in ("ecdsa", "rsa"):
        make_key(sshd_box.host_key(more), more)
    sshd_box.start()
    sshd_box.known_hosts.write_text(sshd_box.known_line(kind))
    sshd_box.transport().call(HELLO)


def test_host_key_can_be_requested_and_pinned(sshd_box: SshdBox) -> None:
    line = sshd_box.known_hosts.read_text()
    sshd_box.known_hosts.write_text("")
    transport = sshd_box.transport()
    shown = transport.host_key()
    assert (shown.line + "\n", shown.fingerprint) == (line, sshd_box.fingerprint())
    assert fingerprint(shown.key) == shown.fingerprint
    sshd_box.known_hosts.write_text(shown.line + "\n")
    transport.call(HELLO)


# --- this user and machine ------------------------------------------------------------------------------------


def test_user_key_unknown_to_the_box_is_refused(sshd_box: SshdBox, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger")
    sshd_box.add_host("strange", IdentityFile=tmp_path / "stranger")
    with pytest.raises(LoginRefused, match="gpu1.*(stranger: Authentication failed|Permission denied)") as refusal:
        sshd_box.transport(ssh="strange").call(HELLO)
    assert "ssh-add" in refusal.value.hint


def test_missing_user_key_is_reported(sshd_box: SshdBox, tmp_path: Path) -> None:
    sshd_box.add_host("keyless", IdentityFile=tmp_path / "none")
    with pytest.raises(LoginRefused, match="none: no such file"):
        sshd_box.transport(ssh="keyless").call(HELLO)


def test_user_key_with_a_passphrase_is_reported(sshd_box: SshdBox, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(locked)], check=True)
    sshd_box.add_host("locked", IdentityFile=locked)
    with pytest.raises(LoginRefused) as refusal:
        sshd_box.transport(ssh="locked").call(HELLO)
    assert "passphrase" in refusal.value.message + refusal.value.hint


def test_user_host_port_and_identity_path_with_a_space_work(sshd_box: SshdBox, tmp_path: Path) -> None:
    """None of it is in the configuration; rsync connects too."""
    identity = tmp_path / "my keys" / "id 100%"
    identity.parent.mkdir()
    shutil.copy(sshd_box.identity, identity)
    config = tmp_path / "config"
    config.write_text(
        f"UserKnownHostsFile {sshd_box.known_hosts}\nGlobalKnownHostsFile /dev/null\nUser nobody\nPort 9\n"
    )
    transport = sshd_box.transport(ssh=f"{sshd_box.user}@127.0.0.1:{sshd_box.port}", identity=identity, config=config)
    transport.call(HELLO)
    (tmp_path / "a").write_text("a")
    transport.push(tmp_path, ["a"], str(sshd_box.home / "code"), None)
    assert (sshd_box.home / "code/a").read_text() == "a"


@pytest.fixture
def key_agent(home: Path) -> Iterator[Path]:
    path = home / "agent.sock"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    wait_until(path.exists, what="ssh-agent's socket")
    yield path
    agent.send_signal(signal.SIGTERM)
    agent.wait(timeout=10)


@pytest.mark.parametrize("way", ["environment", "IdentityAgent", "locked file"])
def test_key_in_the_ssh_agent_is_used(
    sshd_box: SshdBox, key_agent: Path, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    subprocess.run(
        ["ssh-add", "-q", str(sshd_box.identity)], check=True, env={**os.environ, "SSH_AUTH_SOCK": str(key_agent)}
    )
    options: dict[str, Any] = {"IdentityFile": tmp_path / "none", "IdentitiesOnly": "no"}
    if way == "environment":
        monkeypatch.setenv("SSH_AUTH_SOCK", str(key_agent))
    else:
        options["IdentityAgent"] = key_agent
    if way == "locked file":  # the named file is unreadable; the agent holds its key
        shutil.copy(f"{sshd_box.identity}.pub", tmp_path / "id.pub")
        (tmp_path / "id").write_text("not readable without its passphrase")
        options |= {"IdentityFile": tmp_path / "id", "IdentitiesOnly": "yes"}
    sshd_box.add_host("agented", **options)
    sshd_box.transport(ssh="agented").call(HELLO)


# --- routes -----------------------------------------------------------------------------------------------------


def test_jump_host_is_used_and_its_key_checked(sshd_box: SshdBox, tmp_path: Path) -> None:
    sshd_box.add_host("inner", ProxyJump="box")
    transport = sshd_box.transport(ssh="inner")
    transport.call(HELLO)
    assert sshd_box.logins() == 2
    (tmp_path / "a").write_text("a")
    transport.push(tmp_path, ["a"], str(sshd_box.home / "code"), None)
    assert (sshd_box.home / "code/a").read_text() == "a"

    sshd_box.add_host("gate", UserKnownHostsFile="/dev/null")
    sshd_box.add_host("behind", ProxyJump="gate")
    with pytest.raises(HostKeyRefused, match="gate, on the way to gpu1"):
        sshd_box.transport(ssh="behind").call(HELLO)


def test_rsync_checks_the_key_of_a_jump_host(sshd_box: SshdBox, tmp_path: Path) -> None:
    """`ssh` does not pass its options to jump hosts; its configuration file applies to all."""
    sshd_box.add_host("gate", UserKnownHostsFile="/dev/null", StrictHostKeyChecking="no")
    sshd_box.add_host("behind", ProxyJump="gate")
    destination = Destination.parse("behind")
    config = SshConfig(destination, None, sshd_box.config)
    with pytest.raises(HostUnreachable, match="exit code"):
        Rsync("gpu1", destination, ("-F", str(config.file()))).push(tmp_path, [], str(sshd_box.home / "code"), None)
    assert sshd_box.logins() == 0


def test_jump_host_that_cannot_reach_the_box_is_reported(sshd_box: SshdBox) -> None:
    sshd_box.add_host("inner", ProxyJump="box", Port=1)
    with pytest.raises(HostUnreachable, match="connecting to gpu1 .*: box cannot reach it: ") as failure:
        sshd_box.transport(ssh="inner").call(HELLO)
    assert "nc -vz 127.0.0.1 1" in failure.value.hint


def test_circular_jump_hosts_are_refused(sshd_box: SshdBox) -> None:
    sshd_box.add_host("one", ProxyJump="two")
    sshd_box.add_host("two", ProxyJump="one")
    with pytest.raises(HostError, match="circle"):
        sshd_box.transport(ssh="one").call(HELLO)


def test_proxy_command_is_used(sshd_box: SshdBox, tmp_path: Path) -> None:
    proxy = tmp_path / "proxy.py"
    proxy.write_text(
        "import os, socket, sys, threading\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while data := os.read(0, 65536): s.sendall(data)\n"
        "    s.shutdown(socket.SHUT_WR)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while data := s.recv(65536): os.write(1, data)\n"
    )
    sshd_box.add_host("proxied", ProxyCommand=f"{sys.executable} {proxy} %h %p")
    sshd_box.transport(ssh="proxied").call(HELLO)
    sshd_box.add_host("broken", ProxyCommand="exit 1")
    with pytest.raises(HostUnreachable, match="connecting to gpu1"):
        sshd_box.transport(ssh="broken").call(HELLO)
    with pytest.raises(HostUnreachable, match="the ProxyCommand ended with exit code 1"):
        sshd_box.fabric(ssh="broken").call(HELLO)


def test_included_configuration_file_is_used(sshd_box: SshdBox, tmp_path: Path) -> None:
    config = tmp_path / "outer"
    config.write_text(f"Include {sshd_box.config}\n")
    sshd_box.transport(config=config).call(HELLO)


def test_user_configuration_is_the_default(sshd_box: SshdBox, home: Path) -> None:
    (home / ".ssh").mkdir()
    shutil.copy(sshd_box.config, home / ".ssh/config")
    sshd_box.transport(config=None).call(HELLO)


def test_configuration_that_openssh_refuses_is_an_error(sshd_box: SshdBox) -> None:
    sshd_box.config.write_text("Host box\n  NoSuchOption yes\n")
    with pytest.raises(HostError, match="NoSuchOption|nosuchoption"):
        sshd_box.transport().call(HELLO)


# --- bulk files ---------------------------------------------------------------------------------------------------


def write(folder: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return list(files)


ODD = [
    "plain.py",
    "a b.txt",
    "new\nline",
    "#hash",
    ";semicolon",
    "-dash",
    "ü",
    "sub dir/x'y\"z",
    "*",
    "$HOME",
    "a:b",
    "~",
    "trailing  ",
    " leading",
    "-",
    "[a]b?",
    "caf\udcff\udce9",  # not UTF-8
    "back\\#040slash",
]


def test_push_copies_exactly_the_listed_files(either: SshTransport, sshd_box: SshdBox, tmp_path: Path) -> None:
    source, target = tmp_path / "my source", sshd_box.home / "code of $me" / "tree 1"
    target.parent.mkdir()
    names = write(source, {name: f"content of {name!r}" for name in ODD})
    write(source, {"unlisted": "no", "sub dir/unlisted": "no", "whole/inside": "no"})
    (source / "plain.py").chmod(0o755)
    (source / "link").symlink_to("plain.py")
    (source / "sub dir").chmod(0o775)
    either.push(source, [*names, "link", "whole"], str(target), None)
    found = {str(path.relative_to(target)) for path in target.rglob("*")}
    assert found == {*names, "link", "whole", "sub dir"}
    assert all((target / name).read_text() == f"content of {name!r}" for name in names)
    assert (target / "plain.py").stat().st_mode & 0o111
    assert os.readlink(target / "link") == "plain.py"
    assert {path.stat().st_mode & 0o777 for path in (target, target / "sub dir", target / "whole")} == {0o700}


def test_push_links_unchanged_files_by_content_not_by_date(
    either: SshTransport, sshd_box: SshdBox, tmp_path: Path
) -> None:
    source, first, second = tmp_path / "source", sshd_box.home / "tree 1", sshd_box.home / "tree 2"
    names = write(source, {"same": "same", "touched": "touched", "edited": "lr = 0.1", "deep/same": "same"})
    either.push(source, names, str(first), None)
    dated = (source / "edited").stat()
    (source / "edited").write_text("lr = 0.2")
    os.utime(source / "edited", ns=(dated.st_atime_ns, dated.st_mtime_ns))
    os.utime(first / "edited", ns=(dated.st_atime_ns, dated.st_mtime_ns))
    os.utime(source / "touched", (1, 1))
    either.push(source, names, str(second), str(first))
    linked = {name for name in names if (first / name).stat().st_ino == (second / name).stat().st_ino}
    assert linked == {"same", "touched", "deep/same"}
    assert ((first / "edited").read_text(), (second / "edited").read_text()) == ("lr = 0.1", "lr = 0.2")


def test_push_works_without_a_previous_tree_and_reports_a_vanished_file(
    either: SshTransport, sshd_box: SshdBox, tmp_path: Path
) -> None:
    names = write(tmp_path / "source", {"a": "a"})
    either.push(tmp_path / "source", names, str(sshd_box.home / "code"), str(sshd_box.home / "gone"))
    assert (sshd_box.home / "code/a").read_text() == "a"
    with pytest.raises(OrchError, match="copying .* to gpu1: "):
        either.push(tmp_path / "source", ["a", "gone"], str(sshd_box.home / "code"), None)


def test_pull_copies_regular_files_only(either: SshTransport, sshd_box: SshdBox, tmp_path: Path) -> None:
    run, mirror = sshd_box.home / "runs of mine" / "r 1", tmp_path / "my results" / "r 1"
    write(run, {name: repr(name) for name in ODD})
    write(run, {"checkpoints/last.pt": "big", "unlisted": "no", "checkpoints/unlisted": "no"})
    (run / "plain.py").chmod(0o4755)
    (run / "link").symlink_to("/etc/passwd")
    (run / "dirlink").symlink_to("/etc")
    (run / "was a file").mkdir()
    os.mkfifo(run / "fifo")
    mirror.parent.mkdir()
    listed = {name: size for name, size in sizes(run).items() if "unlisted" not in name}
    either.pull(str(run), mirror, {**listed, "link": 3, "fifo": 0, "was a file": 7, "gone": 1})
    assert set(sizes(mirror)) == {*ODD, "checkpoints/last.pt"}
    assert not [path for path in mirror.rglob("*") if path.is_symlink() or path.is_fifo()]
    assert (mirror / "plain.py").stat().st_mode & 0o7000 == 0


def test_pull_works_while_the_box_writes(either: SshTransport, sshd_box: SshdBox, tmp_path: Path) -> None:
    run, mirror, stop = sshd_box.home / "run", tmp_path / "mirror", threading.Event()
    run.mkdir()

    def grow() -> None:
        with (run / "training.log").open("ab", buffering=0) as log:
            while not stop.is_set():
                log.write(b"0123456789" * 1000)
                (run / ".beat").write_text("beat")
                os.replace(run / ".beat", run / "heartbeat.json")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        for _ in range(3):
            either.pull(str(run), mirror, {**sizes(run), "heartbeat.json": 4})
    finally:
        stop.set()
        writer.join()
    pulled = (mirror / "training.log").read_bytes()
    assert pulled
    assert (run / "training.log").read_bytes().startswith(pulled)


def test_missing_rsync_on_the_box_is_reported(sshd_box: SshdBox, tmp_path: Path) -> None:
    sshd_box.stop()
    sshd_box.env["PATH"] = str(tmp_path)
    sshd_box.start()
    with pytest.raises(AgentUnusable, match="rsync is not installed on the box") as failure:
        sshd_box.openssh().pull(str(sshd_box.home), tmp_path / "mirror", {"a": 1})
    assert "apt install rsync" in failure.value.hint


@pytest.mark.parametrize(
    ("code", "error"),
    [(0, None), (24, None), (23, CopyFailed), (11, CopyFailed), (10, HostUnreachable), (12, HostUnreachable)]
    + [(30, HostUnreachable), (35, HostUnreachable), (255, HostUnreachable), (2, AgentUnusable)],
)
def test_rsync_exit_code_decides_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: Any
) -> None:
    fake = tmp_path / "rsync"
    fake.write_text(f"#!/bin/sh\necho 'disk is full' >&2\necho 'rsync error: (code {code})' >&2\nexit {code}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    rsync = Rsync("gpu1", Destination("box"), ("-F", str(tmp_path / "config")))
    if error is None:
        rsync.pull("/run", tmp_path / "mirror", {"a": 1})
        return
    with pytest.raises(error, match="copying /run from gpu1: .*disk is full") as failure:
        rsync.pull("/run", tmp_path / "mirror", {"a": 1})
    assert type(failure.value) is error


def test_missing_rsync_on_the_laptop_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="rsync is not installed here"):
        Rsync("gpu1", Destination("box"), ("-F", str(tmp_path / "config"))).pull("/run", tmp_path / "mirror", {"a": 1})


# --- parsing text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("box", Destination("box")),
        ("ubuntu@10.0.0.7", Destination("10.0.0.7", "ubuntu")),
        ("me@corp.com@gpu.example.com:2222", Destination("gpu.example.com", "me@corp.com", 2222)),
        ("ssh://me@host:22/", Destination("host", "me", 22)),
        ("me@[2001:db8::1]:2200", Destination("2001:db8::1", "me", 2200)),
        ("fe80::1%eth0", Destination("fe80::1%eth0")),
    ],
)
def test_destination_is_parsed(text: str, destination: Destination) -> None:
    assert Destination.parse(text) == destination


@pytest.mark.parametrize(
    "text", ["", "-oProxyCommand=id", "me@-x", "a b", "a;id", "box:", "box:99999999", "*", "a\n", "a:b"]
)
def test_invalid_destination_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        Destination.parse(text)


def test_known_hosts_lines_are_parsed() -> None:
    lines = [
        "# Host x found: line 1",
        "x ssh-ed25519 AAAA note",
        "@revoked * ssh-rsa AAAB",
        "@cert-authority * ssh-rsa AAAC",
    ]
    known = parse_known_keys(("x",), [*lines, "x ssh-rsa no*base64", "x"])
    assert known.trusted == (("ssh-ed25519", b"\0\0\0"),)
    assert known.revoked == {b"\0\0\1"}


def test_unquoted_paths_printed_by_ssh_are_split(tmp_path: Path) -> None:
    (tmp_path / "a b").touch()
    assert split_paths(f"{tmp_path}/none {tmp_path}/a b  /x") == [f"{tmp_path}/none", f"{tmp_path}/a b", "/x"]


def test_last_line_of_stderr_is_the_cause() -> None:
    said = b"rsync: [sender] \x1b[31mdisk full\nrsync error: error in file IO (code 11) at main.c\n"
    assert last_line(said) == "rsync: [sender] ?[31mdisk full"
    assert last_line(b"") == "no output"
