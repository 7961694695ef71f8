from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.dataset.scenes import PRESETS
from workers.dataset.video_sample import VideoSample, load_sample, make_sample
from workers.dataset.videos import sample_path
from workers.perception import recall
from workers.perception.boxes import pairwise_iou
from workers.perception.detector import Detections, ObjectDetector
from workers.perception.matching import match

# Just below what was measured on 80 samples of seed 0.
MIN_RATES = {
    "default": {"all": 0.965, "overlapping": 0.88, "precision": 0.985},
    "hard": {"all": 0.95, "overlapping": 0.89, "precision": 0.975},
    "colour-free": {"all": 0.955, "overlapping": 0.865, "precision": 0.99},
}


@pytest.fixture(scope="module")
def found(data: Path) -> list[tuple[VideoSample, Detections, Tensor]]:
    """(sample, detections, track of each detection) of 80 samples: 2,900 objects."""
    detector, rows = ObjectDetector(confidence_threshold=0.4), []
    for index in range(80):
        sample = load_sample(sample_path(data, index))
        detections = detector.detect(sample.video)
        rows.append((sample, detections, match(detections, sample.boxes, sample.visible)))
    return rows


def measured(preset: str) -> dict[str, float]:
    """Of 80 samples of seed 0."""
    samples = [make_sample(0, index, PRESETS[preset]) for index in range(80)]
    counts = recall.measure(samples, ObjectDetector(confidence_threshold=0.4))  # type: ignore[arg-type]
    return {name: recall.share(count) for name, count in counts.items()}


@pytest.mark.parametrize(("preset", "least"), list(MIN_RATES.items()))
def test_recall_and_precision_are_as_documented(preset: str, least: dict[str, float]) -> None:
    got = measured(preset)
    assert {name: got[name] for name in least if got[name] < least[name]} == {}


def test_the_table_shows_the_number_of_objects(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recall.main(["--data", str(data), "--limit", "3", "--confidence-threshold", "0.4", "1"]) == 0
    table = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    counts = [int(cell.split(" of ")[1]) for cell in table[2][1:6]]
    assert counts[0] == counts[1] + counts[2] == counts[3] + counts[4] > 0
    assert float(table[3][1].split(" of ")[0]) < float(table[2][1].split(" of ")[0])  # a higher threshold finds less


def test_objects_overlap_if_their_boxes_do() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10]], [[5, 5, 15, 15]], [[20, 20, 30, 30]]])
    nothing = torch.zeros(0)
    visible = torch.ones(3, 1, dtype=torch.bool)
    sample = VideoSample(video=nothing, label=0, boxes=boxes, visible=visible, persistent=nothing, frame_labels=nothing)
    assert recall.overlapping(sample).flatten().tolist() == [True, True, False]


def test_the_colour_of_a_detection_is_always_right(found: list[tuple[VideoSample, Detections, Tensor]]) -> None:
    for sample, detections, track in found:
        real = track >= 0
        assert torch.equal(detections.red[real], ~sample.persistent[track[real]])


def test_touching_spheres_of_one_colour_are_separated() -> None:
    video = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    for x in (20, 32):
        video[0][(rows - 30) ** 2 + (columns - x) ** 2 <= 49] = 255
    detections = ObjectDetector().detect(video)
    assert detections.frame.tolist() == [0, 0]
    true = torch.tensor([[13.0, 23, 27, 37], [25, 23, 39, 37]])
    assert pairwise_iou(detections.boxes[:, None], true[None]).amax(dim=1).min() > 0.7


def test_an_empty_video_has_no_detections() -> None:
    detections = ObjectDetector().detect(torch.zeros(16, 64, 64, 3, dtype=torch.uint8))
    assert len(detections) == 0 and detections.boxes.shape == (0, 4)
    assert len(match(detections, torch.zeros(3, 16, 4), torch.ones(3, 16, dtype=torch.bool))) == 0


def test_a_tiny_object_needs_a_lower_threshold() -> None:
    video = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    video[0, 10:12, 10:12] = 255
    assert len(ObjectDetector(confidence_threshold=0.4).detect(video)) == 0
    assert len(ObjectDetector(confidence_threshold=0.05).detect(video)) == 1


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="min_confidence"):
        ObjectDetector(min_confidence=0.4)  # type: ignore[call-arg]


@pytest.mark.parametrize("threshold", ["0.4", None, True])
def test_a_threshold_that_is_not_a_number_is_a_type_error(threshold: Any) -> None:
    with pytest.raises(TypeError, match="confidence_threshold must be a number from 0 to 1, not"):
        ObjectDetector(confidence_threshold=threshold)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_out_of_range_is_a_value_error(threshold: float) -> None:
    with pytest.raises(ValueError, match="confidence_threshold must be a number from 0 to 1, not"):
        ObjectDetector(confidence_threshold=threshold)


def test_a_video_of_wrong_type_or_shape_is_refused() -> None:
    with pytest.raises(TypeError, match=r"uint8 tensor, not a torch\.float32 tensor"):
        ObjectDetector().detect(torch.zeros(16, 64, 64, 3))
    with pytest.raises(TypeError, match="uint8 tensor, not list"):
        ObjectDetector().detect([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[frames, height, width, 3\], not \[16, 3, 64, 64\]"):
        ObjectDetector().detect(torch.zeros(16, 3, 64, 64, dtype=torch.uint8))


def test_a_true_object_is_matched_once_by_the_best_detection() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10]]])  # one track, one frame
    detections = Detections(
        frame=torch.tensor([0, 0]),
        boxes=torch.tensor([[0.0, 0, 10, 8], [0, 0, 10, 9]]),
        red=torch.zeros(2, dtype=torch.bool),
        area=torch.ones(2),
        confidence=torch.ones(2),
    )
    assert match(detections, boxes, torch.ones(1, 1, dtype=torch.bool)).tolist() == [-1, 0]
    assert match(detections, boxes, torch.zeros(1, 1, dtype=torch.bool)).tolist() == [-1, -1]


def test_intersection_over_union_of_known_boxes() -> None:
    one = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2]])
    other = torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]])
    assert pairwise_iou(one, other).tolist() == pytest.approx([1 / 7, 1, 0])
