"""Object tokens: of one sample, of a whole split without padding, and of a padded batch.

Masks are [batch, tokens], never [batch]. Frames are numbered from 0. Boxes are (x0, y0, x1, y1) in units of the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    frame: Tensor  # int64 [tokens]; of a track, its first
    boxes: Tensor  # float32 [tokens, 4], 0 to 1; of a track, the mean
    frame_labels: Tensor  # bool [frames], true labels: does the frame show a transient?
    label: int
    red_label: int  # the class by counting the frames with a red detection, for the baseline
    richness: float  # share of the frames that show a transient


@dataclass(frozen=True)
class Batch:
    """Samples padded to the longest of them. All tensors are on one device."""

    features: Tensor  # float32 [batch, tokens, features]
    padding: Tensor  # bool [batch, tokens], True where there is no token
    persistent: Tensor  # bool [batch, tokens]
    transient: Tensor  # bool [batch, tokens]
    labels: Tensor  # int64 [batch]
    frame: Tensor  # int64 [batch, tokens], -1 at padding
    boxes: Tensor  # float32 [batch, tokens, 4]
    frame_labels: Tensor  # bool [batch, frames]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        return Batch(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})

    def __len__(self) -> int:
        return len(self.labels)


def collate(samples: Sequence[Sample]) -> Batch:
    """Return the samples as a batch, padded to the longest sample, or to one token if no sample has any."""
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


def with_padding(rows: Tensor, value: float = 0) -> Tensor:
    """Return `rows` [n, ...] with one more row, which stands for padding."""
    return torch.cat([rows, torch.full((1, *rows.shape[1:]), value, dtype=rows.dtype)])


@dataclass(frozen=True)
class Packed(Sequence[Sample]):
    """The tokens of a split, sample after sample without padding. `gather` makes batches on their device.

    The last row of each [tokens + 1, ...] stands for padding, so that a batch is one indexing operation.
    `lengths` and `starts` stay on the CPU, where the shape of a batch is computed.
    """

    parts: tuple[Tensor, ...]  # [tokens + 1, width] each; joined they are the features. May be half precision
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
        """Return the samples packed. Raise ValueError if there are none."""
        if not samples:
            raise ValueError("there are no samples to pack")
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
        """Features per token."""
        return sum(part.shape[1] for part in self.parts)

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.frame.device

    @property
    def nbytes(self) -> int:
        """Bytes of what `to` copies."""
        moved = (*self.parts, self.persistent, self.transient, self.frame, self.boxes, self.labels, self.frame_labels)
        return sum(tensor.nbytes for tensor in moved)

    def to(self, device: torch.device) -> Packed:
        """Return a copy with all parts of a batch on `device`. What describes whole samples stays on the CPU."""
        moved = ("persistent", "transient", "frame", "boxes", "frame_labels")
        tensors = {name: getattr(self, name).to(device) for name in moved}
        return replace(self, parts=tuple(part.to(device) for part in self.parts), **tensors)

    def gather(self, indices: Tensor) -> Batch:
        """Return the samples `indices` (int64 [n], on the CPU) as a batch, equal to that of `collate` bit for bit."""
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
            columns.copy_(part.index_select(0, rows.flatten()).view(*rows.shape, -1))  # faster than part[rows]
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
