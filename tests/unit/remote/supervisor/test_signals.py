from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from remote.contract.files import TEMP_PREFIX, append_jsonl, read_jsonl, write_json
from remote.contract.nvidia import parse_cards
from remote.contract.paths import RunPaths
from remote.contract.position import Position
from remote.contract.protocol import Heartbeat, monotonic
from remote.contract.samples import LoadSample
from remote.contract.schema import to_json
from remote.host.process import PROC, family
from remote.shim.log_writer import LogWriter
from remote.supervisor import signals
from remote.supervisor.signals import (
    Mark,
    Progress,
    Sampler,
    is_disk_full,
    missing_outputs,
    steps_done,
)
from tests.remote_runs import in_private_mounts
from tests.support import ROOT, wait_until
from tests.unit.conftest import Driver

V1 = ROOT / "tests/contract/v1/runs/worker1/20260126T210312-7f3a"
# Two cards as nvidia.CARDS prints them; see tests/unit/remote/contract/test_nvidia.py.
T4 = "0, Tesla T4, 535.183.01, 15360, 1342, 13598, 37, Default, GPU-5d0ec4f2, 54\n"
MIG = "0, NVIDIA A100-SXM4-40GB, 535.183.01, 40960, 19871, 20449, [N/A], Default, GPU-0c1d2e3f, 38\n"


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    run = RunPaths(tmp_path / "worker1" / "20260126T210312-7f3a")
    for directory in (run.checkpoints, run.results):
        directory.mkdir(parents=True)
    return run


# --- samples ------------------------------------------------------------------------------------------


def sampled(run: RunPaths, devices: list[str], is_alone: bool) -> Sampler:
    """A sampler that has taken one sample of this process."""
    sampler = Sampler(run, lambda: family(os.getpgrp()), devices, is_alone)
    sampler.start()
    wait_until(lambda: list(read_jsonl(run.samples)), what="the first sample")
    sampler.end()
    sampler.join(timeout=20)
    assert not sampler.is_alive()
    return sampler


@pytest.mark.parametrize(
    ("load", "devices", "busy"),
    [
        (T4, ["gpu0"], True),
        (T4, ["gpu1"], False),  # use of another GPU by others is not progress of this run
        (T4, ["cpu"], False),
        (T4, [], False),
        (T4.replace(" 37,", " 4,"), ["gpu0"], False),
        (MIG, ["gpu0"], False),
        ("", ["gpu0"], False),
    ],
)
def test_sample_contains_machine_and_gpu_load(
    driver: Driver, run: RunPaths, load: str, devices: list[str], busy: bool
) -> None:
    driver(f"[ \"$1\" = pmon ] || printf '{load.strip()}'")
    before = monotonic()
    sampler = sampled(run, devices, is_alone=True)
    (sample,) = read_jsonl(run.samples)
    used = [(card.index, card.utilization) for card in parse_cards(load)]
    assert [(gpu["index"], gpu["utilization.gpu"]) for gpu in sample["gpus"]] == used
    assert sample["disk_free_bytes"] > 0
    if PROC.joinpath("self").exists():
        assert sample["processes"] >= 1
        assert sample["rss_bytes"] > 1 << 20
        assert sample["memory_available_bytes"] > 0
        assert os.getpid() in sampler.pids
    assert (sampler.gpu_busy_at is not None) == busy
    assert sampler.gpu_busy_at is None or before <= sampler.gpu_busy_at <= monotonic()


def test_sample_keeps_the_names_of_earlier_versions() -> None:
    line = to_json(LoadSample(1.0, 5, 921600000, None, 72450916352, tuple(parse_cards(T4))))
    recorded, _ = read_jsonl(V1 / "samples.jsonl")
    assert line.keys() == recorded.keys()
    assert line["gpus"] == [
        {"index": 0, "utilization.gpu": 37, "memory.used": 1342, "memory.total": 15360, "temperature.gpu": 54}
    ]


@pytest.mark.skipif(not PROC.joinpath("self").exists(), reason="this machine has no /proc")
@pytest.mark.parametrize(
    ("pid", "percent", "is_alone", "busy"),
    [
        ("own", "37", True, True),
        ("own", "37", False, True),
        ("own", "0", True, False),  # another process uses the device
        ("own", "0", False, False),
        ("own", "-", True, True),  # use per process is unknown, but the device belongs to this run alone
        ("own", "-", False, False),
        ("other", "99", True, True),
        ("other", "99", False, False),  # another run on a shared device is not progress of this run
    ],
)
def test_gpu_use_on_a_shared_device_is_per_process(
    driver: Driver, run: RunPaths, pid: str, percent: str, is_alone: bool, busy: bool
) -> None:
    number = os.getpid() if pid == "own" else 2**22 + 1
    driver(f"[ \"$1\" = pmon ] && echo '0 {number} C {percent} 1 - - python' || printf '{T4.strip()}'")
    assert (sampled(run, ["gpu0"], is_alone).gpu_busy_at is not None) == busy


# --- progress -----------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the box's monotonic clock, which the test moves."""
    clock = Clock()
    monkeypatch.setattr(signals, "monotonic", clock)
    return clock


def beat(run: RunPaths, phase: str = "train", **progress: Any) -> None:
    write_json(run.heartbeat, to_json(Heartbeat.now(phase, Position(**progress))))


def test_mark_age_starts_at_the_last_change(clock: Clock) -> None:
    mark = Mark()
    clock.now += 7
    assert mark.age(None) == 7  # it was None from the beginning
    assert mark.age(1) == 0
    clock.now += 5
    assert mark.age(1) == 5
    assert mark.age(0) == 0  # a decrease is a change too
    clock.now += 3
    assert mark.age(0) == 3


def test_heartbeat_with_only_a_new_time_is_no_progress(run: RunPaths, clock: Clock) -> None:
    beat(run, epoch=1, step=4)
    progress = Progress(run)
    progress.look()
    for seconds in (10, 20, 30):
        clock.now += 10
        beat(run, epoch=1, step=4)
        progress.look()
        assert (progress.since_step, progress.since_log) == (seconds, seconds)
        assert progress.heartbeat_age is not None and progress.heartbeat_age < 5


@pytest.mark.parametrize("moves", ["phase", "epoch", "step"])
def test_new_step_is_progress(run: RunPaths, clock: Clock, moves: str) -> None:
    beat(run, epoch=1, step=4)
    progress = Progress(run)
    progress.look()
    clock.now += 60
    progress.look()
    assert progress.since_step == 60
    progress_now: dict[str, Any] = {"phase": "train", "epoch": 1, "step": 4}
    beat(run, **{**progress_now, moves: "validate" if moves == "phase" else 5})
    progress.look()
    assert (progress.since_step, progress.since_log) == (0, 60)


@pytest.mark.parametrize("values", [(1.5, 2.5), ("4/500", "5/500"), ([4], [5])])
def test_new_step_of_any_type_is_progress(run: RunPaths, clock: Clock, values: tuple[Any, Any]) -> None:
    """Other programs write heartbeats too, in their own way."""
    progress = Progress(run)
    for value in values:
        write_json(run.heartbeat, {"step": value})
        clock.now += 60
        progress.look()
        assert progress.since_step == 0
        clock.now += 60
        progress.look()
        assert progress.since_step == 60


def test_growing_log_is_progress_and_rotation_is_not(run: RunPaths, clock: Clock) -> None:
    writer = LogWriter(run, part_bytes=4)
    writer.write(b"one\n")
    progress = Progress(run)
    progress.look()
    clock.now += 60
    progress.look()
    assert (progress.since_step, progress.since_log) == (60, 60)
    writer._make_room()
    assert run.log.read_bytes() == b"" and len(list(run.log_parts.iterdir())) == 1
    progress.look()
    assert progress.since_log == 60
    writer.write(b"two\n")
    progress.look()
    assert (progress.since_step, progress.since_log) == (60, 0)


@pytest.mark.parametrize("text", ["", "{", '{"step": {}}', "[1]", '{"step": null}'])
def test_malformed_heartbeat_is_no_error_and_no_progress(run: RunPaths, clock: Clock, text: str) -> None:
    run.heartbeat.write_text(text)
    progress = Progress(run)
    progress.look()
    clock.now += 60
    progress.look()
    assert progress.since_step == 60
    assert progress.heartbeat_age is None


@pytest.mark.parametrize(
    ("beaten", "steps"),
    [
        ({}, None),
        ({"epoch": 3}, None),
        ({"step": 7}, 7),
        ({"step": 7, "epoch": 3}, 7),
        ({"step": 7, "epoch": 3, "steps": 500}, 1007),
        ({"step": 500, "epoch": 1, "steps": 500}, 500),
    ],
)
def test_steps_are_counted_over_all_epochs(run: RunPaths, beaten: dict[str, Any], steps: int | None) -> None:
    beat(run, **beaten)
    assert steps_done(run) == steps


# --- the disk -----------------------------------------------------------------------------------------


def test_unknown_disk_is_not_full(tmp_path: Path) -> None:
    assert not is_disk_full(tmp_path)
    assert not is_disk_full(tmp_path / "absent")


@pytest.mark.parametrize(
    ("options", "fill"),
    [
        ("size=8m", "open(disk + '/data', 'wb').write(bytes((8 << 20) - (64 << 10)))"),
        ("size=8m,nr_inodes=20", "[open(f'{disk}/{number}', 'wb').close() for number in range(13)]"),
    ],
    ids=["bytes", "files"],
)
def test_disk_is_full_below_its_limits(tmp_path: Path, options: str, fill: str) -> None:
    in_private_mounts(
        f"mount -t tmpfs -o {options} tmpfs '{tmp_path}'",
        f"""
        import os, sys
        from pathlib import Path
        from remote.supervisor.signals import is_disk_full
        disk = sys.argv[1]
        assert not is_disk_full(Path(disk))
        {fill}
        assert is_disk_full(Path(disk)), os.statvfs(disk)
        open(disk + "/one-more", "wb").write(b"there is room yet")
        """,
        tmp_path,
    )


# --- expected files -----------------------------------------------------------------------------------


def test_patterns_without_a_match_are_returned(run: RunPaths) -> None:
    (run.checkpoints / "epoch-0005.pt").write_bytes(b"x")
    (run.results / "deep").mkdir()
    (run.results / "deep" / "report.md").write_text("x")
    present = ["checkpoints/*.pt", "checkpoints/epoch-0005.pt", "results/**/*.md", "results/deep/report.md"]
    absent = ["metrics.jsonl", "checkpoints/*.onnx", "results/*.md", "absent/*"]
    assert missing_outputs(run, present) == []
    assert missing_outputs(run, [*absent, *present]) == absent
    assert missing_outputs(run, []) == []


def test_empty_file_is_not_output(run: RunPaths) -> None:
    (run.checkpoints / "epoch-0005.pt").touch()
    assert missing_outputs(run, ["checkpoints/*.pt"]) == ["checkpoints/*.pt"]
    (run.checkpoints / "epoch-0010.pt").write_bytes(b"x")
    assert missing_outputs(run, ["checkpoints/*.pt"]) == []


def test_broken_link_is_not_output(run: RunPaths) -> None:
    (run.results / "best.pt").symlink_to("gone.pt")
    assert missing_outputs(run, ["results/best.pt", "results/*"]) == ["results/best.pt", "results/*"]


@pytest.mark.parametrize("pattern", ["checkpoints", "check*", "results/*"])
def test_empty_directory_is_not_output(run: RunPaths, pattern: str) -> None:
    (run.results / "plots").mkdir()
    assert missing_outputs(run, [pattern]) == [pattern]


def test_directory_with_output_is_output(run: RunPaths) -> None:
    (run.results / "plots").mkdir()
    (run.results / "plots" / "loss.svg").write_text("x")
    assert missing_outputs(run, ["results", "results/plots", "results/*"]) == []


def test_temporary_checkpoint_is_not_output(run: RunPaths) -> None:
    (run.checkpoints / f"{TEMP_PREFIX}abc").write_bytes(b"half")
    assert missing_outputs(run, ["checkpoints/*"]) == ["checkpoints/*"]


def test_samples_stay_readable_after_a_crash(run: RunPaths) -> None:
    run.samples.write_bytes(b'{"time":1}\n{"ti')
    append_jsonl(run.samples, {"time": 3})
    assert [sample["time"] for sample in read_jsonl(run.samples)] == [1, 3]


def test_step_that_was_read_in_the_output_is_not_the_workers_own(run: RunPaths) -> None:
    progress = Progress(run)
    for source, counts in (("", True), ("output", False)):
        write_json(run.heartbeat, to_json(Heartbeat.now("train", Position(step=4), None, source)))
        progress.look()
        assert (progress.has_steps, steps_done(run)) == (counts, 4 if counts else None)
