"""Work on several hosts at once, such that a slow one delays no other."""

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
    """Yield `work(item)` for every item, in the order in which they end. What one raises is raised here.

    With `tick_s`, yield None after so many seconds without a result, again and again.

    The threads are daemons: Ctrl-C ends the command without waiting for a host that does not answer.
    """
    yield from merged([partial(_one, work, item) for item in items], tick_s)


def _one(work: Callable[[Item], Result], item: Item) -> Iterator[Result]:
    yield work(item)


def merged(streams: Iterable[Callable[[], Iterator[Result]]], tick_s: float | None = None) -> Iterator[Result | None]:
    """Yield what the streams yield, as it comes, each stream in a thread of its own; None as `as_completed` does."""
    results: queue.SimpleQueue[tuple[bool, Result | None, BaseException | None]] = queue.SimpleQueue()

    def drain(start: Callable[[], Iterator[Result]]) -> None:
        try:
            for result in start():
                results.put((False, result, None))
        except BaseException as error:  # noqa: BLE001 - it is raised by whoever waits for the result
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
