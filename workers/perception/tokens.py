"""From videos to object tokens: one token per detection or per tracked object, packed for a whole split.

The kind of a token (persistent or transient) is that of the true object that it matches (`matching.match`). A token
that matches none has neither kind. The kind of a tracked object is that of most of its detections, or neither if there
are as many of each.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from remote.worker import Run
from workers.dataset.scenes import TRANSIENT_SHARE
from workers.dataset.videos import VideoDataset
from workers.perception.batching import Packed, with_padding
from workers.perception.detector import ObjectDetector
from workers.perception.objects import PERSISTENT, TRANSIENT, Found, Objects, find


class TokenFeatures(Protocol):
    """The features of a token. worker1 and worker2 differ here."""

    weights: str  # the name of the pre-trained weights, for the results

    def looks(self, dataset: VideoDataset, found: Found, run: Run) -> Tensor | None:
        """Return features to put before the geometry: [n + 1, width], the last row zero. None if there are none.

        Args:
            dataset: the videos.
            found: their n detections.
            run: gets heartbeats, and may ask to stop.
        """
        ...


class Geometry:
    """Geometry alone: position, time, colour and size, numbers of about 0 to 1."""

    weights = "none"

    def looks(self, dataset: VideoDataset, found: Found, run: Run) -> Tensor | None:
        """Return None: there is no network whose features could be used."""
        return None


def tokenise(
    dataset: VideoDataset, detector: ObjectDetector, features: TokenFeatures, run: Run, tracked: bool = False
) -> Packed:
    """Return the tokens of every sample of a dataset.

    Args:
        dataset: the videos.
        detector: finds their objects.
        features: what a token holds besides its geometry.
        run: gets heartbeats, and may ask to stop.
        tracked: make one token per tracked object instead of one per detection.

    Raises:
        TrainingStopped: the run was asked to stop.
    """
    found = find(dataset, detector, run)
    looks = features.looks(dataset, found, run)
    return of_tracks(found.objects, looks) if tracked else of_detections(found.objects, looks)


def geometry(objects: Objects) -> Tensor:
    """Return float32 [n, 8]: centre, extent, time, red (1) or white (0), square root of the area, confidence."""
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
    """Return float32 [n, 4], (x0, y0, x1, y1) in units of the frame."""
    return objects.boxes / objects.extent.flip(0).repeat(2).float()


def of_detections(objects: Objects, looks: Tensor | None) -> Packed:
    """Return one token per detection."""
    rows = {
        "persistent": objects.kind == PERSISTENT,
        "transient": objects.kind == TRANSIENT,
        "frame": objects.frame,
        "boxes": boxes_of(objects),
    }
    return _packed(objects, objects.lengths, looks, geometry(objects), rows)


def of_tracks(objects: Objects, looks: Tensor | None) -> Packed:
    """Return one token per tracked object, in order of first appearance.

    After `looks`, averaged over the track, its features are the mean geometry; when the track is first and last seen,
    and in how many frames; the mean of (dx, dy) over its steps, and their standard deviation.
    """
    count = torch.zeros(len(objects.lengths), dtype=torch.int64)
    count.scatter_reduce_(0, objects.sample, objects.track + 1, "amax")  # tracks of each sample
    track = (count.cumsum(0) - count)[objects.sample] + objects.track  # [n], numbered over all samples
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
    """float32 [total, 4]: mean and standard deviation of (dx, dy) per frame, in tenths of the frame size; else 0."""
    order = torch.argsort(track * objects.frames + objects.frame)  # a track has at most one detection per frame
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
