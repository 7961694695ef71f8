"""Baselines: the accuracies of rules that need no training. They are reported with every model.

counting_red_frames     count the frames with a red detection; this rule defines the label
counting_short_tracks   without colour: count the frames with a track of at most SHORT detections
most_common_class       always predict the most common class of the training set
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workers.dataset.scenes import SIZE, class_of
from workers.perception.batching import Packed, Sample
from workers.perception.tracks import associate

SHORT = 3  # frames: the longest transient of the default data


def baselines(train_labels: Tensor, test: Packed) -> dict[str, float]:
    """Return the accuracy of each rule.

    Args:
        train_labels: int64 [samples] of the training split.
        test: the test split, one token per detection.
    """
    common = int(train_labels.mode().values)
    by_tracks = torch.tensor([short_track_class(sample) for sample in test])
    return {
        "counting_red_frames": _share(test.red_labels == test.labels),
        "counting_short_tracks": _share(by_tracks == test.labels),
        "most_common_class": _share(test.labels == common),
    }


def short_track_class(sample: Sample) -> int:
    """Return the class by the number of frames that show a short track."""
    frame = sample.frame.numpy()
    tracks = associate(frame, sample.boxes.numpy() * SIZE, red=np.zeros(len(frame), dtype=bool))
    short = np.bincount(tracks, minlength=1)[tracks] <= SHORT
    shown = np.zeros(len(sample.frame_labels), dtype=bool)
    shown[frame[short]] = True
    return class_of(shown)


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
