"""A stream of changes that the box ends too early."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.box.client import Box
from orchestrator.box.transport import Frame
from orchestrator.errors import AgentUnusable
from remote.contract.requests import Request, Where
from tests.canned_box import CannedTransport

RUN = ("train", "20260126T210312-7f3a")
REPORT = {"job": RUN[0], "run_id": RUN[1], "supervised": True}
RUNNING = {"report": {**REPORT, "state": {"state": "running", "since": 1.0, "attempt": 1, "pid": 2}}}
ENDED = {"report": {**REPORT, "state": {"state": "succeeded", "since": 1.0}}}


class Stream(CannedTransport):
    """A box that sends these frames, and then ends the stream."""

    def __init__(self, *heads: dict[str, Any]) -> None:
        self._heads = heads

    def stream(self, request: Request) -> Iterator[Frame]:
        yield from (Frame(head, b"") for head in (*self._heads, {"end": True}))


def changes(*heads: dict[str, Any]) -> int:
    return len(list(Box(Stream(*heads), Where("~/orch", "p")).changes([RUN])))


@pytest.mark.parametrize("heads", [(), ({},), (RUNNING,), (ENDED, RUNNING)])
def test_stream_that_ends_before_the_run_is_an_error(heads: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(AgentUnusable, match="waiting for runs on box: .* how train 20260126T210312-7f3a"):
        changes(*heads)


@pytest.mark.parametrize("heads", [(ENDED,), (RUNNING, ENDED), ({"absent": list(RUN)},)])
def test_stream_may_end_with_the_run(heads: tuple[dict[str, Any], ...]) -> None:
    assert changes(*heads) == len(heads) + 1
