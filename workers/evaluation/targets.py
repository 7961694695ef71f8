"""What the frames of a batch are to be told apart by, worked out from its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.perception.tokens import Batch


def frame_boxes(batch: Batch) -> tuple[Tensor, Tensor]:
    """The box around the transient tokens of each frame [batch, frames, 4], and whether there are any [batch, frames].

    (x0, y0, x1, y1) from 0 to 1; an empty box where there are none.
    """
    samples, frames = batch.frame_labels.shape
    where = torch.where(batch.transient, batch.frame, frames)  # what is not transient goes to a frame of its own
    index = where[:, :, None].expand(-1, -1, 2)
    corner = batch.boxes.new_ones(samples, frames + 1, 2).scatter_reduce(1, index, batch.boxes[..., :2], "amin")
    opposite = batch.boxes.new_zeros(samples, frames + 1, 2).scatter_reduce(1, index, batch.boxes[..., 2:], "amax")
    counts = torch.zeros_like(batch.frame_labels, dtype=torch.int64)
    counts = torch.nn.functional.pad(counts, (0, 1)).scatter_add(1, where, torch.ones_like(where))
    there = counts[:, :frames] > 0
    return torch.cat([corner, opposite], dim=-1)[:, :frames] * there[:, :, None], there
