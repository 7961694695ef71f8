"""Work on several hosts at once, such that a slow one delays no other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def as_completed(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """Yield `work(item)` for every item, in the order in which they end. What one raises is raised here.

    The threads are daemons: Ctrl-C ends the command without waiting for a host that does not answer.
    """
    yield from merged([lambda item=item: iter([work(item)]) for item in items])  # type: ignore[misc]


def merged(streams: Iterable[Callable[[], Iterator[Result]]]) -> Iterator[Result]:
    """Yield what the streams yield, as it comes, each stream in a thread of its own."""
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
        is_end, result, error = results.get()
        if error is not None:
            raise error
        if is_end:
            ended += 1
        else:
            yield result  # type: ignore[misc]  # only the end of a stream carries none
