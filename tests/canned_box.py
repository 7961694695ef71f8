"""Boxes with prepared answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.box.client import Box
from orchestrator.box.transport import Frame, Hop, Transport
from remote.contract.requests import Request, Where


class CannedTransport(Transport):
    """A transport without answers; a test overrides what it needs."""

    host = "box"
    checks_copies = False

    def call(self, request: Request) -> dict[str, Any]:
        raise AssertionError(f"no request was expected: {request}")

    def stream(self, request: Request) -> Iterator[Frame]:
        raise AssertionError(f"no stream was expected: {request}")

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        raise AssertionError("no copy to the box was expected")

    def upload(self, source: Path, files: Mapping[str, int], target: str, progress: Callable[[int], None]) -> None:
        raise AssertionError("no data for the box was expected")

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        raise AssertionError("no copy from the box was expected")

    def route(self) -> tuple[Hop, ...]:
        return ()

    def round_trip(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


class OneAnswer(CannedTransport):
    """A box that gives the same answer to every request, as a reply or as a frame of a stream."""

    def __init__(self, answer: dict[str, Any], data: bytes = b"") -> None:
        self._answer, self._data = answer, data

    def call(self, request: Request) -> dict[str, Any]:
        return self._answer

    def stream(self, request: Request) -> Iterator[Frame]:
        yield Frame(self._answer, self._data)


def box_with(answer: dict[str, Any], data: bytes = b"") -> Box:
    return Box(OneAnswer(answer, data), Where("/box", "project"))
