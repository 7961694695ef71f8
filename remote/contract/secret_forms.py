"""List the written forms of a secret: as it is, escaped, quoted and encoded.

Forms that differ only by case, white space, line breaks, quotes or backslashes are one form here, because `masking`
ignores these. So hexadecimal digits need only one case, and nested JSON only one level.
"""

from __future__ import annotations

import json
from base64 import b32encode, b64encode
from binascii import b2a_qp
from typing import Callable, Dict, Iterator, List, Mapping
from urllib.parse import quote, quote_plus

SHORTEST = 4  # characters; a shorter value occurs in too much text that is not secret
SHORTEST_PART = 8  # characters of one line of a secret, or of the inside of an encoding
URI = ";,/?:@&=+$-_.!~*'()#"  # characters that encodeURI of ECMAScript leaves unchanged
COMPONENT = "-_.!~*'()"  # characters that encodeURIComponent leaves unchanged
MARKUP = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
QUOTES = (("&quot;", "&#x27;"), ("&#34;", "&#39;"), ("&quot;", "&apos;"), ('"', "'"))


def patterns(secrets: Mapping[str, str]) -> Dict[bytes, str]:
    """Return every form to search for, with the name of its secret. `secrets` maps names to values."""
    found: Dict[bytes, str] = {}
    for name, value in secrets.items():
        whole = value.strip()  # a value from a file may end with a newline, which the program strips before use
        if len(whole) < SHORTEST:
            continue
        lines = [line.strip() for line in whole.splitlines()]  # a key may be printed line by line
        parts = [line for line in lines if len(line) >= SHORTEST_PART]
        for text in dict.fromkeys([value, whole, *parts]):
            for form in _forms(text):
                found.setdefault(form, name)
    return found


def encode(text: str) -> bytes:
    """Return `text` as bytes, as the environment of a process stores it."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # such text cannot be in an environment
        return text.encode("utf-8", "backslashreplace")


def _forms(text: str) -> Iterator[bytes]:
    for spelled in _normalized(text):
        data = encode(spelled)
        yield data
        for escaped in _escaped(spelled, data):
            yield encode(escaped)
        for other in (data, *_other_charsets(spelled)):
            yield from _encoded(other)


def _normalized(text: str) -> List[str]:
    """Return the text and, if it is not ASCII, its composed and decomposed forms (NFC, NFD)."""
    if text.isascii():
        return [text]
    import unicodedata

    return list(dict.fromkeys([text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]))


def _other_charsets(text: str) -> Iterator[bytes]:
    for charset in ("latin-1", "utf-16-le", "utf-16-be"):
        try:
            yield text.encode(charset)
        except UnicodeEncodeError:
            pass


def _escaped(text: str, data: bytes) -> Iterator[str]:
    """Yield the text as programming languages, shells, YAML, markup and URLs write it."""
    for literal in (json.dumps(text), json.dumps(text, ensure_ascii=False), repr(text), ascii(text), repr(data)[1:]):
        yield literal[1:-1]
    yield "".join(f"\\{byte:03o}" if byte >= 0x80 else chr(byte) for byte in data)  # $'...' of bash
    yield "".join(f"\\{byte:03o}" if byte >= 0x80 or byte < 0x20 else chr(byte) for byte in data)
    safe_sets = ("/", "", URI, COMPONENT)
    for quoted in (*(quote(data, safe=safe) for safe in safe_sets), quote_plus(data)):
        yield quoted
        yield quote(quoted)  # a URL within a URL
    yield "".join(f"%{byte:02x}" for byte in data)
    for write in (_braced, _percent_u):
        yield "".join(char if char.isascii() else write(char) for char in text)
    yield from _in_markup(text)


def _braced(char: str) -> str:
    return f"\\u{{{ord(char):x}}}"  # Rust and ECMAScript


def _percent_u(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"%u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _in_markup(text: str) -> Iterator[str]:
    """Yield the text as in HTML and XML: each usual form of quotes; other characters unchanged, by number or name."""
    ways: List[Callable[[str], str]] = [str]
    if not text.isascii():
        from html.entities import codepoint2name

        ways.append(lambda char: f"&#{ord(char)};")
        ways.append(lambda char: f"&#x{ord(char):x};")
        ways.append(lambda char: f"&{codepoint2name[ord(char)]};" if ord(char) in codepoint2name else char)
    for double, single in QUOTES:
        marks = {**MARKUP, '"': double, "'": single}
        for write in ways:
            yield "".join(marks.get(char) or (char if char.isascii() else write(char)) for char in text)


def _encoded(data: bytes) -> Iterator[bytes]:
    """Yield the usual encodings of bytes as text, and base64 of base64."""
    yield data
    yield b2a_qp(data)
    yield data.hex().encode()
    for separator in (":", "-", "x"):  # the last one: every byte as \xNN
        yield separator.join(f"{byte:02x}" for byte in data).encode()
    yield from _insides(data, b32encode, 5, 5)
    for encoded in _insides(data, b64encode, 3, 6):
        yield encoded
        yield encoded.translate(bytes.maketrans(b"+/", b"-_"))
    yield from _insides(b64encode(data), b64encode, 3, 6)


def _insides(data: bytes, encoder: Callable[[bytes], bytes], group: int, bits: int) -> Iterator[bytes]:
    """Yield the encoding of `data`, and the part of it that is the same inside longer data such as `user:password`.

    Args:
        data: The bytes.
        encoder: The encoding.
        group: How many bytes are encoded together. There is one inner part for each position of `data` in a group.
        bits: Bits per character of the encoding.
    """
    yield encoder(data).rstrip(b"=")
    for before in range(group):
        start, end = -(-8 * before // bits), 8 * (before + len(data)) // bits
        inside = encoder(bytes(before) + data)[start:end]
        if len(inside) >= SHORTEST_PART:
            yield inside
