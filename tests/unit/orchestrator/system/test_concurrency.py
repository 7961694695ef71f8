"""Results of several hosts arrive as they are ready; a slow host does not delay the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from orchestrator.system.concurrency import as_completed, merged


def test_slow_item_does_not_delay_the_others() -> None:
    release = threading.Event()
    results = as_completed(["slow", "quick"], lambda item: (release.wait(30), item)[1] if item == "slow" else item)

    assert next(results) == "quick"
    release.set()
    assert list(results) == ["slow"]


def test_streams_are_merged_in_the_order_of_their_results() -> None:
    first_said, second_said = threading.Event(), threading.Event()

    def first() -> Iterator[str]:
        yield "first 1"
        assert second_said.wait(30)
        yield "first 2"

    def second() -> Iterator[str]:
        assert first_said.wait(30)
        yield "second 1"

    found = []
    for result in merged([first, second]):
        found.append(result)
        (first_said if result == "first 1" else second_said).set()

    assert found == ["first 1", "second 1", "first 2"]


def test_error_of_one_item_is_raised_to_the_caller() -> None:
    with pytest.raises(ValueError, match="no such host"):
        list(as_completed([1], lambda item: int("no such host")))


def test_empty_input_gives_no_result() -> None:
    assert list(as_completed([], lambda item: item)) == []
