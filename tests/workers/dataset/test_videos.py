from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from remote.contract.files import sha256_file
from remote.worker import Run
from workers.common.errors import BadInput, TrainingStopped
from workers.dataset import scenes
from workers.dataset.__main__ import main
from workers.dataset.dataset_record import SPLITS, split_ranges
from workers.dataset.generate import generate
from workers.dataset.video_sample import load_sample, make_sample
from workers.dataset.videos import VideoDataset, sample_path

NO_RUN = Run(None, [])


def digests(root: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in (root / "output").iterdir()}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    generate(tmp_path / "small", 20, 3, NO_RUN)
    return tmp_path / "small"


def test_a_sample_has_the_documented_shapes(data: Path) -> None:
    sample = load_sample(sample_path(data, 0))
    tracks = len(sample.persistent)
    assert sample.video.dtype == torch.uint8 and sample.video.shape == (16, 64, 64, 3)
    assert sample.boxes.shape == (tracks, 16, 4) and sample.visible.shape == (tracks, 16)


def test_transient_spheres_last_one_to_three_frames_and_persistent_ones_stay(data: Path) -> None:
    for index in range(80):
        sample = load_sample(sample_path(data, index))
        shown = sample.visible.sum(dim=1)
        assert (shown[sample.persistent] == 16).all() and sample.persistent.any()
        assert ((shown[~sample.persistent] >= 1) & (shown[~sample.persistent] <= 3)).all()


def test_class_1_needs_a_transient_in_twenty_percent_of_the_frames(data: Path) -> None:
    for index in range(80):
        sample = load_sample(sample_path(data, index))
        frames = sample.visible[~sample.persistent].any(dim=0)
        assert torch.equal(frames, sample.frame_labels)
        assert sample.label == int(int(frames.sum()) >= 4)  # 3 of 16 are 18.75 %


def test_every_visible_transient_is_red_at_its_centre_and_no_red_is_elsewhere(data: Path) -> None:
    for index in range(20):
        sample = load_sample(sample_path(data, index))
        red = (sample.video[..., 0].int() - sample.video[..., 1].int()) > 60
        for track in torch.nonzero(~sample.persistent).flatten().tolist():
            for frame in torch.nonzero(sample.visible[track]).flatten().tolist():
                x0, y0, x1, y1 = sample.boxes[track, frame].tolist()
                assert red[frame, int((y0 + y1) / 2), int((x0 + x1) / 2)]
                red[frame, int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = False
        assert not red.any()


def test_boxes_are_tight_and_inside_the_frame(data: Path) -> None:
    boxes = torch.cat([s.boxes[s.visible] for s in (load_sample(sample_path(data, i)) for i in range(80))])
    assert boxes.min() >= -1e-4 and boxes.max() <= 64 + 1e-4
    assert ((boxes[:, 2] - boxes[:, 0]) >= 2 * scenes.DEFAULT.transient_radius[0] - 1e-4).all()


def test_both_classes_are_about_equally_frequent() -> None:
    labels = [scenes.draw_scene(np.random.default_rng([0, index])).label for index in range(2000)]
    assert 0.46 < sum(labels) / len(labels) < 0.54


def test_the_same_seed_gives_the_same_bytes_in_any_order(small: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "output").mkdir(parents=True)
    shutil.copy(sample_path(small, 7), sample_path(other, 7))  # as after an interrupted run
    generate(other, 20, 3, NO_RUN)
    assert digests(other) == digests(small)
    assert (other / "dataset.json").read_bytes() == (small / "dataset.json").read_bytes()


def test_another_seed_gives_other_videos() -> None:
    assert not torch.equal(make_sample(0, 5).video, make_sample(1, 5).video)
    assert not torch.equal(make_sample(0, 5).video, make_sample(0, 6).video)


def test_a_complete_dataset_is_left_alone(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    generate(small, 20, 3, NO_RUN)
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_damaged_missing_and_foreign_files_are_made_again(small: Path) -> None:
    whole = digests(small)
    os.truncate(sample_path(small, 3), 1000)
    sample_path(small, 4).unlink()
    shutil.copy(sample_path(small, 6), sample_path(small, 5))
    generate(small, 20, 3, NO_RUN)
    assert digests(small) == whole


def test_a_stopped_dataset_is_incomplete_and_can_be_finished(tmp_path: Path) -> None:
    class StopsSoon(Run):
        def beat(self, phase: str, *args: object, **progress: object) -> None:
            self.stop_requested = progress["step"] == 5

    with pytest.raises(TrainingStopped):
        generate(tmp_path, 20, 3, StopsSoon(None, []))
    with pytest.raises(BadInput, match=r"not a finished dataset: 5 samples but no dataset\.json"):
        VideoDataset(tmp_path, "train")
    generate(tmp_path, 20, 3, NO_RUN)
    assert len(VideoDataset(tmp_path, "train")) == 16


def test_making_a_dataset_sends_heartbeats(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    run = make_run()
    generate(tmp_path / "data", 10, 0, run)
    assert run.paths is not None
    beat = json.loads(run.paths.heartbeat.read_text())
    assert (beat["phase"], beat["steps"]) == ("prepare", 10)


def test_another_dataset_in_the_directory_is_refused(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(small), "--samples", "30", "--seed", "3"]) == 2
    assert "already holds another dataset (count 20)" in capsys.readouterr().err


def test_the_splits_are_disjoint_with_a_ratio_of_eight_to_one_to_one(data: Path) -> None:
    assert [len(split_ranges(10_000)[split]) for split in SPLITS] == [8000, 1000, 1000]
    paths = [path for split in SPLITS for path in VideoDataset(data, split).indices]
    assert len(paths) == len(set(paths)) == 80


def test_a_dataset_reads_its_samples(data: Path) -> None:
    dataset = VideoDataset(data, "val")
    assert len(dataset) == 8
    assert torch.equal(dataset[2].video, make_sample(0, 66).video)


def test_a_missing_dataset_names_the_place_the_pattern_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "augmented_traj_00000.npy").touch()
    with pytest.raises(BadInput) as refused:
        VideoDataset(tmp_path, "train")
    message = str(refused.value)
    assert "output/augmented_traj_*.pt" in message and str(tmp_path) in message
    assert "augmented_traj_00000.npy" in message and "python -m workers.dataset" in message
    with pytest.raises(BadInput, match="no such directory"):
        VideoDataset(tmp_path / "absent", "train")


def test_too_few_samples_are_refused_at_construction(small: Path) -> None:
    with pytest.raises(BadInput, match="has 2 samples, at least 3 are needed"):
        VideoDataset(small, "val", at_least=3)
    sample_path(small, 0).unlink()
    with pytest.raises(BadInput, match=r"is incomplete: dataset\.json names 20 samples, found 19"):
        VideoDataset(small, "train")


def test_an_empty_or_unknown_split_is_refused(small: Path) -> None:
    with pytest.raises(BadInput, match="at least 1 are needed"):
        VideoDataset(small, "train", at_least=0, limit=0)
    with pytest.raises(BadInput, match="unknown split 'validation'"):
        VideoDataset(small, "validation")


def test_a_damaged_sample_is_named(small: Path) -> None:
    os.truncate(sample_path(small, 0), 500)
    with pytest.raises(BadInput, match=r"augmented_traj_00000\.pt cannot be read as a sample"):
        VideoDataset(small, "train")[0]
    torch.save({"video": 1}, sample_path(small, 0))
    with pytest.raises(BadInput, match="it lacks boxes, frame_labels, label, persistent, visible"):
        VideoDataset(small, "train")[0]
