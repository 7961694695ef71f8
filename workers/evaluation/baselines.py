"""Accuracies that no model should hide behind, of rules that need no training.

counting_red_frames   the class by counting the frames with a red detection: the rule of the data, by colour
counting_short_tracks the same without colour: detections are linked from frame to frame by where they are, and the
                      frames with a track of at most SHORT detections are counted
most_common_class     always the class that is most common in training
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workers.dataset.scenes import SIZE, class_of
from workers.perception.tokens import Packed, Sample
from workers.perception.tracks import associate

SHORT = 3  # frames: what a transient lasts at most in the default data


def baselines(train_labels: Tensor, test: Packed) -> dict[str, float]:
    """Test accuracies; a token of `test` is a detection."""
    common = int(train_labels.mode().values)
    by_tracks = torch.tensor([short_track_class(sample) for sample in test])
    return {
        "counting_red_frames": _share(test.red_labels == test.labels),
        "counting_short_tracks": _share(by_tracks == test.labels),
        "most_common_class": _share(test.labels == common),
    }


def short_track_class(sample: Sample) -> int:
    """The class by the frames with a detection of a short track."""
    frame = sample.frame.numpy()
    tracks = associate(frame, sample.boxes.numpy() * SIZE, red=np.zeros(len(frame), dtype=bool))
    short = np.bincount(tracks, minlength=1)[tracks] <= SHORT
    shown = np.zeros(len(sample.frame_labels), dtype=bool)
    shown[frame[short]] = True
    return class_of(shown)


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
