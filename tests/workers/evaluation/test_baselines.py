from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from workers.evaluation.baselines import baselines, short_track_class
from workers.perception.batching import Packed, Sample


def sample(detections: list[tuple[int, float, float]], label: int = 0, red_label: int = 0) -> Sample:
    """Detections as (frame, x, y) of their centres."""
    frame = torch.tensor([frame for frame, _, _ in detections], dtype=torch.int64)
    centres = torch.tensor([place for _, *place in detections]).reshape(-1, 2)
    nothing: Tensor = torch.zeros(len(frame), dtype=torch.bool)
    boxes = torch.cat([centres - 0.05, centres + 0.05], dim=1)
    unlabelled = torch.zeros(16, dtype=torch.bool)
    return Sample(torch.zeros(len(frame), 8), nothing, nothing, frame, boxes, unlabelled, label, red_label, 0.0)


STAYS = [(frame, 0.1 + frame * 0.04, 0.5) for frame in range(16)]


def in_frames(*frames: int) -> list[tuple[int, float, float]]:
    return [(frame, 0.9, 0.1) for frame in frames]


@pytest.mark.parametrize(
    ("frames", "label"),
    [((), 0), ((2, 3, 4), 0), ((2, 3, 4, 10), 1), ((2, 3, 4, 5), 0), (tuple(range(16)), 0)],
)
def test_the_class_follows_from_frames_with_a_track_of_at_most_three(frames: tuple[int, ...], label: int) -> None:
    assert short_track_class(sample(sorted(STAYS + in_frames(*frames)))) == label


def test_a_video_without_detections_is_class_0() -> None:
    assert short_track_class(sample([])) == 0


def test_accuracies_equal_those_computed_by_hand() -> None:
    short = sorted(STAYS + in_frames(1, 6, 11, 15))
    test = Packed.of([sample(STAYS, 1, 1), sample(short, 1, 0), sample(short, 0, 0), sample(STAYS, 0, 0)])
    found = baselines(torch.tensor([1, 1, 0]), test)
    assert found == {"counting_red_frames": 0.75, "counting_short_tracks": 0.5, "most_common_class": 0.5}


def test_on_real_data_counting_colours_is_right_and_counting_tracks_nearly(samples: dict[str, Packed]) -> None:
    every = [replace(each) for split in samples.values() for each in split]
    found = baselines(torch.tensor([0]), Packed.of(every))
    assert found["counting_red_frames"] >= 0.95 and found["counting_short_tracks"] >= 0.85
