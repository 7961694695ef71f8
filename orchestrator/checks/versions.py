"""Warn of versions with known vulnerabilities, and of a key exchange that is not post-quantum. Pure functions.

A distribution fixes vulnerabilities in the versions that it ships, without a new version number. So an old version is
only a warning, and its hint is how to ask the distribution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.box.probe import RsyncProgram
from orchestrator.box.transport import Handshake
from orchestrator.checks.check import Check, ok, warn
from orchestrator.spec.models import Job

Version = tuple[int, ...]


@dataclass(frozen=True)
class Flaw:
    """A vulnerability: what it allows, in which version it is fixed, and the first version that has it."""

    name: str
    effect: str
    fixed: Version
    since: Version = ()


@dataclass(frozen=True)
class Product:
    """A program or library, the oldest version without a warning, and the vulnerabilities of older ones."""

    floor: str
    flaws: tuple[Flaw, ...]
    apt: str = ""  # its package
    rpm: str = ""


TERRAPIN = Flaw("CVE-2023-48795", "someone in the network can drop the first messages of a connection", (9, 6, 1))
PING = Flaw("CVE-2025-26466", "the other side can use up memory and CPU before the login", (9, 9, 2), (9, 5, 1))
SSH = Product(
    "9.9p2",
    (
        TERRAPIN,
        PING,
        Flaw(
            "CVE-2025-26465",
            "ssh may accept a wrong host key if VerifyHostKeyDNS is on, which it is not for orch",
            (9, 9, 2),
            (6, 8, 1),
        ),
    ),
    "openssh-client",
    "openssh-clients",
)
SSHD = Product(
    "9.9p2",
    (TERRAPIN, Flaw("CVE-2024-6387", "a race before the login can run code as root", (9, 8, 1), (8, 5, 1)), PING),
    "openssh-server",
    "openssh-server",
)
RSYNC = Product(
    "3.5.0",
    (
        Flaw("CVE-2024-12087", "the other side can write outside the target", (3, 4, 0)),
        Flaw("CVE-2026-43620", "the other side can make it crash", (3, 4, 3)),
        Flaw("CVE-2026-53790", "it can run commands; one of 33 that 3.5.0 fixed", (3, 5, 0)),
    ),
    "rsync",
    "rsync",
)
TORCH = Product(
    "2.10",
    (
        Flaw("CVE-2025-32434", "torch.load runs code of the file even with weights_only=True", (2, 6)),
        Flaw("CVE-2026-24747", "torch.load with weights_only=True lets the file corrupt memory", (2, 10)),
    ),
)

_NUMBERS = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6}){0,3}")
# Red Hat's and OpenSSH's own banners have no `p1`: OpenSSH_9.9
_OPENSSH = re.compile(r"OpenSSH_(?:for_Windows_)?([0-9]{1,6})\.([0-9]{1,6})(?:p([0-9]{1,6}))?")
_POST_QUANTUM = re.compile(r"(?:mlkem|sntrup)[0-9]")
_FAMILIES = {
    "apt": {"debian", "ubuntu"},
    "dnf": {"rhel", "fedora", "centos", "amzn"},
    "zypper": {"suse", "opensuse", "sles"},
}


# --- versions ------------------------------------------------------------------------------------------


def parse_version(text: str) -> Version:
    """Return the numbers at the start of a version: (2, 9, 1) for `2.9.1+cu128`; none if it does not start with one."""
    found = _NUMBERS.match(text)
    return tuple(map(int, found[0].split("."))) if found else ()


def parse_openssh(text: str) -> Version:
    """Return the version in the output of `ssh -V` or in a banner: (9, 2, 1) for `OpenSSH_9.2p1 Debian-2+deb12u10`.

    Empty if it is not that of OpenSSH.
    """
    found = _OPENSSH.match(text)
    return tuple(int(number) for number in found.groups() if number) if found else ()


def is_older(version: Version, than: Version) -> bool:
    """Return whether a version is certainly older. One with fewer numbers may be any that starts with them."""
    return version < than[: len(version)]


def flaws_of(product: Product, version: Version) -> list[Flaw]:
    """Return the vulnerabilities of a version, as it left its authors."""
    return [flaw for flaw in product.flaws if is_older(version, flaw.fixed) and not is_older(version, flaw.since)]


def package_tool(os_release: str) -> str:
    """Return what installs packages on a system, by its /etc/os-release: "apt", "dnf", "zypper", or "" if unknown."""
    values = re.findall(r"""(?m)^ID(?:_LIKE)?=["']?([a-z0-9._ -]{1,200})""", os_release)
    names = {name.partition("-")[0] for value in values for name in value.split()}
    return next((tool for tool, families in _FAMILIES.items() if names & families), "")


# --- checks --------------------------------------------------------------------------------------------


def check_product(name: str, product: Product, shown: str, version: Version, os_release: str, where: str = "") -> Check:
    """Check the version of a program.

    Args:
        name: The name of the check.
        product: The program.
        shown: The version as it reports it.
        version: The same, parsed; empty if it is unknown.
        os_release: The /etc/os-release of its machine; empty if it is unknown.
        where: Where to run the commands of the hint: "on the box: ", or nothing.
    """
    flaws = flaws_of(product, version)
    if not flaws:
        return ok(name, shown)
    known = "; ".join(f"{flaw.name} ({flaw.effect})" for flaw in flaws)
    detail = f"{shown}, which is older than {product.floor}; unless the distribution has fixed them, it has {known}"
    return warn(name, detail, where + _ask_distribution(product, os_release))


def _ask_distribution(product: Product, os_release: str) -> str:
    """Return how to find out whether an update is pending, and what the installed package has fixed."""
    tool, apt, rpm = package_tool(os_release), product.apt, product.rpm
    fixed = f"`rpm -q --changelog {rpm} | grep CVE`"
    if tool == "apt":
        pending, fixed = f"`apt list --upgradable {apt}`", f"`apt changelog {apt} | grep CVE`"
    elif tool == "dnf":
        pending = f"`dnf updateinfo list --security {rpm}`"
    elif tool == "zypper":
        pending = "`zypper list-patches --category security`"
    else:
        return f"update it to {product.floor}, or ask its distribution whether these are fixed"
    return f"{pending} shows a pending update; {fixed} shows what is fixed"


def check_box_rsync(rsync: RsyncProgram | None, os_release: str) -> Iterator[Check]:
    """Warn if the rsync of a box is old."""
    if rsync is not None and rsync.kind == "GNU":
        version = parse_version(rsync.version)
        found = check_product("rsync version", RSYNC, f"rsync {rsync.version}", version, os_release, "on the box: ")
        if found.status != "ok":
            yield found


def check_handshake(seen: Handshake | None, os_release: str, is_openssh: bool) -> Iterator[Check]:
    """Check the SSH server of a box and the key exchange with it; nothing if they are not known.

    Args:
        seen: What the server and the client have told each other.
        os_release: The /etc/os-release of the box.
        is_openssh: Whether the client is OpenSSH.
    """
    if seen is None:
        return
    yield check_product("ssh server", SSHD, seen.software, parse_openssh(seen.software), os_release, "on the box: ")
    if _POST_QUANTUM.match(seen.kex):
        yield ok("key exchange", f"{seen.kex}, post-quantum")
        return
    detail = f"{seen.kex} is not post-quantum: who records the connection today may be able to decrypt it one day"
    hint = "update the older side (OpenSSH has sntrup761x25519 since 9.0), and let `KexAlgorithms` of both allow it"
    if not is_openssh:
        hint = "this client knows mlkem768x25519, which OpenSSH has since 9.9: update the server, or use"
        hint += ' client = "openssh" for this host'
    yield warn("key exchange", detail, hint)


def check_torch(python: str, torch: str, jobs: Sequence[Job]) -> Iterator[Check]:
    """Warn if a torch is old with which jobs load checkpoints.

    Args:
        python: The interpreter that has it.
        torch: Its version.
        jobs: The jobs that may use it.
    """
    loading = [job.name for job in jobs if job.resume or job.checkpoints]
    flaws = flaws_of(TORCH, parse_version(torch))
    if loading and flaws:
        known = "; ".join(f"{flaw.name} ({flaw.effect})" for flaw in flaws)
        detail = f"torch {torch} of {python} has {known}; {', '.join(loading)} may load checkpoints with it"
        yield warn("torch version", detail, f"load only checkpoints that you made, or install torch {TORCH.floor}")
