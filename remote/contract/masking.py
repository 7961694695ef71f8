"""Mask the secrets in a stream of bytes, such as the output of a worker.

The search covers every form of a secret (`secret_forms`) and ignores case, white space, line breaks, quotes and
backslashes: an encoder may wrap its lines at any width, a terminal may wrap a long value, and quoted text may contain
quoted text. `fold` removes all these from text and forms, so one search finds a form however it is wrapped. If the
text contains escaped line breaks or ANSI colours, a second search reads them as blanks.

The cost of the search does not depend on the number of forms. A form of eight bytes contains an aligned word of four
bytes wherever it begins. So each aligned word of the text is looked up, and only the forms with that word are compared.
"""

from __future__ import annotations

import re
import sys
from itertools import chain, compress
from typing import Dict, Iterator, List, Mapping, Sequence, Tuple

from remote.contract.secret_forms import encode, patterns

FENCES = "*#~^|+-_.:<>/%"  # not in IGNORED, so that a mark separates the text before it from the text after it
IGNORED = b" \t\r\n\\\"'=\0"  # NUL: every second byte of ASCII text in UTF-16
LOWER = bytes(range(256)).lower()
KEPT = bytes(byte not in IGNORED for byte in range(256))
LINE_ENDS = b"\r\n"
WORD = 4  # bytes of one look-up
LONG = 2 * WORD  # bytes: a form of at least this length is searched folded, a shorter one as it is
FIRST = 4  # bytes at the start of a form that must be on one line, unless they start a line
GAPS = 16  # a form may be spread over at most this many times its length
BREAKS = re.compile(rb"\x1b(?:\[[0-9;:?]*(?:[@-~]|\Z)|\Z)|\\[rnt]")  # ANSI sequences; escaped white space

Span = Tuple[int, int, bytes]  # start, end (exclusive), and the form


def fold(data: bytes) -> bytes:
    """Return `data` in lower case and without the IGNORED bytes."""
    return data.translate(LOWER, IGNORED)


class Mask:
    """Replace secrets in a stream of bytes by `***NAME***`, in any of their forms.

    Overlapping matches are replaced by one mark. Only bytes that may be the start of a secret are held back.
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
        self._covered = 0  # bytes of `_held` that a mark has already replaced
        self._begins_line = True  # whether `_held` begins a line, not counting blanks before it

    @property
    def held(self) -> int:
        """Return the number of bytes that are held back."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """Add `data`. Return all masked bytes that are decided and were not returned before."""
        return self._take(self._held + data, is_end=False)

    def flush(self) -> bytes:
        """Return the bytes that were held back, masked. Call it at the end of the stream."""
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
    """Return `text` with its secrets masked, for a record of the run."""
    mask = Mask(secrets)
    return (mask.feed(encode(text)) + mask.flush()).decode("utf-8", "replace")


class _Text:
    """The bytes to search, and whether a line begins at a position in them."""

    def __init__(self, data: bytes, begins_line: bool) -> None:
        self._data, self._first = data, begins_line

    def begins_line(self, at: int) -> bool:
        while at > 0 and self._data[at - 1] in IGNORED:
            if self._data[at - 1] in LINE_ENDS:
                return True
            at -= 1
        return at == 0 and self._first


# --- long forms, folded ---------------------------------------------------------------------------------


class _Folded:
    def __init__(self, forms: Sequence[bytes] | Mapping[bytes, str]) -> None:
        self._places: Dict[int, List[Tuple[bytes, int]]] = {}  # word -> the forms with it, and its offset in each
        # Beginnings that may contain no aligned word -> how many bytes of the form are missing before them.
        self._begins: Dict[bytes, int] = {}
        for form in forms:
            for offset in range(min(2 * FIRST - 1, len(form) - WORD + 1)):
                self._places.setdefault(_words(form[offset : offset + WORD])[0], []).append((form, offset))
            for skip in _skips(form):
                for size in range(1, LONG - 1):
                    begin = form[skip : skip + size]
                    self._begins[begin] = min(skip, self._begins.get(begin, skip))

    def look(self, text: _Text, data: bytes) -> Tuple[List[Span], int]:
        """Return the forms in `data`, and the position from which on the rest may be the start of a form.

        `data` may differ from `text` in the IGNORED bytes.
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
        """Yield each form in `folded`, or beginning at its end: form, position, possible numbers of missing bytes."""
        for word in self._places.keys() & _words(folded):
            places = self._places[word]
            heads = tuple({form[offset : offset + 2 * WORD] for form, offset in places})
            for at in _aligned(folded, word):
                if at + 2 * WORD <= len(folded) and not folded.startswith(heads, at):
                    continue  # a cheap test first; otherwise a row of dashes would be compared with every line of a key
                for form, offset in places:
                    start = at - offset  # below 0 if its first bytes were returned before
                    skips = [skip for skip in _skips(form) if _is_there(form, offset, skip, folded, start)]
                    if skips:
                        yield form, start, skips

    def _short_end(self, text: _Text, data: bytes, folded: bytes) -> int:
        """Return the position of the longest beginning of a form at the end that is too short for a look-up."""
        places = _last_kept(data, LONG - 2)
        for size in range(len(places), 0, -1):
            skip = self._begins.get(folded[-size:])
            is_near = len(data) - places[-size] < GAPS * LONG
            if skip is not None and is_near and _may_begin(text, data, [*places[-size:], len(data)], skip):
                return places[-size]
        return len(data)


def _skips(form: bytes) -> range:
    """Return how many bytes may be missing at the start of `form`: those before a line break, see FIRST."""
    return range(max(1, min(FIRST, len(form) - LONG + 1)))


def _is_there(form: bytes, offset: int, skip: int, folded: bytes, start: int) -> bool:
    """Return whether `form` without its first `skip` bytes is in `folded`, or begins at its end.

    Args:
        form: The form.
        offset: Where in `form` the aligned word is that was found. Only the first word of an occurrence counts.
        skip: How many bytes are missing at the start.
        folded: The folded text.
        start: Where in `folded` the complete form would begin.
    """
    first = start + skip
    if first < 0 or not 0 <= offset - skip < WORD:
        return False
    end = start + len(form)
    return form.startswith(folded[first:], skip) if end > len(folded) else folded.startswith(form[skip:], first)


def _may_begin(text: _Text, data: bytes, kept: Sequence[int], skip: int) -> bool:
    """Return whether a form may begin at the first position of `kept`.

    It may not if a line ends within its first bytes, unless they begin a line. Nearly every line ends with a byte that
    could start some form, and would otherwise be held back until the next line.
    """
    first = data[kept[0] : kept[:FIRST][-1]]
    is_broken = any(end in first for end in (b"\r", b"\n"))
    return text.begins_line(kept[0]) if skip or is_broken else True


def _words(folded: bytes) -> memoryview:
    return memoryview(folded)[: len(folded) // WORD * WORD].cast("I")


def _aligned(folded: bytes, word: int) -> Iterator[int]:
    """Yield the positions of the word in `folded` that are multiples of its size."""
    data = word.to_bytes(WORD, sys.byteorder)
    at = folded.find(data)
    while at >= 0:
        if at % WORD == 0:
            yield at
        at = folded.find(data, at + 1)


def _last_kept(data: bytes, count: int) -> List[int]:
    """Return the positions of the last `count` bytes that are not ignored."""
    places: List[int] = []
    at = len(data)
    while at > 0 and len(places) < count:
        at -= 1
        if data[at] not in IGNORED:
            places.append(at)
    return places[::-1]


# --- short forms, searched as they are ------------------------------------------------------------------


class _Short:
    def __init__(self, forms: Sequence[bytes] | Mapping[bytes, str]) -> None:
        self._forms = list(forms)
        self._begins = {form[:size] for form in forms for size in range(1, len(form))}
        self._longest = max(map(len, self._forms), default=0)

    def look(self, data: bytes) -> Tuple[List[Span], int]:
        """Return the forms in `data`, and the position from which on the rest is the start of a form."""
        ends = range(max(0, len(data) - self._longest + 1), len(data))
        begun = next((at for at in ends if data[at:] in self._begins), len(data))
        return [span for form in self._forms for span in _found(form, data)], begun


def _found(form: bytes, data: bytes) -> Iterator[Span]:
    at = data.find(form)
    while at >= 0:
        yield at, at + len(form), form
        at = data.find(form, at + 1)


# --- the constants --------------------------------------------------------------------------------------


def _marks(named: Mapping[bytes, str]) -> Dict[bytes, bytes]:
    """Return the mark of each form. A mark contains no secret, and the text around it does not complete one."""
    used = b"".join(named)
    fence = 3 * next((sign for sign in FENCES if sign.encode() not in used), FENCES[0])
    shown = {name: "" if _holds_one(encode(name), named) else name for name in {*named.values()}}
    return {form: encode(fence + shown[name] + fence) for form, name in named.items()}


def _holds_one(text: bytes, named: Mapping[bytes, str]) -> bool:
    return any(form in text or form in fold(text) for form in named)
