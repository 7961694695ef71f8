"""Files of user keys and certificates, as OpenSSH reads them: what they hold, and why one cannot be used."""

from __future__ import annotations

import base64
import os
import re
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CERTIFICATE = "-cert-v01@openssh.com"  # suffix of algorithm names for certificates
MAX_BYTES = 1 << 16  # of a key file
NEEDS_AGENT = "a public key, and its private key is not in the key agent"
_DEFAULT = re.compile(r".*/\.ssh/id_(?:rsa|dsa|xmss|ecdsa|ed25519|ecdsa_sk|ed25519_sk)")  # tried if none is configured
_PRIVATE = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_OPENSSH = re.compile(rb"-----BEGIN OPENSSH PRIVATE KEY-----\s+([A-Za-z0-9+/=\s]+)-----END")
_OPENSSH_MAGIC = b"openssh-key-v1\0"  # see PROTOCOL.key of OpenSSH
_KEY_FIELDS = {  # how many fields of a certificate make the key; see PROTOCOL.certkeys of OpenSSH
    "ssh-rsa": 2,
    "ssh-ed25519": 1,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    "sk-ssh-ed25519": 2,
    "sk-ecdsa-sha2-nistp256": 3,
}


@dataclass(frozen=True)
class Certificate:
    """The certificate of a user key. `key` is the public key that it certifies; both are in the wire format."""

    path: Path
    kind: str
    blob: bytes
    key: bytes

    @classmethod
    def read(cls, path: Path) -> Certificate | None:
        """Return the certificate in a file; None if there is none."""
        blob = _public_line(_content(path))
        key = certified_key(blob) if blob else None
        return cls(path, kind_of(blob), blob, key) if blob and key else None


def public_blob(path: Path) -> bytes | None:
    """Return the public key of an `IdentityFile` in the wire format, None if it is unknown.

    The file may itself be the public key, and it may be missing if `PATH.pub` is there: an agent may have the private
    key. It may need a passphrase: OpenSSH's own format has the public key in plain text.
    """
    content = _content(path)
    found = _public_line(content) or _public_line(_content(Path(f"{path}.pub")))
    if found is None and (match := _OPENSSH.search(content)):
        try:
            data = base64.b64decode(match[1])
            _, _, _, rest = _fields(data.removeprefix(_OPENSSH_MAGIC), 3)
            found = _fields(rest[4:], 1)[0]
        except (ValueError, struct.error):
            return None
    return found


def certified_key(blob: bytes) -> bytes | None:
    """Return the public key that a certificate certifies; None if it is not a certificate of a known type."""
    kind = kind_of(blob)
    plain = kind.removesuffix(CERTIFICATE)
    if plain == kind or plain not in _KEY_FIELDS:
        return None
    try:
        _, _, *fields, _ = _fields(blob, 2 + _KEY_FIELDS[plain])  # the type and the nonce come first
    except struct.error:
        return None
    name = f"{plain}@openssh.com" if plain.startswith("sk-") else plain
    return b"".join(struct.pack(">I", len(field)) + field for field in (name.encode(), *fields))


def kind_of(blob: bytes) -> str:
    """Return the type of a key in the wire format, empty if it is malformed."""
    try:
        return _fields(blob, 1)[0].decode("ascii")
    except (struct.error, UnicodeDecodeError):
        return ""


def problem_of(path: Path) -> str:
    """Return why OpenSSH would not use a private key file, and what helps; empty if it would try it.

    A public key is no problem as such: an agent may have the private key.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return "not a regular file"
        content = _content(path, strict=True)
    except FileNotFoundError:
        return "" if Path(f"{path}.pub").is_file() else "no such file"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if _public_line(content):
        return ""
    if not _PRIVATE.search(content):
        return "not a private key"
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077 and found.st_uid == os.getuid():
        return f"others can read it (mode {mode:04o}), so OpenSSH ignores it: chmod 600 {path}"
    return ""


def notes_on(paths: Iterable[Path]) -> list[str]:
    """Return what may be wrong with the key files of a refused login, without default files that do not exist."""
    found = []
    for path in paths:
        problem = NEEDS_AGENT if is_public(path) else problem_of(path)
        if problem and (path.exists() or not _DEFAULT.fullmatch(str(path))):
            found.append(f"{path}: {problem}")
    return found


def is_public(path: Path) -> bool:
    """Return whether the file is a public key."""
    return _public_line(_content(path)) is not None


def _content(path: Path, strict: bool = False) -> bytes:
    try:
        if not path.is_file():  # opening a FIFO would wait for a writer
            return b""
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError:
        if strict:
            raise
        return b""


def _public_line(content: bytes) -> bytes | None:
    """Return the key in a file that is one line `TYPE BASE64 [COMMENT]`, None if it is not."""
    words = content.split(maxsplit=2)
    if len(words) < 2:
        return None
    try:
        blob = base64.b64decode(words[1], validate=True)
    except ValueError:
        return None
    return blob if kind_of(blob).encode() == words[0] else None


def _fields(data: bytes, count: int) -> list[bytes]:
    """Return the first `count` length-prefixed fields of `data`, then the rest. Raise struct.error if it is short."""
    found = []
    for _ in range(count):
        (size,) = struct.unpack_from(">I", data)
        if len(data) < 4 + size:
            raise struct.error(f"a field of {size} bytes")
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return [*found, data]
