"""Aligned columns of text. Nothing is cut: what does not fit on a line of the terminal is wrapped by the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

GAP = "  "


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield one line for each row, with its cells aligned in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def width_of(rows: Sequence[Sequence[str]]) -> int:
    """Return the width of the aligned rows in columns."""
    return sum(max(map(len, column)) + len(GAP) for column in zip(*rows, strict=True)) - len(GAP)


def number_text(value: float | None) -> str:
    """Return a number with at most six digits, or a hyphen for none."""
    return "-" if value is None else f"{value:.6g}"
