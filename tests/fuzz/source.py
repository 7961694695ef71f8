"""Shared by the fuzz targets: turn bytes into values; the exceptions that are allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Target = Callable[[bytes], None]

NUMBERS = (
    0,
    1,
    -1,
    2**31,
    2**63,
    -(2**70),
    10**400,
    0.5,
    -0.0,
    1e308,
    1e-320,
    float("inf"),
    float("-inf"),
    float("nan"),
)
TEXTS = ("", "..", "../x", "/", "a/b", "\0", "\n", "\x1b]52;c;eA==\x07", "[/x]", "\ud800", "\u202e", "é", "x" * 70_000)
KINDS = 9


class Source:
    """Reads a JSON value from bytes, so that mutating a byte mutates the value."""

    def __init__(self, data: bytes, keys: Sequence[str]) -> None:
        self._data, self._at, self._keys = data, 0, keys

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def rest(self) -> bytes:
        return self._data[self._at :]

    def text(self) -> str:
        kind = self.byte()
        if kind < 128:
            return self._keys[kind % len(self._keys)] if self._keys else ""
        if kind < 160:
            return TEXTS[kind % len(TEXTS)]
        start, self._at = self._at, self._at + kind - 160
        return self._data[start : self._at].decode("utf-8", "replace")

    def value(self, depth: int = 6) -> Any:
        kind = self.byte() % (KINDS if depth else KINDS - 2)
        if kind == 0:
            return None
        if kind == 1:
            return self.byte() % 2 == 0
        if kind == 2:
            return NUMBERS[self.byte() % len(NUMBERS)]
        if kind == 3:
            return self.byte() - 64
        if kind < KINDS - 2:
            return self.text()
        if kind == KINDS - 2:
            return [self.value(depth - 1) for _ in range(self.byte() % 5)]
        return self.table(depth)

    def table(self, depth: int = 6) -> dict[str, Any]:
        return {self.text(): self.value(depth - 1) for _ in range(self.byte() % 8)}


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
