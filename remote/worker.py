"""The API for workers: heartbeat, metrics, checkpoints, goals, the request to stop.

    run = Run.current()
    run.catch_sigterm()
    run.beat("train", epoch=1, epochs=30, step=4, steps=500)
    run.log_metrics(epoch=5, step=2500, metrics={"val_accuracy": 0.97})
    run.save_checkpoint(5, lambda file: torch.save(state, file))

Outside a run (without ORCH_RUN_DIR in the environment) nothing is written, so the same script also runs by hand.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, List, Mapping, Optional, Sequence, Tuple

from remote.checkpoints import CheckpointStore
from remote.contract.files import append_jsonl, open_regular, read_jsonl, remove
from remote.contract.goals import Goal, GoalResult, as_record, judge, parse_goals
from remote.contract.paths import RunPaths
from remote.contract.position import Position
from remote.contract.protocol import (
    ENV_ATTEMPT,
    ENV_GOALS,
    ENV_KEEP_CHECKPOINTS,
    ENV_REHEARSAL,
    ENV_RUN_DIR,
    FROM_OUTPUT,
    Heartbeat,
    monotonic,
)
from remote.contract.records import write_record
from remote.contract.reported import FailureRecord, MetricsLine
from remote.contract.schema import from_json, to_json

STDERR = 2  # the descriptor: sys.stderr may have been replaced
KEEP_CHECKPOINTS = 3  # how many of the newest checkpoints are kept, unless the job sets `keep_checkpoints`
HEARTBEAT_EVERY = 1.0  # seconds: a heartbeat sooner after the last one is dropped unless the phase changes


class Run:
    """One attempt of a run, from inside the worker process.

    Attributes:
        paths: The paths of the run directory; None outside a run.
        goals: The goals of the job.
        stop_requested: True when the worker should finish its step, write a checkpoint and exit (see `catch_sigterm`).
    """

    def __init__(self, paths: Optional[RunPaths], goals: List[Goal], keep: int = KEEP_CHECKPOINTS) -> None:
        """Create the run. `keep` is how many of the newest checkpoints are kept. See also `current`."""
        self.paths = paths
        self.goals = goals
        self.stop_requested = False
        self._keep = keep
        self._checkpoints = CheckpointStore(paths, keep) if paths else None
        self._last_heartbeat = -HEARTBEAT_EVERY
        self._last_phase = ""
        self._dropped: Optional[Heartbeat] = None  # the newest heartbeat, if it was dropped
        self._first: Optional[Tuple[float, float]] = None  # first training heartbeat: monotonic seconds, fraction done

    @classmethod
    def current(cls) -> Run:
        """Return the run of this process, according to its environment.

        Raises:
            ValueError, TypeError, AttributeError: ORCH_GOALS is not a JSON object of conditions.
        """
        directory = os.environ.get(ENV_RUN_DIR)
        goals = parse_goals(json.loads(os.environ.get(ENV_GOALS, "{}")))
        keep = int(os.environ.get(ENV_KEEP_CHECKPOINTS) or KEEP_CHECKPOINTS)
        run = cls(RunPaths(Path(directory)) if directory else None, goals, keep)
        run._write_stacks_on_signal()
        atexit.register(run._flush)
        return run

    @property
    def results(self) -> Optional[Path]:
        """The directory for all other output of the worker; None outside a run."""
        return self.paths.results if self.paths else None

    @property
    def checkpoints_at_once(self) -> int:
        """The most checkpoints that are on disk at once: the newest ones, the best, and one that is being written."""
        return self._keep + 2

    @property
    def is_rehearsal(self) -> bool:
        """Whether this is the rehearsal before the real run."""
        return os.environ.get(ENV_REHEARSAL) == "1"

    def catch_sigterm(self) -> None:
        """Make SIGTERM set `stop_requested`. Then finish the step, write a checkpoint, and exit with code 143."""

        def request_stop(number: int, frame: Any) -> None:
            self.stop_requested = True

        signal.signal(signal.SIGTERM, request_stop)

    def beat(
        self,
        phase: str,
        epoch: Optional[int] = None,
        epochs: Optional[int] = None,
        step: Optional[int] = None,
        steps: Optional[int] = None,
    ) -> None:
        """Write a heartbeat. Cheap enough to call after every step.

        Args:
            phase: What the worker does: "prepare", "train", "validate", "test", ...
            epoch: The current epoch, from 1.
            epochs: The number of epochs of the run.
            step: The current step in the epoch, from 1.
            steps: The number of steps in the epoch.
        """
        if self.paths is None:
            return
        now = monotonic()
        position = Position(epoch, epochs, step, steps)
        heartbeat = Heartbeat.now(phase, position, self._eta(now, position.fraction_done()))
        if phase == self._last_phase and now - self._last_heartbeat < HEARTBEAT_EVERY:
            self._dropped = heartbeat
            return
        self._last_heartbeat, self._last_phase, self._dropped = now, phase, None
        try:
            write_record(self.paths.heartbeat, heartbeat)
        except OSError:
            pass  # the disk is full or read-only now: the worker can still succeed without a heartbeat

    def judge(self, metrics: Mapping[str, Any]) -> List[GoalResult]:
        """Return the result of each goal for `metrics`."""
        return judge(self.goals, metrics)

    def log_metrics(self, epoch: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Record one validation: append a line to metrics.jsonl, and replace latest_metrics.json.

        Each (epoch, step) is appended once: a worker that was killed before its next checkpoint validates again.

        Args:
            epoch: The last completed epoch.
            step: The number of steps done, over all epochs.
            metrics: Values by name, except `epoch`, `step`, `goals` and `schema`. The results of the goals are added
                under `goals`.

        Raises:
            OSError: The files cannot be written.
        """
        if self.paths is None:
            return
        line = MetricsLine(epoch, step, as_record(self.judge(metrics)), {"time": time.time(), **metrics})
        earlier = (from_json(MetricsLine, record, [], longest=None) for record in read_jsonl(self.paths.metrics))
        own = (other for other in earlier if other.values.get("source") != FROM_OUTPUT)  # not read in our output
        known = next((other for other in own if (other.epoch, other.step) == (epoch, step)), None)
        if known is None:
            append_jsonl(self.paths.metrics, to_json(line), durable=True)
        write_record(self.paths.latest_metrics, known or line)

    def fail(self, reason: str, detail: str) -> None:
        """Record why the worker fails. Call it before exiting with an error.

        Args:
            reason: One word of lower-case letters and `_`, such as `non_finite`.
            detail: A sentence.
        """
        if self.paths is not None:
            attempt = int(os.environ.get(ENV_ATTEMPT) or 1)
            write_record(self.paths.failure, FailureRecord(attempt, reason, detail), durable=True)

    def save_checkpoint(
        self, epoch: int, write: Callable[[BinaryIO], Any], score: Optional[Sequence[float]] = None
    ) -> Optional[Path]:
        """Write a checkpoint atomically (temp file, fsync, rename) with its checksum. Then remove old checkpoints.

        The newest ones and the best one are kept.

        Args:
            epoch: The last epoch with completed steps. It names the file.
            write: Writes the content to the binary file that it is given.
            score: How good it is: numbers that are compared in order, higher is better.

        Returns:
            The path of the checkpoint; None outside a run.

        Raises:
            OSError: It cannot be written. Earlier checkpoints are unchanged then.
        """
        return self._checkpoints.save(epoch, write, score) if self._checkpoints else None

    def newest_checkpoint(self) -> Optional[Path]:
        """Return the newest checkpoint that matches its checksum, or None."""
        return self._checkpoints.newest() if self._checkpoints else None

    def _write_stacks_on_signal(self) -> None:
        """On SIGUSR1, write the Python stacks of all threads to evidence/stacks.txt; on a crash in C, to the log."""
        if self.paths is None or not hasattr(faulthandler, "register"):
            return
        try:
            faulthandler.enable(STDERR)
            self.paths.diagnostics.mkdir(mode=0o700, exist_ok=True)
            # Keep it open, because a signal handler cannot open it.
            stacks = open_regular(self.paths.stacks, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        except OSError:
            return
        faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)

    def _flush(self) -> None:
        """Write the last heartbeat if it was dropped: it shows at which step the worker ended."""
        if self.paths is not None and self._dropped is not None:
            try:
                write_record(self.paths.heartbeat, self._dropped)
            except OSError:
                pass  # a full disk, or no run directory any more
        if self.paths is not None and self.paths.stacks.is_file() and self.paths.stacks.stat().st_size == 0:
            remove(self.paths.stacks)

    def _eta(self, now: float, done: Optional[float]) -> Optional[float]:
        if done is None:
            return None
        if self._first is None:
            self._first = (now, done)
        began, done_then = self._first
        gained = done - done_then
        return (1.0 - done) * (now - began) / gained if gained > 0 else None
