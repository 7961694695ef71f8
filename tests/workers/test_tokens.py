from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from remote.worker import Run
from workers.dataset import VideoDataset, load_sample, sample_path
from workers.detector import Detections, ObjectDetector
from workers.errors import Stopped
from workers.scenes import class_of
from workers.tokens import GEOMETRY, Geometry, Sample, batches, collate, geometry, tokenise


def sample_of(tokens: int, label: int = 0) -> Sample:
    kinds = torch.arange(tokens) % 3
    return Sample(torch.rand(tokens, 8) + 1, kinds == 0, kinds == 1, label, red_label=0)


def test_geometry_in_the_order_of_its_names() -> None:
    found = Detections(
        frame=torch.tensor([15]),
        boxes=torch.tensor([[16.0, 32, 32, 48]]),
        red=torch.tensor([True]),
        area=torch.tensor([256.0]),
        confidence=torch.tensor([0.5]),
    )
    row = geometry(torch.zeros(16, 64, 64, 3, dtype=torch.uint8), found)[0].tolist()
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


def test_kinds_come_from_the_ground_truth_token_by_token(data: Path, samples: dict[str, list[Sample]]) -> None:
    for index, sample in enumerate(samples["train"][:20]):
        truth = load_sample(sample_path(data, index))
        assert not (sample.persistent & sample.transient).any()
        assert sample.persistent.shape == sample.transient.shape == sample.features.shape[:1]
        assert int(sample.persistent.sum()) <= int(truth["visible"][truth["persistent"]].sum())
        red = sample.features[:, GEOMETRY.index("red")] == 1
        assert red[sample.transient].all() and not red[sample.persistent].any()
    labelled = torch.cat([sample.persistent | sample.transient for sample in samples["train"]])
    assert labelled.float().mean() > 0.95


def test_a_detection_that_matches_nothing_is_of_neither_kind(data: Path, tmp_path: Path) -> None:
    dataset = VideoDataset(data, "test", limit=1)
    broken = dataset[0]
    broken["boxes"] = torch.zeros_like(broken["boxes"])
    dataset.paths = [tmp_path / "sample.pt"]
    torch.save(broken, dataset.paths[0])
    sample = tokenise(dataset, ObjectDetector(), Geometry(), Run(None, []))[0]
    assert len(sample.features) > 0 and not (sample.persistent | sample.transient).any()


def test_counting_red_frames_follows_the_rule(samples: dict[str, list[Sample]]) -> None:
    for sample in samples["train"]:
        times = sample.features[sample.features[:, GEOMETRY.index("red")] == 1, GEOMETRY.index("time")]
        frames = torch.zeros(16, dtype=torch.bool)
        frames[(times * 15).round().long()] = True
        assert sample.red_label == class_of(frames.numpy())


def test_collate_pads_to_the_longest_and_marks_padding() -> None:
    long, short = sample_of(5, label=1), sample_of(2)
    batch = collate([long, short])
    assert batch.features.shape == (2, 5, 8) and batch.labels.tolist() == [1, 0]
    assert batch.padding.tolist() == [[False] * 5, [False, False, True, True, True]]
    assert torch.equal(batch.features[1, :2], short.features) and (batch.features[1, 2:] == 0).all()
    for mask in (batch.persistent, batch.transient):
        assert mask.shape == (2, 5) and mask.dtype == torch.bool and not (mask & batch.padding).any()


def test_samples_without_any_token_make_a_batch() -> None:
    batch = collate([sample_of(0), sample_of(0)])
    assert batch.features.shape == (2, 1, 8) and batch.padding.all()


def test_batches_take_every_sample_once_in_the_order_given() -> None:
    several = [sample_of(1, label=index) for index in range(5)]
    taken = [batch.labels.tolist() for batch in batches(several, 2, [4, 2, 0, 1, 3])]
    assert taken == [[4, 2], [0, 1], [3]]
    assert [batch.labels.tolist() for batch in batches(several, 4)] == [[0, 1, 2, 3], [4]]


def test_preparing_tokens_heeds_a_request_to_stop(data: Path, make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.stop_requested = True
    with pytest.raises(Stopped, match="while preparing tokens"):
        tokenise(VideoDataset(data, "val"), ObjectDetector(), Geometry(), run)
