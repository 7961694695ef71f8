"""Host keys and algorithms that the user's SSH configuration allows, for every hop; and `orch trust`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import HostError, HostKeyRefused, LoginRefused
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.rsync import Rsync
from tests.integration.conftest import Orch
from tests.support import SshdBox, fingerprint_of, make_key, sizes, toy_request, wait_until

HELLO = toy_request("hello")


def key_of(line: str) -> str:
    """Return the part `ssh-ed25519 AAAA...` of a known_hosts line."""
    return line.split(maxsplit=1)[1].strip()


@pytest.fixture
def sshd_box(sshd_box: SshdBox) -> SshdBox:
    """Use the client whose checks are our own; OpenSSH's are OpenSSH's."""
    sshd_box.client = "fabric"
    return sshd_box


def refused(box: SshdBox, match: str, name: str = "box", error: type[HostError] = HostKeyRefused) -> None:
    """Check that the host is refused before a login, as destination and as jump host."""
    box.add_host(f"behind-{name}", ProxyJump=name)
    for alias in (name, f"behind-{name}"):
        with pytest.raises(error, match=match):
            box.transport(ssh=alias).call(HELLO)
    assert "Accepted" not in box.log.read_text()


def with_host_keys(box: SshdBox, *kinds: str) -> None:
    box.stop()
    box.host_key_types = kinds
    for kind in kinds:
        if not box.host_key(kind).exists():
            make_key(box.host_key(kind), kind)
    box.known_hosts.write_text("".join(map(box.known_line, kinds)))
    box.start()


# --- revoked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["box", "127.0.0.1", "[127.0.0.1]:PORT", "localhost", "127.0.0.*", "hashed", "alias"])
@pytest.mark.parametrize("trusted_as", ["with the port", "without it", "alias"])
def test_key_revoked_under_one_name_is_refused_under_all(sshd_box: SshdBox, name: str, trusted_as: str) -> None:
    """The host is trusted under one name, and its key is revoked under another."""
    key = key_of(sshd_box.known_line())
    revoked = f"{name.replace('PORT', str(sshd_box.port)).replace('hashed', '127.0.0.1')} {key}\n"
    sshd_box.known_hosts.write_text(revoked)
    if name == "hashed":
        subprocess.run(["ssh-keygen", "-H", "-f", str(sshd_box.known_hosts)], check=True, capture_output=True)
        revoked = sshd_box.known_hosts.read_text()
        assert "127.0.0.1" not in revoked
    ports = f"[127.0.0.1]:{sshd_box.port},[localhost]:{sshd_box.port}"
    trusted = {"with the port": ports, "without it": "127.0.0.1,localhost", "alias": "alias"}[trusted_as]
    sshd_box.known_hosts.write_text(f"{trusted} {key}\n@revoked {revoked}")
    options = {"HostKeyAlias": "alias"} if "alias" in (name, trusted_as) else {}
    if options and trusted_as != "alias":
        trusted += ",alias"
        sshd_box.known_hosts.write_text(f"{trusted} {key}\n@revoked {revoked}")
    sshd_box.config.write_text("")
    sshd_box.add_host("box", **options, **({"HostName": "localhost"} if name == "localhost" else {}))
    refused(sshd_box, "marked as revoked")


def test_key_revoked_for_another_host_is_accepted(sshd_box: SshdBox) -> None:
    with sshd_box.known_hosts.open("a") as file:
        file.write(f"@revoked other {key_of(sshd_box.known_line())}\n")
    sshd_box.transport().call(HELLO)


@pytest.mark.parametrize("form", ["text", "krl"])
def test_key_in_revoked_host_keys_is_refused(sshd_box: SshdBox, tmp_path: Path, form: str) -> None:
    make_key(tmp_path / "other")
    public, revoked = Path(f"{sshd_box.host_key()}.pub"), tmp_path / "revoked keys"
    for source, is_refused in ((tmp_path / "other.pub", False), (public, True)):
        if form == "text":
            revoked.write_text(f"# lost\n{source.read_text()}")
        else:
            subprocess.run(["ssh-keygen", "-q", "-k", "-f", str(revoked), str(source)], check=True)
        sshd_box.config.write_text("")
        sshd_box.add_host("box", RevokedHostKeys=f'"{revoked}"')
        if is_refused:
            sshd_box.log.write_text("")
            refused(sshd_box, f"marked as revoked in .*{revoked}")
        else:
            sshd_box.transport().call(HELLO)


@pytest.mark.parametrize("content", [None, b"SSHKRL\n\0torn"])
def test_revoked_keys_that_cannot_be_read_refuse_every_host(
    sshd_box: SshdBox, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "revoked").write_bytes(content)
    sshd_box.add_host("strict", RevokedHostKeys=tmp_path / "revoked")
    refused(sshd_box, "revoked", "strict", HostError)


def test_revoked_authority_makes_no_host_known(sshd_box: SshdBox) -> None:
    key = key_of(sshd_box.known_line())
    sshd_box.known_hosts.write_text(f"@cert-authority * {key}\n@revoked * {key}\n")
    refused(sshd_box, "marked as revoked")
    sshd_box.known_hosts.write_text(f"@cert-authority * {key}\n")
    refused(sshd_box, "unknown")


# --- algorithms and lengths ------------------------------------------------------------------------------


def test_short_rsa_keys_are_refused(sshd_box: SshdBox, tmp_path: Path) -> None:
    with_host_keys(sshd_box, "rsa")
    sshd_box.add_host("strict", RequiredRSASize=3072)
    refused(sshd_box, r"has 2048 bits, fewer than RequiredRSASize \(3072\)", "strict")

    with_host_keys(sshd_box, "ed25519")
    make_key(tmp_path / "short", "rsa")
    shutil.copy(tmp_path / "short.pub", sshd_box.folder / "authorized_keys")
    sshd_box.add_host("long", IdentityFile=tmp_path / "short", RequiredRSASize=3072)
    sshd_box.add_host("short", IdentityFile=tmp_path / "short", RequiredRSASize=2048)
    refused(sshd_box, "2048 bits, fewer than RequiredRSASize", "long", LoginRefused)
    sshd_box.transport(ssh="short").call(HELLO)


@pytest.mark.parametrize("stated", ["rsa-sha2-512", "-*ed25519*", "^ecdsa-sha2-nistp256"])
def test_only_allowed_host_key_algorithms_are_offered(sshd_box: SshdBox, stated: str) -> None:
    with_host_keys(sshd_box, "ed25519", "ecdsa", "rsa")
    sshd_box.add_host("strict", HostKeyAlgorithms=stated)
    transport = sshd_box.fabric(ssh="strict")
    transport.call(HELLO)
    assert transport._session._connection is not None
    used = transport._session._connection.transport.host_key_type
    assert used == ("rsa-sha2-512" if stated.startswith("rsa") else "ecdsa-sha2-nistp256")
    assert (
        "ssh-ed25519" not in transport._session._connection.transport.get_security_options().key_types
        or stated[0] == "^"
    )


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("HostKeyAlgorithms", "ecdsa-sha2-nistp256", "no algorithm|host key"),
        ("HostKeyAlgorithms", "ssh-ed25519-cert-v01@openssh.com", "HostKeyAlgorithms of the SSH configuration"),
        ("KexAlgorithms", "sntrup761x25519-sha512@openssh.com", "KexAlgorithms of the SSH configuration"),
        ("Ciphers", "chacha20-poly1305@openssh.com", "Ciphers of the SSH configuration"),
        ("MACs", "umac-128@openssh.com", "MACs of the SSH configuration"),
    ],
)
def test_host_without_an_allowed_algorithm_is_refused(sshd_box: SshdBox, option: str, value: str, match: str) -> None:
    sshd_box.add_host("strict", **{option: value})
    refused(sshd_box, match, "strict", HostError)


def test_allowed_ciphers_and_key_exchanges_are_used(sshd_box: SshdBox) -> None:
    options = {"Ciphers": "aes256-ctr", "MACs": "hmac-sha2-512", "KexAlgorithms": "ecdh-sha2-nistp384"}
    sshd_box.add_host("strict", **options)
    transport = sshd_box.fabric(ssh="strict")
    transport.call(HELLO)
    assert transport._session._connection is not None
    used = transport._session._connection.transport
    assert (used.local_cipher, used.local_mac) == ("aes256-ctr", "hmac-sha2-512")
    assert used.get_security_options().kex == ("ecdh-sha2-nistp384",)


def test_user_key_of_a_type_that_is_not_allowed_is_not_used(sshd_box: SshdBox, tmp_path: Path) -> None:
    sshd_box.add_host("strict", PubkeyAcceptedAlgorithms="rsa-sha2-512")
    refused(sshd_box, "PubkeyAcceptedAlgorithms does not allow ssh-ed25519", "strict", LoginRefused)
    make_key(tmp_path / "rsa", "rsa")
    shutil.copy(tmp_path / "rsa.pub", sshd_box.folder / "authorized_keys")
    sshd_box.add_host("rsa", PubkeyAcceptedAlgorithms="rsa-sha2-512", IdentityFile=tmp_path / "rsa")
    sshd_box.transport(ssh="rsa").call(HELLO)


@pytest.mark.parametrize("checked", ["yes", "no"])
def test_different_key_for_the_address_is_refused_with_check_host_ip(
    sshd_box: SshdBox, tmp_path: Path, checked: str
) -> None:
    make_key(tmp_path / "other")
    other, key = key_of("x " + (tmp_path / "other.pub").read_text()), key_of(sshd_box.known_line())
    sshd_box.known_hosts.write_text(f"[localhost]:{sshd_box.port} {key}\n[127.0.0.1]:{sshd_box.port} {other}\n")
    sshd_box.add_host("named", HostName="localhost", CheckHostIP=checked, AddressFamily="inet")
    if checked == "no":
        sshd_box.transport(ssh="named").call(HELLO)
    else:
        with pytest.raises(HostKeyRefused, match="does not match the key of its address"):
            sshd_box.transport(ssh="named").call(HELLO)


def test_localhost_is_checked_even_if_settings_disable_it(sshd_box: SshdBox) -> None:
    sshd_box.known_hosts.write_text("")
    lax = {"NoHostAuthenticationForLocalhost": "yes", "StrictHostKeyChecking": "no", "VerifyHostKeyDNS": "yes"}
    command = f'/usr/bin/printf "%%s" "{sshd_box.known_line().strip()}"'
    sshd_box.add_host("lax", **lax, KnownHostsCommand=command)
    refused(sshd_box, "unknown", "lax")
    destination = Destination.parse("lax")
    config = SshConfig(destination, None, sshd_box.config)
    # ssh alone would trust the output of the command
    with pytest.raises(HostError):
        Rsync("gpu1", destination, ("-F", str(config.file()))).push(
            sshd_box.folder, ["id"], str(sshd_box.home / "code"), None
        )
    assert sshd_box.logins() == 0


def test_proxy_use_fdpass_is_refused(sshd_box: SshdBox) -> None:
    sshd_box.add_host("passing", ProxyCommand="/bin/false", ProxyUseFdpass="yes")
    with pytest.raises(HostError, match="ProxyUseFdpass is not supported"):
        sshd_box.transport(ssh="passing").call(HELLO)


# --- a stale control master ------------------------------------------------------------------------------


def test_code_is_not_sent_through_a_stale_control_master(sshd_box: SshdBox, tmp_path: Path, home: Path) -> None:
    """ControlPath points to a master connection to a machine that had the name before."""
    (tmp_path / "old").mkdir()
    old = SshdBox(tmp_path / "old")
    old.start()
    path = home / "control"
    old.add_host("box", ControlPath=path)
    command = ["ssh", "-F", str(old.config), "-M", "-N", "-o", f"ControlPath={path}", "box"]
    master = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_until(path.exists, what="the old master")
        sshd_box.add_host("again", ControlPath=path, ControlMaster="auto")
        (tmp_path / "code").mkdir()
        (tmp_path / "code/secret.py").write_text("secret")
        transport, there = sshd_box.transport(ssh="again"), str(sshd_box.home / "code")
        transport.push(tmp_path / "code", ["secret.py"], there, None)
        transport.pull(there, tmp_path / "back", {"secret.py": 6})
    finally:
        master.terminate()
        master.wait(timeout=10)
        old.close()
    assert sizes(tmp_path / "back") == {"secret.py": 6}
    assert sshd_box.logins() == 1  # requests and copies
    assert "Starting session: command" not in old.log.read_text()


# --- launch and trust, by the command line ---------------------------------------------------------------


def use(orch: Orch, home: Path) -> SshdBox:
    """Install the changed configuration of the box as the user's."""
    assert orch.box is not None
    shutil.copy(orch.box.config, home / ".ssh" / "config")
    return orch.box


def answer(orch: Orch, said: str, *arguments: str, code: int) -> str:
    """Return the output of `orch trust` with these answers on stdin."""
    command = [sys.executable, "-m", "orchestrator.cli", "trust", "gpu1", *arguments]
    done = subprocess.run(command, cwd=orch.project, input=said, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_launch_with_a_secret_stops_at_a_revoked_key(
    ssh_orch: Orch, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "a-secret-value")
    ssh_orch.job("worker1", secrets=["TOKEN"])
    box = use(ssh_orch, home)
    box.known_hosts.write_text(f"@revoked {box.known_line()}{box.known_line()}")
    assert "marked as revoked" in ssh_orch.run("launch", "worker1", code=3).stderr
    assert "revoked" in answer(ssh_orch, "y\ny\n", code=3)
    assert box.logins() == 0
    assert not ssh_orch.root.exists()


@pytest.mark.parametrize("form", ["plain", "hashed", "without the port"])
def test_trust_shows_and_replaces_a_changed_key(ssh_orch: Orch, home: Path, tmp_path: Path, form: str) -> None:
    ssh_orch.job("worker1")
    box = use(ssh_orch, home)
    make_key(tmp_path / "old")
    old, kept = key_of("x " + (tmp_path / "old.pub").read_text()), f"elsewhere {key_of(box.known_line())}\n"
    name = "127.0.0.1" if form == "without the port" else f"[127.0.0.1]:{box.port}"
    before = f"# mine\n{kept}{name} {old}\n"
    box.known_hosts.write_text(before)
    if form == "hashed":
        subprocess.run(["ssh-keygen", "-H", "-f", str(box.known_hosts)], check=True, capture_output=True)
        before = box.known_hosts.read_text()

    said = answer(ssh_orch, "y\nn\n", code=3)
    assert "THE KEY HAS CHANGED" in said
    assert fingerprint_of(tmp_path / "old.pub") in said
    assert box.known_hosts.read_text() == before

    said = answer(ssh_orch, "y\ny\n", code=0)
    assert f"replaced {fingerprint_of(tmp_path / 'old.pub')}" in said
    lines = box.known_hosts.read_text().splitlines()
    assert lines[0] == "# mine"
    assert box.known_line().strip() in lines
    if form != "without the port":  # otherwise the line may belong to the host on port 22
        assert not [line for line in lines if old in line]
        assert Path(f"{box.known_hosts}.old").read_text() == before
    ssh_orch.run("sync", "--code")
    answer(ssh_orch, "y\n", code=0)
    assert box.known_hosts.read_text().splitlines() == lines  # a known key is not written twice


def test_trust_warns_that_a_pattern_still_names_the_old_key(ssh_orch: Orch, home: Path, tmp_path: Path) -> None:
    ssh_orch.job("worker1")
    box = use(ssh_orch, home)
    make_key(tmp_path / "old")
    before = f"[127.0.0.*]:{box.port} {key_of('x ' + (tmp_path / 'old.pub').read_text())}\n"
    box.known_hosts.write_text(before)
    assert "a line with a pattern also matches it" in answer(ssh_orch, "y\ny\n", code=2)
    assert box.known_hosts.read_text() == before


@pytest.mark.parametrize("file", ["none", "/dev/null"])
def test_trust_reports_that_no_known_hosts_file_is_configured(ssh_orch: Orch, home: Path, file: str) -> None:
    ssh_orch.job("worker1")
    box = use(ssh_orch, home)
    box.config.write_text("")
    box.add_host("box", UserKnownHostsFile=file)
    use(ssh_orch, home)
    assert "its key cannot be pinned" in answer(ssh_orch, "y\n", code=2)
    assert "is unknown" in ssh_orch.run("launch", "worker1", code=3).stderr


@pytest.mark.parametrize("state", ["missing directory", "directory", "below a file", "not UTF-8"])
def test_trust_with_an_unusual_known_hosts_file_works(ssh_orch: Orch, home: Path, state: str) -> None:
    ssh_orch.job("worker1")
    box = use(ssh_orch, home)
    box.known_hosts.unlink()
    code = 0
    if state == "missing directory":
        box.config.write_text("")
        box.add_host("box", UserKnownHostsFile=home / "new" / "folder" / "known_hosts")
        use(ssh_orch, home)
    elif state == "directory":
        box.known_hosts.mkdir()
        code = 2
    elif state == "below a file":
        box.config.write_text("")
        box.add_host("box", UserKnownHostsFile=box.identity / "known_hosts")
        use(ssh_orch, home)
        code = 2
    else:
        box.known_hosts.write_bytes(b"h\xf6st ssh-rsa \xff\xfe\n\0\n@revoked\n@revoked x\nno newline")
    said = answer(ssh_orch, "y\n", code=code)
    assert ("pinned" in said) == (code == 0)


def test_trust_without_an_answer_pins_nothing(ssh_orch: Orch, home: Path) -> None:
    ssh_orch.job("worker1")
    box = use(ssh_orch, home)
    box.known_hosts.write_text("")
    assert "not pinned" in answer(ssh_orch, "", code=3)
    assert box.known_hosts.read_text() == ""
    assert os.listdir(box.known_hosts.parent)
