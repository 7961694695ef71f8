"""Make text safe to show, shorten it, and format durations and sizes."""

from __future__ import annotations

import re
import unicodedata

from orchestrator.errors import SpecError

_UNUSUAL = re.compile(r"[^\n\t\x20-\x7e]")
# Control characters; bidirectional and zero-width ones; surrogates; line and paragraph separators.
_HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Letters and marks that are invisible, by the Default_Ignorable_Code_Point property of Unicode. The variation
# selectors FE00 to FE0F are not included, because many emoji contain one.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]")
# Colours and other styles; the cursor shown or hidden; the rest of the line erased. And `\r` at the end of a line.
_STYLES = re.compile(rb"\x1b\[(?:[0-9;:]{0,32}m|\?\d{1,4}[hl]|[0-2]?K)|\r+(?=\n)")


def clean(text: object) -> str:
    """Return `text` as one line that cannot move the cursor, change the writing direction or hide anything."""
    return _escaped(str(text)).replace("\n", " ")


def _escaped(text: str) -> str:
    r"""Escape hidden characters, as `\x1b` or `\u202e`, except newlines and tabs."""
    return _UNUSUAL.sub(lambda match: _escape_if_hidden(match[0]), text)


def _escape_if_hidden(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN_CATEGORIES and not _BLANK.match(character):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def log_text(lines: bytes) -> str:
    """Return lines of a log as text that is safe to write to a terminal.

    Newlines and tabs are kept; colours, and what shows and hides the cursor, are removed. Other hidden characters, and
    bytes that are not UTF-8, are escaped.
    """
    return _escaped(_STYLES.sub(b"", lines).decode("utf-8", "backslashreplace"))


def shortened(text: object, most: int) -> str:
    """Return `text` as one safe line of at most `most` characters, which ends in `...` if it was cut."""
    line = clean(str(text)[: most + 1])
    return line if len(line) <= most else line[: max(0, most - 3)] + "..."


def duration(seconds: float) -> str:
    """Format a duration: `42 s`, `12 min`, `1 h 5 min`, `3 days 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 72:
        parts = [(hours, "h"), (minutes, "min")]
    else:
        days, hours = divmod(round(seconds / 3600), 24)
        parts = [(days, "days"), (hours, "h")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def size_text(count: int) -> str:
    """Format a number of bytes with a decimal unit: `512 B`, `37 MB`, `1.5 GB`, `2.0 TB`."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB" if size < 1000 else f"{size / 1000:.1f} TB"


def parse_size(text: str) -> int:
    """Return the number of bytes of a size such as `200GB`, `1.5 TB` or `1000`. Raise SpecError if it is malformed."""
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*(B|kB|MB|GB|TB)?\s*", text, re.IGNORECASE)
    if match is None:
        raise SpecError(f"{shortened(text, 40)!r} is not a valid size", "write a number and a unit, such as 200GB")
    exponent = ("b", "kb", "mb", "gb", "tb").index((match[2] or "B").lower())
    return int(float(match[1]) * 1000**exponent)
