"""Secrets kept out of what a worker prints: a mask over bytes."""

from __future__ import annotations

import json
import re
from binascii import b2a_base64
from typing import Dict, Iterator, List, Mapping
from urllib.parse import quote, quote_plus

SHORTEST = 4  # characters; a shorter value stands in too much that is no secret
SHORTEST_PART = 8  # characters of a line of a secret, or of the inside of its base64
FENCES = "*#~^|=+-_.:<>/%"


class Mask:
    """Replaces secrets in a stream of bytes by `***NAME***`: as they are, and in base64, quoted for a URL, escaped.

    What matches of overlapping secrets is replaced as one. What may be the beginning of a secret is held back
    until it is known, and nothing else is.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        named = patterns(secrets)
        self._patterns = sorted(named, key=len, reverse=True)  # the longest first: an alternation takes the first
        self._expression = re.compile(b"|".join(map(re.escape, self._patterns)) or rb"(?!)")
        self._marks = _marks(named)
        self._held = b""
        self._covered = 0  # bytes of `_held` that a mark stands for already

    @property
    def held(self) -> int:
        """Bytes that are held back."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """What is known to be no secret of all that was fed so far, or a mark in its place."""
        data = self._held + data
        return self._take(data, self._first_open(data))

    def flush(self) -> bytes:
        """What was held back: nothing more is to come."""
        return self._take(self._held, len(self._held))

    def _take(self, data: bytes, end: int) -> bytes:
        """`data` up to `end`, masked; the rest is held back."""
        out: List[bytes] = []
        covered = self._covered
        match = self._expression.search(data)
        while match and match.start() < end:
            if match.start() >= covered:
                out += (data[covered : match.start()], self._marks[match[0]])
            covered = max(covered, match.end())
            match = self._expression.search(data, match.start() + 1)
        out.append(data[covered:end])
        self._held, self._covered = data[end:], max(0, covered - end)
        return b"".join(out)

    def _first_open(self, data: bytes) -> int:
        """Where the longest end of `data` begins that is the beginning of a secret."""
        first = len(data)
        for pattern in self._patterns:
            at = data.find(pattern[:1], max(0, len(data) - len(pattern) + 1), first)
            while at >= 0 and not pattern.startswith(data[at:]):
                at = data.find(pattern[:1], at + 1, first)
            first = at if at >= 0 else first
        return first


def mask_text(text: str, secrets: Mapping[str, str]) -> str:
    """A sentence for a record of the run, without the secrets in it."""
    mask = Mask(secrets)
    return (mask.feed(_encoded(text)) + mask.flush()).decode("utf-8", "replace")


def patterns(secrets: Mapping[str, str]) -> Dict[bytes, str]:
    """Every form in which a secret is looked for, and the name of the secret."""
    found: Dict[bytes, str] = {}
    for name, value in secrets.items():
        whole = value.strip()  # a value read from a file may end with a newline that its user strips
        if len(whole) >= SHORTEST:
            lines = [_encoded(line.strip()) for line in whole.splitlines()]  # a key may be printed line by line
            forms = [*_forms(value), *_forms(whole), *(line for line in lines if len(line) >= SHORTEST_PART)]
            found.update((form, name) for form in forms if form not in found)
    return found


def _forms(text: str) -> Iterator[bytes]:
    data = _encoded(text)
    yield data
    for quoted in (quote(data), quote(data, safe=""), quote_plus(data)):
        yield quoted.encode()
        yield re.sub("%..", lambda match: match[0].lower(), quoted).encode()
    for escaped in (json.dumps(text), json.dumps(text, ensure_ascii=False), repr(text), repr(data)[1:]):
        yield _encoded(escaped[1:-1])
    for encoded in _base64(data):
        yield encoded
        yield encoded.translate(bytes.maketrans(b"+/", b"-_"))


def _base64(data: bytes) -> Iterator[bytes]:
    """By itself, and what of it stays the same inside something longer (`user:password`) at each of three places."""
    yield b2a_base64(data, newline=False).rstrip(b"=")
    for before in range(3):
        start, bits = (0, 2, 3)[before], 8 * (before + len(data))
        inside = b2a_base64(bytes(before) + data, newline=False)[start : bits // 6]
        if len(inside) >= SHORTEST_PART:
            yield inside


def _encoded(text: str) -> bytes:
    """As the environment holds it."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no environment holds that
        return text.encode("utf-8", "backslashreplace")


def _marks(named: Mapping[bytes, str]) -> Dict[bytes, bytes]:
    """What stands for each pattern. No secret is in a mark, nor can one arise from it and what is around it."""
    used = b"".join(named)
    fence = 3 * next((sign for sign in FENCES if sign.encode() not in used), FENCES[0])
    shown = {name: "" if _holds_one(_encoded(name), named) else name for name in named.values()}
    return {pattern: _encoded(fence + shown[name] + fence) for pattern, name in named.items()}


def _holds_one(text: bytes, named: Mapping[bytes, str]) -> bool:
    return any(pattern in text for pattern in named)
