"""Measure the detector: `python -m workers.perception.recall --data DIR`.

Recall is the share of true objects (a sphere in a frame) that a detection matches (IoU >= 0.5, one-to-one). Precision
is the share of detections that match one. An object overlaps if its true box and another one intersect.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from remote.contract.protocol import ENV_DATA_DIR
from remote.worker import Run
from workers.common.errors import WorkerError
from workers.common.parallel import spread
from workers.dataset.dataset_record import SPLITS
from workers.dataset.video_sample import VideoSample
from workers.dataset.videos import VideoDataset
from workers.perception.boxes import pairwise_iou
from workers.perception.detector import Detections, ObjectDetector
from workers.perception.matching import match

KINDS = ("all", "overlapping", "alone", "persistent", "transient")

Counts = dict[str, tuple[int, int]]  # by kind: (found, of how many)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of recall and precision. Return the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="workers.perception.recall", description="Recall and precision of the object detector."
    )
    parser.add_argument("--data", metavar="DIR", default=os.environ.get(ENV_DATA_DIR), help=f"default: ${ENV_DATA_DIR}")
    parser.add_argument("--split", choices=SPLITS, default="val")
    parser.add_argument("--limit", type=int, metavar="N", help="use only the first N samples")
    parser.add_argument("--confidence-threshold", type=float, nargs="+", default=[0.4], metavar="T")
    options = parser.parse_args(argv)
    if not options.data:
        parser.error(f"no dataset given: use --data DIR or set {ENV_DATA_DIR}")
    try:
        dataset = VideoDataset(Path(options.data), options.split, limit=options.limit)
        detectors = [ObjectDetector(confidence_threshold=value) for value in options.confidence_threshold]
        print(f"{len(dataset)} samples of the {dataset.split} split, IoU >= 0.5", flush=True)
        print("| threshold | " + " | ".join(f"recall, {kind}" for kind in KINDS) + " | precision |")
        print("|" + "---|" * (len(KINDS) + 2))
        for detector in detectors:
            found = measure(dataset, detector)
            cells = [f"{share(found[kind]):.3f} of {found[kind][1]}" for kind in (*KINDS, "precision")]
            print(f"| {detector.confidence_threshold:g} | " + " | ".join(cells) + " |", flush=True)
    except (WorkerError, ValueError) as error:
        print(f"workers.perception.recall: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def measure(dataset: VideoDataset, detector: ObjectDetector) -> Counts:
    """Return the counts of each of KINDS (for recall), and of `precision`."""
    work = partial(_measure_some, dataset, detector)
    return _sum(spread(work, range(len(dataset)), Run(None, []), "measuring the detector"))


def _sum(several: Iterable[Counts]) -> Counts:
    total = dict.fromkeys((*KINDS, "precision"), (0, 0))
    for counts in several:
        total = {name: (total[name][0] + found, total[name][1] + of) for name, (found, of) in counts.items()}
    return total


def share(counts: tuple[int, int]) -> float:
    """Return found / of how many, or NaN if there are none."""
    return counts[0] / counts[1] if counts[1] else float("nan")


def _measure_some(dataset: VideoDataset, detector: ObjectDetector, numbers: Sequence[int]) -> Counts:
    return _sum(_measure_one(dataset[number], detector) for number in numbers)


def _measure_one(sample: VideoSample, detector: ObjectDetector) -> Counts:
    found = detector.detect(sample.video)
    track = match(found, sample.boxes, sample.visible)
    hit, crowded, visible = hits(sample, found, track), overlapping(sample), sample.visible
    persistent = sample.persistent[:, None].expand_as(hit)
    masks = torch.ones_like(hit), crowded, ~crowded, persistent, ~persistent
    recall = [(int((hit & mask).sum()), int((visible & mask).sum())) for mask in masks]
    return {**dict(zip(KINDS, recall, strict=True)), "precision": (int((track >= 0).sum()), len(found))}


def hits(sample: VideoSample, found: Detections, track: Tensor) -> Tensor:
    """Return bool [tracks, frames]: was this true object found?"""
    hit = torch.zeros_like(sample.visible)
    hit[track[track >= 0], found.frame[track >= 0]] = True
    return hit


def overlapping(sample: VideoSample) -> Tensor:
    """Return bool [tracks, frames]: does the true box overlap another one?"""
    boxes, visible = sample.boxes, sample.visible
    iou = pairwise_iou(boxes[:, None], boxes[None]) * visible[:, None] * visible[None]
    others = ~torch.eye(len(boxes), dtype=torch.bool)[:, :, None]
    return (iou * others).amax(dim=0) > 0


if __name__ == "__main__":
    sys.exit(main())
