from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.contract.position import Position
from remote.contract.schema import from_json

Counts = tuple[int | None, int | None, int | None, int | None]


@pytest.mark.parametrize(
    ("counts", "share"),
    [
        ((1, 30, None, None), 0.0),
        ((1, 30, 250, 500), 0.5 / 30),
        ((1, 30, 500, 500), 1 / 30),
        ((16, 30, 250, 500), 15.5 / 30),
        ((30, 30, 500, 500), 1.0),
        ((30, 30, 900, 500), 1.0),
        ((31, 30, 1, 500), 1.0),
        ((None, 30, 1, 2), None),
        ((0, 30, 1, 2), None),
        ((3, None, 1, 2), None),
        ((3, 0, 1, 2), None),
        ((1, 2, 3, 0), 0.0),
    ],
)
def test_fraction_done_follows_from_the_counts(counts: Counts, share: float | None) -> None:
    assert Position(*counts).fraction_done() == (None if share is None else pytest.approx(share))


numbers = st.none() | st.integers(0, 10**9)


@given(numbers, numbers, numbers, numbers)
@settings(deadline=None)
def test_fraction_is_between_0_and_1(
    epoch: int | None, epochs: int | None, step: int | None, steps: int | None
) -> None:
    share = Position(epoch, epochs, step, steps).fraction_done()
    assert (share is None) == (not epoch or not epochs)
    assert share is None or 0 <= share <= 1


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50), st.integers(1, 50))
@settings(deadline=None)
def test_fraction_never_decreases_with_more_steps(epochs: int, epoch: int, steps: int, step: int) -> None:
    before = Position(epoch, epochs, step, steps).fraction_done()
    after = Position(epoch, epochs, step + 1, steps).fraction_done()
    assert before is not None and after is not None and before <= after
    following = Position(epoch + 1, epochs, 1, steps).fraction_done()
    assert following is not None and following >= before


@pytest.mark.parametrize("counts", [(-3, 5, None, None), (1, 2, -9, 1), (10**400, 1, None, None)])
def test_absurd_counts_keep_the_fraction_between_0_and_1(counts: Counts) -> None:
    share = Position(*counts).fraction_done()
    assert share is None or 0 <= share <= 1


@pytest.mark.parametrize(
    ("counts", "done"),
    [
        ((12, 30, 250, 500), 11 * 500 + 250),
        ((12, 30, 250, None), 250),
        ((None, None, 7, 500), 7),
        ((12, 30, None, 500), None),
        ((None, None, None, None), None),
    ],
)
def test_steps_done_follows_from_the_counts(counts: Counts, done: int | None) -> None:
    assert Position(*counts).steps_done() == done


@pytest.mark.parametrize(
    ("value", "position"),
    [
        ({"epoch": 3, "epochs": 30, "step": 4, "steps": 500, "phase": "train"}, Position(3, 30, 4, 500)),
        ({"epoch": "3", "epochs": 30, "step": True, "steps": 2**63}, Position(epochs=30)),
        ({"epoch": None, "step": 4.5}, Position()),
        ({}, Position()),
    ],
)
def test_malformed_counts_are_none(value: Any, position: Position) -> None:
    assert from_json(Position, value, problems=[]) == position
