from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from remote.worker import Run
from tests.support import ROOT
from workers.common.errors import TrainingStopped, WorkerError
from workers.common.parallel import spread, spread_over_threads, torch_threads

NO_RUN = Run(None, [])


def squares(numbers: Sequence[int]) -> list[int]:
    return [number**2 for number in numbers]


def multiplies(numbers: Sequence[int]) -> list[float]:
    return [float((torch.ones(200, 200) @ torch.full((200, 200), number)).sum()) for number in map(float, numbers)]


def dies(numbers: Sequence[int]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_give_what_one_gives_in_its_order() -> None:
    parts = spread(squares, range(300), NO_RUN, "squaring", processes=2)
    assert [value for part in parts for value in part] == squares(range(300))


@pytest.mark.timeout(60)  # threads that a forked process waits for are not there
def test_forked_processes_calculate_though_torch_had_threads_before() -> None:
    with torch_threads(2):
        alone = multiplies(range(100))
        assert [value for part in spread(multiplies, range(100), NO_RUN, "multiplying") for value in part] == alone


def test_threads_give_what_one_gives_in_its_order_and_leave_torch_as_it_was() -> None:
    both, seen = threading.Barrier(2), list[int]()

    def work(numbers: Sequence[int]) -> list[int]:
        seen.append(torch.get_num_threads())
        if len(seen) <= 2:
            both.wait(60)  # passes only where two chunks are worked on at once
        return squares(numbers)

    with torch_threads(2):
        parts = list(spread_over_threads(work, range(300), NO_RUN, "squaring", chunk=32))
        assert torch.get_num_threads() == 2
        few = list(spread_over_threads(squares, range(10), NO_RUN, "squaring", chunk=32))
        none = list(spread_over_threads(squares, [], NO_RUN, "squaring", chunk=32))
    assert [value for part in parts for value in part] == squares(range(300))
    assert set(seen) == {1} and none == []
    assert [len(part) for part in few] == [5, 5]  # a few are shared out too
    assert [len(part) for part in parts] == [30] * 10  # rather than 32 each and 12 for the last, beside an idle thread


def test_whoever_waits_for_threads_says_how_far_it_is(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = make_run(), list[tuple[int, int]]()
    monkeypatch.setattr("workers.common.parallel.BEAT", 0.01)
    monkeypatch.setattr(run, "beat", lambda phase, step, steps: said.append((step, steps)))
    list(spread_over_threads(lambda numbers: time.sleep(0.1), range(4), run, "sleeping", chunk=2))
    assert said == sorted(said) and len(said) > 4
    assert {step for step, _ in said} == {0, 2, 4} and {steps for _, steps in said} == {4}


def test_threads_stop_when_they_are_asked_to(make_run: Callable[..., Run]) -> None:
    run = make_run()
    parts = spread_over_threads(squares, range(300), run, "squaring", chunk=8)
    next(parts)
    run.stop_requested = True
    with pytest.raises(TrainingStopped, match="stopped while squaring: 8 of 300 done"):
        next(parts)


def test_a_process_that_is_killed_is_one_line() -> None:
    with pytest.raises(WorkerError, match="a process died while squaring"):
        list(spread(dies, range(130), NO_RUN, "squaring", processes=2))


LONG = """
import os, sys, time
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from remote.worker import Run
from workers.common.parallel import spread, spread_over_threads, torch_threads

def sleeps(notes, numbers):
    (notes / str(os.getpid())).touch()
    time.sleep(300)

if __name__ == "__main__":
    list(spread(partial(sleeps, Path(sys.argv[1])), range(130), Run(None, []), "sleeping", processes=2))
"""


def test_no_process_outlives_one_that_is_killed(tmp_path: Path) -> None:
    script, notes = tmp_path / "long.py", tmp_path / "notes"
    script.write_text(LONG)
    notes.mkdir()
    job = subprocess.Popen([sys.executable, str(script), str(notes), str(ROOT)])
    try:
        wait_until(lambda: len(list(notes.iterdir())) == 2 or job.poll() is not None)
        assert job.poll() is None
    finally:
        job.kill()
        job.wait()
    children = [int(path.name) for path in notes.iterdir()]
    wait_until(lambda: not any(is_alive(pid) for pid in children))


def wait_until(condition: Callable[[], bool], seconds: float = 140) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """A zombie, which nobody has reaped yet, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stop_says_how_far_it_came(make_run: Callable[..., Run]) -> None:
    run = make_run()
    parts = spread(squares, range(10), run, "squaring")
    assert [next(parts) for _ in range(3)] == [[0], [1], [4]]
    run.stop_requested = True
    with pytest.raises(TrainingStopped, match="stopped while squaring: 3 of 10 done"):
        next(parts)
