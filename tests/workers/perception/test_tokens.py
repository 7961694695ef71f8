from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from remote.worker import Run
from workers.common.errors import TrainingStopped
from workers.dataset.scenes import class_of
from workers.dataset.video_sample import VideoSample, load_sample
from workers.dataset.videos import VideoDataset, sample_path
from workers.perception.batching import Batch, Packed, Sample, collate
from workers.perception.detector import ObjectDetector
from workers.perception.objects import NEITHER, PERSISTENT, TRANSIENT, Objects
from workers.perception.tokens import Geometry, geometry, of_tracks, tokenise

GEOMETRY = ("x", "y", "width", "height", "time", "red", "size", "confidence")  # the features in their order
TRACK = (*GEOMETRY, "first", "last", "frames", "dx", "dy", "dx_spread", "dy_spread")


def sample_of(tokens: int, label: int = 0) -> Sample:
    kinds = torch.arange(tokens) % 3
    return Sample(
        features=torch.rand(tokens, 8) + 1,
        persistent=kinds == 0,
        transient=kinds == 1,
        frame=torch.arange(tokens),
        boxes=torch.rand(tokens, 4),
        frame_labels=torch.arange(16) < label,
        label=label,
        red_label=0,
        richness=label / 16,
    )


def objects_of(frame: list[int], boxes: list[list[float]], track: list[int] | None = None, **given: Any) -> Objects:
    """One sample of 16 frames of 64 x 64. Unless given: white, persistent, of 256 pixels, with confidence 1."""
    count = len(frame)
    whole = {
        "red": torch.zeros(count, dtype=torch.bool),
        "area": torch.full((count,), 256.0),
        "confidence": torch.ones(count),
        "kind": torch.full((count,), PERSISTENT, dtype=torch.int8),
        **{name: torch.tensor(value) for name, value in given.items()},
    }
    return Objects(
        lengths=torch.tensor([count]),
        frame=torch.tensor(frame),
        boxes=torch.tensor(boxes),
        track=torch.tensor(track or [0] * count),
        labels=torch.tensor([1]),
        frame_labels=torch.zeros(1, 16, dtype=torch.bool),
        extent=torch.tensor([64, 64]),
        **whole,
    )


def test_geometry_is_in_the_order_of_its_names() -> None:
    found = objects_of([15], [[16.0, 32, 32, 48]], red=[True], confidence=[0.5])
    row = geometry(found)[0].tolist()
    assert dict(zip(GEOMETRY, row, strict=True)) == {
        "x": 0.375,
        "y": 0.625,
        "width": 0.25,
        "height": 0.25,
        "time": 1.0,
        "red": 1.0,
        "size": 0.25,
        "confidence": 0.5,
    }


def test_the_features_of_a_track_are_in_the_order_of_their_names() -> None:
    # The first moves 4, then 12 in two frames.
    boxes: list[list[float]] = [[0, 0, 16, 16], [4, 0, 20, 16], [48, 48, 64, 64], [16, 0, 32, 16]]
    found = objects_of([3, 4, 4, 6], boxes, track=[0, 0, 1, 0])
    tracks = of_tracks(found, None)
    assert tracks.lengths.tolist() == [2] and tracks.frame.tolist() == [3, 4, -1] and tracks.width == len(TRACK)
    row = dict(zip(TRACK, tracks[0].features[0].tolist(), strict=True))
    expected = {"x": (8 + 12 + 24) / 3 / 64, "first": 3 / 15, "last": 6 / 15, "frames": 3 / 16, "time": 13 / 3 / 15}
    expected |= {"dx": 10 * 5 / 64, "dx_spread": 10 * 1 / 64, "dy": 0.0, "dy_spread": 0.0}  # steps of 4 and 6
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    seen_once = dict(zip(TRACK, tracks[0].features[1].tolist(), strict=True))
    assert [seen_once[name] for name in ("dx", "dy", "dx_spread", "dy_spread")] == [0.0] * 4


def test_a_track_has_the_kind_of_most_of_its_detections() -> None:
    kinds = [PERSISTENT, TRANSIENT, PERSISTENT, TRANSIENT, NEITHER, TRANSIENT, PERSISTENT]
    found = objects_of(list(range(7)), [[0.0, 0, 9, 9]] * 7, track=[0, 0, 0, 1, 1, 2, 2], kind=kinds)
    tracks = of_tracks(found, None)[0]
    assert tracks.persistent.tolist() == [True, False, False] and tracks.transient.tolist() == [False, True, False]


def test_features_are_averaged_over_a_track() -> None:
    found = objects_of([0, 1, 1], [[0.0, 0, 9, 9]] * 3, track=[0, 0, 1])
    looks = torch.tensor([[1.0, 2], [3, 4], [5, 6], [0, 0]]).half()
    tracks = of_tracks(found, looks)
    assert tracks[0].features[:, :2].tolist() == [[2, 3], [5, 6]] and tracks.width == 2 + len(TRACK)


def test_tracked_tokens_match_the_true_objects(data: Path, samples: dict[str, Packed]) -> None:
    tracked = tokenise(VideoDataset(data, "train"), ObjectDetector(), Geometry(), Run(None, []), tracked=True)
    frames = TRACK.index("frames")
    right = []
    for index, sample in enumerate(tracked):
        truth = load_sample(sample_path(data, index))
        assert sample.features.shape == (len(sample.persistent), len(TRACK)) and torch.isfinite(sample.features).all()
        right.append(len(sample.features) == len(truth.visible))
        long = sample.features[:, frames] > 3 / 16
        assert (long | ~sample.persistent).float().mean() > 0.5  # a longer track than any transient is persistent
    assert sum(right) / len(right) >= 0.6


def test_the_kind_of_each_token_comes_from_the_truth(data: Path, samples: dict[str, Packed]) -> None:
    for index, sample in enumerate(samples["train"][:20]):
        truth = load_sample(sample_path(data, index))
        assert not (sample.persistent & sample.transient).any()
        assert sample.persistent.shape == sample.transient.shape == sample.features.shape[:1]
        assert int(sample.persistent.sum()) <= int(truth.visible[truth.persistent].sum())
        red = sample.features[:, GEOMETRY.index("red")] == 1
        assert red[sample.transient].all() and not red[sample.persistent].any()
    labelled = torch.cat([sample.persistent | sample.transient for sample in samples["train"]])
    assert labelled.float().mean() > 0.95


class InMemory(list[VideoSample]):
    """Samples that are not on disk."""

    def stamp(self) -> str:
        return "given"


def test_a_detection_that_matches_nothing_has_neither_kind(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = VideoDataset(data, "test", limit=1)
    broken = replace(dataset[0], boxes=torch.zeros_like(dataset[0].boxes))
    monkeypatch.setattr(dataset, "source", InMemory([broken]))
    dataset.indices = range(1)
    sample = tokenise(dataset, ObjectDetector(), Geometry(), Run(None, []))[0]
    assert len(sample.features) > 0 and not (sample.persistent | sample.transient).any()


def test_counting_red_frames_follows_the_rule(samples: dict[str, Packed]) -> None:
    for sample in samples["train"]:
        times = sample.features[sample.features[:, GEOMETRY.index("red")] == 1, GEOMETRY.index("time")]
        frames = torch.zeros(16, dtype=torch.bool)
        frames[(times * 15).round().long()] = True
        assert sample.red_label == class_of(frames.numpy())


def test_a_batch_is_padded_to_the_longest_sample() -> None:
    long, short = sample_of(5, label=1), sample_of(2)
    batch = collate([long, short])
    assert batch.features.shape == (2, 5, 8) and batch.labels.tolist() == [1, 0]
    assert batch.padding.tolist() == [[False] * 5, [False, False, True, True, True]]
    assert torch.equal(batch.features[1, :2], short.features) and (batch.features[1, 2:] == 0).all()
    for mask in (batch.persistent, batch.transient):
        assert mask.shape == (2, 5) and mask.dtype == torch.bool and not (mask & batch.padding).any()


@pytest.mark.parametrize("lengths", [(5, 2, 9, 1), (3, 0, 4), (0, 0)])
def test_a_gathered_batch_equals_the_collated_one(lengths: tuple[int, ...]) -> None:
    several = [sample_of(tokens, label=number % 2) for number, tokens in enumerate(lengths)]
    packed = Packed.of(several)
    for order in ([0], [len(lengths) - 1, 0], list(range(len(lengths)))):
        gathered, collated = packed.gather(torch.tensor(order)), collate([several[index] for index in order])
        for item in fields(Batch):
            one, other = getattr(gathered, item.name), getattr(collated, item.name)
            assert one.dtype == other.dtype and torch.equal(one, other), item.name


def test_packed_samples_equal_the_originals() -> None:
    several = [sample_of(3, label=1), sample_of(0), sample_of(2)]
    packed = Packed.of(several)
    for sample, other in zip(several, packed, strict=True):
        for item in fields(Sample):
            assert torch.equal(torch.as_tensor(getattr(sample, item.name)), torch.as_tensor(getattr(other, item.name)))
    with pytest.raises(IndexError):
        packed[3]


def test_samples_without_tokens_make_a_batch() -> None:
    batch = collate([sample_of(0), sample_of(0)])
    assert batch.features.shape == (2, 1, 8) and batch.padding.all()


def test_a_stop_request_ends_the_preparation_of_tokens(data: Path, make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.stop_requested = True
    with pytest.raises(TrainingStopped, match="stopped while looking for objects: 0 of 3 done"):
        tokenise(VideoDataset(data, "val", limit=3), ObjectDetector(confidence_threshold=0.3), Geometry(), run)
