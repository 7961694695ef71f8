"""From videos to object tokens: one token a detection, or one a tracked object, packed for a whole split.

A token is persistent or transient by the true object that it matches (`matching.match`); one that matches none is
neither, and stays a token. A tracked object is what most of its detections are, neither where they are even.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from remote.worker import Run
from workers.dataset.scenes import TRANSIENT_SHARE
from workers.dataset.videos import VideoDataset
from workers.perception.batching import Batch, Packed, Sample, batches, collate, with_padding
from workers.perception.detector import ObjectDetector
from workers.perception.objects import PERSISTENT, TRANSIENT, Found, Objects, find

__all__ = [
    "GEOMETRY",
    "TRACK",
    "Batch",
    "Geometry",
    "Packed",
    "Sample",
    "TokenFeatures",
    "batches",
    "collate",
    "geometry",
    "tokenise",
]

GEOMETRY = ("x", "y", "width", "height", "time", "red", "size", "confidence")
MOTION = ("dx", "dy", "dx_spread", "dy_spread")  # of a track: mean and standard deviation over its steps
EXTENT = ("first", "last", "frames")  # of a track: when it is first and last seen, and in how many frames
TRACK = (*GEOMETRY, *EXTENT, *MOTION)  # GEOMETRY is then the mean over the track


class TokenFeatures(Protocol):
    """What a token says of its object: the part in which worker1 and worker2 differ."""

    size: int  # features of a token that is one detection
    weights: str  # which pre-trained weights are behind them, in words for the results

    def looks(self, dataset: VideoDataset, found: Found, run: Run) -> Tensor | None:
        """What is put before the geometry: [n + 1, size - 8], the last row zero; None where there is no more."""


class Geometry:
    """Where and when the object is, its colour and its size: numbers of about 0 to 1, in the order of GEOMETRY."""

    size = len(GEOMETRY)
    weights = "none"

    def looks(self, dataset: VideoDataset, found: Found, run: Run) -> Tensor | None:
        return None


def tokenise(
    dataset: VideoDataset, detector: ObjectDetector, features: TokenFeatures, run: Run, tracked: bool = False
) -> Packed:
    """Every sample of the dataset; raises TrainingStopped when the run is asked to stop."""
    found = find(dataset, detector, run)
    looks = features.looks(dataset, found, run)
    return of_tracks(found.objects, looks) if tracked else of_detections(found.objects, looks)


def geometry(objects: Objects) -> Tensor:
    """float32 [n, 8]: centre, extent, time, red (1) or white (0), square root of the area, confidence."""
    boxes = boxes_of(objects)
    corner, opposite = boxes[:, :2], boxes[:, 2:]
    scalars = (
        objects.frame.float() / max(1, objects.frames - 1),
        objects.red.float(),
        (objects.area / objects.extent.prod()).sqrt(),
        objects.confidence,
    )
    return torch.cat([(corner + opposite) / 2, opposite - corner, torch.stack(scalars, dim=1)], dim=1)


def boxes_of(objects: Objects) -> Tensor:
    """float32 [n, 4], (x0, y0, x1, y1) in units of the frame."""
    return objects.boxes / objects.extent.flip(0).repeat(2).float()


def of_detections(objects: Objects, looks: Tensor | None) -> Packed:
    """One token a detection."""
    rows = {
        "persistent": objects.kind == PERSISTENT,
        "transient": objects.kind == TRANSIENT,
        "frame": objects.frame,
        "boxes": boxes_of(objects),
    }
    return _packed(objects, objects.lengths, looks, geometry(objects), rows)


def of_tracks(objects: Objects, looks: Tensor | None) -> Packed:
    """One token a tracked object, in the order of first appearance; a look is the mean over the track."""
    count = torch.zeros(len(objects.lengths), dtype=torch.int64)
    count.scatter_reduce_(0, objects.sample, objects.track + 1, "amax")  # tracks of each sample
    track = (count.cumsum(0) - count)[objects.sample] + objects.track  # [n], numbered through all samples
    total, seen = int(count.sum()), torch.bincount(track, minlength=int(count.sum()))

    def mean(values: Tensor) -> Tensor:
        sums = torch.zeros(total, values.shape[1], dtype=torch.float64).index_add_(0, track, values.double())
        return (sums / seen[:, None]).float()

    first = torch.full((total,), objects.frames).scatter_reduce_(0, track, objects.frame, "amin")
    last = torch.zeros(total, dtype=torch.int64).scatter_reduce_(0, track, objects.frame, "amax")
    extent = torch.stack([first / max(1, objects.frames - 1), last / max(1, objects.frames - 1), seen / objects.frames])
    persistent, transient = (
        torch.bincount(track, (objects.kind == kind).double(), minlength=total) for kind in (PERSISTENT, TRANSIENT)
    )
    rows = {
        "persistent": persistent > transient,
        "transient": transient > persistent,
        "frame": first,
        "boxes": mean(boxes_of(objects)),
    }
    described = torch.cat([mean(geometry(objects)), extent.T.float(), _motion(objects, track, total)], dim=1)
    averaged = None if looks is None else with_padding(mean(looks[:-1]))
    return _packed(objects, count, averaged, described, rows)


def _motion(objects: Objects, track: Tensor, total: int) -> Tensor:
    """float32 [total, 4]: mean and standard deviation of (dx, dy), in tenths of the frame a frame; 0 for one frame."""
    order = torch.argsort(track * objects.frames + objects.frame)  # a track has one detection a frame
    centre = geometry(objects)[order, :2].double()
    same = track[order][1:] == track[order][:-1]
    elapsed = (objects.frame[order][1:] - objects.frame[order][:-1]).clamp(min=1)
    steps = (10 * (centre[1:] - centre[:-1]) / elapsed[:, None])[same]
    owner = track[order][1:][same]
    number = torch.bincount(owner, minlength=total).clamp(min=1)[:, None]
    mean = torch.zeros(total, 2, dtype=torch.float64).index_add_(0, owner, steps) / number
    variance = torch.zeros(total, 2, dtype=torch.float64).index_add_(0, owner, (steps - mean[owner]) ** 2) / number
    return torch.cat([mean, variance.sqrt()], dim=1).float()


def _packed(
    objects: Objects, lengths: Tensor, looks: Tensor | None, described: Tensor, rows: dict[str, Tensor]
) -> Packed:
    red = torch.zeros(objects.frame_labels.shape, dtype=torch.bool)
    red[objects.sample[objects.red], objects.frame[objects.red]] = True
    described = with_padding(described)
    return Packed(
        parts=(described,) if looks is None else (looks, described),
        **{name: with_padding(value, -1 if name == "frame" else 0) for name, value in rows.items()},
        lengths=lengths,
        starts=lengths.cumsum(0) - lengths,
        labels=objects.labels,
        red_labels=(red.sum(dim=1) >= TRANSIENT_SHARE * objects.frames).long(),
        richness=objects.frame_labels.float().mean(dim=1),
        frame_labels=objects.frame_labels,
    )
