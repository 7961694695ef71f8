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
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from remote.contract.files import (
    append_jsonl,
    open_regular,
    read_bytes,
    read_jsonl,
    remove,
    sha256_file,
    sync_directory,
    temp_beside,
    write_atomic,
    write_json,
)
from remote.contract.goals import Goal, GoalResult, as_record, judge, parse_goals
from remote.contract.paths import RunPaths
from remote.contract.position import Position
from remote.contract.protocol import (
    ENV_ATTEMPT,
    ENV_GOALS,
    ENV_KEEP_CHECKPOINTS,
    ENV_REHEARSAL,
    ENV_RUN_DIR,
    Heartbeat,
    monotonic,
)
from remote.contract.records import read_record, write_record
from remote.contract.reported import BestCheckpoint, FailureRecord, MetricsLine

STDERR = 2  # the descriptor: sys.stderr may have been replaced
CHECKSUM_BYTES = 4096
KEEP_CHECKPOINTS = 3  # how many of the newest are kept, unless the job sets `keep_checkpoints`
HEARTBEAT_EVERY = 1.0  # seconds: a heartbeat sooner after the last one is dropped unless the phase changes


class Run:
    """One attempt of a run, from inside the worker process.

    Attributes:
        paths: The paths of the run directory; None outside a run.
        goals: The goals of the job.
        stop_requested: True when the worker should finish its step, write a checkpoint and exit (see `catch_sigterm`).
    """

    def __init__(self, paths: Optional[RunPaths], goals: List[Goal]) -> None:
        self.paths = paths
        self.goals = goals
        self.stop_requested = False
        self._last_heartbeat = -HEARTBEAT_EVERY
        self._last_phase = ""
        self._dropped: Optional[Heartbeat] = None  # the newest heartbeat, if it was dropped
        self._keep = KEEP_CHECKPOINTS
        self._verified: Dict[Path, Tuple[int, int]] = {}  # verified checkpoints: (mtime in ns, size)
        self._first: Optional[Tuple[float, float]] = (
            None  # (monotonic seconds, fraction done) of the first training beat
        )

    @classmethod
    def current(cls) -> Run:
        """Return the run of this process, according to its environment.

        Raises:
            ValueError, TypeError, AttributeError: ORCH_GOALS is not a JSON object of conditions.
        """
        directory = os.environ.get(ENV_RUN_DIR)
        goals = parse_goals(json.loads(os.environ.get(ENV_GOALS, "{}")))
        run = cls(RunPaths(Path(directory)) if directory else None, goals)
        run._keep = int(os.environ.get(ENV_KEEP_CHECKPOINTS) or KEEP_CHECKPOINTS)
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
            write_json(self.paths.heartbeat, heartbeat.to_json())
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
            metrics: Values by name. The results of the goals are added under `goals`.

        Raises:
            OSError: The files cannot be written.
        """
        if self.paths is None:
            return
        line = MetricsLine(time.time(), epoch, step, as_record(self.judge(metrics)), dict(metrics))
        lines = map(MetricsLine.from_json, read_jsonl(self.paths.metrics))
        known = next((other for other in lines if (other.epoch, other.step) == (epoch, step)), None)
        if known is None:
            append_jsonl(self.paths.metrics, line.to_json(), durable=True)
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
        if self.paths is None:
            return None
        target = self.paths.checkpoint(epoch)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        temp = temp_beside(target)
        try:
            with open(os.open(str(temp), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                digest = _digest(file)
            # The checksum is written first, together with that of the file which will be replaced. So whichever of the
            # two files exists after a crash matches a checksum.
            digests = [digest, *([sha256_file(target)] if matches_checksum(target) else [])]
            write_atomic(self.paths.checksum(target), "\n".join([*digests, ""]).encode(), durable=True)
            os.replace(str(temp), str(target))
        except BaseException:
            remove(temp)
            raise
        sync_directory(target.parent)
        best = self._best(target, score)
        for path in self._superfluous(best):
            remove(path)
            remove(self.paths.checksum(path))
        return target

    def _best(self, newest: Path, score: Optional[Sequence[float]]) -> Optional[str]:
        """Update best.json. Return the name of the best checkpoint so far; None if there was never a score."""
        assert self.paths is not None  # the caller is inside a run
        best = read_record(BestCheckpoint, self.paths.best_checkpoint)
        if best and not (self.paths.checkpoints / best.checkpoint).is_file():
            best = None
        if score is not None and (best is None or tuple(score) >= best.score):
            best = BestCheckpoint(newest.name, tuple(score))
            write_record(self.paths.best_checkpoint, best, durable=True)
        return best.checkpoint if best else None

    def _superfluous(self, best: Optional[str]) -> List[Path]:
        """Return the checkpoints to remove. Only verified ones count as kept, so a damaged one replaces no good one."""
        assert self.paths is not None  # the caller is inside a run
        kept, superfluous = 0, []
        for path in self.paths.checkpoints_newest_first():
            if kept >= self._keep and path.name != best:
                superfluous.append(path)
            kept += kept < self._keep and self._is_verified(path)
        return superfluous

    def _is_verified(self, path: Path) -> bool:
        """Return the result of `matches_checksum`, but do not read an unchanged file again."""
        found = path.stat()
        as_found = (found.st_mtime_ns, found.st_size)
        if self._verified.get(path) != as_found and matches_checksum(path):
            self._verified[path] = as_found
        return self._verified.get(path) == as_found

    def newest_checkpoint(self) -> Optional[Path]:
        """Return the newest checkpoint that matches its checksum, or None."""
        if self.paths is None:
            return None
        return next((path for path in self.paths.checkpoints_newest_first() if matches_checksum(path)), None)

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
                write_json(self.paths.heartbeat, self._dropped.to_json())
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


def matches_checksum(checkpoint: Path) -> bool:
    """Return whether the checkpoint matches one of its checksums, so that it is not damaged."""
    try:
        return sha256_file(checkpoint).encode() in _checksums(checkpoint)
    except OSError:
        return False


def _checksums(checkpoint: Path) -> List[bytes]:
    return (read_bytes(RunPaths.checksum(checkpoint), CHECKSUM_BYTES) or b"").split()


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    for chunk in iter(lambda: file.read(1 << 20), b""):
        digest.update(chunk)
    return digest.hexdigest()
