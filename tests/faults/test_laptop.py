"""Faults of the client: killed at every stage, and two clients that do the same at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from remote.contract.locks import locked
from remote.contract.paths import ProjectPaths
from tests.chaos.harness import ChaosRun
from tests.chaos.pair import CLIENTS, JOBS, TIMEOUT_S, Pair
from tests.support import left_by, pids, wait_until

Inject = Callable[..., ChaosRun]


@pytest.mark.parametrize("after", [0.3, 1.0, 1.5, 2.0, 3.0])
def test_second_launch_completes_a_killed_one(tmp_path: Path, after: float) -> None:
    """All runs or none exist after the kill; a second launch never starts a second run."""
    pair = Pair(tmp_path / "pair", light=True)
    try:
        client = pair.client("launch", *JOBS)
        time.sleep(after)  # selects a stage of the launch, at random; no stage may do harm
        client.kill()
        client.wait()
        pair.launch()

        assert [len(pair.runs(job)) for job in JOBS] == [1, 1]
        pair.release()
        for job in JOBS:
            pair.wait_over(job)
        pair.sync()
    finally:
        pair.close()


@pytest.mark.parametrize("command", ["sync", "tail", "the rehearsal"])
def test_killed_client_does_not_affect_the_run(chaos_run: Inject, command: str) -> None:
    chaos_run(f"laptop: killed in {command}")


@pytest.mark.parametrize("client", CLIENTS)
def test_suspended_laptop_goes_on(chaos_run: Inject, client: str) -> None:
    chaos_run("laptop: suspended", client=client)


def test_agent_of_a_killed_client_ends(pair: Pair) -> None:
    before = set(left_by([pair.box.home]))
    client = pair.client("tail", "worker1")
    wait_until(lambda: set(left_by([pair.box.home])) - before, what="its process on the box")

    client.kill()
    wait_until(lambda: not set(left_by([pair.box.home])) - before, what="the end of its process on the box")


def test_concurrent_launches_are_serialized(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "pair", light=True)
    try:
        lock = ProjectPaths(pair.root, "chaos").launch_lock()
        with locked(lock):
            clients = [pair.client("launch", *JOBS) for _ in range(2)]
            wait_until(lambda: len(_opened_by(lock)) == 2, TIMEOUT_S, "both to wait for their turn")

        assert sorted(client.wait(timeout=TIMEOUT_S) == 0 for client in clients) == [False, True]
        assert [len(pair.runs(job)) for job in JOBS] == [1, 1]
    finally:
        pair.close()


def _opened_by(path: Path) -> set[int]:
    """Return other processes that have the file open."""
    found = set()
    for pid in pids():
        with suppress(OSError):
            if pid != os.getpid() and any(link.readlink() == path for link in Path(f"/proc/{pid}/fd").iterdir()):
                found.add(pid)
    return found


@pytest.mark.parametrize("command", ["launches", "syncs"])
def test_two_concurrent_clients_act_once(chaos_run: Inject, command: str) -> None:
    chaos_run(f"laptop: two {command}")
