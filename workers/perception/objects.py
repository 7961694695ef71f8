"""The detections of a split, the objects they belong to, and their true objects. Computed once for all jobs.

They are kept in a cache (`array_cache`). Its key covers the dataset, its files, the detector's settings and the code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import scipy
import torch
from torch import Tensor

from remote.contract.schema import to_json
from remote.worker import Run
from workers.common import array_cache
from workers.common.array_cache import About, Arrays
from workers.common.parallel import spread
from workers.dataset.video_sample import VideoSample
from workers.dataset.videos import VideoDataset
from workers.perception import boxes, matching, tracks
from workers.perception import detector as detecting
from workers.perception.detector import ObjectDetector
from workers.perception.matching import match
from workers.perception.tracks import associate

NEITHER, PERSISTENT, TRANSIENT = 0, 1, 2
FORMAT = 1  # version of the arrays' format


@dataclass(frozen=True)
class Objects:
    """The detections of several videos in one table of n rows, ordered by sample and frame."""

    lengths: Tensor  # int64 [samples]: number of detections
    frame: Tensor  # int64 [n]
    boxes: Tensor  # float32 [n, 4], pixels
    red: Tensor  # bool [n]
    area: Tensor  # float32 [n], pixels
    confidence: Tensor  # float32 [n]
    kind: Tensor  # int8 [n]: kind of the matching true object
    track: Tensor  # int64 [n]: the tracked object of the video
    labels: Tensor  # int64 [samples]
    frame_labels: Tensor  # bool [samples, frames]
    extent: Tensor  # int64 [2]: height and width of a video

    @property
    def frames(self) -> int:
        """Frames per video."""
        return self.frame_labels.shape[1]

    @property
    def sample(self) -> Tensor:
        """The sample of each detection, int64 [n], from 0."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)

    def first(self, samples: int) -> Objects:
        """Return those of the first `samples` videos."""
        rows = int(self.lengths[:samples].sum())
        whole = {"lengths": samples, "labels": samples, "frame_labels": samples, "extent": 2}
        return Objects(**{item.name: getattr(self, item.name)[: whole.get(item.name, rows)] for item in fields(self)})


@dataclass(frozen=True)
class Found:
    """The objects of a dataset, and the cache entry of its whole split."""

    objects: Objects
    about: About  # the whole split
    path: Path  # its place in the cache, whether it is cached or not
    is_whole: bool  # whether `objects` is the whole split


def find(dataset: VideoDataset, detector: ObjectDetector, run: Run) -> Found:
    """Return the objects of a dataset.

    A whole split is loaded from the cache, or computed and cached. A part of a split is taken from the cached whole,
    or computed and not cached.

    Raises:
        TrainingStopped: the run was asked to stop.
    """
    about = _about(dataset, detector)
    path = array_cache.cache_folder(dataset.root) / f"objects-{array_cache.key_of(about)}"
    whole = len(dataset.indices) == len(dataset.whole)
    if not whole:
        if array_cache.what_is_wrong(path, about):
            return Found(_tensors(_find(dataset, detector, run)), about, path, False)
        return Found(_tensors(array_cache.load(path)).first(len(dataset)), about, path, False)
    began = perf_counter()

    def build(folder: Path) -> None:
        for name, array in _find(dataset, detector, run).items():
            with array_cache.Writer(folder / f"{name}.npy", array.dtype, array.shape) as writer:
                writer.append(array)

    found, built = array_cache.cached(path, about, build, run, f"objects of the {dataset.split} split")
    how = f"found in {perf_counter() - began:.1f} s" if built else "from the cache"
    print(f"objects of the {dataset.split} split: {len(found['frame'])} in {len(dataset)} videos, {how}", flush=True)
    return Found(_tensors(found), about, path, True)


def _about(dataset: VideoDataset, detector: ObjectDetector) -> About:
    return {
        "format": FORMAT,
        "data": to_json(dataset.identity),
        "files": dataset.source.stamp(),
        "split": dataset.split,
        "confidence_threshold": detector.confidence_threshold,
        "code": array_cache.code_of(detecting, boxes, matching, tracks, sys.modules[__name__]),
        "scipy": scipy.__version__,
    }


def _find(dataset: VideoDataset, detector: ObjectDetector, run: Run) -> Arrays:
    work = partial(_find_in, dataset, detector)
    parts = list(spread(work, range(len(dataset)), run, "looking for objects"))
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {**joined, "extent": parts[0]["extent"][:2]}


def _find_in(dataset: VideoDataset, detector: ObjectDetector, numbers: Sequence[int]) -> Arrays:
    rows = [_found_in(dataset[number], detector) for number in numbers]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _found_in(sample: VideoSample, detector: ObjectDetector) -> Arrays:
    found = detector.detect(sample.video)
    true = match(found, sample.boxes, sample.visible)
    kind = torch.where(sample.persistent[true.clamp(min=0)], PERSISTENT, TRANSIENT)
    kind = torch.where(true >= 0, kind, NEITHER).to(torch.int8)
    frame, places, red = found.frame.numpy(), found.boxes.numpy(), found.red.numpy()
    return {
        "lengths": np.array([len(found)]),
        "frame": frame,
        "boxes": places,
        "red": red,
        "area": found.area.numpy(),
        "confidence": found.confidence.numpy(),
        "kind": kind.numpy(),
        "track": associate(frame, places, red),
        "labels": np.array([sample.label]),
        "frame_labels": sample.frame_labels.numpy()[None],
        "extent": np.array(sample.video.shape[1:3]),
    }


def _tensors(found: Arrays) -> Objects:
    return Objects(**{item.name: torch.from_numpy(found[item.name]) for item in fields(Objects)})
