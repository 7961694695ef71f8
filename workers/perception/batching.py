"""Object tokens sample by sample, packed end to end, and padded into batches.

Masks are [batch, tokens], never [batch]. Frames are numbered from 0; boxes are (x0, y0, x1, y1) in units of the frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import overload

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """The tokens of one video, on the CPU."""

    features: Tensor  # float32 [tokens, features]
    persistent: Tensor  # bool [tokens]
    transient: Tensor  # bool [tokens]
    frame: Tensor  # int64 [tokens]: where the token is from; of a track, its first
    boxes: Tensor  # float32 [tokens, 4], 0 to 1; of a track, the mean
    frame_labels: Tensor  # bool [frames], the truth: does the frame show a transient?
    label: int
    red_label: int  # the class by counting the frames with a red detection: the baseline
    richness: float  # share of the frames that show a transient


@dataclass(frozen=True)
class Batch:
    """Samples padded to the longest of them; all tensors on one device."""

    features: Tensor  # float32 [batch, tokens, features]
    padding: Tensor  # bool [batch, tokens], True where there is no token
    persistent: Tensor  # bool [batch, tokens]
    transient: Tensor  # bool [batch, tokens]
    labels: Tensor  # int64 [batch]
    frame: Tensor  # int64 [batch, tokens], -1 at padding
    boxes: Tensor  # float32 [batch, tokens, 4]
    frame_labels: Tensor  # bool [batch, frames]

    def to(self, device: torch.device) -> Batch:
        return Batch(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})

    def __len__(self) -> int:
        return len(self.labels)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad to the longest sample; to one padding token where no sample has a token."""
    longest = max(1, *(len(sample.features) for sample in samples))
    width = samples[0].features.shape[1]
    features = torch.zeros(len(samples), longest, width)
    padding = torch.ones(len(samples), longest, dtype=torch.bool)
    persistent, transient = torch.zeros_like(padding), torch.zeros_like(padding)
    frame, boxes = torch.full(padding.shape, -1), torch.zeros(*padding.shape, 4)
    for row, sample in enumerate(samples):
        tokens = len(sample.features)
        features[row, :tokens] = sample.features
        padding[row, :tokens] = False
        persistent[row, :tokens] = sample.persistent
        transient[row, :tokens] = sample.transient
        frame[row, :tokens] = sample.frame
        boxes[row, :tokens] = sample.boxes
    labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
    frame_labels = torch.stack([sample.frame_labels for sample in samples])
    return Batch(features, padding, persistent, transient, labels, frame, boxes, frame_labels)


def batches(samples: Sequence[Sample], size: int, order: Sequence[int] | None = None) -> Iterator[Batch]:
    """All samples once, in `order` or as they are, `size` at a time; the last batch may be smaller."""
    order = range(len(samples)) if order is None else order
    for start in range(0, len(order), size):
        yield collate([samples[index] for index in order[start : start + size]])


def with_padding(rows: Tensor, value: float = 0) -> Tensor:
    """[n, ...] -> [n + 1, ...]: a last row that is how padding looks."""
    return torch.cat([rows, torch.full((1, *rows.shape[1:]), value, dtype=rows.dtype)])


@dataclass(frozen=True)
class Packed(Sequence[Sample]):
    """A split's tokens, sample after sample without padding, from which `gather` makes batches on their device.

    The last row of what is [tokens + 1, ...] is how padding looks, so a batch is one look-up by row numbers.
    `lengths` and `starts` stay on the CPU: the shape of a batch is known without waiting for a device.
    """

    parts: tuple[Tensor, ...]  # [tokens + 1, width] each, side by side the features; half precision is widened
    persistent: Tensor  # bool [tokens + 1]
    transient: Tensor  # bool [tokens + 1]
    frame: Tensor  # int64 [tokens + 1]
    boxes: Tensor  # float32 [tokens + 1, 4]
    lengths: Tensor  # int64 [samples]
    starts: Tensor  # int64 [samples]: row of the first token
    labels: Tensor  # int64 [samples]
    red_labels: Tensor  # int64 [samples]
    richness: Tensor  # float32 [samples]
    frame_labels: Tensor  # bool [samples, frames]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Packed:
        if not samples:
            raise ValueError("there is nothing to pack")
        lengths = torch.tensor([len(sample.features) for sample in samples])

        def end_to_end(name: str, padding: float = 0) -> Tensor:
            return with_padding(torch.cat([getattr(sample, name) for sample in samples]), padding)

        return cls(
            parts=(end_to_end("features"),),
            persistent=end_to_end("persistent"),
            transient=end_to_end("transient"),
            frame=end_to_end("frame", -1),
            boxes=end_to_end("boxes"),
            lengths=lengths,
            starts=lengths.cumsum(0) - lengths,
            labels=torch.tensor([sample.label for sample in samples]),
            red_labels=torch.tensor([sample.red_label for sample in samples]),
            richness=torch.tensor([sample.richness for sample in samples]),
            frame_labels=torch.stack([sample.frame_labels for sample in samples]),
        )

    @property
    def width(self) -> int:
        """Features of a token."""
        return sum(part.shape[1] for part in self.parts)

    @property
    def device(self) -> torch.device:
        return self.frame.device

    @property
    def nbytes(self) -> int:
        """What `to` copies."""
        moved = (*self.parts, self.persistent, self.transient, self.frame, self.boxes, self.labels, self.frame_labels)
        return sum(tensor.nbytes for tensor in moved)

    def to(self, device: torch.device) -> Packed:
        """All that a batch is made of, on `device`; what describes samples as a whole stays where it is."""
        moved = ("persistent", "transient", "frame", "boxes", "frame_labels")
        tensors = {name: getattr(self, name).to(device) for name in moved}
        return replace(self, parts=tuple(part.to(device) for part in self.parts), **tensors)

    def gather(self, indices: Tensor) -> Batch:
        """The batch that `collate` makes of these samples (int64 [n], on the CPU), bit for bit, on this device."""
        lengths = self.lengths[indices]
        longest = max(1, int(lengths.max()))
        within = torch.arange(longest)
        rows = self.starts[indices, None] + within
        rows = rows.masked_fill(within >= lengths[:, None], len(self.frame) - 1)
        rows, samples = rows.to(self.device, non_blocking=True), indices.to(self.device, non_blocking=True)
        features = torch.empty(*rows.shape, self.width, device=self.device)
        for part, columns in zip(
            self.parts, features.split([part.shape[1] for part in self.parts], dim=-1), strict=True
        ):
            columns.copy_(part.index_select(0, rows.flatten()).view(*rows.shape, -1))  # quicker than part[rows]
        return Batch(
            features=features,
            padding=rows == len(self.frame) - 1,
            persistent=self.persistent[rows],
            transient=self.transient[rows],
            labels=self.labels[indices].to(self.device, non_blocking=True),
            frame=self.frame[rows],
            boxes=self.boxes[rows],
            frame_labels=self.frame_labels[samples],
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        rows = slice(int(self.starts[number]), int(self.starts[number] + self.lengths[number]))
        return Sample(
            features=torch.cat([part[rows].float() for part in self.parts], dim=1),
            persistent=self.persistent[rows],
            transient=self.transient[rows],
            frame=self.frame[rows],
            boxes=self.boxes[rows],
            frame_labels=self.frame_labels[number],
            label=int(self.labels[number]),
            red_label=int(self.red_labels[number]),
            richness=float(self.richness[number]),
        )
