"""The packed layout, the commands of `workers.dataset`, difficulty, and several processes."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from remote.contract.files import read_json, sha256_file
from remote.worker import Run
from workers.common.errors import BadInput, WorkerError
from workers.dataset import scenes
from workers.dataset.__main__ import main
from workers.dataset.generate import generate, pack, verify
from workers.dataset.scenes import PRESETS, Parameters
from workers.dataset.video_sample import load_sample, make_sample
from workers.dataset.videos import VideoDataset, sample_path

NO_RUN = Run(None, [])
FIRST_VIDEO = "2f07d0291fae4fee"  # of seed 0, the start of its SHA-256


@pytest.fixture
def small(tmp_path: Path) -> Path:
    generate(tmp_path / "small", 20, 3, NO_RUN)
    return tmp_path / "small"


def packed_files(root: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in (root / "packed").iterdir()}


# --- packed ------------------------------------------------------------------------------------------


def test_packing_files_and_generating_packed_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    pack(small, NO_RUN)
    generate(tmp_path / "other", 20, 3, NO_RUN, layout="packed")
    assert packed_files(small) == packed_files(tmp_path / "other") and len(packed_files(small)) == 8
    assert not (tmp_path / "other" / "output").exists()
    sums = [(read_json(root / "dataset.json") or {})["sha256"] for root in (small, tmp_path / "other")]
    assert sums[0] == sums[1]


def test_a_packed_sample_equals_the_original(small: Path) -> None:
    from_files = VideoDataset(small, "val")
    pack(small, NO_RUN)
    from_packed = VideoDataset(small, "val")
    assert type(from_packed.source) is not type(from_files.source)
    for one, other in zip(map(from_files.__getitem__, range(2)), map(from_packed.__getitem__, range(2)), strict=True):
        for name, value in vars(one).items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(getattr(other, name))), name
    from_packed[0].video.zero_()  # does not change the file
    assert verify(small, NO_RUN) == [f"{name}/: all 20 samples are correct" for name in ("packed", "output")]


def test_a_packed_dataset_is_not_packed_again(small: Path) -> None:
    pack(small, NO_RUN)
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    pack(small, NO_RUN)
    generate(small, 20, 3, NO_RUN, layout="both")
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_files_that_do_not_match_the_record_are_not_packed(small: Path) -> None:
    shutil.copy(sample_path(small, 6), sample_path(small, 5))
    with pytest.raises(BadInput, match="does not match dataset.json"):
        pack(small, NO_RUN)
    assert not (small / "packed").exists()


def test_a_damaged_packed_layout_is_ignored_with_a_warning_or_refused(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(small, NO_RUN)
    os.truncate(small / "packed" / "video.npy", 1000)
    assert torch.equal(VideoDataset(small, "val")[0].video, make_sample(3, 16).video)
    assert "video.npy has another size than when it was written; pack it again" in capsys.readouterr().out
    shutil.rmtree(small / "output")
    with pytest.raises(BadInput, match="cannot be used: video.npy has another size"):
        VideoDataset(small, "val")


@pytest.mark.parametrize("file", ["output/augmented_traj_00007.pt", "packed/video.npy", "packed/label.npy"])
def test_verify_finds_a_changed_byte(small: Path, file: str) -> None:
    pack(small, NO_RUN)
    path, content = small / file, bytearray((small / file).read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(WorkerError):
        verify(small, NO_RUN)


def test_verify_names_the_first_sample_that_differs(small: Path) -> None:
    changed = load_sample(sample_path(small, 7))
    changed.video[0, 0, 0, 0] ^= 1
    changed.save(sample_path(small, 7))
    with pytest.raises(WorkerError, match="sample 7 is the first that differs"):
        verify(small, NO_RUN)


# --- commands ----------------------------------------------------------------------------------------


def test_generate_pack_verify_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--out", str(tmp_path / "data")]
    assert main(["generate", *place, "--samples", "12", "--preset", "hard", "--noise", "20"]) == 0
    assert main(["pack", *place]) == 0
    assert main(["verify", *place]) == 0
    assert "packed/: all 12 samples are correct" in capsys.readouterr().out
    assert main(["inspect", *place, "--sample", "11"]) == 0
    said = capsys.readouterr().out
    assert "'overlaps': 0.5" in said and "'noise': 20" in said and "read from       packed/" in said
    persistent = load_sample(sample_path(tmp_path / "data", 11)).persistent
    assert said.count("persistent    frames 0 to 15") == int(persistent.sum())
    assert main(["inspect", *place, "--sample", "12"]) == 2
    assert "sample 12 does not exist; there are 12, numbered from 0" in capsys.readouterr().err


def test_options_without_a_command_generate(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "data"), "--samples", "10"]) == 0
    assert len(VideoDataset(tmp_path / "data", "train")) == 8


def test_verify_of_a_damaged_dataset_exits_with_1(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(sample_path(small, 6), sample_path(small, 5))
    assert main(["verify", "--out", str(small)]) == 1
    assert "sample 5 is the first that differs; make it again" in capsys.readouterr().err


def test_the_same_seed_with_other_parameters_is_another_dataset(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(small), "--samples", "20", "--seed", "3", "--noise", "17"]) == 2
    assert "already holds another dataset (parameters" in capsys.readouterr().err


# --- difficulty --------------------------------------------------------------------------------------


def test_the_default_dataset_never_changes() -> None:
    """Datasets made before there were parameters have the same videos."""
    video = make_sample(0, 0).video.numpy()
    assert PRESETS["default"] == Parameters()
    assert hashlib.sha256(video.tobytes()).hexdigest().startswith(FIRST_VIDEO)


def test_colour_free_spheres_look_alike() -> None:
    parameters = PRESETS["colour-free"]
    radii: dict[bool, list[float]] = {True: [], False: []}
    for index in range(300):
        scene = scenes.draw_scene(np.random.default_rng([0, index]), parameters)
        for radius, persistent in zip(scene.radii.tolist(), scene.persistent.tolist(), strict=True):
            radii[persistent].append(radius)
    assert abs(np.mean(radii[True]) - np.mean(radii[False])) < 0.15
    for index in range(10):
        video = scenes.draw(0, index, parameters)[1].astype(int)
        assert (np.ptp(video, axis=-1)[video.max(axis=-1) > 100] == 0).all()  # no sphere has a colour


def test_overlaps_are_as_frequent_as_requested() -> None:
    def touching(share: float) -> float:
        touched = []
        for index in range(300):
            scene = scenes.draw_scene(np.random.default_rng([0, index]), Parameters(overlaps=share))
            whites = int(scene.persistent.sum())
            for track in range(whites, len(scene.radii)):
                frame = int(np.argmax(scene.visible[track]))
                gaps = np.linalg.norm(scene.centres[:whites, frame] - scene.centres[track, frame], axis=1)
                touched.append(bool((gaps <= scene.radii[:whites] + scene.radii[track] + 1e-3).any()))
        return float(np.mean(touched))

    assert touching(0) < 0.3 and touching(0.5) > touching(0) + 0.25 and touching(1) > 0.95


@pytest.mark.parametrize("name", list(PRESETS))
def test_boxes_are_inside_the_frame_and_classes_are_balanced(name: str) -> None:
    scenes_of = [scenes.draw_scene(np.random.default_rng([1, index]), PRESETS[name]) for index in range(400)]
    boxes = np.concatenate([scene.boxes().reshape(-1, 4) for scene in scenes_of])
    assert boxes.min() >= -1e-3 and boxes.max() <= 64 + 1e-3
    assert 0.42 < np.mean([scene.label for scene in scenes_of]) < 0.58


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"transients": (3, 1)}, "transients is 3 to 1, but must be a range"),
        ({"persistent": (0, 2)}, "1 or more persistent"),
        ({"transient_frames": (1, 17)}, "lasts 1 to 16 frames"),
        ({"overlaps": 1.5}, "overlaps must be 0 to 1"),
        ({"noise": 200}, "noise 1 to 96"),
        ({"persistent_radius": (5.0, 30.0)}, "a radius must be 1 to 16"),
    ],
)
def test_impossible_parameters_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        replace(Parameters(), **given)  # type: ignore[arg-type]


def test_parameters_that_give_only_one_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="0 to 1 transients of 1 to 3 frames almost never give class 1"):
        generate(tmp_path, 20, 0, NO_RUN, Parameters(transients=(0, 1)))


def test_several_processes_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    generate(tmp_path / "one", 130, 0, NO_RUN, layout="packed")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    generate(tmp_path / "two", 130, 0, NO_RUN, layout="packed")
    assert packed_files(tmp_path / "one") == packed_files(tmp_path / "two")
