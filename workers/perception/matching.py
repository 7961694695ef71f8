"""Which true object a detection is: one to one within a frame, best overlap first."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.perception.detector import Detections

MATCH_IOU = 0.5  # least intersection over union of a match


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes [..., n, 4] and [..., n, 4], pair by pair (broadcast): [..., n]."""
    corner = torch.maximum(first[..., :2], second[..., :2])
    opposite = torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (opposite - corner).clamp(min=0).prod(dim=-1)
    together = _area(first) + _area(second) - overlap
    return overlap / together.clamp(min=1e-6)


def match(found: Detections, boxes: Tensor, visible: Tensor, iou: float = MATCH_IOU) -> Tensor:
    """The track of each detection, int64 [n], or -1.

    boxes is float32 [tracks, frames, 4] and visible bool [tracks, frames], the ground truth of the same video.
    """
    track_of = torch.full((len(found),), -1, dtype=torch.int64)
    overlap = pairwise_iou(boxes[:, found.frame], found.boxes) * visible[:, found.frame]  # [tracks, n]
    tracks, numbers = torch.nonzero(overlap >= iou, as_tuple=True)
    best_first = torch.argsort(overlap[tracks, numbers], descending=True, stable=True)
    frames = found.frame.tolist()
    taken: set[tuple[int, int]] = set()  # (track, frame)
    for track, number in torch.stack([tracks, numbers], dim=1)[best_first].tolist():
        if track_of[number] < 0 and (track, frames[number]) not in taken:
            track_of[number] = track
            taken.add((track, frames[number]))
    return track_of


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
