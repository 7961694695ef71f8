"""A machine without the programs ssh, ssh-keygen and rsync: the `fabric` client does all by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import HostError
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.endpoint import Endpoint
from orchestrator.ssh.known_hosts import known_keys
from tests.integration.conftest import Orch
from tests.support import SshdBox, make_key


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a PATH on this machine with only the programs that orch needs itself. A box keeps its own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("git", "sh", "uname"):
        found = subprocess.run(["which", program], capture_output=True, text=True, check=True).stdout.strip()
        (folder / program).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def endpoint(config: Path, destination: Destination, **options: Path) -> Endpoint:
    return SshConfig(destination, options.get("identity"), config, options.get("known_hosts")).endpoint(destination)


def test_launch_tail_and_sync_work_without_openssh(ssh_orch: Orch, bare: Path) -> None:
    ssh_orch.job("worker1", "metrics")
    ssh_orch.run("launch", "worker1", "--wait")
    assert "worker1" in ssh_orch.run("status").stdout
    assert ssh_orch.run("tail", "worker1", "-n", "5").stdout
    ssh_orch.run("sync", "worker1")
    assert ssh_orch.box is not None
    assert (ssh_orch.project / "results/worker1/latest").exists()


def test_trust_pins_and_replaces_a_key_without_openssh(ssh_orch: Orch, bare: Path) -> None:
    ssh_orch.job("worker1")
    box = ssh_orch.box
    assert box is not None
    box.known_hosts.write_text("")
    assert "orch trust gpu1" in ssh_orch.run("status", code=3).stderr
    ssh_orch.run("trust", "gpu1", "--fingerprint", fingerprint(box))
    assert box.known_hosts.read_text() == box.known_line()
    other = box.known_line().replace("AAAAC3NzaC1lZDI1NTE5AAAAI", "AAAAC3NzaC1lZDI1NTE5AAAAJ", 1)
    box.known_hosts.write_text(f"elsewhere ssh-ed25519 AAAA\n{other}")
    ssh_orch.run("trust", "gpu1", "--fingerprint", fingerprint(box))
    assert box.known_hosts.read_text() == f"elsewhere ssh-ed25519 AAAA\n{box.known_line()}"
    assert other in Path(f"{box.known_hosts}.old").read_text()
    ssh_orch.run("status")


def fingerprint(box: SshdBox) -> str:
    from orchestrator.ssh.known_hosts import fingerprint, parse_known_keys

    ((_, key),) = parse_known_keys((), [box.known_line()]).trusted
    return fingerprint(key)


CONFIG = """\
Host inner
  HostName 10.0.0.7
  User root
  Port 2200
  IdentityFile ~/.ssh/of-%h
  ProxyJump gate,me@other:2222
Host *.lab !bad.lab
  User labrat
  UserKnownHostsFile "/tmp/known hosts"
Match host gate user jumper
  IdentitiesOnly yes
Match originalhost proxied
  ProxyCommand nc %h %p
Host gate
  User jumper
Host *
  Port 2022
"""


@pytest.mark.parametrize("name", ["inner", "gate", "x.lab", "bad.lab", "proxied", "10.0.0.9"])
def test_settings_are_those_that_ssh_finds(
    tmp_path: Path, name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(CONFIG)
    destination = Destination(name)
    expected = endpoint(tmp_path / "config", destination)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = endpoint(tmp_path / "config", destination)
    for setting in ("hostname", "port", "user", "identities_only", "key_alias", "jumps", "proxy_command", "connect_s"):
        assert getattr(found, setting) == getattr(expected, setting), setting
    assert found.silence_s == expected.silence_s
    if name == "x.lab":
        assert found.known_hosts == expected.known_hosts
    if name == "inner":
        assert found.identities[0].name == expected.identities[0].name == "of-10.0.0.7"


def test_identity_port_and_known_hosts_of_the_project_win(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("User nobody\nPort 9\nIdentityFile /other\n")
    make_key(tmp_path / "my key")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = endpoint(
        tmp_path / "config",
        Destination("box", "me", 2222),
        identity=tmp_path / "my key",
        known_hosts=tmp_path / "known",
    )
    assert (found.user, found.port, found.identities_only) == ("me", 2222, True)
    assert found.identities[0] == tmp_path / "my key"
    assert found.known_hosts == (tmp_path / "known",)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("Include other", "Include"),
        ('Match exec "test -e /x"', "Match exec"),
        ("Match Host x", "Match Host"),
        ("Match host x exec true", "Match exec"),
        ("Match canonical", "Match canonical"),
        ("CanonicalizeHostname yes", "CanonicalizeHostname"),
        ("Ciphers -aes128-ctr", "Ciphers"),
        ("KexAlgorithms=+x", "KexAlgorithms"),
        ("KnownHostsCommand /bin/x", "KnownHostsCommand"),
    ],
)
def test_what_only_ssh_can_resolve_is_refused_by_name(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, line: str, named: str
) -> None:
    (tmp_path / "config").write_text(f"Host other\n  {line}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=f"{named}.* cannot be resolved without the program `ssh`"):
        endpoint(tmp_path / "config", Destination("box"))


def test_unreadable_line_of_the_configuration_is_an_error(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("???\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"malformed line: \?\?\?"):
        endpoint(tmp_path / "config", Destination("box"))


LINES = [
    "box ssh-ed25519 AAAA",
    "other,BOX ssh-ed25519 AAAB",
    "b?x ssh-ed25519 AAAC",
    "*,!box ssh-ed25519 AAAD",
    "[box]:2200 ssh-ed25519 AAAE",
    "@revoked b* ssh-ed25519 AAAF",
    "# box ssh-ed25519 AAAG",
    "boxer ssh-ed25519 AAAH",
    "|1|broken|x ssh-ed25519 AAAI",
]


@pytest.mark.parametrize("is_hashed", [False, True], ids=["plain", "hashed"])
@pytest.mark.parametrize("port", [22, 2200])
def test_known_hosts_lines_are_those_that_ssh_keygen_finds(tmp_path: Path, is_hashed: bool, port: int) -> None:
    known = tmp_path / "known"
    known.write_text("\n".join(LINES) + "\n")
    if is_hashed:
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    name = "box" if port == 22 else f"[box]:{port}"
    found = subprocess.run(["ssh-keygen", "-F", name, "-f", str(known)], capture_output=True, text=True).stdout
    theirs = {line.split()[-1] for line in found.splitlines() if not line.startswith(("#", "@"))}
    where = Endpoint("box", "box", port, "me", (), True, None, (known,), None, (), None)
    ours = {keys_text(key) for _, key in known_keys(where).trusted}
    assert ours == theirs
    assert theirs


def keys_text(key: bytes) -> str:
    import base64

    return base64.b64encode(key).decode()


def test_imports_of_the_client_need_no_programs() -> None:
    """The modules can be imported with an empty PATH."""
    subprocess.run([sys.executable, "-c", "import orchestrator.ssh.fabric"], env={"PATH": ""}, check=True, timeout=60)
