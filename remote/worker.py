"""The worker's side of a run: heartbeat, metrics, checkpoints, goals, the request to stop.

    run = Run.current()
    run.catch_sigterm()
    run.beat("train", epoch=1, epochs=30, step=4, steps=500)
    run.log_metrics(epoch=5, step=2500, metrics={"val_accuracy": 0.97})
    run.save_checkpoint(5, lambda file: torch.save(state, file))

Outside a run (no ORCH_RUN_DIR in the environment) nothing is written, so the same script runs by hand.
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
    read_json,
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
    SCHEMA,
    Heartbeat,
    monotonic,
)

STDERR = 2  # the descriptor: sys.stderr may stand for something else
CHECKSUM_BYTES = 4096
KEEP_CHECKPOINTS = 3  # of the newest, where the job does not say otherwise
BEAT_EVERY = 1.0  # seconds: a beat within this time of the last one is dropped unless the phase changes


class Run:
    """One attempt of a run, seen from inside the worker process."""

    def __init__(self, paths: Optional[RunPaths], goals: List[Goal]) -> None:
        self.paths = paths
        self.goals = goals
        self.stop_requested = False
        self._last_beat = -BEAT_EVERY
        self._last_phase = ""
        self._dropped: Optional[Heartbeat] = None  # the newest beat, where it came too soon after the one before
        self._keep = KEEP_CHECKPOINTS
        self._seen_whole: Dict[Path, Tuple[int, int]] = {}  # checkpoints that were proven, by (mtime in ns, size)
        self._first: Optional[Tuple[float, float]] = (
            None  # (monotonic seconds, fraction done) of the first training beat
        )

    @classmethod
    def current(cls) -> Run:
        directory = os.environ.get(ENV_RUN_DIR)
        goals = parse_goals(json.loads(os.environ.get(ENV_GOALS, "{}")))
        run = cls(RunPaths(Path(directory)) if directory else None, goals)
        run._keep = int(os.environ.get(ENV_KEEP_CHECKPOINTS) or KEEP_CHECKPOINTS)
        run._say_stacks_when_asked()
        atexit.register(run._flush)
        return run

    @property
    def results(self) -> Optional[Path]:
        """Where the worker may write whatever else it makes; None outside a run."""
        return self.paths.results if self.paths else None

    @property
    def checkpoints_at_once(self) -> int:
        """How many may be on the disk: the newest ones, the best, and one that is being written."""
        return self._keep + 2

    @property
    def is_rehearsal(self) -> bool:
        """Whether this is the try-out before the real run."""
        return os.environ.get(ENV_REHEARSAL) == "1"

    def catch_sigterm(self) -> None:
        """Turn SIGTERM into `stop_requested`: finish the step, write a checkpoint, exit 143."""

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
        """Say where the worker stands; cheap enough for every step."""
        if self.paths is None:
            return
        now = monotonic()
        position = Position(epoch, epochs, step, steps)
        beat = Heartbeat.now(phase, **vars(position), eta_s=self._eta(now, position.fraction_done()))
        if phase == self._last_phase and now - self._last_beat < BEAT_EVERY:
            self._dropped = beat
            return
        self._last_beat, self._last_phase, self._dropped = now, phase, None
        try:
            write_json(self.paths.heartbeat, beat.to_json())
        except OSError:
            pass  # a disk that is full or read-only now: no reason to end what may still end well

    def judge(self, metrics: Mapping[str, Any]) -> List[GoalResult]:
        return judge(self.goals, metrics)

    def log_metrics(self, epoch: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Record one validation: a line of metrics.jsonl and the whole of latest_metrics.json.

        An (epoch, step) that stands there already is not written twice: a worker that was killed before its next
        checkpoint validates again.
        """
        if self.paths is None:
            return
        record = {"schema": SCHEMA, "time": time.time(), "epoch": epoch, "step": step, **metrics}
        record["goals"] = as_record(self.judge(metrics))
        lines = read_jsonl(self.paths.metrics)
        known = next((line for line in lines if (line.get("epoch"), line.get("step")) == (epoch, step)), None)
        if known is None:
            append_jsonl(self.paths.metrics, record, durable=True)
        write_json(self.paths.latest_metrics, known or record)

    def fail(self, reason: str, detail: str) -> None:
        """Say what the worker is about to die of: `reason` a word like `non_finite`, `detail` a sentence."""
        if self.paths is not None:
            attempt = int(os.environ.get(ENV_ATTEMPT) or 1)
            write_json(self.paths.failure, {"attempt": attempt, "reason": reason, "detail": detail}, durable=True)

    def save_checkpoint(
        self, epoch: int, write: Callable[[BinaryIO], Any], score: Optional[Sequence[float]] = None
    ) -> Optional[Path]:
        """Write `epoch`'s checkpoint whole (temp file, fsync, rename) with its checksum beside it, then prune.

        What stays are the newest ones and the best, the one with the highest `score` (numbers compared in order).
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
            # The checksum goes first, beside that of the file which is about to be replaced: whichever of the two
            # a crash leaves there is proven.
            proofs = [digest, *([sha256_file(target)] if is_proven(target) else [])]
            write_atomic(self.paths.checksum(target), "\n".join([*proofs, ""]).encode(), durable=True)
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
        """The name of the best checkpoint so far, on record; None where no score was ever given."""
        assert self.paths is not None  # the caller is inside a run
        record = read_json(self.paths.best_checkpoint) or {}
        best: Dict[str, Any] = record if (self.paths.checkpoints / str(record.get("checkpoint"))).is_file() else {}
        if score is not None and (not best or list(score) >= list(best.get("score") or [])):
            best = {"checkpoint": newest.name, "score": list(score)}
            write_json(self.paths.best_checkpoint, best, durable=True)
        return best.get("checkpoint")

    def _superfluous(self, best: Optional[str]) -> List[Path]:
        """What may go: never one of the newest that are proven, so a damaged one does not stand for a whole one."""
        assert self.paths is not None  # the caller is inside a run
        kept, superfluous = 0, []
        for path in self.paths.checkpoints_newest_first():
            if kept >= self._keep and path.name != best:
                superfluous.append(path)
            kept += kept < self._keep and self._is_whole(path)
        return superfluous

    def _is_whole(self, path: Path) -> bool:
        """As `is_proven`, without reading gigabytes anew at every checkpoint."""
        found = path.stat()
        as_found = (found.st_mtime_ns, found.st_size)
        if self._seen_whole.get(path) != as_found and is_proven(path):
            self._seen_whole[path] = as_found
        return self._seen_whole.get(path) == as_found

    def newest_checkpoint(self) -> Optional[Path]:
        """The newest checkpoint whose checksum holds, or None."""
        if self.paths is None:
            return None
        return next((path for path in self.paths.checkpoints_newest_first() if is_proven(path)), None)

    def _say_stacks_when_asked(self) -> None:
        """SIGUSR1: the Python stack of every thread goes to evidence/stacks.txt. A crash in C: to the log."""
        if self.paths is None or not hasattr(faulthandler, "register"):
            return
        try:
            faulthandler.enable(STDERR)
            self.paths.evidence.mkdir(mode=0o700, exist_ok=True)
            # It stays open: the handler of a signal cannot open it.
            stacks = open_regular(self.paths.stacks, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        except OSError:
            return
        faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)

    def _flush(self) -> None:
        """The last beat, which may have come too soon to be written: it says at which step the worker ended."""
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


def is_proven(checkpoint: Path) -> bool:
    """Whether the checkpoint is, to the byte, one that was written whole."""
    try:
        return sha256_file(checkpoint).encode() in _proofs(checkpoint)
    except OSError:
        return False


def _proofs(checkpoint: Path) -> List[bytes]:
    return (read_bytes(RunPaths.checksum(checkpoint), CHECKSUM_BYTES) or b"").split()


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    for chunk in iter(lambda: file.read(1 << 20), b""):
        digest.update(chunk)
    return digest.hexdigest()
