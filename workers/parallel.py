"""Work on samples spread over processes, in order, with heartbeats; in this process where there is little of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import TypeVar

import torch

from remote.worker import Run
from workers.errors import Stopped, WorkerError

WORTH_PROCESSES = 512  # samples; for fewer, starting processes takes longer than the work
MOST_PROCESSES = 16  # each has a torch of its own, some 300 MiB
CHUNK = 64  # samples that a process takes at a time
AHEAD = 4  # chunks under way for each process: none is idle, and little waits in memory
BEAT = 1.0  # seconds

T = TypeVar("T")


def processes_for(samples: int) -> int:
    """As many as torch has CPU threads, where it is worth it."""
    return min(torch.get_num_threads(), MOST_PROCESSES) if samples >= WORTH_PROCESSES else 1


def spread(
    work: Callable[[Sequence[int]], T], indices: Sequence[int], run: Run, what: str, processes: int = 0, size: int = 0
) -> Iterator[T]:
    """`work` of the indices, chunk by chunk, in their order; Stopped when the run is asked to stop.

    For more than one process `work` is pickled: a module's function, or a partial of one.
    """
    processes = processes or processes_for(len(indices))
    size = size or (CHUNK if processes > 1 else 1)  # here each sample is followed by a heartbeat and may be the last
    chunks = [indices[start : start + size] for start in range(0, len(indices), size)]
    done = 0
    here = (work(chunk) for chunk in chunks)
    with closing(_in_processes(work, chunks, processes, run, what) if processes > 1 else here) as results:
        for chunk in chunks:
            if run.stop_requested:
                raise Stopped(f"stopped while {what}: {done} of {len(indices)} done")
            try:
                result = next(results)
            except BrokenProcessPool as error:
                if run.stop_requested:
                    raise Stopped(f"stopped while {what}") from error
                raise WorkerError(f"a process died while {what}; was memory short? (dmesg says)") from error
            done += len(chunk)
            run.beat("prepare", step=done, steps=len(indices))
            yield result


def _in_processes(
    work: Callable[[Sequence[int]], T], chunks: Sequence[Sequence[int]], processes: int, run: Run, what: str
) -> Generator[T, None, None]:
    # Not forked: torch has threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin)
    waiting = iter(chunks)
    under_way: deque[Future[T]] = deque()
    try:
        for _ in chunks:
            while len(under_way) < processes * AHEAD and (chunk := next(waiting, None)) is not None:
                under_way.append(pool.submit(work, chunk))
            while not wait([under_way[0]], timeout=BEAT).done:
                if run.stop_requested:
                    raise Stopped(f"stopped while {what}")
                run.beat("prepare")
            yield under_way.popleft().result()
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
