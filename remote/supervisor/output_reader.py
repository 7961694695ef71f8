"""Read progress and metrics in the output of a worker that does not report them itself.

Each look reads what is new in the log and in files of metrics, for a limited CPU time. What is read is written to
heartbeat.json, metrics.jsonl and latest_metrics.json (see `output_files`), so status, goals and stall detection do not
depend on who wrote them.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, Optional, Sequence, Tuple

from remote.contract.logs import LogReader, log_size
from remote.contract.paths import RunPaths
from remote.contract.position import Position
from remote.contract.protocol import monotonic
from remote.contract.records import read_record, write_record
from remote.contract.reported import OutputRecord
from remote.contract.run_record import JobRecord, MetricsRecord
from remote.supervisor import forms
from remote.supervisor.forms import Sign
from remote.supervisor.frames import OutputLine, OutputLines
from remote.supervisor.metric_files import WELL_KNOWN, MetricFiles
from remote.supervisor.output_files import OutputFiles, Row
from remote.supervisor.output_progress import OutputProgress
from remote.supervisor.patterns import Patterns

LOOK_S = 0.05  # seconds of CPU time for one look, of which there is one a second
END_S = 1.0  # the same when the worker has ended
CHUNK = 1 << 16  # bytes of the log read at once
SLICE = 1 << 12  # bytes of them taken at once, if they have many lines
MANY_LINES = 64  # in a chunk
MOST_BEHIND = 32 << 20  # bytes of the log; if more are waiting, the older ones are left out
END_BYTES = 1 << 18  # at the end of the log, which are always read
FILES_EVERY = 3.0  # seconds between two looks at files
SAVE_EVERY = 30.0  # seconds
CLOCK_SLACK = 2.0  # seconds by which the times of files may be early

_EPOCHS_OPTION = re.compile(
    r"-{0,2}(?:[\w.-]{1,40}\.)?(?:max[_-]|num[_-]|n[_-]|num[_-]train[_-])?epochs(?:=(\d{1,9}))?"
)
_STEPS_OPTION = re.compile(
    r"-{0,2}(?:[\w.-]{1,40}\.)?(?:(?:max|num|n|train|total)[_-])?(?:steps|iters|iterations)(?:=(\d{1,12}))?"
)


class OutputReader:
    """Reads the output of one attempt.

    Attributes:
        has_signs: Whether it has found signs of progress, which a program does not show while it prepares to train.
    """

    def __init__(
        self,
        run: RunPaths,
        job: JobRecord,
        attempt: Tuple[int, int, float],
        directories: Sequence[Path],
        note: Callable[[str], None],
    ) -> None:
        """Prepare to read. Continue where an earlier supervisor has stopped in the same attempt.

        Args:
            run: The run.
            job: Its job.
            attempt: The number of the attempt, the offset in the log at which its output begins, and when it started,
                in seconds since boot.
            directories: Where the program may write its files of metrics.
            note: Called with what of the job's `metrics` cannot be used.
        """
        number, log_start, started = attempt
        asked = job.metrics or MetricsRecord()
        self._run, self._note, self._number = run, note, number
        self._patterns = Patterns(asked.log)
        self._recognises_position = not self._patterns.have_position
        self._recognises_metrics = not (self._patterns.have_metrics or asked.files)
        self._files = OutputFiles(run, job.goals, is_asked=bool(asked.log or asked.files))
        known = read_record(OutputRecord, run.output)
        mine = known if known and known.attempt == number else OutputRecord(number, log_start)
        before = self._files.last_heartbeat() if mine is known else None
        options = " ".join(job.command).split()
        self._progress = OutputProgress(
            before.position if before else Position(),
            asked.epochs or option(options, _EPOCHS_OPTION),
            asked.steps or option(options, _STEPS_OPTION),
        )
        since = time.time() - (monotonic() - started) - CLOCK_SLACK
        earlier = known.files if known else {}
        self._metric_files = MetricFiles(asked.files or WELL_KNOWN, directories, since, earlier)
        self._log, self._frames, self._offset = LogReader(run), OutputLines(), max(mine.log, log_start)
        self._shown: Dict[str, float] = {}  # the metrics that bars show
        self._has_position = self._has_moved = self.has_signs = False
        self._looked_at_files = self._saved = monotonic() - SAVE_EVERY

    def look(self) -> None:
        """Read what is new, and write what it says."""
        self._read_log(time.thread_time() + LOOK_S)
        if monotonic() - self._looked_at_files >= FILES_EVERY:
            self._read_files()
        self._write()

    def finish(self) -> None:
        """Read the rest: the worker has ended and its log is complete."""
        self._read_log(time.thread_time() + END_S)
        end = log_size(self._run)
        if end - self._offset > END_BYTES:
            self._skip_to(end - END_BYTES)
        self._read_log(None)
        self._take_frames(self._frames.flush(is_end=True))
        self._read_files()
        self._write(is_end=True)
        self._log.close()

    @property
    def is_behind(self) -> bool:
        """Return whether a part of the log has not been read yet."""
        return self._offset < log_size(self._run)

    # --- reading -----------------------------------------------------------------------------------------

    def _read_log(self, until: Optional[float]) -> None:
        """Read the log up to its end, or until the CPU time `until`."""
        behind = log_size(self._run) - self._offset
        if behind > MOST_BEHIND:
            self._skip_to(self._offset + behind - MOST_BEHIND)
        has_paused = True
        while until is None or time.thread_time() < until:
            start, data = self._log.read(self._offset, CHUNK)
            if start > self._offset:
                self._frames.skip()
            self._offset = start
            if not data:
                if has_paused:
                    self._take_frames(self._frames.flush())
                return
            has_paused = False
            size = SLICE if data.count(b"\n") > MANY_LINES else CHUNK
            for at in range(0, len(data), size):
                if until is not None and at and time.thread_time() >= until:
                    return
                piece = data[at : at + size]
                self._take_frames(self._frames.feed(piece))
                self._offset += len(piece)

    def _skip_to(self, offset: int) -> None:
        self._offset = offset
        self._frames.skip()

    def _take_frames(self, frames: Iterator[OutputLine]) -> None:
        for frame in frames:
            if not self._has_position:
                self._learn_totals(frame.text)
            own = self._patterns.find(frame.text)
            found = own or forms.recognise(frame.text, self._files.goal_names)
            if found is None:
                continue
            if own is None and not self._recognises_metrics:
                found = found._replace(metrics={})
            self.has_signs |= own is not None or found.shows_training
            if own is not None or self._recognises_position:
                self._move(found, frame.depth)
            if found.metrics:
                self._add(found)
        for problem in self._patterns.problems:
            self._note(problem)
        self._patterns.problems.clear()

    def _learn_totals(self, line: str) -> None:
        """Take how many epochs or steps there are from a line that prints a setting, as `max_iters = 5000  # total`."""
        words = line[: forms.LONGEST_LINE].partition("#")[0].replace("=", " ").replace(":", " ").split()
        if len(words) == 2:
            self._progress.learn(option(words, _EPOCHS_OPTION), option(words, _STEPS_OPTION))

    def _read_files(self) -> None:
        self._looked_at_files = monotonic()
        for row in self._metric_files.read():
            self.has_signs = True
            if not self._has_position:
                epoch = None if row.epoch is None else float(row.epoch)
                self._progress.take(Sign(epoch=epoch, step=row.step), 0, monotonic())
                self._has_moved = True
            if row.values:
                self._files.add(row)

    def _move(self, sign: Sign, depth: int) -> None:
        if sign.has_position:
            self._has_position = True
            self._has_moved |= self._progress.take(sign, depth, monotonic())

    def _add(self, sign: Sign) -> None:
        """Add the metrics of a line. Of those that a bar repeats, only what has changed."""
        at, values = self._progress.position, sign.metrics
        if sign.is_bar:
            values = {name: value for name, value in values.items() if self._shown.get(name) != value}
            self._shown.update(values)
        epoch = int(sign.epoch) if sign.is_fraction and sign.epoch is not None else at.epoch
        if values:
            self._files.add(Row(epoch, at.steps_done(), values))

    # --- writing -----------------------------------------------------------------------------------------

    def _write(self, is_end: bool = False) -> None:
        has_written = self._files.write_metrics(is_end)
        if self._has_moved:
            self._has_moved = False
            progress = self._progress
            self._files.write_heartbeat(progress.phase, progress.position, progress.eta(monotonic()))
        if has_written or monotonic() - self._saved >= SAVE_EVERY:
            self._saved = monotonic()
            record = OutputRecord(self._number, self._offset, dict(self._metric_files.positions))
            try:
                write_record(self._run.output, record)
            except OSError:
                pass  # a full disk, or no run directory any more: after a new supervisor some lines are read twice


def option(words: Sequence[str], name: re.Pattern[str]) -> Optional[int]:
    """Return the number that a command line gives to an option, as `--epochs 10` or `max_epochs=10`."""
    for word, following in zip(words, [*words[1:], ""]):
        found = name.fullmatch(word[:100])
        value = (found[1] or following) if found else ""
        if value.isdigit() and int(value[:12]) > 0:
            return int(value[:12])
    return None
