"""The keys on file for a host: read as OpenSSH reads them, checked, pinned and replaced."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import HostError, SpecError
from orchestrator.ssh.config import Endpoint, run

KRL_MAGIC = b"SSHKRL\n\0"  # of a key revocation list, as `ssh-keygen -k` writes it; PROTOCOL.krl of OpenSSH
MOST_REVOKED = 64 << 20  # bytes of a plain file of revoked keys


@dataclass(frozen=True)
class KnownKeys:
    """The host keys on file for one endpoint, as (type, key in the wire format)."""

    names: tuple[str, ...]
    trusted: tuple[tuple[str, bytes], ...]
    revoked: frozenset[bytes]


def fingerprint(key: bytes) -> str:
    """Return the fingerprint of a host key in the wire format, as OpenSSH shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


@dataclass(frozen=True)
class HostKey:
    """The key that a host shows, for the user to judge. `line` is what a known_hosts file would hold.

    `replaced` are the other keys that are on file for the host; pinning this one removes them.
    """

    name: str
    kind: str
    key: bytes
    replaced: tuple[bytes, ...] = ()

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.key)

    @property
    def line(self) -> str:
        return f"{self.name} {self.kind} {base64.b64encode(self.key).decode()}"


# --- reading ---------------------------------------------------------------------------------------------


def known_keys(endpoint: Endpoint) -> KnownKeys:
    """Return the keys of the lines that OpenSSH would look at, hashed names and patterns included.

    A key is revoked if a `@revoked` line names the host in any way: by alias, host name, the name that the user
    typed, each with and without the port.
    """
    names = _names(endpoint)
    files = [file for file in endpoint.known_hosts if file.is_file()]
    for name in names:  # the one with the port first: a line without it counts where no other does
        found = parse_known_keys(names, (line for file in files for line in _find(name, file)))
        if found.trusted:
            break
    return KnownKeys(names, found.trusted, found.revoked | revoked_keys(endpoint))


def revoked_keys(endpoint: Endpoint, address: str = "") -> frozenset[bytes]:
    """Return the keys that a `@revoked` line of the endpoint's files marks; with `address`, by that name alone."""
    bases = [address] if address else [endpoint.key_alias or "", endpoint.hostname.lower(), endpoint.name.lower()]
    names = {form for base in bases if base for form in (base, f"[{base}]:{endpoint.port}")}
    revoked: frozenset[bytes] = frozenset()
    for file in endpoint.known_hosts:
        if file.is_file() and b"@revoked" in _content(file):
            lines = (line for name in sorted(names) for line in _find(name, file))
            revoked |= parse_known_keys((), lines).revoked
    return revoked


def keys_of_address(endpoint: Endpoint, address: str) -> KnownKeys:
    """Return what is on file for the IP address that a connection really has, for `CheckHostIP`."""
    name = address if endpoint.port == 22 else f"[{address}]:{endpoint.port}"
    files = [file for file in endpoint.known_hosts if file.is_file()]
    trusted = parse_known_keys((name,), (line for file in files for line in _find(name, file))).trusted
    return KnownKeys((name,), trusted if endpoint.check_address else (), revoked_keys(endpoint, address))


def parse_known_keys(names: tuple[str, ...], lines: Iterable[str]) -> KnownKeys:
    """Parse lines of a known_hosts file that are already known to be about the host."""
    trusted, revoked = [], set()
    for line in lines:
        fields = line.split()
        marker = fields.pop(0) if line.startswith("@") else ""
        if line.startswith("#") or len(fields) < 3 or marker not in ("", "@revoked"):
            continue
        try:
            key = base64.b64decode(fields[2], validate=True)
        except ValueError:
            continue
        if marker:
            revoked.add(key)
        else:
            trusted.append((fields[1], key))
    return KnownKeys(names, tuple(trusted), frozenset(revoked))


def _names(endpoint: Endpoint) -> tuple[str, ...]:
    plain = endpoint.key_alias or endpoint.hostname.lower()
    exact = plain if endpoint.key_alias or endpoint.port == 22 else f"[{plain}]:{endpoint.port}"
    return (exact,) if exact == plain else (exact, plain)


def _find(name: str, file: Path) -> list[str]:
    return run(["ssh-keygen", "-F", name, "-f", str(file)], f"the known hosts in {file}", (0, 1)).splitlines()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise HostError(f"reading the known hosts in {file}: {error.strerror}", "check its permissions") from None


# --- RevokedHostKeys -------------------------------------------------------------------------------------


def is_in_revoked_file(endpoint: Endpoint, kind: str, key: bytes) -> bool:
    """Return whether `RevokedHostKeys` of the configuration lists the key.

    The file is a list of public keys or a key revocation list. Raise HostError if it cannot be read: OpenSSH then
    refuses every host.
    """
    file = endpoint.revoked_file
    if file is None:
        return False
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_REVOKED)
    except OSError as error:
        hint = "correct RevokedHostKeys in the SSH configuration; until then OpenSSH refuses every host"
        raise HostError(f"reading the revoked keys in {file}: {error.strerror}", hint) from None
    encoded = base64.b64encode(key)
    if not data.startswith(KRL_MAGIC):
        return any(encoded in line.split() for line in data.splitlines() if not line.startswith(b"#"))
    line = kind.encode() + b" " + encoded + b"\n"
    command = ["ssh-keygen", "-Q", "-f", str(file), "/dev/stdin"]
    return subprocess.run(command, input=line, capture_output=True, timeout=30).returncode != 0


# --- pinning ---------------------------------------------------------------------------------------------


def pin_file(endpoint: Endpoint, host: str) -> Path:
    """Return the file that `orch trust` writes. Raise SpecError if the configuration keeps none."""
    if endpoint.pin_file is None:
        raise SpecError(
            f"trusting {host}: its key cannot be pinned: UserKnownHostsFile of {endpoint.name} is none or {os.devnull}",
            "name a file in [project] known_hosts of jobs.toml, or UserKnownHostsFile in the SSH configuration",
        )
    return endpoint.pin_file


def replaced_keys(endpoint: Endpoint, key: bytes) -> tuple[bytes, ...]:
    """Return the other keys on file for the host, which count no more once `key` is pinned."""
    return tuple(old for _, old in dict.fromkeys(known_keys(endpoint).trusted) if old != key)


def pin(endpoint: Endpoint, host: str, line: str, key: bytes) -> Path:
    """Make `key` the only one on file for the host, as `line`; return the file.

    Lines of other keys under its own name are removed by `ssh-keygen -R`, which keeps the file as it was in `FILE.old`;
    one under the name without the port then counts no more. Raise SpecError,
    with nothing changed in `pin_file`, if an old key cannot be removed.
    """
    file = pin_file(endpoint, host)
    name = _names(endpoint)[0]
    for known in (known for known in endpoint.known_hosts if known.is_file()):
        if any(old != key for _, old in parse_known_keys((), _find(name, known)).trusted):
            _remove(name, known, host)
    if key in [old for _, old in parse_known_keys((), _find(name, file) if file.is_file() else ()).trusted]:
        return file
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(file, "a+b", opener=lambda path, flags: os.open(path, flags, 0o600)) as known_hosts:
            known_hosts.seek(0)
            separator = b"" if known_hosts.read()[-1:] in (b"", b"\n") else b"\n"
            known_hosts.write(separator + line.encode() + b"\n")
    except OSError as error:
        raise SpecError(f"pinning the key of {host} in {file}: {error.strerror}", "correct its path") from None
    return file


def _remove(name: str, file: Path, host: str) -> None:
    """Remove the lines of `name`. Raise SpecError for one with a pattern: it may speak for other hosts too."""
    doing = f"removing the old key of {host} ({name}) from {file}"
    fields = [line.split() for line in _find(name, file) if not line.startswith(("#", "@"))]
    if any(words and not words[0].startswith("|") and set(words[0]) & set("*?!") for words in fields):
        raise SpecError(f"{doing}: a line with a pattern also matches it", "remove or change that line by hand")
    try:
        run(["ssh-keygen", "-R", name, "-f", str(file)], f"{file} without {name}")
    except HostError as error:
        raise SpecError(f"{doing}: {error.message.rpartition(': ')[2]}", "remove the line by hand") from None
