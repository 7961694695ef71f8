"""Work on samples in several processes, in order and with heartbeats; in this process if there are few samples."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from remote.worker import Run
from workers.common.errors import TrainingStopped, WorkerError

FORKS = sys.platform == "linux"  # elsewhere the system's libraries have threads that a fork breaks
WORTH_PROCESSES = (
    64 if FORKS else 2000
)  # for fewer samples of some milliseconds each, starting processes takes longer than the work
MAX_PROCESSES = 16
# On a CPU. Two threads make a step 20 % faster if nothing else runs, but 2.4 times slower if one core is busy.
TRAINING_THREADS = 1
CHUNK = 16  # samples that a process takes at a time
AHEAD = 4  # chunks that each process may be ahead: no process is idle, and few results wait in memory

T = TypeVar("T")
Work = Callable[[Sequence[int]], T]


def processes_for(samples: int) -> int:
    """Return the number of CPU threads of torch if there are enough samples to start that many processes, else 1."""
    return min(torch.get_num_threads(), MAX_PROCESSES) if samples >= WORTH_PROCESSES else 1


def spread(
    work: Work[T], indices: Sequence[int], run: Run, what: str, processes: int = 0, chunk: int = 1
) -> Iterator[T]:
    """Yield the results of `work`, chunk by chunk, in the order of the indices. A heartbeat follows each chunk.

    Args:
        work: takes the indices of a chunk. For several processes it must be picklable, and so must its result.
        indices: the indices of the samples.
        run: gets the heartbeats, and may ask to stop.
        what: the name of the work, for messages.
        processes: the number of processes; 0 chooses it by the number of samples. Each takes CHUNK samples at a time.
        chunk: the number of samples at a time if there is only one process.

    Raises:
        TrainingStopped: the run was asked to stop.
        WorkerError: a process died.
    """
    processes = processes or processes_for(len(indices))
    if processes == 1:
        chunks = _chunks(indices, chunk)
        return _reported((work(part) for part in chunks), chunks, run, what)
    chunks = _chunks(indices, CHUNK)
    return _reported(_in_processes(work, chunks, processes), chunks, run, what)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use `count` CPU threads in the block, and the previous number after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chunks(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _reported(results: Generator[T, None, None], chunks: Sequence[Sequence[int]], run: Run, what: str) -> Iterator[T]:
    """Yield `results`, one for each chunk, with a heartbeat after each."""
    done, total = 0, sum(map(len, chunks))
    with closing(results):
        for chunk in chunks:
            if run.stop_requested:
                raise TrainingStopped(f"stopped while {what}: {done} of {total} done")
            try:
                result = next(results)
            except _ProcessDiedError as error:
                raise WorkerError(f"a process died while {what}; was memory short? (see dmesg)") from error
            done += len(chunk)
            run.beat("prepare", step=done, steps=total)
            yield result


# --- several processes -------------------------------------------------------------------------------


class _ProcessDiedError(Exception):
    pass


class _RemoteTraceback(Exception):
    """The traceback of an error in another process, as text."""


@dataclass(frozen=True)
class _Failure:
    """What another process returns instead of a result."""

    error: Exception
    traceback: str


class _Chunks(Dataset[object]):
    """A dataset whose items are the results of `work`."""

    def __init__(self, work: Work[object], chunks: Sequence[Sequence[int]]) -> None:
        self.work, self.chunks = work, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> object:
        try:
            return self.work(self.chunks[number])
        except Exception as error:  # noqa: BLE001 - raised again in the parent; the loader would change its message
            return _Failure(error, traceback.format_exc())


def _in_processes(work: Work[T], chunks: Sequence[Sequence[int]], processes: int) -> Generator[T, None, None]:
    # Forked: a new interpreter would import torch for 3 to 4 s.
    loader: DataLoader[T] = DataLoader(
        _Chunks(work, chunks),  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=min(processes, len(chunks)),
        prefetch_factor=AHEAD,
        worker_init_fn=_start_process,
        multiprocessing_context="fork" if FORKS else "spawn",
        generator=torch.Generator(),  # the loader draws a seed, which must not use the run's generator
    )
    results = iter(loader)
    try:
        while True:
            try:
                result = next(results)
            except StopIteration:
                return
            except RuntimeError as error:  # errors of `work` come as _Failure
                raise _ProcessDiedError(str(error)) from error
            if isinstance(result, _Failure):
                raise result.error from _RemoteTraceback(result.traceback)
            yield result
    finally:
        del (
            results
        )  # its processes end with it; otherwise the traceback of an error would keep this frame and the processes


def _unchanged(result: T) -> T:
    return result


def _start_process(number: int) -> None:
    """Let the parent decide when to stop: a signal to the group must not interrupt a chunk."""
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is gone. The loader itself checks that only between two chunks."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
