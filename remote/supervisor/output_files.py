"""Write heartbeat.json, metrics.jsonl and latest_metrics.json for a worker that does not write them itself.

What is written here has `"source": "output"`. A file without that mark is the worker's own, and is never changed. If a
worker writes one of the three, it is left to write all of them, unless the job says where its metrics are.
"""

from __future__ import annotations

import os
import stat
import time
from itertools import islice
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

from remote.contract.files import MAX_RECORD_BYTES, append_jsonl, read_json, read_jsonl, read_jsonl_end
from remote.contract.goals import Goal, as_record, judge, parse_goals
from remote.contract.paths import RunPaths
from remote.contract.position import Position
from remote.contract.protocol import FROM_OUTPUT, Heartbeat, monotonic
from remote.contract.records import write_record
from remote.contract.reported import MetricsLine
from remote.contract.schema import from_json, to_json

MOST_METRICS = 100  # names; of more, those that were seen last
LONGEST_NAME = 64  # characters of a metric
BURST = 500  # lines that may be written to metrics.jsonl at once
LINE_EVERY = 10.0  # seconds: afterwards there is one for each of these, with the newest values
END_BYTES = 4096  # of metrics.jsonl, read to see who wrote it last


class Row(NamedTuple):
    """Metrics that belong together. `step` is over all epochs."""

    epoch: Optional[int]
    step: Optional[int]
    values: Dict[str, float]


class OutputFiles:
    """The three files of one run."""

    def __init__(self, run: RunPaths, goals: Mapping[str, str], is_asked: bool) -> None:
        """Prepare to write.

        Args:
            run: The run.
            goals: The goals of the job.
            is_asked: Whether the job says where its metrics are.
        """
        self._run, self._is_asked = run, is_asked
        self._goals = _usable(goals)
        self._names = {goal.metric.casefold(): goal.metric for goal in self._goals}
        self._latest: Dict[str, Optional[float]] = {}  # the newest value of each metric
        if self._is_free(run.latest_metrics):
            line = from_json(MetricsLine, read_json(run.latest_metrics, MAX_RECORD_BYTES) or {}, [])
            self._latest = {name: value for name, value in line.values.items() if name not in ("time", "source")}
        self._waiting: List[Row] = []
        self._credit, self._credited = float(BURST), monotonic()
        self._checked: Tuple[int, bool] = (-1, True)  # size of metrics.jsonl, and whether all of it is ours

    @property
    def goal_names(self) -> frozenset[str]:
        """Return the metrics of the goals, in lower case."""
        return frozenset(self._names)

    def last_heartbeat(self) -> Optional[Heartbeat]:
        """Return the heartbeat of an earlier supervisor; None if there is none, or it is the worker's."""
        value = read_json(self._run.heartbeat, MAX_RECORD_BYTES)
        return from_json(Heartbeat, value, []) if value and value.get("source") == FROM_OUTPUT else None

    def write_heartbeat(self, phase: str, position: Position, eta_s: Optional[float]) -> None:
        """Replace the heartbeat, unless it is the worker's."""
        if self._may_write(self._run.heartbeat):
            try:
                write_record(self._run.heartbeat, Heartbeat.now(phase, position, eta_s, FROM_OUTPUT))
            except OSError:
                pass  # a full disk, or no run directory any more: the next look writes again

    def add(self, row: Row) -> None:
        """Add metrics. They are written with `write_metrics`."""
        values = {self._names.get(name.casefold(), name)[:LONGEST_NAME]: value for name, value in row.values.items()}
        last = self._waiting[-1] if self._waiting else None
        is_same = last is not None and (last.epoch, last.step) == (row.epoch, row.step)
        if last and (is_same or len(self._waiting) >= max(1.0, self._credit)):
            self._waiting[-1] = Row(row.epoch, row.step, {**last.values, **values})
        else:
            self._waiting.append(Row(row.epoch, row.step, values))

    def write_metrics(self, is_end: bool = False) -> bool:
        """Write what was added, as far as the limits on metrics.jsonl allow; at the end, all. Return whether it did."""
        now = monotonic()
        self._credit = min(float(BURST), self._credit + (now - self._credited) / LINE_EVERY)
        self._credited = now
        if not self._waiting:
            return False
        if not (self._may_write(self._run.latest_metrics) and self._may_write(self._run.metrics)):
            self._waiting.clear()
            return False
        due = len(self._waiting) if is_end else min(len(self._waiting), int(self._credit))
        lines, self._credit = [], self._credit - due
        for row in self._waiting:
            self._keep(row.values)
            lines.append(self._line(row, row.values))
        newest, self._waiting = self._line(self._waiting[-1], self._latest), self._waiting[due:]
        try:
            for line in lines[:due]:
                append_jsonl(self._run.metrics, to_json(line))
            write_record(self._run.latest_metrics, newest)
        except OSError:
            pass  # a full disk, or no run directory any more
        self._checked = (_size(self._run.metrics), True)
        return due > 0

    def _keep(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._latest.pop(name, None)
            self._latest[name] = value
        for name in [name for name in self._latest if name not in self._names.values()]:
            if len(self._latest) <= MOST_METRICS:
                return
            del self._latest[name]

    def _line(self, row: Row, values: Mapping[str, Optional[float]]) -> MetricsLine:
        goals = as_record(judge(self._goals, self._latest))
        return MetricsLine(row.epoch, row.step, goals, {"time": time.time(), **values, "source": FROM_OUTPUT})

    # --- whose file ---------------------------------------------------------------------------------------

    def _may_write(self, path: Path) -> bool:
        if self._is_asked:
            return self._is_free(path)
        return all(map(self._is_free, (self._run.heartbeat, self._run.latest_metrics, self._run.metrics)))

    def _is_free(self, path: Path) -> bool:
        """Return whether a file does not exist, or was written here. What is no JSON is the worker's."""
        size = _size(path)
        if size == 0:
            return True
        if path != self._run.metrics:
            return (read_json(path, MAX_RECORD_BYTES) or {}).get("source") == FROM_OUTPUT
        if self._checked[0] != size:
            ends = [*islice(read_jsonl(path, MAX_RECORD_BYTES), 1), *read_jsonl_end(path, END_BYTES)]
            self._checked = (size, bool(ends) and all(line.get("source") == FROM_OUTPUT for line in ends))
        return self._checked[1]


def _usable(goals: Mapping[str, str]) -> List[Goal]:
    try:
        return parse_goals(goals)
    except ValueError:  # run.json was changed: a launch checks them
        return []


def _size(path: Path) -> int:
    """Return the size of a file; 0 if there is none. Anything else than a regular file counts as the worker's."""
    try:
        found = os.lstat(str(path))
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 1
