r"""Leave out what was drawn over: of a line that was redrawn a thousand times, only the last frame is worth sending.

What is left out is never a part of a line that is still visible. Whoever reads the rest sees the same at its end.
"""

from __future__ import annotations

from typing import FrozenSet, List, NamedTuple, Optional, Set, Tuple

from remote.contract.redraws import CONTROL, CUT, MOVE, REDRAWN, last_frame, lines_moved

MIN_GAP = 256  # bytes; a smaller gap is not worth the header of another frame

Range = Tuple[int, int]


class _Piece(NamedTuple):
    """Text on one line, and the move that follows it."""

    begin: int
    text_end: int
    end: int  # after the move
    row: int  # of the text, relative to the first piece
    is_drawn: bool
    is_landing: bool  # whether it begins where the cursor was moved up to


def thin(data: bytes) -> List[Range]:
    """Return the ranges of `data` that have to be sent, in order."""
    may_redraw = b"\r" in data or b"\x1b" in data  # ten times faster than the expression
    if not (may_redraw and REDRAWN.search(data)):
        return [(0, len(data))] if data else []
    pieces = _pieces(data)
    dropped = _overdrawn(pieces)
    cut = CUT.match(data)
    kept: List[Range] = [(0, cut.end())] if cut else []
    for number, piece in enumerate(pieces):
        if number in dropped:
            continue
        begin = max(last_frame(data, piece.begin, piece.text_end), kept[-1][1] if kept else 0)
        if kept and begin - kept[-1][1] < MIN_GAP:
            kept[-1] = (kept[-1][0], piece.end)
        elif piece.end > begin:
            kept.append((begin, piece.end))
    return kept


def _pieces(data: bytes) -> List[_Piece]:
    pieces: List[_Piece] = []
    begin, row, came_from_below = 0, 0, False
    for move in MOVE.finditer(data):
        text, step = data[begin : move.start()], lines_moved(move)
        is_blank = len(text) < 100 and not CONTROL.sub(b"", text).strip()
        # Several moves up in a row, with nothing drawn between them, are one.
        is_landing = came_from_below and not (is_blank and step < 0)
        pieces.append(_Piece(begin, move.start(), move.end(), row, bool(text.strip(b"\r")), is_landing))
        came_from_below = step < 0
        begin, row = move.end(), row + step
    pieces.append(_Piece(begin, len(data), len(data), row, begin < len(data), came_from_below))
    return pieces


def _overdrawn(pieces: List[_Piece]) -> FrozenSet[int]:
    """Return the numbers of the pieces that a later refresh of the same lines draws over.

    A refresh begins and ends where the cursor is moved up to: the first of the lines. Of the refreshes that draw the
    same lines, the last one counts.
    """
    landings = [number for number, piece in enumerate(pieces) if piece.is_landing]
    dropped: List[int] = []
    drawn_later: Set[FrozenSet[int]] = set()
    first_row: Optional[int] = None
    for begin, end in reversed(list(zip(landings, landings[1:]))):
        refresh = pieces[begin:end]
        row = refresh[0].row
        is_closed = pieces[end].row == row and min(piece.row for piece in refresh) >= row
        if not is_closed or row != first_row:
            drawn_later.clear()
        first_row = row
        if not is_closed:
            continue
        lines = frozenset(piece.row - row for piece in refresh if piece.is_drawn)
        if lines in drawn_later:
            dropped += range(begin, end)
        drawn_later.add(lines)
    return frozenset(dropped)
