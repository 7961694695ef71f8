from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from remote.worker import Run
from tests.support import ROOT, descendants, wait_until
from workers.common.errors import BadInput, TrainingStopped, WorkerError
from workers.common.parallel import spread, torch_threads

NO_RUN = Run(None, [])


def squares(numbers: Sequence[int]) -> list[int]:
    return [number**2 for number in numbers]


def multiplies(numbers: Sequence[int]) -> list[float]:
    return [float((torch.ones(200, 200) @ torch.full((200, 200), number)).sum()) for number in map(float, numbers)]


def dies(numbers: Sequence[int]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_several_processes_give_the_results_of_one_in_order() -> None:
    parts = spread(squares, range(300), NO_RUN, "squaring", processes=2)
    assert [value for part in parts for value in part] == squares(range(300))


@pytest.mark.timeout(60)  # a forked process that waited for a thread of its parent would hang
def test_forked_processes_can_use_torch_after_it_had_threads() -> None:
    with torch_threads(2):
        alone = multiplies(range(100))
        assert [value for part in spread(multiplies, range(100), NO_RUN, "multiplying") for value in part] == alone


def refuses(numbers: Sequence[int]) -> None:
    raise BadInput(f"sample {numbers[0]} is damaged")


def fails(numbers: Sequence[int]) -> None:
    raise RuntimeError("a bug")


def test_an_error_in_a_process_keeps_its_type_and_message() -> None:
    with pytest.raises(BadInput, match=r"^sample 0 is damaged$"):
        list(spread(refuses, range(130), NO_RUN, "reading", processes=2))
    with pytest.raises(RuntimeError, match=r"^a bug$") as failed:
        list(spread(fails, range(130), NO_RUN, "reading", processes=2))
    assert "in fails" in str(failed.value.__cause__)  # the traceback of the other process


def test_no_process_outlives_an_error_whose_traceback_is_kept() -> None:
    before = set(descendants(os.getpid()))
    with pytest.raises(RuntimeError) as failed:
        list(spread(fails, range(1300), NO_RUN, "reading", processes=2))
    wait_until(lambda: set(descendants(os.getpid())) <= before, what="the processes to end")
    assert failed.traceback  # it holds the frames in which the processes were started


def test_every_chunk_sends_a_heartbeat(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = make_run(), list[tuple[int, int]]()
    monkeypatch.setattr(run, "beat", lambda phase, step, steps: said.append((step, steps)))
    list(spread(squares, range(40), run, "squaring", processes=2))
    assert said == [(16, 40), (32, 40), (40, 40)]


def test_the_random_state_of_the_run_is_not_used() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(spread(squares, range(40), NO_RUN, "squaring", processes=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stop_ends_several_processes_too(make_run: Callable[..., Run]) -> None:
    run, before = make_run(), set(multiprocessing.active_children())
    parts = spread(squares, range(300), run, "squaring", processes=2)
    assert next(parts) == squares(range(16))
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 2
    run.stop_requested = True
    with pytest.raises(TrainingStopped, match="stopped while squaring: 16 of 300 done"):
        next(parts)
    assert not started & set(multiprocessing.active_children())


def test_a_killed_process_is_an_error_of_one_line() -> None:
    with pytest.raises(WorkerError, match="a process died while squaring"):
        list(spread(dies, range(130), NO_RUN, "squaring", processes=2))


LONG = """
import os, sys, time
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from remote.worker import Run
from workers.common.parallel import spread, torch_threads

def sleeps(notes, numbers):
    (notes / str(os.getpid())).touch()
    time.sleep(300)

if __name__ == "__main__":
    list(spread(partial(sleeps, Path(sys.argv[1])), range(130), Run(None, []), "sleeping", processes=2))
"""


def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    script, notes = tmp_path / "long.py", tmp_path / "notes"
    script.write_text(LONG)
    notes.mkdir()
    job = subprocess.Popen([sys.executable, str(script), str(notes), str(ROOT)])
    try:
        wait_until(lambda: len(list(notes.iterdir())) == 2 or job.poll() is not None, 140)
        assert job.poll() is None
    finally:
        job.kill()
        job.wait()
    children = [int(path.name) for path in notes.iterdir()]
    wait_until(lambda: not any(is_alive(pid) for pid in children))


def is_alive(pid: int) -> bool:
    """A zombie is not alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stop_reports_the_progress(make_run: Callable[..., Run]) -> None:
    run = make_run()
    parts = spread(squares, range(10), run, "squaring")
    assert [next(parts) for _ in range(3)] == [[0], [1], [4]]
    run.stop_requested = True
    with pytest.raises(TrainingStopped, match="stopped while squaring: 3 of 10 done"):
        next(parts)
