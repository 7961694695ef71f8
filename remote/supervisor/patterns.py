"""Search lines of output with the regular expressions of `[jobs.NAME.metrics]`.

An expression such as `(a+)+$` can take longer than the run. So each search has a limit, which a timer enforces: `re`
looks for signals while it searches, and the handler ends the search. After some of these the expression is not used
again.
"""

from __future__ import annotations

import re
import signal
from typing import Any, Dict, List, Optional, Sequence

from remote.supervisor.forms import LONGEST_LINE, MOST_COUNT, Sign, named_number

LINE_S = 0.05  # seconds of CPU time for one expression and one line
MOST_SLOW = 3  # lines, after which an expression is not used again
POSITION = ("epoch", "epochs", "step", "steps")


class _TooSlow(Exception):
    pass


class Patterns:
    """The expressions of a job. Only for the main thread, which receives signals.

    Attributes:
        problems: Why expressions are not used, one sentence each.
        have_position: Whether an expression has a group for an epoch or a step.
        have_metrics: Whether an expression has a group for a metric.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self.problems: List[str] = []
        self._used: List[re.Pattern[str]] = []
        self._slow: Dict[str, int] = {}
        self._is_armed = False
        for source in sources:
            try:
                self._used.append(re.compile(source))
            except (re.error, RecursionError, OverflowError) as error:
                self.problems.append(f"the Python of this host cannot use the pattern {source!r}: {error}")
        names = {name for pattern in self._used for name in pattern.groupindex}
        self.have_position = not names.isdisjoint(POSITION)
        self.have_metrics = not names <= set(POSITION)

    def find(self, line: str) -> Optional[Sign]:
        """Return what the groups of the expressions match in `line`; None if nothing matches."""
        if len(line) > LONGEST_LINE:
            return None
        groups: Dict[str, float] = {}
        for pattern in list(self._used):
            match = self._search(pattern, line)
            for name, text in match.groupdict().items() if match else ():
                number = named_number(text or "")
                if number is not None:
                    groups[name] = number
        if not groups:
            return None
        epoch, (epochs, step, steps) = (
            groups.pop("epoch", None),
            (_count(groups.pop(name, None)) for name in POSITION[1:]),
        )
        epoch = epoch if epoch is not None and 0 <= epoch < MOST_COUNT else None
        is_fraction = epoch is not None and epoch != int(epoch)
        return Sign(epoch, epochs, step, steps, is_fraction=is_fraction, metrics=groups)

    def _search(self, pattern: re.Pattern[str], line: str) -> Optional[re.Match[str]]:
        before = signal.signal(signal.SIGVTALRM, self._end_search)
        try:
            try:
                self._is_armed = True
                signal.setitimer(signal.ITIMER_VIRTUAL, LINE_S)
                return pattern.search(line)
            finally:
                self._is_armed = False  # a signal from now on does nothing
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except _TooSlow:
            self._count_slow(pattern)
            return None
        finally:
            signal.signal(signal.SIGVTALRM, before)

    def _end_search(self, number: int, frame: Any) -> None:
        if self._is_armed:
            raise _TooSlow

    def _count_slow(self, pattern: re.Pattern[str]) -> None:
        self._slow[pattern.pattern] = self._slow.get(pattern.pattern, 0) + 1
        if self._slow[pattern.pattern] >= MOST_SLOW:
            self._used.remove(pattern)
            self.problems.append(
                f"the pattern {pattern.pattern!r} is not used any more: {MOST_SLOW} lines took more than {LINE_S:g} s"
            )


def _count(number: Optional[float]) -> Optional[int]:
    return int(number) if number is not None and 0 <= number < MOST_COUNT else None
