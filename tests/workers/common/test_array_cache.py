"""Objects and features are computed once, and stale or damaged entries are never used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from remote.contract.locks import locked
from remote.worker import Run
from tests.support import ROOT
from workers.common import array_cache
from workers.common.errors import BadInput, TrainingStopped
from workers.dataset.generate import generate
from workers.dataset.videos import VideoDataset, sample_path
from workers.perception.batching import Packed
from workers.perception.detector import ObjectDetector
from workers.perception.features import Appearance
from workers.perception.tokens import Geometry, TokenFeatures, tokenise

NO_RUN = Run(None, [])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    generate(root, 20, 0, NO_RUN)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def tokens(root: Path, features: TokenFeatures | None = None, threshold: float = 0.4) -> Packed:
    dataset = VideoDataset(root, "val")
    return tokenise(dataset, ObjectDetector(confidence_threshold=threshold), features or Geometry(), NO_RUN)


def same(one: Packed, other: Packed) -> bool:
    pairs = zip((*one.parts, one.frame, one.labels), (*other.parts, other.frame, other.labels), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def entries(root: Path, kind: str) -> list[Path]:
    return [path for path in (root / "cache").iterdir() if path.name.startswith(kind) and path.is_dir()]


def test_a_second_job_uses_the_cache_of_the_first(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tokens(root, Appearance("random", CPU))
    before = {path: path.stat().st_mtime_ns for path in (root / "cache").rglob("*.npy")}
    capsys.readouterr()
    second = tokens(root, Appearance("random", CPU))
    said = capsys.readouterr().out
    assert said.count("from the cache") == 2 and same(first, second)
    assert {path: path.stat().st_mtime_ns for path in (root / "cache").rglob("*.npy")} == before != {}


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # processes that mapped the old file keep it
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "kind", "name"),
    [
        (truncate, "objects", "boxes.npy"),
        (flip, "objects", "boxes.npy"),
        (flip, "features", "looks.npy"),
        (Path.unlink, "features", "looks.npy"),
        (Path.unlink, "features", "manifest.json"),
    ],
)
def test_a_damaged_cache_is_built_again_with_a_warning(
    root: Path, damage: Callable[[Path], None], kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tokens(root, Appearance("random", CPU))
    damage(entries(root, kind)[0] / name)
    again = tokens(root, Appearance("random", CPU))
    assert "is not used and is built again" in capsys.readouterr().out
    assert same(whole, again) and not array_cache.what_is_wrong(entries(root, kind)[0])


def test_another_threshold_or_changed_files_make_another_entry(root: Path) -> None:
    plain = tokens(root)
    assert len(tokens(root, threshold=0.99).frame) < len(plain.frame)
    assert len(entries(root, "objects")) == 2
    shutil.copy(sample_path(root, 0), sample_path(root, 16))  # another sample where the first of the split was
    assert not same(tokens(root), plain) and len(entries(root, "objects")) == 3


def test_other_weights_make_another_entry(root: Path, tmp_path: Path) -> None:
    random = Appearance("random", CPU)
    state = {name: value.clone() for name, value in load_plain().items()}
    state["conv1.weight"] += 0.01
    torch.save(state, tmp_path / "weights.pt")
    first, second = tokens(root, random), tokens(root, Appearance(str(tmp_path / "weights.pt"), CPU))
    assert not torch.equal(first.parts[0], second.parts[0]) and torch.equal(first.parts[1], second.parts[1])
    assert len(entries(root, "features")) == 2 and len(entries(root, "objects")) == 1


def load_plain() -> dict[str, Any]:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    return resnet18(weights=None).state_dict()


def test_a_part_of_a_split_comes_from_the_cache_of_the_whole(root: Path) -> None:
    dataset = VideoDataset(root, "train")
    appearance = Appearance("random", CPU)
    anew = tokenise(dataset.first(3), ObjectDetector(), appearance, NO_RUN)
    assert not (root / "cache").exists()  # nothing is kept of a part
    whole = tokenise(dataset, ObjectDetector(), appearance, NO_RUN)
    part = tokenise(dataset.first(3), ObjectDetector(), appearance, NO_RUN)
    assert part.lengths.tolist() == whole.lengths[:3].tolist() == anew.lengths.tolist()
    assert all(torch.equal(one.features, other.features) for one, other in zip(part, whole[:3], strict=True))
    torch.testing.assert_close(part[2].features, anew[2].features, rtol=2e-3, atol=2e-3)


CODE = """
import sys, torch
from pathlib import Path
from remote.worker import Run
from workers.dataset.videos import VideoDataset
from workers.perception.detector import ObjectDetector
from workers.perception.features import Appearance
from workers.perception.tokens import tokenise
torch.set_num_threads(1)
data, appearance = VideoDataset(Path(sys.argv[1]), "val"), Appearance("random", torch.device("cpu"))
tokens = tokenise(data, ObjectDetector(), appearance, Run(None, []))
print(float(tokens.parts[0].double().sum()))
"""


@pytest.mark.slow
def test_several_jobs_compute_an_entry_once(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", CODE, str(root)]
    jobs = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    said = [job.communicate(timeout=100)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert (
        sum(text.count(" found in ") for text in said) == 1 and sum(text.count(" computed in ") for text in said) == 1
    )
    assert len({text.splitlines()[-1] for text in said}) == 1


def test_waiting_for_another_job_sends_heartbeats_and_obeys_a_stop(root: Path, make_run: Callable[..., Run]) -> None:
    tokens(root)
    entry = entries(root, "objects")[0]
    shutil.rmtree(entry)

    class Asked(Run):
        beats = 0

        def beat(self, phase: str, *args: Any, **progress: Any) -> None:
            self.beats += 1
            self.stop_requested = True

    run = make_run(kind=Asked)
    with (
        locked(entry.with_suffix(".lock")),
        pytest.raises(TrainingStopped, match="waiting for the objects of the val split"),
    ):
        tokenise(VideoDataset(root, "val"), ObjectDetector(), Geometry(), run)
    assert isinstance(run, Asked) and run.beats == 1 and not entry.exists()


def test_a_waiting_job_uses_what_the_other_made(tmp_path: Path) -> None:
    path, about, builds = tmp_path / "numbers-1", {"of": "a test"}, []
    begun, go_on = threading.Event(), threading.Event()

    def build(folder: Path) -> None:
        builds.append(folder)
        begun.set()
        assert go_on.wait(30)
        np.save(folder / "numbers.npy", np.arange(5))

    results: list[Any] = []
    jobs = [
        threading.Thread(target=lambda: results.append(array_cache.cached(path, about, build, NO_RUN, "numbers")))
        for _ in range(2)
    ]
    jobs[0].start()
    assert begun.wait(30)
    jobs[1].start()
    go_on.set()
    for job in jobs:
        job.join(30)
    assert len(builds) == 1 and sorted(built for _, built in results) == [False, True]
    assert all(found["numbers"].tolist() == [0, 1, 2, 3, 4] for found, _ in results)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        with array_cache.Writer(folder / "numbers.npy", np.int64, (3,)) as writer:
            writer.append(np.arange(2))

    with pytest.raises(ValueError, match="1 rows are missing"):
        array_cache.cached(tmp_path / "numbers-1", {}, build, NO_RUN, "numbers")
    assert [path.name for path in tmp_path.iterdir()] == ["numbers-1.lock"]


def test_entries_unused_for_a_month_are_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(name: str) -> bool:
        return array_cache.cached(tmp_path / name, {"of": name}, lambda folder: None, NO_RUN, "numbers")[1]

    old, kept = time.time() - array_cache.UNUSED - 60, time.time() - array_cache.UNUSED + 3600
    used, unused, recent, new = (f"objects-{digit * 16}" for digit in "abcd")
    for name in (used, unused, recent):
        assert ask(name)
    left, others, notes = tmp_path / (".tmp-" + "1" * 16), tmp_path / "objects-of-mine", tmp_path / f"notes-{'0' * 16}"
    for path in (left, others, notes):
        path.mkdir()
        os.utime(path, (old, old))
    for name, when in ((used, old), (unused, old), (recent, kept)):
        os.utime(tmp_path / name / "manifest.json", (when, when))

    assert not ask(used)  # and counts as used from now on
    assert (tmp_path / unused).exists()
    assert ask(new)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {used, recent, new, others.name, notes.name}
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"removed {path}: not used for 30 days" for path in (left, tmp_path / unused)
    ]


def test_an_entry_that_another_job_removes_meanwhile_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = [tmp_path / ("objects-" + "1" * 16), tmp_path / (".tmp-" + "2" * 16)]
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(gone) if folder == tmp_path else listed(folder))
    assert array_cache.cached(tmp_path / "numbers-1", {}, lambda folder: None, NO_RUN, "numbers")[1]


def test_a_cache_that_cannot_be_written_is_an_error_of_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ORCH_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(BadInput, match="choose another directory with ORCH_CACHE_DIR") as refused:
        tokens(root)
    assert "\n" not in str(refused.value)


def test_a_given_cache_directory_is_used(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_CACHE_DIR", str(tmp_path / "elsewhere"))
    tokens(root)
    assert any((tmp_path / "elsewhere").glob("objects-*")) and not (root / "cache").exists()


def test_read_only_data_has_its_cache_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCH_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write anywhere
    assert array_cache.cache_folder(Path("/data")) == tmp_path / ".cache" / "orch"


def test_an_array_without_rows_is_saved_and_loaded(tmp_path: Path) -> None:
    array_cache.save(tmp_path / "none", {}, {"boxes": np.zeros((0, 4), dtype=np.float32)})
    assert array_cache.what_is_wrong(tmp_path / "none") == "" and array_cache.load(tmp_path / "none")[
        "boxes"
    ].shape == (0, 4)
