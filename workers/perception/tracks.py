"""Join the detections of a video to tracked objects, frame by frame.

Detections are assigned optimally (SciPy's `linear_sum_assignment`) by their distance from the position that constant
velocity predicts, as in SORT (Bewley et al. 2016). A Kalman filter is not needed: positions are exact to half a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

REACH = 5.0  # how many pixels per frame an object may differ from its prediction; the default data has speeds up to 3.5
MAX_MISSED = 2  # frames in a row in which an object may be undetected, for example behind another
NEVER = 1e6  # cost of a forbidden assignment


@dataclass
class _Track:
    number: int
    frame: int
    centre: NDArray[np.float64]
    velocity: NDArray[np.float64]
    red: bool


def associate(frame: NDArray[Any], boxes: NDArray[Any], red: NDArray[Any]) -> NDArray[np.int64]:
    """Assign detections to tracked objects.

    Args:
        frame: int [n], ascending.
        boxes: [n, 4] in pixels.
        red: bool [n]; an object does not change its colour.

    Returns:
        int64 [n]: the object of each detection, from 0 in order of first appearance.
    """
    centres = (boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / 2
    numbers = np.full(len(frame), -1, dtype=np.int64)
    open_tracks: list[_Track] = []
    count = 0
    for now in np.unique(frame):
        here = np.flatnonzero(frame == now)
        open_tracks = [track for track in open_tracks if now - track.frame <= MAX_MISSED + 1]
        for row, column in _assigned(open_tracks, int(now), centres[here], red[here]):
            track, detection = open_tracks[row], here[column]
            elapsed = now - track.frame
            track.velocity = (centres[detection] - track.centre) / elapsed
            track.frame, track.centre = int(now), centres[detection]
            numbers[detection] = track.number
        for detection in here[numbers[here] < 0]:
            numbers[detection] = count
            open_tracks.append(_Track(count, int(now), centres[detection], np.zeros(2), bool(red[detection])))
            count += 1
    return numbers


def _assigned(tracks: list[_Track], now: int, centres: NDArray[np.float64], red: NDArray[Any]) -> list[tuple[int, int]]:
    """(index of the track, index of the detection) of each pair that is close enough."""
    if not tracks:
        return []
    elapsed = np.array([now - track.frame for track in tracks])
    predicted = np.stack([track.centre + track.velocity * (now - track.frame) for track in tracks])
    distance = np.linalg.norm(predicted[:, None] - centres[None], axis=2)
    colours = np.array([track.red for track in tracks])
    impossible = (distance > REACH * elapsed[:, None]) | (colours[:, None] != red[None])
    rows, columns = linear_sum_assignment(np.where(impossible, NEVER, distance))
    return [(row, column) for row, column in zip(rows, columns, strict=True) if not impossible[row, column]]
