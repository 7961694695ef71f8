"""What can befall the client: it is killed at every stage, and two of them do the same thing at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.night.harness import Night
from tests.night.pair import JOBS, Pair

Live = Callable[..., Night]


@pytest.mark.parametrize("after", [0.3, 1.0, 1.5, 2.0, 3.0])
def test_a_launch_that_is_killed_at_any_stage_is_made_good_by_another(tmp_path: Path, after: float) -> None:
    """All of its runs are there, or none; a second launch never starts a second run."""
    pair = Pair(tmp_path / "pair", light=True)
    try:
        client = pair.client("launch", *JOBS)
        time.sleep(after)  # a stage, not a wait: where it is by then differs, and none may do harm
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


@pytest.mark.parametrize("command", ["sync", "tail"])
def test_a_client_that_is_killed_takes_nothing_with_it(night: Live, command: str) -> None:
    night(f"laptop: killed in {command}")


@pytest.mark.parametrize("command", ["launches", "syncs"])
def test_two_clients_at_once_do_it_once(night: Live, command: str) -> None:
    night(f"laptop: two {command}")
