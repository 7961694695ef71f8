"""Work on samples spread over processes or threads, in order and with heartbeats; in place where there is little."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from typing import TypeVar

import torch

from remote.worker import Run
from workers.common.errors import TrainingStopped, WorkerError

FORKS = sys.platform == "linux"  # elsewhere the system's libraries have threads that a fork breaks
WORTH_PROCESSES = 64 if FORKS else 2000  # samples, of some milliseconds each: for fewer, less is gained than it takes
MOST_PROCESSES = 16
MOST_THREADS = 16
# On a CPU. Two take 20 % less for a step while nothing else runs, and 2.4 times as long beside a busy core.
TRAINING_THREADS = 1
CHUNK = 16  # samples that a process takes at a time
AHEAD = 4  # chunks under way for each process: none is idle, and little waits in memory
BEAT = 1.0  # seconds

T = TypeVar("T")


def processes_for(samples: int) -> int:
    """As many as torch has CPU threads, where it is worth it."""
    return min(torch.get_num_threads(), MOST_PROCESSES) if samples >= WORTH_PROCESSES else 1


def spread(
    work: Callable[[Sequence[int]], T], indices: Sequence[int], run: Run, what: str, processes: int = 0, chunk: int = 1
) -> Iterator[T]:
    """`work` of the indices, chunk by chunk, in their order; TrainingStopped when the run is asked to stop.

    For more than one process, which take CHUNK samples at a time, `work` is pickled: a module's function, or a partial
    of one. In place each `chunk` is followed by a heartbeat and may be the last.
    """
    processes = processes or processes_for(len(indices))
    if processes == 1:
        chunks = _chunks(indices, chunk)
        return _told((work(chunk) for chunk in chunks), chunks, run, what)
    # Forked, as torch's DataLoader does: a new interpreter would import torch for 3 to 4 s. A forked process lacks the
    # threads of torch that were there, so it must not ask for them (`_begin`), nor touch the GPU.
    context = multiprocessing.get_context("fork" if FORKS else "spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin)
    chunks = _chunks(indices, CHUNK)
    return _told(_in_pool(pool, processes, work, chunks, run, what), chunks, run, what)


def spread_over_threads(
    work: Callable[[Sequence[int]], T], indices: Sequence[int], run: Run, what: str, chunk: int
) -> Iterator[T]:
    """As `spread`, for work that torch does without Python's lock: as many chunks at once as torch has CPU threads.

    Each chunk then has one of them: small convolutions gain more from a second chunk than from a second thread. A
    chunk is at most `chunk` samples, and as many as the others, so that no thread is idle while the last one works.
    """
    threads = min(torch.get_num_threads(), MOST_THREADS)
    rounds = math.ceil(len(indices) / (threads * chunk)) or 1
    chunks = _chunks(indices, math.ceil(len(indices) / (threads * rounds)) or 1)
    with torch_threads(1):
        yield from _told(_in_pool(thread_pool(threads), threads, work, chunks, run, what), chunks, run, what)


def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Each of these threads has one of torch's CPU threads; left alone it would have as many as there are cores."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """`count` CPU threads within, as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chunks(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _told(results: Generator[T, None, None], chunks: Sequence[Sequence[int]], run: Run, what: str) -> Iterator[T]:
    """`results`, one for each chunk, with a heartbeat after each."""
    done, total = 0, sum(map(len, chunks))
    with closing(results):
        for chunk in chunks:
            if run.stop_requested:
                raise TrainingStopped(f"stopped while {what}: {done} of {total} done")
            try:
                result = next(results)
            except BrokenProcessPool as error:
                if run.stop_requested:
                    raise TrainingStopped(f"stopped while {what}") from error
                raise WorkerError(f"a process died while {what}; was memory short? (dmesg says)") from error
            done += len(chunk)
            run.beat("prepare", step=done, steps=total)
            yield result


def _in_pool(
    pool: Executor,
    at_once: int,
    work: Callable[[Sequence[int]], T],
    chunks: Sequence[Sequence[int]],
    run: Run,
    what: str,
) -> Generator[T, None, None]:
    done, total = 0, sum(map(len, chunks))
    waiting = iter(chunks)
    under_way: deque[Future[T]] = deque()
    try:
        for chunk in chunks:
            while len(under_way) < at_once * AHEAD and (following := next(waiting, None)) is not None:
                under_way.append(pool.submit(work, following))
            while not wait([under_way[0]], timeout=BEAT).done:
                if run.stop_requested:
                    raise TrainingStopped(f"stopped while {what}")
                run.beat("prepare", step=done, steps=total)
            yield under_way.popleft().result()
            done += len(chunk)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """The parent decides when it is over: a signal to the group must not tear a chunk, and no child outlives it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
