"""Faults of a box: a reboot, a full or read-only disk, a clock that jumps."""

from __future__ import annotations

import mmap
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.chaos.box import CRON
from tests.chaos.faults import second_supervisor
from tests.chaos.harness import ChaosRun
from tests.chaos.invariants import Findings, examine
from tests.chaos.pair import JOBS, TIMEOUT_S, Pair
from tests.support import wait_until

Inject = Callable[..., ChaosRun]


def test_runs_resume_from_the_newest_checkpoint_after_a_reboot(chaos_run: Inject) -> None:
    pair = chaos_run("box: reboot").pair

    for job in JOBS:
        assert pair.ends(job) == ["rebooted"]
        assert [record["attempt"] for record in pair.done(job) if "resumed" in record] == [1, 2]


@pytest.mark.skipif(not Path(CRON).exists(), reason="cron is not installed: apt install cron")
def test_cron_resumes_runs_after_a_reboot_and_keeps_no_line(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "pair", light=True)
    try:
        pair.box.start_cron()
        pair.launch()
        for job in JOBS:
            pair.wait_progress(job)
        assert f"resume {pair.root}" in pair.box.crontab()

        pair.box.power_off()
        saved = pair.epochs_saved("worker1")
        pair.box.power_on()
        pair.box.start_cron()

        wait_until(lambda: pair.epochs_saved("worker1") > saved, TIMEOUT_S, "worker1 to go on")
        pair.release()
        for job in JOBS:
            pair.wait_over(job)
            assert pair.state(job)["state"] == "succeeded"
        wait_until(lambda: "resume" not in pair.box.crontab(), TIMEOUT_S, "the line to be gone")
    finally:
        pair.close()


@pytest.mark.parametrize("what", ["disk", "inodes"])
def test_full_disk_is_the_reported_reason(chaos_run: Inject, what: str) -> None:
    pair = chaos_run(f"box: {what} full").pair

    for job in JOBS:
        assert "still no space for a checkpoint" in pair.state(job)["detail"]


def test_completely_full_disk_takes_the_verdict_and_the_end_of_the_log(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "pair", small_disk=True, light=True)
    try:
        pair.launch()
        for job in JOBS:
            pair.wait_progress(job)
            pair.signal(pair.worker_pid(job), signal.SIGSTOP)  # a running worker would free space
        pair.box.fill_disk()
        for job in JOBS:
            with pair.run(job).log.open("ab") as log:
                log.write((b"x" * (-log.tell() % mmap.PAGESIZE))[1:] + b"\n")

        for job in JOBS:
            pair.wait_over(job)
            assert (pair.state(job)["state"], pair.state(job)["reason"]) == ("failed", "disk_full")
        pair.box.free_disk()
        pair.sync()
        assert examine(pair, set()) == Findings()
    finally:
        pair.close()


@pytest.mark.parametrize("way", ["back", "forward"])
def test_clock_jump_of_two_hours_has_no_effect(chaos_run: Inject, way: str) -> None:
    """The deadline, an hour away, does not fire, and a stall is still detected."""
    pair = chaos_run(f"box: clock two hours {way}", "worker: sigstop").pair

    assert [pair.ends(job) for job in JOBS] == [[], ["stalled"]]


def test_read_only_root_costs_at_most_one_attempt(chaos_run: Inject) -> None:
    chaos_run("box: read-only")


def test_launch_on_a_read_only_root_is_an_error(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "pair", small_disk=True, light=True)
    try:
        pair.root.mkdir()
        with pair.box.read_only(pair.root):
            code, said = pair.orch("launch", *JOBS)
            assert code != 0
            assert "gpu1" in said
            assert str(pair.root) in said
        pair.launch()
    finally:
        pair.close()


def test_second_supervisor_of_a_run_exits(pair: Pair) -> None:
    first = pair.supervisor_pid("worker1")
    events = pair.run("worker1").events.read_bytes()

    second_supervisor(pair, "worker1", Random(0))

    assert pair.supervisor_pid("worker1") == first
    assert pair.run("worker1").events.read_bytes() == events
