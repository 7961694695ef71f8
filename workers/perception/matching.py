"""Match detections to true objects: one-to-one within a frame, best overlap first."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.perception.boxes import pairwise_iou
from workers.perception.detector import Detections

MATCH_IOU = 0.5  # minimum intersection over union of a match


def match(found: Detections, boxes: Tensor, visible: Tensor, iou: float = MATCH_IOU) -> Tensor:
    """Match detections to true objects.

    Args:
        found: n detections of a video.
        boxes: float32 [tracks, frames, 4], the true boxes of the same video, in pixels.
        visible: bool [tracks, frames].
        iou: minimum intersection over union of a match.

    Returns:
        int64 [n]: the track of each detection, or -1.
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
