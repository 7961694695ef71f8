"""Work on several hosts at once, so that a slow host does not delay the others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def as_completed(
    items: Sequence[Item], work: Callable[[Item], Result], tick_s: float | None = None
) -> Iterator[Result | None]:
    """Call `work(item)` for every item, each in its own thread, and yield the results as they come.

    The threads are daemons: Ctrl-C ends the command without waiting for a host that does not answer.

    Args:
        items: What to work on.
        work: Called once for each item. An exception in it is raised here, and ends the iteration.
        tick_s: Yield None whenever this many seconds pass without a result. None waits without a limit.
    """
    yield from merged([partial(_call_once, work, item) for item in items], tick_s)


def _call_once(work: Callable[[Item], Result], item: Item) -> Iterator[Result]:
    yield work(item)


def merged(streams: Iterable[Callable[[], Iterator[Result]]], tick_s: float | None = None) -> Iterator[Result | None]:
    """Run each stream in its own thread and yield their items as they come.

    Args:
        streams: Functions that start a stream. An exception in a stream is raised here, and ends the iteration.
        tick_s: As for `as_completed`.
    """
    results: queue.SimpleQueue[tuple[bool, Result | None, BaseException | None]] = queue.SimpleQueue()

    def drain(start: Callable[[], Iterator[Result]]) -> None:
        try:
            for result in start():
                results.put((False, result, None))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for the result
            results.put((True, None, error))
        else:
            results.put((True, None, None))

    threads = [threading.Thread(target=drain, args=(stream,), daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    ended = 0
    while ended < len(threads):
        try:
            is_end, result, error = results.get(timeout=tick_s)
        except queue.Empty:
            yield None
            continue
        if error is not None:
            raise error
        if is_end:
            ended += 1
        else:
            yield result
