"""Versions as programs and servers report them, and the warnings for old ones."""

from __future__ import annotations

import pytest

from orchestrator.box.probe import RsyncProgram
from orchestrator.box.transport import Handshake
from orchestrator.checks import versions
from orchestrator.checks.check import Check
from orchestrator.checks.versions import RSYNC, SSH, SSHD, TORCH, Product
from orchestrator.spec.models import Job
from tests.support import checked

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\nID=debian\n'
UBUNTU = 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nNAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n'
ROCKY = 'NAME="Rocky Linux"\nVERSION="9.4 (Blue Onyx)"\nID="rocky"\nID_LIKE="rhel centos fedora"\n'
RHEL = 'NAME="Red Hat Enterprise Linux"\nVERSION="9.4 (Plow)"\nID="rhel"\nID_LIKE="fedora"\n'
AMAZON = 'NAME="Amazon Linux"\nVERSION="2023"\nID="amzn"\nID_LIKE="fedora"\n'
LEAP = 'NAME="openSUSE Leap"\nVERSION="15.6"\nID="opensuse-leap"\nID_LIKE="suse opensuse"\n'
ALPINE = 'NAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.20.3\n'


# --- parsing and comparing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.19 27 Jan 2026", (9, 2, 1)),
        ("OpenSSH_9.6p1 Ubuntu-3ubuntu13.5", (9, 6, 1)),
        ("OpenSSH_10.0p2 Debian-7", (10, 0, 2)),
        ("OpenSSH_8.7p1, OpenSSL 3.0.7 1 Nov 2022", (8, 7, 1)),  # `ssh -V` of Red Hat 9
        ("OpenSSH_8.7", (8, 7)),  # its banner
        ("OpenSSH_9.9p2, LibreSSL 3.3.6", (9, 9, 2)),  # macOS
        ("OpenSSH_9.7 FreeBSD-20240806", (9, 7)),
        ("OpenSSH_for_Windows_9.5", (9, 5)),
        ("OpenSSH_for_Windows_8.6p1, LibreSSL 3.4.3", (8, 6, 1)),
        ("dropbear_2022.83", ()),
        ("paramiko_3.4.0", ()),
        ("OpenSSH", ()),
        ("", ()),
    ],
)
def test_version_of_openssh_is_read(text: str, version: tuple[int, ...]) -> None:
    assert versions.parse_openssh(text) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("3.2.7", (3, 2, 7)),
        ("3.4.1pre2", (3, 4, 1)),
        ("3.5.0+ds1", (3, 5, 0)),
        ("2.5.1+cu124", (2, 5, 1)),
        ("2.10.0a0+git1234", (2, 10, 0)),
        ("2.9.0.dev20250801", (2, 9, 0)),
        ("unknown", ()),
        ("", ()),
    ],
)
def test_version_is_read(text: str, version: tuple[int, ...]) -> None:
    assert versions.parse_version(text) == version


@pytest.mark.parametrize(
    ("version", "is_older"),
    [
        ((9, 9, 1), True),
        ((9, 9, 2), False),
        ((9, 9), False),  # a banner without p1 may be that of 9.9p2
        ((9, 8), True),
        ((10, 0, 2), False),
        ((10, 2), False),
        ((), False),
    ],
)
def test_version_without_a_patch_level_is_older_only_if_all_of_it_is(version: tuple[int, ...], is_older: bool) -> None:
    assert versions.is_older(version, (9, 9, 2)) == is_older


@pytest.mark.parametrize("product", [SSH, SSHD, RSYNC, TORCH])
def test_every_version_below_the_floor_has_a_known_flaw_and_the_floor_has_none(product: Product) -> None:
    assert versions.flaws_of(product, (1, 0, 0))
    newest = max(flaw.fixed for flaw in product.flaws)
    shown = f"OpenSSH_{product.floor}" if product in (SSH, SSHD) else product.floor
    assert (versions.parse_openssh(shown) or versions.parse_version(shown)) == newest[: 2 if product is TORCH else 3]
    assert versions.flaws_of(product, newest) == []


@pytest.mark.parametrize(
    ("shown", "names"),
    [
        ("OpenSSH_8.0", ["CVE-2023-48795"]),
        ("OpenSSH_9.2p1 Debian-2+deb12u10", ["CVE-2023-48795", "CVE-2024-6387"]),
        ("OpenSSH_9.7 FreeBSD-20240806", ["CVE-2024-6387", "CVE-2025-26466"]),
        ("OpenSSH_9.8p1", ["CVE-2025-26466"]),
        ("OpenSSH_9.9p2", []),
    ],
)
def test_server_has_the_flaws_of_its_version(shown: str, names: list[str]) -> None:
    assert [flaw.name for flaw in versions.flaws_of(SSHD, versions.parse_openssh(shown))] == names


@pytest.mark.parametrize(
    ("os_release", "tool"),
    [(DEBIAN, "apt"), (UBUNTU, "apt"), (ROCKY, "dnf"), (RHEL, "dnf"), (AMAZON, "dnf"), (LEAP, "zypper"), (ALPINE, "")],
)
def test_package_tool_follows_from_os_release(os_release: str, tool: str) -> None:
    assert versions.package_tool(os_release) == tool
    assert versions.package_tool("") == ""


# --- the checks ----------------------------------------------------------------------------------------


def ssh_here(shown: str, os_release: str) -> Check:
    return versions.check_product("ssh here", SSH, shown, versions.parse_openssh(shown), os_release)


def test_old_version_is_a_warning_that_names_its_flaws_and_how_to_ask_the_distribution() -> None:
    check = ssh_here("OpenSSH_9.6p1 Ubuntu-3ubuntu13.5, OpenSSL 3.0.13 30 Jan 2024", UBUNTU)
    assert check.status == "warn"
    assert check.detail.startswith("OpenSSH_9.6p1 Ubuntu-3ubuntu13.5, OpenSSL 3.0.13 30 Jan 2024, which is older than")
    assert "unless the distribution has fixed them" in check.detail
    assert "CVE-2025-26466 (" in check.detail and "CVE-2025-26465 (" in check.detail
    assert "`apt list --upgradable openssh-client`" in check.hint
    assert "`apt changelog openssh-client | grep CVE`" in check.hint


@pytest.mark.parametrize(
    ("os_release", "command"),
    [
        (ROCKY, "`dnf updateinfo list --security openssh-clients`"),
        (LEAP, "`zypper list-patches --category security`"),
        (ALPINE, "update it to 9.9p2, or ask its distribution"),
    ],
)
def test_hint_is_for_the_distribution(os_release: str, command: str) -> None:
    hint = ssh_here("OpenSSH_8.7p1, OpenSSL 3.0.7 1 Nov 2022", os_release).hint
    assert command in hint
    assert ("`rpm -q --changelog openssh-clients | grep CVE`" in hint) == (os_release != ALPINE)


@pytest.mark.parametrize("shown", ["OpenSSH_9.9p2, LibreSSL 3.3.6", "OpenSSH_10.2p1", "some other ssh"])
def test_new_or_unknown_version_passes(shown: str) -> None:
    assert ssh_here(shown, DEBIAN) == Check("ssh here", "ok", shown)


@pytest.mark.parametrize(
    ("rsync", "status"),
    [
        (RsyncProgram("GNU", "3.2.7"), ["warn"]),
        (RsyncProgram("GNU", "3.4.4"), ["warn"]),
        (RsyncProgram("GNU", "3.5.0"), []),
        (RsyncProgram("openrsync", "protocol 29"), []),
        (None, []),
    ],
)
def test_old_rsync_of_a_box_is_a_warning(rsync: RsyncProgram | None, status: list[str]) -> None:
    found = list(versions.check_box_rsync(rsync, DEBIAN))
    assert [check.status for check in found] == status
    assert all(check.hint.startswith("on the box: `apt list --upgradable rsync`") for check in found)


@pytest.mark.parametrize(
    ("kex", "status"),
    [
        ("sntrup761x25519-sha512@openssh.com", "ok"),
        ("sntrup761x25519-sha512", "ok"),
        ("mlkem768x25519-sha256", "ok"),
        ("mlkem768nistp256-sha256", "ok"),
        ("mlkem1024nistp384-sha384", "ok"),
        ("curve25519-sha256", "warn"),
        ("curve25519-sha256@libssh.org", "warn"),
        ("ecdh-sha2-nistp256", "warn"),
        ("diffie-hellman-group16-sha512", "warn"),
    ],
)
def test_key_exchange_that_is_not_post_quantum_is_a_warning(kex: str, status: str) -> None:
    found = list(versions.check_handshake(Handshake("OpenSSH_10.2", kex), DEBIAN, True))
    assert [(check.name, check.status) for check in found] == [("ssh server", "ok"), ("key exchange", status)]
    assert kex in found[1].detail


def test_hint_for_the_key_exchange_names_what_the_client_supports() -> None:
    seen = Handshake("OpenSSH_9.2p1 Debian-2+deb12u10", "curve25519-sha256")
    hints = [list(versions.check_handshake(seen, DEBIAN, is_openssh))[1].hint for is_openssh in (True, False)]
    assert "sntrup761x25519 since 9.0" in hints[0]
    assert "mlkem768x25519" in hints[1] and 'client = "openssh"' in hints[1]


def test_unknown_handshake_is_not_judged() -> None:
    assert list(versions.check_handshake(None, DEBIAN, True)) == []


def job(**keys: object) -> Job:
    return checked(Job, **{"name": "train", "host": "box", "command": ["python", "train.py"], **keys})


@pytest.mark.parametrize(
    ("torch", "flaws"),
    [
        ("2.5.1+cu124", ["CVE-2025-32434", "CVE-2026-24747"]),
        ("2.6.0", ["CVE-2026-24747"]),
        ("2.9.1", ["CVE-2026-24747"]),
        ("2.10.0+cu128", []),
        ("", []),
    ],
)
def test_old_torch_is_a_warning_for_jobs_that_load_checkpoints(torch: str, flaws: list[str]) -> None:
    loading = job(checkpoints="out/*.pt")
    found = list(versions.check_torch("/opt/bin/python", torch, [job(), loading]))
    assert [check.status for check in found] == ["warn"] * bool(flaws)
    assert all(flaw in found[0].detail for flaw in flaws)
    assert list(versions.check_torch("/opt/bin/python", torch, [job()])) == []
