"""Read known_hosts files as OpenSSH does; check, pin and replace host keys."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import HostError, SpecError
from orchestrator.ssh.endpoint import Endpoint, matches
from remote.contract.files import write_atomic

KRL_MAGIC = b"SSHKRL\n\0"  # begins a key revocation list (`ssh-keygen -k`); see PROTOCOL.krl of OpenSSH
NO_PIN_HINT = "name a file in [project] known_hosts of jobs.toml, or in UserKnownHostsFile of the SSH configuration"
MAX_REVOKED = 64 << 20  # bytes that are read of a file of revoked keys


@dataclass(frozen=True)
class KnownKeys:
    """The host keys in the known_hosts files for one endpoint.

    `names` are the names under which they were looked up, the first one also for messages and for pinning. `trusted`
    has (type, key) pairs. `authorities` are keys that may certify keys of the host (`@cert-authority`). All keys are in
    the wire format.
    """

    names: tuple[str, ...]
    trusted: tuple[tuple[str, bytes], ...]
    revoked: frozenset[bytes]
    authorities: frozenset[bytes] = frozenset()


def fingerprint(key: bytes) -> str:
    """Return the fingerprint of a host key in the wire format, as OpenSSH shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


@dataclass(frozen=True)
class HostKey:
    """The key that a host shows, for the user to accept or not.

    `name` is the host's name in a known_hosts file, `kind` the type of the key. `replaced` are other keys in the
    known_hosts files for the host; pinning this one removes them. `is_trusted`: the files also have this one.
    """

    name: str
    kind: str
    key: bytes
    replaced: tuple[bytes, ...] = ()
    is_trusted: bool = False

    @property
    def fingerprint(self) -> str:
        """The fingerprint as OpenSSH shows it."""
        return fingerprint(self.key)

    @property
    def line(self) -> str:
        """The line for a known_hosts file, without its line end."""
        return f"{self.name} {self.kind} {base64.b64encode(self.key).decode()}"


# --- reading ---------------------------------------------------------------------------------------------


def known_keys(endpoint: Endpoint) -> KnownKeys:
    """Return the keys that OpenSSH would find for the endpoint, including lines with hashed names and patterns.

    A key counts as revoked if a `@revoked` line matches any name of the host: its HostKeyAlias, its host name or the
    name that the user typed, each with or without the port.

    Raises:
        HostError: A known_hosts file cannot be read.
    """
    names = _names(endpoint)
    files = [file for file in endpoint.known_hosts if file.is_file()]
    authorities: frozenset[bytes] = frozenset()
    for name in names:  # the name with the port first; the one without it counts only if the first has no key
        found = parse_known_keys(names, (line for file in files for line in _find(name, file)))
        authorities |= found.authorities
        if found.trusted:
            break
    revoked = found.revoked | revoked_keys(endpoint)
    return KnownKeys(names, found.trusted, revoked, authorities - revoked)


def revoked_keys(endpoint: Endpoint, address: str = "") -> frozenset[bytes]:
    """Return the keys in `@revoked` lines for the endpoint; if `address` is given, only in lines for that address."""
    bases = [address] if address else [endpoint.key_alias or "", endpoint.hostname.lower(), endpoint.name.lower()]
    names = {form for base in bases if base for form in (base, f"[{base}]:{endpoint.port}")}
    revoked: frozenset[bytes] = frozenset()
    for file in endpoint.known_hosts:
        if file.is_file() and b"@revoked" in _content(file):
            lines = (line for name in sorted(names) for line in _find(name, file))
            revoked |= parse_known_keys((), lines).revoked
    return revoked


def keys_of_address(endpoint: Endpoint, address: str) -> KnownKeys:
    """Return the keys for `address`, the IP address of the connection. None are trusted unless CheckHostIP is set."""
    name = address if endpoint.port == 22 else f"[{address}]:{endpoint.port}"
    files = [file for file in endpoint.known_hosts if file.is_file()]
    trusted = parse_known_keys((name,), (line for file in files for line in _find(name, file))).trusted
    return KnownKeys((name,), trusted if endpoint.check_address else (), revoked_keys(endpoint, address))


def parse_known_keys(names: tuple[str, ...], lines: Iterable[str]) -> KnownKeys:
    """Parse those lines of a known_hosts file that match the host. Ignore malformed and other lines."""
    trusted = []
    marked: dict[str, set[bytes]] = {"@revoked": set(), "@cert-authority": set()}
    for line in lines:
        fields = line.split()
        marker = fields.pop(0) if line.startswith("@") else ""
        if line.startswith("#") or len(fields) < 3 or marker not in ("", *marked):
            continue
        try:
            key = base64.b64decode(fields[2], validate=True)
        except ValueError:
            continue
        if marker:
            marked[marker].add(key)
        else:
            trusted.append((fields[1], key))
    return KnownKeys(names, tuple(trusted), frozenset(marked["@revoked"]), frozenset(marked["@cert-authority"]))


def _names(endpoint: Endpoint) -> tuple[str, ...]:
    plain = endpoint.key_alias or endpoint.hostname.lower()
    exact = plain if endpoint.key_alias or endpoint.port == 22 else f"[{plain}]:{endpoint.port}"
    return (exact,) if exact == plain else (exact, plain)


def _find(name: str, file: Path) -> list[str]:
    """Return the lines of a known_hosts file that match `name`, as `ssh-keygen -F` does, which may be missing here."""
    return [line for line in _content(file).decode("utf-8", "replace").splitlines() if _is_for(name, line)]


def _is_for(name: str, line: str) -> bool:
    """Return whether a line of a known_hosts file is about the host `name`: hashed, by name or by a pattern."""
    fields = line.split()
    if not fields or fields[0].startswith("#"):
        return False
    hosts = fields[1] if fields[0].startswith("@") and len(fields) > 1 else fields[0]
    if hosts.startswith("|1|"):  # |1|salt|HMAC-SHA1 of the name, with the salt as its key
        try:
            salt, digest = (base64.b64decode(part, validate=True) for part in hosts.split("|")[2:4])
        except ValueError:
            return False
        return hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), digest)
    return matches(name.lower(), hosts.lower().split(","))


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise HostError(f"reading the known hosts in {file}: {error.strerror}", "check its permissions") from None


# --- RevokedHostKeys -------------------------------------------------------------------------------------


def is_in_revoked_file(endpoint: Endpoint, kind: str, key: bytes) -> bool:
    """Return whether the RevokedHostKeys file of the configuration contains the key.

    The file is a list of public keys or a key revocation list.

    Args:
        endpoint: The hop.
        kind: The type of the key.
        key: The key in the wire format.

    Raises:
        HostError: The file cannot be read. OpenSSH then refuses every host.
    """
    file = endpoint.revoked_file
    if file is None:
        return False
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_REVOKED)
    except OSError as error:
        hint = "correct RevokedHostKeys in the SSH configuration; until then OpenSSH refuses every host"
        raise HostError(f"reading the revoked keys in {file}: {error.strerror}", hint) from None
    encoded = base64.b64encode(key)
    if not data.startswith(KRL_MAGIC):
        return any(encoded in line.split() for line in data.splitlines() if not line.startswith(b"#"))
    line = kind.encode() + b" " + encoded + b"\n"
    command = ["ssh-keygen", "-Q", "-f", str(file), "/dev/stdin"]
    doing, hint = f"reading the revoked keys in {file}", "make the list again, or correct RevokedHostKeys"
    try:
        done = subprocess.run(command, input=line, capture_output=True, timeout=30)
    except FileNotFoundError:
        why = "it is a key revocation list, and ssh-keygen is not installed here"
        raise HostError(f"{doing}: {why}", "install the OpenSSH client") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{doing}: ssh-keygen did not finish within 30 s", hint) from None
    if done.returncode != 0 and b"REVOKED" not in done.stdout:
        raise HostError(f"{doing}: {done.stderr.decode('utf-8', 'replace').strip() or 'ssh-keygen failed'}", hint)
    return done.returncode != 0


# --- pinning ---------------------------------------------------------------------------------------------


def pin_file(endpoint: Endpoint, host: str) -> Path:
    """Return the known_hosts file into which `orch trust` writes. Raise SpecError if the configuration has none."""
    if endpoint.pin_file is None:
        raise SpecError(
            f"trusting {host}: its key cannot be pinned: UserKnownHostsFile of {endpoint.name} is none or {os.devnull}",
            NO_PIN_HINT,
        )
    return endpoint.pin_file


def replaced_keys(endpoint: Endpoint, key: bytes) -> tuple[bytes, ...]:
    """Return the other trusted keys of the host, which are no longer trusted once `key` is pinned."""
    return tuple(old for _, old in dict.fromkeys(known_keys(endpoint).trusted) if old != key)


def pin(endpoint: Endpoint, host: str, line: str, key: bytes) -> Path:
    """Make `key` the only trusted key of the host and return the file that contains it.

    Other keys of the same name are removed, and the former file is kept as `FILE.old`. A key under the name
    without the port stays, but no longer counts.

    Args:
        endpoint: The host.
        host: The host's name in jobs.toml, for messages.
        line: The line to add.
        key: The key in that line, in the wire format.

    Raises:
        SpecError: An old key cannot be removed (`pin_file` is unchanged then), or the file cannot be written.
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
    """Remove the lines of `name`. Raise SpecError if one has a pattern, because it may also match other hosts."""
    doing = f"removing the old key of {host} ({name}) from {file}"
    fields = [line.split() for line in _find(name, file) if not line.startswith(("#", "@"))]
    if any(words and not words[0].startswith("|") and set(words[0]) & set("*?!") for words in fields):
        raise SpecError(f"{doing}: a line with a pattern also matches it", "remove or change that line by hand")
    lines = _content(file).splitlines(keepends=True)
    kept = [line for line in lines if line.startswith(b"@") or not _is_for(name, line.decode("utf-8", "replace"))]
    try:
        former = file.with_name(f"{file.name}.old")
        former.unlink(missing_ok=True)
        shutil.copy2(file, former)
        write_atomic(file, b"".join(kept))
        os.chmod(file, stat.S_IMODE(former.stat().st_mode))
    except OSError as error:
        raise SpecError(f"{doing}: {error.strerror}", "remove the line by hand") from None
