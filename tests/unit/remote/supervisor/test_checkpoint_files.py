"""Which checkpoint of a program is the newest complete one: real files, as trainers and kills leave them."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from remote.contract.files import read_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.run_record import RunRecord
from remote.supervisor.checkpoint_files import settled
from tests.remote_runs import new_run

NOW = time.time()
GLOBS = ("out/checkpoint-*", "out/*.pt")
Put = Callable[..., Path]


@pytest.fixture
def run(paths: ProjectPaths) -> RunPaths:
    return new_run(paths, cwd="work")


@pytest.fixture
def put(run: RunPaths) -> Put:
    """Write a file in work/, as old as `age` says in seconds."""

    def write(name: str, size: int = 1000, age: float = 0.0, data: bytes = b"") -> Path:
        path = run.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data or b"x" * size)
        os.utime(path, (NOW - age, NOW - age))
        return path

    return write


def found(run: RunPaths, is_running: bool = False, created: float = NOW - 3600) -> list[str]:
    record = replace(RunRecord.read(read_json(run.run)), created=created)
    return [os.path.relpath(each.path, run.work) for each in settled(run, record, GLOBS, is_running).found]


def problems(run: RunPaths) -> list[str]:
    return list(settled(run, replace(RunRecord.read(read_json(run.run)), created=NOW - 3600), GLOBS).problems)


def trainer(put: Put, step: int, age: float, **sizes: int) -> None:
    files = {"model": 5000, "optimizer": 10_000, "state": 300 + step, **sizes}
    for name, size in files.items():
        if size >= 0:
            put(f"out/checkpoint-{step}/{name}", size, age)


def test_newest_comes_first(run: RunPaths, put: Put) -> None:
    for step, age in ((500, 300), (1000, 200), (1500, 100)):
        trainer(put, step, age)
    put("out/last.pt", age=150)
    (run.root / "out").mkdir()
    (run.root / "out" / "own.pt").write_bytes(b"x")
    assert found(run) == [
        "../out/own.pt",
        "out/checkpoint-1500",
        "out/last.pt",
        "out/checkpoint-1000",
        "out/checkpoint-500",
    ]


def test_same_time_is_ordered_by_the_number(run: RunPaths, put: Put) -> None:
    for epoch in (2, 10, 9):
        put(f"out/epoch{epoch}.pt", age=5)
    assert found(run) == ["out/epoch10.pt", "out/epoch9.pt", "out/epoch2.pt"]


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ({"optimizer": -1}, "optimizer is missing"),
        ({"optimizer": 4000}, "optimizer has 4000 bytes, and 10000 in the checkpoint before"),
        ({"state": 0}, "state has 0 bytes, and 800 in the checkpoint before"),
    ],
)
def test_directory_that_was_not_written_to_its_end_is_left_out(
    run: RunPaths, put: Put, sizes: dict[str, int], why: str
) -> None:
    trainer(put, 500, 300)
    trainer(put, 1000, 0, **sizes)
    assert found(run) == ["out/checkpoint-500"]
    assert problems(run) == [f"work/out/checkpoint-1000: {why}"]


def test_first_checkpoint_has_nothing_to_be_compared_with(run: RunPaths, put: Put) -> None:
    trainer(put, 500, 0)
    put("out/best.pt", 10)
    put("out/last.pt", 9000)  # has another name, so it may have another content
    assert set(found(run)) == {"out/checkpoint-500", "out/best.pt", "out/last.pt"}


def test_file_that_was_overwritten_and_cut_is_left_out(run: RunPaths, put: Put, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "whole", "w") as file:
        file.writestr("data.pkl", b"weights" * 1000)
    data = (tmp_path / "whole").read_bytes()
    put("out/last.pt", data=data)
    assert found(run) == ["out/last.pt"]
    put("out/last.pt", data=data[:-20])
    assert found(run) == []
    assert problems(run) == ["work/out/last.pt: the file is cut off"]


@pytest.mark.parametrize(
    "name",
    [
        "out/tmp-checkpoint-500/model",
        "out/checkpoint-500.tmp/model",
        "out/checkpoint-500/model.tmp",
        "out/checkpoint-500.partial",
        "out/.tmp.pt",
        "other/checkpoint-500/model",
    ],
)
def test_unfinished_and_other_names_are_left_out(run: RunPaths, put: Put, name: str) -> None:
    put(name)
    assert found(run) == []


def test_empty_ones_are_left_out(run: RunPaths, put: Put) -> None:
    put("out/empty.pt", data=b"").write_bytes(b"")
    put("out/checkpoint-1/model").write_bytes(b"")
    (run.work / "out" / "checkpoint-2").mkdir()
    os.mkfifo(run.work / "out" / "fifo.pt")
    (run.work / "out" / "dangling.pt").symlink_to("nowhere")
    assert found(run) == []


def test_file_that_came_with_the_code_is_left_out(run: RunPaths, put: Put) -> None:
    put("out/pretrained.pt", age=100)
    put("out/own.pt", age=10)
    assert found(run, created=NOW - 50) == ["out/own.pt"]


def test_one_that_is_being_written_is_left_out(run: RunPaths, put: Put) -> None:
    trainer(put, 500, 300)
    trainer(put, 1000, NOW - time.time())
    assert found(run, is_running=True) == ["out/checkpoint-500"]
    assert found(run) == ["out/checkpoint-1000", "out/checkpoint-500"]


def test_only_the_newest_of_many_are_looked_at(run: RunPaths, put: Put) -> None:
    for number in range(60):
        put(f"out/{number}.pt", size=1, age=100.0 - number)
    many = put("out/checkpoint-1/0", size=1)
    for number in range(3000):
        (many.parent / f"{number}").write_bytes(b"x")
    names = found(run)
    assert names[:2] == ["out/checkpoint-1", "out/59.pt"] and len(names) == 50


def test_link_to_the_newest_is_followed(run: RunPaths, put: Put) -> None:
    trainer(put, 500, 300)
    (run.work / "out" / "latest.pt").symlink_to("checkpoint-500")
    assert set(found(run)) == {"out/checkpoint-500", "out/latest.pt"}
