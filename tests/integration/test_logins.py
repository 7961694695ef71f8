"""Logins that OpenSSH manages, by both clients: each works, or is refused with the reason and what helps."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from paramiko.auth_handler import AuthOnlyHandler

from orchestrator.errors import HostError, HostKeyRefused, HostTooSlow, LoginRefused, OrchError, SpecError
from orchestrator.ssh import connection
from tests.integration.conftest import Orch
from tests.support import ROOT, SshdBox, make_key, toy_request, wait_until

HELLO = toy_request("hello")
USE_OPENSSH = 'client = "openssh"'


@pytest.fixture(params=["openssh", "fabric"])
def box(request: pytest.FixtureRequest, sshd_box: SshdBox) -> SshdBox:
    sshd_box.client = request.param
    return sshd_box


def restart(box: SshdBox, *lines: str) -> None:
    """Start the server again with further lines of sshd_config."""
    box.stop()
    box.options |= dict(line.split(" ", 1) for line in lines)
    box.start()


def refused(box: SshdBox, kind: type[OrchError], match: str, **options: Any) -> OrchError:
    with pytest.raises(kind, match=match) as refusal:
        box.transport(**options).call(HELLO)
    return refusal.value


# --- key agents ----------------------------------------------------------------------------------------


def agent_answers() -> bool:
    return subprocess.run(["ssh-add", "-l"], capture_output=True).returncode != 2  # 2: there is no agent


@pytest.fixture
def start_agent(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Start an ssh-agent, and make it the user's."""
    agents: list[subprocess.Popen[bytes]] = []

    def start(**environment: str) -> None:
        path = home / "agent.sock"
        command = ["ssh-agent", "-D", "-a", str(path)]
        agents.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **environment}))
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        wait_until(agent_answers, what="ssh-agent to answer")

    yield start
    for agent in agents:
        agent.send_signal(signal.SIGTERM)
        agent.wait(timeout=10)


def add(key: Path, *options: str) -> None:
    subprocess.run(["ssh-add", "-q", *options, str(key)], check=True, stdin=subprocess.DEVNULL)


def authorize(box: SshdBox, *keys: Path) -> None:
    text = "".join(Path(f"{key}.pub").read_text() for key in (box.identity, *keys))
    (box.folder / "authorized_keys").write_text(text)


@pytest.mark.parametrize("right_key", ["in a file", "in the agent"])
def test_key_that_the_agent_declines_to_use_does_not_end_the_login(
    box: SshdBox, tmp_path: Path, start_agent: Callable[..., None], right_key: str
) -> None:
    """`ssh-add -c` asks for consent at each use. The host would accept the declined key, so OpenSSH asks for it."""
    start_agent(SSH_ASKPASS="/bin/false", DISPLAY=":9")
    make_key(tmp_path / "declined")
    add(tmp_path / "declined", "-c")
    authorize(box, tmp_path / "declined")
    if right_key == "in the agent":
        add(box.identity)
        box.add_host("agented", IdentityFile="none", IdentitiesOnly="no")
    else:
        box.add_host("agented", IdentitiesOnly="no")
    box.transport(ssh="agented").call(HELLO)


def test_only_key_that_the_agent_declines_is_a_refused_login(
    box: SshdBox, tmp_path: Path, start_agent: Callable[..., None]
) -> None:
    start_agent(SSH_ASKPASS="/bin/false", DISPLAY=":9")
    add(box.identity, "-c")
    box.add_host("agented", IdentityFile="none", IdentitiesOnly="no")
    error = refused(box, LoginRefused, "does not accept this user or key", ssh="agented")
    if box.client == "fabric":
        assert "the key agent does not sign with it" in error.message


def packed(*fields: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


class AgentWithoutDevice:
    """A key agent with one FIDO key, whose device is not plugged in: it refuses to sign."""

    def __init__(self, path: Path) -> None:
        kind = b"sk-ssh-ed25519@openssh.com"
        self.blob = packed(kind, bytes(range(32)), b"ssh:")
        self.line = f"{kind.decode()} {base64.b64encode(self.blob).decode()} token\n"
        self.sign_requests = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rwb") as stream:
                while len(head := stream.read(4)) == 4:
                    request = stream.read(struct.unpack(">I", head)[0])
                    stream.write(packed(self._answer(request)))
                    stream.flush()

    def _answer(self, request: bytes) -> bytes:
        if request[0] == 11:  # SSH_AGENTC_REQUEST_IDENTITIES
            return b"\x0c" + struct.pack(">I", 1) + packed(self.blob, b"token")
        self.sign_requests += request[0] == 13  # SSH_AGENTC_SIGN_REQUEST
        return b"\x05"  # SSH_AGENT_FAILURE


def test_fido_key_without_its_device_does_not_end_the_login(
    box: SshdBox, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = AgentWithoutDevice(home / "agent.sock")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "agent.sock"))
    with (box.folder / "authorized_keys").open("a") as file:
        file.write(agent.line)
    box.add_host("agented", IdentitiesOnly="no")
    try:
        box.transport(ssh="agented").call(HELLO)
    finally:
        agent.close()
    assert agent.sign_requests == 1


@pytest.mark.parametrize("form", ["public key", "private key missing", "identity"])
def test_public_key_file_selects_the_private_key_in_the_agent(
    box: SshdBox, tmp_path: Path, start_agent: Callable[..., None], form: str
) -> None:
    """The agent has more keys than the server lets one try (MaxAuthTries is 6)."""
    start_agent()
    for number in range(7):
        make_key(tmp_path / f"other{number}")
        add(tmp_path / f"other{number}")
    add(box.identity)
    shutil.copy(f"{box.identity}.pub", tmp_path / "gpu.pub")
    named = tmp_path / ("gpu" if form == "private key missing" else "gpu.pub")
    if form == "identity":
        box.transport(identity=named).call(HELLO)
    else:
        box.add_host("public", IdentityFile=named)
        box.transport(ssh="public").call(HELLO)


def test_public_key_without_its_private_key_is_refused_with_the_reason(box: SshdBox, tmp_path: Path) -> None:
    shutil.copy(f"{box.identity}.pub", tmp_path / "gpu.pub")
    box.add_host("public", IdentityFile=tmp_path / "gpu.pub")
    match = "gpu.pub: a public key, and its private key is not in the key agent"
    refused(box, LoginRefused, match, ssh="public")


# --- certificates of users -----------------------------------------------------------------------------


@pytest.fixture
def certified(box: SshdBox, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a key that the server does not know. `certificate.pub` beside it is its certificate, which it accepts."""
    kind = getattr(request, "param", "ed25519")
    make_key(tmp_path / "ca")
    make_key(tmp_path / "user", kind)
    sign(tmp_path / "ca", tmp_path / "user.pub", "-I", "me", "-n", box.user)
    (tmp_path / "user-cert.pub").rename(tmp_path / "certificate.pub")
    restart(box, f"TrustedUserCAKeys {tmp_path / 'ca.pub'}")
    (box.folder / "authorized_keys").write_text("")
    return tmp_path / "user"


def sign(authority: Path, key: Path, *options: str) -> None:
    subprocess.run(["ssh-keygen", "-q", "-s", str(authority), *options, "-V", "+1h", str(key)], check=True)


@pytest.mark.parametrize("certified", ["ed25519", "rsa", "ecdsa"], indirect=True)
@pytest.mark.parametrize("place", ["CertificateFile", "beside the key", "agent", "CertificateFile, key in the agent"])
def test_certificate_of_the_user_is_used(
    box: SshdBox, certified: Path, place: str, start_agent: Callable[..., None]
) -> None:
    certificate, options = certified.with_name("certificate.pub"), {"IdentityFile": certified}
    if place.startswith("CertificateFile"):
        options["CertificateFile"] = certificate
    else:
        shutil.copy(certificate, f"{certified}-cert.pub")
    if "agent" in place:
        start_agent()
        add(certified)
        certified.unlink()
    if place == "agent":
        Path(f"{certified}-cert.pub").unlink()
        options |= {"IdentityFile": Path("none"), "IdentitiesOnly": Path("no")}
    box.add_host("certified", **options)
    box.transport(ssh="certified").call(HELLO)
    assert "Accepted certificate ID" in box.log.read_text() or " ID me " in box.log.read_text()


def test_key_without_its_certificate_is_refused(box: SshdBox, certified: Path) -> None:
    box.add_host("certified", IdentityFile=certified)
    refused(box, LoginRefused, "does not accept this user or key", ssh="certified")


# --- certificates of hosts, and revoked keys -----------------------------------------------------------


@pytest.fixture
def authority(box: SshdBox, tmp_path: Path) -> str:
    """Give the host a certificate. Return the public key of the authority, as known_hosts has it."""
    make_key(tmp_path / "host_ca")
    sign(tmp_path / "host_ca", Path(f"{box.host_key()}.pub"), "-I", "host", "-h", "-n", "127.0.0.1")
    restart(box, f"HostCertificate {box.host_key()}-cert.pub")
    return " ".join((tmp_path / "host_ca.pub").read_text().split()[:2])


@pytest.mark.parametrize("name", ["[127.0.0.1]:*", "*"])
def test_host_with_a_certificate_is_trusted_or_refused_by_name(box: SshdBox, authority: str, name: str) -> None:
    box.known_hosts.write_text(f"@cert-authority {name} {authority}\n")
    if box.client == "openssh":
        box.transport().call(HELLO)
    else:
        error = refused(box, HostKeyRefused, "@cert-authority.* this client does not support")
        assert USE_OPENSSH in error.hint


def test_host_with_a_certificate_and_a_pinned_key_is_trusted(box: SshdBox, authority: str) -> None:
    box.known_hosts.write_text(f"@cert-authority * {authority}\n{box.known_line()}")
    box.transport().call(HELLO)


def test_certificate_for_another_host_is_refused_in_words_of_openssh(
    box: SshdBox, authority: str, tmp_path: Path
) -> None:
    sign(tmp_path / "host_ca", Path(f"{box.host_key()}.pub"), "-I", "host", "-h", "-n", "elsewhere")
    restart(box)
    box.known_hosts.write_text(f"@cert-authority * {authority}\n")
    error = refused(box, HostKeyRefused, "@cert-authority")
    if box.client == "openssh":
        assert "not a listed principal" in error.message


def test_revoked_authority_is_refused(box: SshdBox, authority: str) -> None:
    box.known_hosts.write_text(f"@revoked * {authority}\n@cert-authority * {authority}\n")
    refused(box, HostKeyRefused, "revoked|is unknown")
    assert box.logins() == 0


def test_revoked_key_of_the_host_is_refused(box: SshdBox) -> None:
    box.known_hosts.write_text(f"@revoked * {box.known_line().split(maxsplit=1)[1]}{box.known_line()}")
    refused(box, HostKeyRefused, "marked as revoked")
    assert box.logins() == 0


# --- jump hosts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["each names the one before", "one list"])
def test_two_jump_hosts_are_used_for_requests_and_copies(box: SshdBox, tmp_path: Path, form: str) -> None:
    box.add_host("outer")
    box.add_host("middle", **({"ProxyJump": "outer"} if form == "each names the one before" else {}))
    box.add_host("inner", ProxyJump="middle" if form == "each names the one before" else "outer,middle")
    transport = box.transport(ssh="inner")
    transport.call(HELLO)
    assert box.logins() == 3
    (tmp_path / "a").write_text("a")
    transport.push(tmp_path, ["a"], str(box.home / "code"), None)
    assert (box.home / "code" / "a").read_text() == "a"
    assert [hop.port for hop in transport.route()] == [box.port] * 3


def test_second_jump_host_that_refuses_the_login_is_reported(box: SshdBox, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    box.add_host("outer")
    box.add_host("middle", IdentityFile=tmp_path / "other")
    box.add_host("inner", ProxyJump="outer,middle")
    refused(box, LoginRefused, "does not accept this user or key", ssh="inner")


def test_jump_host_with_a_certificate_is_trusted_or_refused_by_name(
    box: SshdBox, authority: str, tmp_path: Path
) -> None:
    (tmp_path / "authorities").write_text(f"@cert-authority [127.0.0.1]:* {authority}\n")
    box.add_host("gate", UserKnownHostsFile=tmp_path / "authorities")
    box.add_host("inner", ProxyJump="gate")
    if box.client == "openssh":
        box.transport(ssh="inner").call(HELLO)
        assert box.logins() == 2
    else:
        error = refused(box, HostKeyRefused, "gate, on the way to gpu1.*@cert-authority", ssh="inner")
        assert USE_OPENSSH in error.hint


def test_unknown_host_behind_a_jump_host_with_a_certificate_is_named(
    box: SshdBox, authority: str, tmp_path: Path
) -> None:
    box.client = "openssh"
    (tmp_path / "authorities").write_text(f"@cert-authority [127.0.0.1]:* {authority}\n")
    (tmp_path / "none").write_text("")
    box.add_host("gate", UserKnownHostsFile=tmp_path / "authorities")
    box.add_host("inner", ProxyJump="gate", UserKnownHostsFile=tmp_path / "none")
    error = refused(box, HostKeyRefused, "connecting to gpu1 .* is unknown", ssh="inner")
    assert "orch trust gpu1" in error.hint


# --- the user's configuration --------------------------------------------------------------------------

MATCHES = {
    "Match host": "Host named\n  HostName 127.0.0.1\nMatch host 127.0.0.1\n{settings}",
    "Match originalhost": "Match originalhost named\n  HostName 127.0.0.1\n{settings}",
    "Match exec": 'Match host named exec "test %n = named -a -d {folder}"\n  HostName 127.0.0.1\n{settings}',
    "Match exec that fails": "Match exec false\n  Port 1\nHost named\n  HostName 127.0.0.1\n{settings}",
    "Match final": "Host named\n  HostName 127.0.0.1\nMatch final host 127.0.0.1\n{settings}",
    "Match all": "Host named\n  HostName 127.0.0.1\nMatch all\n{settings}",
    "Include": "Include {folder}/included\n",
    "Include of a pattern": "Include {folder}/inc*\n",
    "Include in a block": "Host named\n  HostName 127.0.0.1\n  Include {folder}/settings\n",
    "Include that matches nothing": "Include {folder}/none*\nHost named\n  HostName 127.0.0.1\n{settings}",
}


@pytest.mark.parametrize("form", MATCHES)
def test_conditions_and_included_files_of_the_configuration_apply(box: SshdBox, tmp_path: Path, form: str) -> None:
    _, *lines = box.config.read_text().splitlines(keepends=True)
    settings = "".join(line for line in lines if "HostName" not in line)
    (tmp_path / "settings").write_text(settings)
    (tmp_path / "included").write_text(f"Host named\n  HostName 127.0.0.1\n{settings}")
    (tmp_path / "config").write_text(MATCHES[form].format(settings=settings, folder=tmp_path))
    transport = box.transport(ssh="named", config=tmp_path / "config")
    transport.call(HELLO)
    (tmp_path / "a").write_text("a")
    transport.push(tmp_path, ["a"], str(box.home / "code"), None)
    assert (box.home / "code" / "a").read_text() == "a"


# --- weak algorithms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        "Ciphers aes128-cbc",
        "Ciphers 3des-cbc",
        "Ciphers aes128-ctr\nMACs hmac-md5",
        "Ciphers aes128-ctr\nMACs hmac-sha1-96",
        "Ciphers aes128-ctr\nMACs hmac-sha1",
        "KexAlgorithms diffie-hellman-group14-sha1",
        "KexAlgorithms diffie-hellman-group1-sha1",
        "KexAlgorithms ecdh-sha2-nistp256",
        "HostKeyAlgorithms ssh-rsa",
        "HostKeyAlgorithms rsa-sha2-256",
    ],
)
def test_server_with_old_algorithms_is_accepted_exactly_if_openssh_accepts_it(box: SshdBox, settings: str) -> None:
    box.host_key_types = ("rsa",)
    make_key(box.host_key("rsa"), "rsa")
    box.known_hosts.write_text(box.known_line("rsa"))
    restart(box, *settings.split("\n"))
    command = ["ssh", "-F", str(box.config), "-o", "BatchMode=yes", "box", "true"]
    if subprocess.run(command, capture_output=True, check=False).returncode == 0:
        box.transport().call(HELLO)
    else:
        error = refused(box, HostError, "share no algorithm")
        assert error.hint == "update the SSH server of the host"


# --- key files that cannot be used ---------------------------------------------------------------------


def make_unusable(key: Path, kind: str) -> None:
    if kind == "missing":
        return
    make_key(key)
    if kind == "not a key":
        key.write_text("not a key\n")
    elif kind == "directory":
        key.unlink()
        key.mkdir()
    elif kind == "readable by others":
        key.chmod(0o644)


UNUSABLE = {
    "missing": "no such file",
    "not a key": "not a private key",
    "directory": "not a regular file",
    "readable by others": r"others can read it \(mode 0644\), so OpenSSH ignores it: chmod 600 ",
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_identity_that_cannot_be_used_is_reported_before_connecting(box: SshdBox, tmp_path: Path, kind: str) -> None:
    make_unusable(tmp_path / "key", kind)
    refused(box, SpecError, f"the identity file {tmp_path}/key: {UNUSABLE[kind]}", identity=tmp_path / "key")
    assert box.logins() == 0


@pytest.mark.parametrize("kind", UNUSABLE)
def test_key_file_of_the_configuration_that_cannot_be_used_explains_a_refused_login(
    box: SshdBox, tmp_path: Path, kind: str
) -> None:
    make_unusable(tmp_path / "key", kind)
    box.add_host("unusable", IdentityFile=tmp_path / "key")
    refused(box, LoginRefused, f"{tmp_path}/key: {UNUSABLE[kind]}", ssh="unusable")


def test_key_file_that_this_user_cannot_read_is_reported(tmp_path: Path) -> None:
    key = tmp_path / "key"
    make_key(key)
    key.chmod(0)
    code = (
        f"from pathlib import Path; from orchestrator.ssh.key_files import problem_of; print(problem_of(Path('{key}')))"
    )
    command = [sys.executable, "-c", code]
    if os.getuid() == 0:  # root reads any file unless it gives up the right to
        dropped = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--inh-caps={dropped}", f"--bounding-set={dropped}", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "it cannot be read: Permission denied\n"


def test_launch_with_a_missing_identity_names_the_file(ssh_orch: Orch, home: Path) -> None:
    ssh_orch.host_table += 'identity = "~/.ssh/missing"\n'
    ssh_orch.job("worker1")
    said = ssh_orch.run("launch", "worker1", code=2).stderr
    assert f"the identity file {home}/.ssh/missing: no such file" in said
    assert f"ssh-keygen -f {home}/.ssh/missing" in said
    doctor = ssh_orch.run("doctor", "gpu1", code=4).stdout
    assert "gpu1: connection: connecting to box: the identity file" in doctor


# --- known_hosts that hold nothing ---------------------------------------------------------------------


@pytest.mark.parametrize("files", ["none", "/dev/../dev/null", "/dev/null /dev/null", "LINK", "/dev/null GLOBAL"])
def test_key_that_cannot_be_pinned_is_refused_with_the_way_out(box: SshdBox, tmp_path: Path, files: str) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    users, _, system = files.partition(" GLOBAL")
    options = {"UserKnownHostsFile": users.replace("LINK", f"{tmp_path}/null"), "StrictHostKeyChecking": "no"}
    if files.endswith("GLOBAL"):
        options["GlobalKnownHostsFile"] = str(tmp_path / "system")
    box.add_host("forgetful", **options)
    error = refused(box, HostKeyRefused, "is unknown", ssh="forgetful")
    assert "the configuration keeps no keys of hosts: name a file in [project] known_hosts" in error.hint
    with pytest.raises(SpecError, match="its key cannot be pinned") as refusal:
        box.transport(ssh="forgetful").host_key()
    assert refusal.value.hint.startswith("name a file in [project] known_hosts")


@pytest.mark.parametrize("client", ["openssh", "fabric"])
def test_following_the_hints_of_a_dev_null_configuration_works(ssh_orch: Orch, home: Path, client: str) -> None:
    box = ssh_orch.box
    assert box is not None
    box.config.write_text("")
    box.add_host("box", StrictHostKeyChecking="no", UserKnownHostsFile="/dev/null")
    shutil.copy(box.config, home / ".ssh" / "config")
    ssh_orch.host_table += f'client = "{client}"\n'
    ssh_orch.job("worker1")
    assert "[project] known_hosts" in ssh_orch.run("sync", "--code", code=3).stderr
    spec = ssh_orch.project / "jobs.toml"
    spec.write_text(spec.read_text().replace("[project]\n", '[project]\nknown_hosts = "known_hosts"\n', 1))
    ssh_orch.run("trust", "gpu1", "--fingerprint", box.fingerprint())
    ssh_orch.run("sync", "--code")


@pytest.mark.parametrize("client", ["openssh", "fabric"])
def test_key_is_pinned_into_the_file_behind_dev_null(ssh_orch: Orch, home: Path, client: str) -> None:
    box = ssh_orch.box
    assert box is not None
    box.config.write_text("")
    box.add_host("box", UserKnownHostsFile=f"/dev/null {home}/second")
    shutil.copy(box.config, home / ".ssh" / "config")
    ssh_orch.host_table += f'client = "{client}"\n'
    ssh_orch.job("worker1")
    ssh_orch.run("trust", "gpu1", "--fingerprint", box.fingerprint())
    assert (home / "second").read_text() == box.known_line()
    ssh_orch.run("sync", "--code")


# --- a host that asks ----------------------------------------------------------------------------------


def test_second_proof_is_refused_by_name_without_a_terminal(box: SshdBox) -> None:
    """The server accepts the key and then asks for a password, as hosts with one-time codes do."""
    restart(box, "PasswordAuthentication yes", "AuthenticationMethods publickey,password")
    error = refused(box, LoginRefused, "the host also asks for password|does not accept this user or key")
    assert (USE_OPENSSH if box.client == "fabric" else "run `orch doctor gpu1` in a terminal") in error.hint


def test_host_that_accepts_only_passwords_is_refused_by_name_without_a_terminal(box: SshdBox) -> None:
    restart(box, "PasswordAuthentication yes", "PubkeyAuthentication no", "PermitRootLogin yes")
    error = refused(box, LoginRefused, "the host accepts only password|does not accept this user or key")
    assert (USE_OPENSSH if box.client == "fabric" else "run `orch doctor gpu1` in a terminal") in error.hint


def test_reply_that_comes_at_once_is_not_missed(sshd_box: SshdBox, monkeypatch: pytest.MonkeyPatch) -> None:
    send = paramiko.Transport._send_message

    def send_and_sleep(transport: Any, message: Any) -> None:
        send(transport, message)
        if threading.current_thread() is not transport:  # that thread handles the reply
            time.sleep(0.3)

    monkeypatch.setattr(paramiko.Transport, "_send_message", send_and_sleep)
    monkeypatch.setattr(connection, "HANDSHAKE_S", 5)
    sshd_box.fabric().call(HELLO)


def test_login_that_gets_no_answer_is_no_refusal(sshd_box: SshdBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HANDSHAKE_S", 1)
    monkeypatch.setattr(AuthOnlyHandler, "_parse_userauth_failure", lambda handler, message: None)
    monkeypatch.setattr(AuthOnlyHandler, "_parse_userauth_success", lambda handler, message: None)
    with pytest.raises(HostTooSlow, match="while logging in: no answer within 1 s"):
        sshd_box.fabric().call(HELLO)
