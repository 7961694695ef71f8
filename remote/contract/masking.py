"""Secrets kept out of what a worker prints: a mask over a stream of bytes.

A secret is looked for in each of its forms (`secret_forms`), while case, white space, line breaks, quotes and
backslashes are ignored: an encoder may wrap its lines at any width, a terminal may wrap a long value, and text may be
quoted within quoted text. `fold` takes all that out of the text and of the forms, so one search finds every way to
wrap a form. A second search reads escaped line breaks and colours as blanks, where the text holds any.

The search costs the same for any number of forms: a form of eight bytes covers an aligned word of four bytes wherever
it begins, so every aligned word of the text is looked up, and what that word may belong to is compared.
"""

from __future__ import annotations

import re
import sys
from itertools import chain, compress
from typing import Dict, Iterator, List, Mapping, Sequence, Tuple

from remote.contract.secret_forms import encode, patterns

FENCES = "*#~^|+-_.:<>/%"  # none of what is ignored, so nothing joins across a mark
IGNORED = b" \t\r\n\\\"'=\0"  # NUL: ASCII in UTF-16
LOWER = bytes(range(256)).lower()
KEPT = bytes(byte not in IGNORED for byte in range(256))
LINE_ENDS = b"\r\n"
WORD = 4  # bytes that are looked up at once
LONG = 2 * WORD  # bytes of a form from which on its folded form is looked for; a shorter one is taken as it is
FIRST = 4  # bytes of a form that stand on one line, unless they begin theirs
GAPS = 16  # a form may be spread over so many times its length
BREAKS = re.compile(rb"\x1b(?:\[[0-9;:?]*(?:[@-~]|\Z)|\Z)|\\[rnt]")  # ANSI sequences; white space, escaped

Span = Tuple[int, int, bytes]  # where it begins and ends, and the form


def fold(data: bytes) -> bytes:
    """Return `data` in lower case and without what is ignored."""
    return data.translate(LOWER, IGNORED)


class Mask:
    """Replaces secrets in a stream of bytes by `***NAME***`, in whatever form they are written.

    What matches of overlapping secrets is replaced as one. What may be the beginning of a secret is held back
    until it is known, and nothing else is.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        named = patterns(secrets)
        folded: Dict[bytes, str] = {}
        short: Dict[bytes, str] = {}
        for form, name in named.items():
            bare = fold(form)
            (folded if len(bare) >= LONG else short).setdefault(bare if len(bare) >= LONG else form, name)
        self._folded, self._short = _Folded(folded), _Short(short)
        self._marks = _marks({**folded, **short})
        self._held = b""
        self._covered = 0  # bytes of `_held` that a mark stands for already
        self._begins_line = True  # whether `_held` begins a line, blanks aside

    @property
    def held(self) -> int:
        """Bytes that are held back."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """Return what is known of all that was fed so far and was not returned yet, masked."""
        return self._take(self._held + data, is_end=False)

    def flush(self) -> bytes:
        """Return what was held back: nothing more is to come."""
        return self._take(self._held, is_end=True)

    def _take(self, data: bytes, is_end: bool) -> bytes:
        if not data or not self._marks:
            return data
        text = _Text(data, self._begins_line)
        seen = [self._folded.look(text, data), self._short.look(data)]
        if b"\\" in data or b"\x1b" in data:
            seen.append(self._folded.look(text, BREAKS.sub(lambda match: b" " * len(match[0]), data)))
        end = len(data) if is_end else min(begun for _, begun in seen)
        out: List[bytes] = []
        covered = self._covered
        for start, stop, form in sorted(chain(*(spans for spans, _ in seen)), key=lambda span: (span[0], -span[1])):
            if start < end:
                if start >= covered:
                    out += (data[covered:start], self._marks[form])
                covered = max(covered, stop)
        out.append(data[covered:end])
        self._begins_line = text.begins_line(end)
        self._held, self._covered = data[end:], max(0, covered - end)
        return b"".join(out)


def mask_text(text: str, secrets: Mapping[str, str]) -> str:
    """Return a text for a record of the run without the secrets in it."""
    mask = Mask(secrets)
    return (mask.feed(encode(text)) + mask.flush()).decode("utf-8", "replace")


class _Text:
    """Bytes that are searched, and whether a line begins at a place in them."""

    def __init__(self, data: bytes, begins_line: bool) -> None:
        self._data, self._first = data, begins_line

    def begins_line(self, at: int) -> bool:
        while at > 0 and self._data[at - 1] in IGNORED:
            if self._data[at - 1] in LINE_ENDS:
                return True
            at -= 1
        return at == 0 and self._first


# --- long forms, with all that is ignored taken out -----------------------------------------------------


class _Folded:
    def __init__(self, forms: Sequence[bytes] | Mapping[bytes, str]) -> None:
        self._places: Dict[int, List[Tuple[bytes, int]]] = {}  # word -> form, where in it
        self._begins: Dict[bytes, int] = {}  # the beginnings that hold no word for sure: how many bytes they lack
        for form in forms:
            for offset in range(min(2 * FIRST - 1, len(form) - WORD + 1)):
                self._places.setdefault(_words(form[offset : offset + WORD])[0], []).append((form, offset))
            for skip in _skips(form):
                for size in range(1, LONG - 1):
                    begin = form[skip : skip + size]
                    self._begins[begin] = min(skip, self._begins.get(begin, skip))

    def look(self, text: _Text, data: bytes) -> Tuple[List[Span], int]:
        """Return the forms in `data`, and where its longest end begins that may be the beginning of one.

        `data` may differ from `text` in what is ignored.
        """
        folded = fold(data)
        begun = self._short_end(text, data, folded)
        spans: List[Span] = []
        kept: Sequence[int] = ()
        for form, start, skips in self._candidates(folded):
            kept = kept or list(compress(range(len(data)), data.translate(KEPT)))
            found = [skip for skip in skips if _may_begin(text, data, kept[start + skip : start + skip + FIRST], skip)]
            if not found:
                continue
            begin, end = kept[start + found[0]], start + len(form)
            if end > len(folded):
                if len(data) - begin < GAPS * len(form):
                    begun = min(begun, begin)
            elif kept[end - 1] - begin < GAPS * len(form):
                spans.append((begin, kept[end - 1] + 1, form))
        return spans, begun

    def _candidates(self, folded: bytes) -> Iterator[Tuple[bytes, int, List[int]]]:
        """Each form that is in `folded`, or begins at its end: where, and how many first bytes may be missing."""
        for word in self._places.keys() & _words(folded):
            places = self._places[word]
            heads = tuple({form[offset : offset + 2 * WORD] for form, offset in places})
            for at in _aligned(folded, word):
                if at + 2 * WORD <= len(folded) and not folded.startswith(heads, at):
                    continue  # a row of dashes is not compared with every line of a key
                for form, offset in places:
                    start = at - offset  # below 0 where its first bytes went out before
                    skips = [skip for skip in _skips(form) if _is_there(form, offset, skip, folded, start)]
                    if skips:
                        yield form, start, skips

    def _short_end(self, text: _Text, data: bytes, folded: bytes) -> int:
        """Where the longest beginning of a form begins that is too short to be found by a word."""
        places = _last_kept(data, LONG - 2)
        for size in range(len(places), 0, -1):
            skip = self._begins.get(folded[-size:])
            is_near = len(data) - places[-size] < GAPS * LONG
            if skip is not None and is_near and _may_begin(text, data, [*places[-size:], len(data)], skip):
                return places[-size]
        return len(data)


def _skips(form: bytes) -> range:
    """How many bytes may be missing at the beginning: those before a line break, see FIRST."""
    return range(max(1, min(FIRST, len(form) - LONG + 1)))


def _is_there(form: bytes, offset: int, skip: int, folded: bytes, start: int) -> bool:
    """Whether `form` without its first bytes is at `start` in `folded`, or begins there and may go on.

    `offset` in it is where an aligned word was found. Each of those is of one occurrence alone: the first in it.
    """
    first = start + skip
    if first < 0 or not 0 <= offset - skip < WORD:
        return False
    end = start + len(form)
    return form.startswith(folded[first:], skip) if end > len(folded) else folded.startswith(form[skip:], first)


def _may_begin(text: _Text, data: bytes, kept: Sequence[int], skip: int) -> bool:
    """Whether a form may begin at the first of `kept`.

    Not where a line ends within its first bytes, unless they are a line: nearly every line ends with what could be
    the first byte of some form, and would be held back until the next one.
    """
    first = data[kept[0] : kept[:FIRST][-1]]
    is_broken = any(end in first for end in (b"\r", b"\n"))
    return text.begins_line(kept[0]) if skip or is_broken else True


def _words(folded: bytes) -> memoryview:
    return memoryview(folded)[: len(folded) // WORD * WORD].cast("I")


def _aligned(folded: bytes, word: int) -> Iterator[int]:
    """Where the word is in `folded`, at multiples of its size."""
    data = word.to_bytes(WORD, sys.byteorder)
    at = folded.find(data)
    while at >= 0:
        if at % WORD == 0:
            yield at
        at = folded.find(data, at + 1)


def _last_kept(data: bytes, count: int) -> List[int]:
    """The places of the last `count` bytes that are not ignored."""
    places: List[int] = []
    at = len(data)
    while at > 0 and len(places) < count:
        at -= 1
        if data[at] not in IGNORED:
            places.append(at)
    return places[::-1]


# --- short forms, as they are ---------------------------------------------------------------------------


class _Short:
    def __init__(self, forms: Sequence[bytes] | Mapping[bytes, str]) -> None:
        self._forms = list(forms)
        self._begins = {form[:size] for form in forms for size in range(1, len(form))}
        self._longest = max(map(len, self._forms), default=0)

    def look(self, data: bytes) -> Tuple[List[Span], int]:
        """Return the forms in `data`, and where its longest end begins that is the beginning of one."""
        ends = range(max(0, len(data) - self._longest + 1), len(data))
        begun = next((at for at in ends if data[at:] in self._begins), len(data))
        return [span for form in self._forms for span in _found(form, data)], begun


def _found(form: bytes, data: bytes) -> Iterator[Span]:
    at = data.find(form)
    while at >= 0:
        yield at, at + len(form), form
        at = data.find(form, at + 1)


# --- what stands in their place -------------------------------------------------------------------------


def _marks(named: Mapping[bytes, str]) -> Dict[bytes, bytes]:
    """What stands for each form. No secret is in a mark, nor can one arise from it and what is around it."""
    used = b"".join(named)
    fence = 3 * next((sign for sign in FENCES if sign.encode() not in used), FENCES[0])
    shown = {name: "" if _holds_one(encode(name), named) else name for name in {*named.values()}}
    return {form: encode(fence + shown[name] + fence) for form, name in named.items()}


def _holds_one(text: bytes, named: Mapping[bytes, str]) -> bool:
    return any(form in text or form in fold(text) for form in named)
