"""Find white and red spheres in a video, frame by frame, as connected components by colour.

Touching spheres of one colour make one component, so components that are not round are split at the peaks of their
distance transform. Boxes are (x0, y0, x1, y1) in pixels; pixel i covers [i, i + 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

BRIGHT = 100  # of 255: minimum of the red channel in a sphere; the background is far darker
COLOURED = 60  # of 255: minimum difference of red and green in a red sphere
ROUND_ENOUGH = 0.85  # roundness below which a component may be split
PEAK_RADIUS = 3.0  # pixels: minimum radius of a part
SURE_AREA = 24.0  # pixels: smaller components have proportionally less confidence
IN_FRAME = np.zeros((3, 3, 3), dtype=bool)
IN_FRAME[1] = True  # neighbours within a frame, never across frames
TOUCHING = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Detections:
    """The n detections of one video, ordered by frame; n may be 0."""

    frame: Tensor  # int64 [n]
    boxes: Tensor  # float32 [n, 4]
    red: Tensor  # bool [n]: red, else white
    area: Tensor  # float32 [n], pixels
    confidence: Tensor  # float32 [n], 0 to 1

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True)
class _Found:
    frame: int
    box: tuple[float, float, float, float]
    red: bool
    area: float
    confidence: float


class ObjectDetector:
    """Finds spheres by colour and shape."""

    def __init__(self, confidence_threshold: float = 0.4) -> None:
        """Keep detections with at least this confidence, 0 to 1. Raise TypeError or ValueError for anything else."""
        if isinstance(confidence_threshold, bool) or not isinstance(confidence_threshold, (int, float)):
            raise TypeError(f"confidence_threshold must be a number from 0 to 1, not {confidence_threshold!r}")
        if not 0 <= confidence_threshold <= 1:
            raise ValueError(f"confidence_threshold must be a number from 0 to 1, not {confidence_threshold}")
        self.confidence_threshold = float(confidence_threshold)

    def detect(self, video: Tensor) -> Detections:
        """Return the spheres in `video`, uint8 [frames, height, width, 3] RGB on the CPU."""
        if not isinstance(video, Tensor) or video.dtype != torch.uint8:
            kind = f"a {video.dtype} tensor" if isinstance(video, Tensor) else type(video).__name__
            raise TypeError(f"a video must be a uint8 tensor, not {kind}")
        if video.ndim != 4 or video.shape[-1] != 3:
            raise ValueError(f"a video must be [frames, height, width, 3], not {list(video.shape)}")
        pixels = video.numpy()
        bright = pixels[..., 0] >= BRIGHT
        reddish = pixels[..., 0].astype(np.int16) - pixels[..., 1] >= COLOURED
        found = [*_spheres(bright & ~reddish, red=False), *_spheres(bright & reddish, red=True)]
        kept = [item for item in found if item.confidence >= self.confidence_threshold]
        return _collect(sorted(kept, key=lambda item: item.frame))


def _collect(found: list[_Found]) -> Detections:
    return Detections(
        frame=torch.tensor([item.frame for item in found], dtype=torch.int64),
        boxes=torch.tensor([item.box for item in found], dtype=torch.float32).reshape(-1, 4),
        red=torch.tensor([item.red for item in found], dtype=torch.bool),
        area=torch.tensor([item.area for item in found], dtype=torch.float32),
        confidence=torch.tensor([item.confidence for item in found], dtype=torch.float32),
    )


def _spheres(mask: NDArray[np.bool_], red: bool) -> list[_Found]:
    """The spheres in `mask` [frames, height, width]."""
    shown = np.flatnonzero(mask.any(axis=(1, 2)))  # most frames show nothing red
    if not len(shown):
        return []
    mask = mask[shown]
    labels, count = ndimage.label(mask, structure=IN_FRAME)
    areas = np.bincount(labels[mask])
    found = []
    for number, where in enumerate(ndimage.find_objects(labels, max_label=count), start=1):
        frames, rows, columns = where
        frame = int(shown[frames.start])
        height, width = rows.stop - rows.start, columns.stop - columns.start
        roundness = _roundness(float(areas[number]), height, width)
        if roundness < ROUND_ENOUGH:
            component = labels[frames.start, rows, columns] == number
            parts = _split(component, frame, rows.start, columns.start, red)
            if len(parts) > 1:
                found.extend(parts)
                continue
        box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        area = float(areas[number])
        found.append(_Found(frame, box, red, area, roundness * min(1.0, area / SURE_AREA)))
    return found


def _roundness(area: float, height: int, width: int) -> float:
    """1 for a disc that fills its box; less for long, hollow or square shapes."""
    disc = math.pi / 4 * height * width
    return min(area, disc) / max(area, disc) * min(height, width) / max(height, width)


def _split(component: NDArray[np.bool_], frame: int, top: int, left: int, red: bool) -> list[_Found]:
    """One disc for each peak of the distance transform: the inscribed circle there. Empty if there is one peak."""
    padded = np.pad(component, 1)
    distance = ndimage.distance_transform_edt(padded)
    peaks = (distance == ndimage.maximum_filter(distance, size=5)) & (distance >= PEAK_RADIUS)
    numbered, count = ndimage.label(peaks, structure=TOUCHING)
    parts: list[_Found] = []
    if count < 2:
        return parts
    for row, column in ndimage.center_of_mass(peaks, numbered, range(1, count + 1)):
        radius = float(distance[round(row), round(column)])
        y, x = top + row - 0.5, left + column - 0.5  # minus one pixel of padding, plus half a pixel to its centre
        covered = _covered(padded, row, column, radius)
        if covered.any():
            box = (x - radius, y - radius, x + radius, y + radius)
            parts.append(_Found(frame, box, red, math.pi * radius**2, float(covered.mean())))
    return parts


def _covered(component: NDArray[np.bool_], row: float, column: float, radius: float) -> NDArray[Any]:
    """For the pixels of that disc: does the component have them?"""
    rows, columns = np.ogrid[: component.shape[0], : component.shape[1]]
    inside: NDArray[Any] = component[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2]
    return inside
