"""Geometry of boxes (x0, y0, x1, y1), in pixels or in units of the frame."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from workers.perception.batching import Batch


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of boxes, pair by pair.

    Args:
        first: [..., n, 4]; the shapes of the two are broadcast.
        second: [..., n, 4].

    Returns:
        [..., n], from 0 to 1.
    """
    corner = torch.maximum(first[..., :2], second[..., :2])
    opposite = torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (opposite - corner).clamp(min=0).prod(dim=-1)
    union = _area(first) + _area(second) - overlap
    return overlap / union.clamp(min=1e-6)


def predicted_iou(predicted: Tensor, true: Tensor) -> Tensor:
    """As `pairwise_iou`, for predicted boxes, whose corners may be crossed: such a box has no area."""
    ordered = torch.cat([predicted[..., :2], torch.maximum(predicted[..., :2], predicted[..., 2:])], dim=-1)
    return pairwise_iou(ordered, true)


def frame_boxes(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the box around the transient tokens of each frame, and where there are any.

    Returns:
        Boxes [batch, frames, 4] from 0 to 1, all zero where the frame has no transient token, and bool [batch, frames].
    """
    samples, frames = batch.frame_labels.shape
    where = torch.where(batch.transient, batch.frame, frames)  # the other tokens go to an extra frame, cut off below
    index = where[:, :, None].expand(-1, -1, 2)
    corner = batch.boxes.new_ones(samples, frames + 1, 2).scatter_reduce(1, index, batch.boxes[..., :2], "amin")
    opposite = batch.boxes.new_zeros(samples, frames + 1, 2).scatter_reduce(1, index, batch.boxes[..., 2:], "amax")
    counts = pad(torch.zeros_like(batch.frame_labels, dtype=torch.int64), (0, 1))
    counts = counts.scatter_add(1, where, torch.ones_like(where))
    present = counts[:, :frames] > 0
    return torch.cat([corner, opposite], dim=-1)[:, :frames] * present[:, :, None], present


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
