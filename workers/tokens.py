"""From videos to object tokens: one token a detection, with what kind of object it is, sample by sample.

A detection is persistent or transient by the true object that it matches (`matching.match`); one that matches none
is neither, and stays a token. Masks are [batch, tokens], never [batch].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from remote.worker import Run
from workers.dataset import VideoDataset
from workers.detector import Detections, ObjectDetector
from workers.errors import Stopped
from workers.matching import match
from workers.scenes import class_of

GEOMETRY = ("x", "y", "width", "height", "time", "red", "size", "confidence")
VIDEOS_AT_ONCE = 32  # whose features are computed together


@dataclass(frozen=True)
class Sample:
    """The tokens of one video, on the CPU."""

    features: Tensor  # float32 [tokens, features]
    persistent: Tensor  # bool [tokens]
    transient: Tensor  # bool [tokens]
    label: int
    red_label: int  # the class by counting the frames with a red detection: the baseline


@dataclass(frozen=True)
class Batch:
    """Samples padded to the longest of them; all tensors on one device."""

    features: Tensor  # float32 [batch, tokens, features]
    padding: Tensor  # bool [batch, tokens], True where there is no token
    persistent: Tensor  # bool [batch, tokens]
    transient: Tensor  # bool [batch, tokens]
    labels: Tensor  # int64 [batch]

    def to(self, device: torch.device) -> Batch:
        return Batch(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})

    def __len__(self) -> int:
        return len(self.labels)


class TokenFeatures(Protocol):
    """What a token says of its object: the part in which worker1 and worker2 differ."""

    size: int  # features of a token
    weights: str  # which pre-trained weights are behind them, in words for the results

    def __call__(self, videos: Sequence[Tensor], found: Sequence[Detections]) -> list[Tensor]:
        """For each video (uint8 [frames, height, width, 3]) the features of its detections, [tokens, size]."""


class Geometry:
    """Where and when the object is, its colour and its size: 8 numbers of about 0 to 1, in the order of GEOMETRY."""

    size = len(GEOMETRY)
    weights = "none"

    def __call__(self, videos: Sequence[Tensor], found: Sequence[Detections]) -> list[Tensor]:
        return [geometry(video, detections) for video, detections in zip(videos, found, strict=True)]


def geometry(video: Tensor, found: Detections) -> Tensor:
    """float32 [tokens, 8]: centre, extent, time, red (1) or white (0), square root of the area, confidence."""
    frames, height, width, _ = video.shape
    unit = torch.tensor([width, height], dtype=torch.float32)
    corner, opposite = found.boxes[:, :2] / unit, found.boxes[:, 2:] / unit
    scalars = (
        found.frame.float() / max(1, frames - 1),
        found.red.float(),
        (found.area / (width * height)).sqrt(),
        found.confidence,
    )
    return torch.cat([(corner + opposite) / 2, opposite - corner, torch.stack(scalars, dim=1)], dim=1)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad to the longest sample; to one padding token where no sample has a token."""
    longest = max(1, *(len(sample.features) for sample in samples))
    width = samples[0].features.shape[1]
    features = torch.zeros(len(samples), longest, width)
    padding = torch.ones(len(samples), longest, dtype=torch.bool)
    persistent, transient = torch.zeros_like(padding), torch.zeros_like(padding)
    for row, sample in enumerate(samples):
        tokens = len(sample.features)
        features[row, :tokens] = sample.features
        padding[row, :tokens] = False
        persistent[row, :tokens] = sample.persistent
        transient[row, :tokens] = sample.transient
    labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
    return Batch(features, padding, persistent, transient, labels)


def batches(samples: Sequence[Sample], size: int, order: Sequence[int] | None = None) -> Iterator[Batch]:
    """All samples once, in `order` or as they are, `size` at a time; the last batch may be smaller."""
    order = range(len(samples)) if order is None else order
    for start in range(0, len(order), size):
        yield collate([samples[index] for index in order[start : start + size]])


def tokenise(dataset: VideoDataset, detector: ObjectDetector, features: TokenFeatures, run: Run) -> list[Sample]:
    """Every sample of the split, once for the whole run; raises Stopped when the run is asked to stop."""
    samples: list[Sample] = []
    while len(samples) < len(dataset):
        if run.stop_requested:
            raise Stopped("stopped while preparing tokens; there is nothing to resume yet")
        upto = min(len(dataset), len(samples) + VIDEOS_AT_ONCE)
        videos = [dataset[index] for index in range(len(samples), upto)]
        found = [detector.detect(video["video"]) for video in videos]
        vectors = features([video["video"] for video in videos], found)
        samples.extend(_sample(*parts) for parts in zip(videos, found, vectors, strict=True))
        run.beat("prepare", step=upto, steps=len(dataset))
    return samples


def _sample(video: dict[str, Any], found: Detections, features: Tensor) -> Sample:
    track = match(found, video["boxes"], video["visible"])
    kind = video["persistent"][track.clamp(min=0)]
    red_frames = torch.zeros(len(video["video"]), dtype=torch.bool).index_fill(0, found.frame[found.red], True)
    return Sample(
        features=features.detach().cpu(),
        persistent=(track >= 0) & kind,
        transient=(track >= 0) & ~kind,
        label=int(video["label"]),
        red_label=class_of(red_frames.numpy()),
    )
