"""Faults of the connection between laptop and box: the run is not affected and loses nothing."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from remote.contract.paths import ProjectPaths
from tests.chaos.faults import cut_for
from tests.chaos.harness import ChaosRun
from tests.chaos.invariants import Findings, examine
from tests.chaos.pair import CLIENTS, JOBS, TIMEOUT_S, Pair
from tests.support import descendants, name_of, parent_of, wait_until

Inject = Callable[..., ChaosRun]
CUTS = 50


@pytest.mark.parametrize("fault", ["cut 1 s", "sshd restarted", "8 Mbit/s", "10 % lost"])
def test_cut_or_slow_connection_does_not_affect_the_run(chaos_run: Inject, fault: str) -> None:
    chaos_run(f"connection: {fault}")


def test_connection_cut_for_30_seconds_does_not_affect_the_run(pair: Pair, tmp_path: Path) -> None:
    """A client that follows the run is not affected either."""
    tail = _listener(pair, tmp_path / "got")

    cut_for(30.0, pair, "worker1", Random(0))

    _end_well(pair)
    _heard_all(pair, tail, tmp_path / "got")


def test_slow_connection_gets_enough_time(pair: Pair) -> None:
    """A sync takes longer than the longest allowed silence; no limit applies to its total time."""
    ballast = pair.run("worker1").results / "ballast"
    ballast.write_bytes(Random(0).randbytes(16 << 20))
    with pair.box.slow("8mbit"):
        pair.sync_once()
    assert (pair.mirror("worker1").results / "ballast").read_bytes() == ballast.read_bytes()
    _end_well(pair)


def test_lost_first_packets_do_not_fail_the_connection(pair: Pair) -> None:
    """The kernel resends packets for seconds; the connect timeout is longer."""
    pair.box.cut()
    client = pair.client("sync")
    time.sleep(5)
    assert client.poll() is None
    pair.box.mend()
    assert client.wait(timeout=TIMEOUT_S) == 0
    _end_well(pair)


def test_run_holds_no_descriptor_of_its_connection(pair: Pair) -> None:
    """No signal to the session and no closed pipe can reach its processes."""
    for job in JOBS:
        supervisor = pair.supervisor_pid(job)
        for pid in (parent_of(supervisor), supervisor, pair.shim_pid(job), pair.worker_pid(job)):
            assert os.getsid(pid) in (supervisor, pid, parent_of(supervisor)), name_of(pid)
            assert pid not in descendants(pair.box.sshd_pid)
            held = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
            assert not [target for target in held if target.startswith("socket:")], held


def test_runs_end_without_a_connection_and_are_synced_later(chaos_run: Inject) -> None:
    chaos_run("connection: cut to the end")


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("stage", ["launch", "sync", "tail"])
def test_same_command_completes_after_a_reset(chaos_run: Inject, stage: str, client: str) -> None:
    chaos_run(f"connection: reset in {stage}", client=client)


@pytest.mark.parametrize("client", CLIENTS)
def test_client_continues_after_a_reset(tmp_path: Path, client: str) -> None:
    pair = Pair(tmp_path / "pair", light=True, client=client)
    try:
        incoming = ProjectPaths(pair.root, "chaos").incoming
        with pair.box.slow("1mbit"):
            _reset_when(pair, pair.client("launch", *JOBS), lambda: list(incoming.glob("*")))
        ballast = pair.run("worker1").results / "ballast"
        ballast.write_bytes(Random(0).randbytes(1 << 20))
        with pair.box.slow("4mbit"):
            _reset_when(pair, pair.client("sync"), lambda: _is_copied(pair))
        assert (pair.mirror("worker1").results / "ballast").read_bytes() == ballast.read_bytes()
    finally:
        pair.close()


def test_sshd_that_never_answers_is_unreachable(chaos_run: Inject) -> None:
    pair = chaos_run("connection: sshd never answers").pair

    assert any("no SSH server answers" in said for said in pair.refused), pair.refused


def test_fifty_cuts_lose_no_byte_of_the_log(pair: Pair, tmp_path: Path) -> None:
    random = Random(50)
    tail = _listener(pair, tmp_path / "got")
    workers = {job: pair.worker_pid(job) for job in JOBS}

    for _ in range(CUTS):
        pair.box.cut()
        time.sleep(random.uniform(0.02, 0.2))  # how long nothing arrives
        pair.box.reset_connections()
        pair.box.mend()
        time.sleep(random.uniform(0.02, 0.2))

    for job in JOBS:
        pair.wait_progress(job)
        assert pair.worker_pid(job) == workers[job]
        assert pair.ends(job) == []
    _end_well(pair)
    _heard_all(pair, tail, tmp_path / "got")


def _listener(pair: Pair, got: Path) -> subprocess.Popen[bytes]:
    with got.open("wb") as out:
        tail = pair.client("tail", "worker1", "--from", "0", out=out, err=subprocess.DEVNULL)
    wait_until(lambda: got.stat().st_size > 0, what="the first of the log")
    return tail


def _heard_all(pair: Pair, tail: subprocess.Popen[bytes], got: Path) -> None:
    assert tail.wait(timeout=60) == 0
    log = pair.run("worker1").log.read_bytes()
    assert got.read_bytes()[: len(log)] == log
    assert re.match(rb"worker1 2", got.read_bytes()[len(log) :])  # the outcome, directly after the log


def _end_well(pair: Pair) -> None:
    pair.release()
    for job in JOBS:
        pair.wait_over(job)
    pair.sync()
    assert examine(pair, set()) == Findings()


def _reset_when(pair: Pair, client: subprocess.Popen[bytes], is_there: Callable[[], object]) -> None:
    wait_until(is_there, TIMEOUT_S, "the client to be in the middle of it")
    pair.box.reset_connections()
    assert client.wait(timeout=TIMEOUT_S) == 0


def _is_copied(pair: Pair) -> bool:
    return any((pair.project / "results").rglob("*ballast*"))
