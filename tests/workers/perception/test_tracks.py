from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from workers.perception.tracks import associate

Boxes = NDArray[np.floating[Any]]


def boxes_at(centres: list[tuple[float, float]], side: float = 12) -> Boxes:
    half = side / 2
    rows = [[x - half, y - half, x + half, y + half] for x, y in centres]
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def numbers(rows: list[tuple[int, float, float]], red: list[bool] | None = None) -> list[int]:
    """(frame, x, y) of each detection."""
    frame = np.array([row[0] for row in rows])
    colours = np.array(red or [False] * len(rows))
    return associate(frame, boxes_at([row[1:] for row in rows]), colours).tolist()


def test_crossing_objects_keep_their_numbers() -> None:
    rows = [row for t in range(8) for row in ((t, 10 + 3.0 * t, 20.0), (t, 31 - 3.0 * t, 22.0))]
    assert numbers(rows) == [0, 1] * 8


def test_the_order_within_a_frame_does_not_matter() -> None:
    assert numbers([(0, 10, 10), (0, 40, 40), (1, 41, 41), (1, 11, 11)]) == [0, 1, 1, 0]


def test_an_object_missed_for_two_frames_is_found_again_but_not_later() -> None:
    moving = [(0, 10.0, 10.0), (1, 13.0, 10.0)]
    assert numbers([*moving, (4, 22.0, 10.0)]) == [0, 0, 0]
    assert numbers([*moving, (5, 25.0, 10.0)]) == [0, 0, 1]


def test_a_distant_or_differently_coloured_detection_is_another_object() -> None:
    assert numbers([(0, 10, 10), (1, 30, 10)]) == [0, 1]
    assert numbers([(0, 10, 10), (1, 10, 10)], red=[False, True]) == [0, 1]


def test_the_assignment_is_optimal_rather_than_nearest_first() -> None:
    # Nearest first would give the middle one to the first track and leave the second without any.
    assert numbers([(0, 10, 10), (0, 14, 10), (1, 13.5, 10), (1, 18.5, 10)]) == [0, 1, 0, 1]


@pytest.mark.parametrize("count", [0, 1])
def test_zero_or_one_detection(count: int) -> None:
    assert numbers([(3, 10, 10)] * count) == [0] * count
