from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.files import TEMP_PREFIX, append_jsonl, read_jsonl, to_json, write_json
from remote.paths import RunPaths
from remote.process import PROC
from remote.protocol import Heartbeat, monotonic
from remote.witnesses import Progress, Sampler, gpu_load, missing_outputs, parse_gpu_load, progress_mark
from tests.support import wait_until

# nvidia-smi --query-gpu=index,utilization.gpu,memory.used,memory.total,temperature.gpu --format=csv,noheader,nounits
T4 = "0, 37, 1342, 15360, 54\n"
H100 = "0, 98, 71210, 81559, 63\n"
FOUR_A10G = "0, 0, 1, 23028, 27\n1, 100, 22012, 23028, 71\n2, 5, 804, 23028, 33\n3, 0, 1, 23028, 26\n"
MIG = "0, [N/A], 19871, 40960, 38\n"
NO_SENSOR = "0, [Not Supported], 512, 8192, [Unknown Error]\n"


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    run = RunPaths(tmp_path / "worker1" / "20260126T210312-7f3a")
    for directory in (run.checkpoints, run.results):
        directory.mkdir(parents=True)
    return run


# --- GPU ----------------------------------------------------------------------------------------------


def record(*values: float | None) -> dict[str, float | None]:
    keys = ("index", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu")
    return dict(zip(keys, values, strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (T4, [record(0, 37, 1342, 15360, 54)]),
        (H100, [record(0, 98, 71210, 81559, 63)]),
        (MIG, [record(0, None, 19871, 40960, 38)]),
        (NO_SENSOR, [record(0, None, 512, 8192, None)]),
        ("", []),
        ("No devices were found\n", []),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", []),
        ("0, 37, 1342\n" + T4, [record(0, 37, 1342, 15360, 54)]),
    ],
)
def test_what_the_driver_says(text: str, expected: list[dict[str, float | None]]) -> None:
    assert parse_gpu_load(text) == expected


def test_every_card_has_its_line() -> None:
    found = parse_gpu_load(FOUR_A10G)
    assert [(gpu["index"], gpu["utilization.gpu"]) for gpu in found] == [(0, 0), (1, 100), (2, 5), (3, 0)]


@given(st.text() | st.lists(st.text(), min_size=5, max_size=5).map(",".join))
@settings(deadline=None)
def test_no_text_is_too_strange(text: str) -> None:
    for gpu in parse_gpu_load(text):
        assert len(gpu) == 5
        assert all(value is None or isinstance(value, float) for value in gpu.values())
        to_json(gpu)


Driver = Callable[[str], None]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """An `nvidia-smi` that does what the shell text says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def install(text: str) -> None:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
        (folder / "nvidia-smi").chmod(0o755)

    return install


def test_the_driver_is_asked_for_what_is_read(driver: Driver, tmp_path: Path) -> None:
    driver(f"echo \"$@\" > {tmp_path}/asked; printf '{T4.strip()}'")
    assert gpu_load() == [record(0, 37, 1342, 15360, 54)]
    assert (tmp_path / "asked").read_text().split() == [
        "--query-gpu=index,utilization.gpu,memory.used,memory.total,temperature.gpu",
        "--format=csv,noheader,nounits",
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"printf '{T4.strip()}'; exit 9",
        "exit 0",
        "echo 'No devices were found'; exit 6",
        "printf '\\377\\376'",
        "kill -9 $$",
    ],
)
def test_a_driver_that_does_not_work_has_no_cards(driver: Driver, text: str) -> None:
    driver(text)
    assert gpu_load() == []


def test_a_box_without_a_driver_has_no_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_load() == []


# --- samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "devices", "busy"),
    [
        (T4, ["gpu0"], True),
        (T4, ["gpu1"], False),  # what others do on their GPU is no progress of this run
        (T4, ["cpu"], False),
        ("0, 4, 1342, 15360, 54\n", ["gpu0"], False),
        (MIG, ["gpu0"], False),
        ("", ["gpu0"], False),
    ],
)
def test_a_sample_says_what_the_machine_does(
    driver: Driver, run: RunPaths, load: str, devices: list[str], busy: bool
) -> None:
    driver(f"printf '{load.strip()}'")
    before = monotonic()
    sampler = Sampler(run, os.getpgrp(), devices)
    sampler.start()
    wait_until(lambda: list(read_jsonl(run.samples)), what="the first sample")
    sampler.end()
    sampler.join(timeout=20)
    assert not sampler.is_alive()
    (sample,) = read_jsonl(run.samples)
    assert sample["gpus"] == parse_gpu_load(load)
    assert sample["disk_free_bytes"] > 0
    if PROC.joinpath("self").exists():
        assert sample["processes"] >= 1
        assert sample["rss_bytes"] > 1 << 20
        assert sample["memory_available_bytes"] > 0
    assert (sampler.gpu_busy_at is not None) == busy
    age = Progress.since(sampler.gpu_busy_at)
    assert age is None if not busy else age is not None and 0 <= age <= monotonic() - before


# --- progress -----------------------------------------------------------------------------------------


def beat(run: RunPaths, phase: str = "train", **progress: Any) -> None:
    write_json(run.heartbeat, Heartbeat.now(phase, **progress).to_json())


def test_a_heartbeat_whose_time_alone_moves_is_no_progress(run: RunPaths) -> None:
    beat(run, epoch=1, step=4)
    mark = progress_mark(run)
    progress = Progress(run)
    progress.age()
    began = monotonic()
    for _ in range(3):
        write_json(run.heartbeat, Heartbeat(0.0, monotonic() + 1e6, os.getpid(), "train", epoch=1, step=4).to_json())
        assert progress_mark(run) == mark
        still = monotonic() - began
        assert progress.age() >= still


@pytest.mark.parametrize("moves", ["phase", "epoch", "step", "log"])
def test_what_moves_is_progress(run: RunPaths, moves: str) -> None:
    beat(run, epoch=1, step=4)
    run.log.write_text("one\n")
    progress = Progress(run)
    wait_until(lambda: progress.age() > 0.05)
    moved = monotonic()
    if moves == "log":
        run.log.write_text("one\ntwo\n")
    else:
        beat(run, **{"phase": "train", "epoch": 1, "step": 4, moves: "validate" if moves == "phase" else 5})
    assert progress.age() <= monotonic() - moved
    wait_until(lambda: progress.age() > 0.05)


@pytest.mark.parametrize("text", ["", "{", '{"step": {}}', "[1]", '{"step": null}'])
def test_a_heartbeat_that_is_not_as_agreed_is_no_error_and_no_progress(run: RunPaths, text: str) -> None:
    run.heartbeat.write_text(text)
    assert progress_mark(run) == progress_mark(run)
    assert progress_mark(RunPaths(run.root / "absent")) == (None, None, None, 0)


def test_nothing_seen_has_no_age() -> None:
    assert Progress.since(None) is None
    age = Progress.since(monotonic() - 10)
    assert age is not None and math.isclose(age, 10, abs_tol=5)


# --- expected files -----------------------------------------------------------------------------------


def test_every_pattern_that_matches_nothing_is_named(run: RunPaths) -> None:
    (run.checkpoints / "epoch-0005.pt").write_bytes(b"x")
    (run.results / "deep").mkdir()
    (run.results / "deep" / "report.md").write_text("x")
    present = ["checkpoints/*.pt", "checkpoints/epoch-0005.pt", "results/**/*.md", "results/deep/report.md"]
    absent = ["metrics.jsonl", "checkpoints/*.onnx", "results/*.md", "absent/*"]
    assert missing_outputs(run, present) == []
    assert missing_outputs(run, [*absent, *present]) == absent
    assert missing_outputs(run, []) == []


def test_an_empty_file_is_no_output(run: RunPaths) -> None:
    (run.checkpoints / "epoch-0005.pt").touch()
    assert missing_outputs(run, ["checkpoints/*.pt"]) == ["checkpoints/*.pt"]
    (run.checkpoints / "epoch-0010.pt").write_bytes(b"x")
    assert missing_outputs(run, ["checkpoints/*.pt"]) == []


def test_a_link_that_leads_nowhere_is_no_output(run: RunPaths) -> None:
    (run.results / "best.pt").symlink_to("gone.pt")
    assert missing_outputs(run, ["results/best.pt", "results/*"]) == ["results/best.pt", "results/*"]


@pytest.mark.parametrize("pattern", ["checkpoints", "check*", "results/*"])
def test_an_empty_directory_is_no_output(run: RunPaths, pattern: str) -> None:
    (run.results / "plots").mkdir()
    assert missing_outputs(run, [pattern]) == [pattern]


def test_a_directory_with_output_is_output(run: RunPaths) -> None:
    (run.results / "plots").mkdir()
    (run.results / "plots" / "loss.svg").write_text("x")
    assert missing_outputs(run, ["results", "results/plots", "results/*"]) == []


def test_the_draft_of_a_checkpoint_is_no_output(run: RunPaths) -> None:
    (run.checkpoints / f"{TEMP_PREFIX}abc").write_bytes(b"half")
    assert missing_outputs(run, ["checkpoints/*"]) == ["checkpoints/*"]


def test_samples_stay_readable_after_a_crash(run: RunPaths) -> None:
    run.samples.write_bytes(b'{"time":1}\n{"ti')
    append_jsonl(run.samples, {"time": 3})
    assert [sample["time"] for sample in read_jsonl(run.samples)] == [1, 3]
