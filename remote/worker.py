"""The worker's side of a run: heartbeat, metrics, checkpoints, goals, the request to stop.

    run = Run.current()
    run.catch_sigterm()
    run.beat("train", epoch=1, epochs=30, step=4, steps=500)
    run.log_metrics(epoch=5, step=2500, metrics={"val_accuracy": 0.97})
    run.save_checkpoint(5, lambda file: torch.save(state, file))

Outside a run (no ORCH_RUN_DIR in the environment) nothing is written, so the same script runs by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, List, Mapping, Optional, Tuple

from remote.files import (
    append_jsonl,
    remove,
    sha256_file,
    sync_directory,
    temp_beside,
    write_atomic,
    write_json,
)
from remote.goals import Goal, GoalResult, as_record, judge, parse_goals
from remote.paths import RunPaths
from remote.protocol import ENV_GOALS, ENV_REHEARSAL, ENV_RUN_DIR, SCHEMA, Heartbeat, fraction_done, monotonic

BEAT_EVERY = 1.0  # seconds: a beat within this time of the last one is dropped unless the phase changes


class Run:
    """One attempt of a run, seen from inside the worker process."""

    def __init__(self, paths: Optional[RunPaths], goals: List[Goal]) -> None:
        self.paths = paths
        self.goals = goals
        self.stop_requested = False
        self._last_beat = -BEAT_EVERY
        self._last_phase = ""
        self._first: Optional[Tuple[float, float]] = (
            None  # (monotonic seconds, fraction done) of the first training beat
        )

    @classmethod
    def current(cls) -> Run:
        directory = os.environ.get(ENV_RUN_DIR)
        goals = parse_goals(json.loads(os.environ.get(ENV_GOALS, "{}")))
        return cls(RunPaths(Path(directory)) if directory else None, goals)

    @property
    def results(self) -> Optional[Path]:
        """Where the worker may write whatever else it makes; None outside a run."""
        return self.paths.results if self.paths else None

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
        now = monotonic()
        if self.paths is None or (phase == self._last_phase and now - self._last_beat < BEAT_EVERY):
            return
        self._last_beat, self._last_phase = now, phase
        eta = self._eta(now, fraction_done(epoch, epochs, step, steps))
        beat = Heartbeat.now(phase, epoch=epoch, epochs=epochs, step=step, steps=steps, eta_s=eta)
        write_json(self.paths.heartbeat, beat.to_json())

    def judge(self, metrics: Mapping[str, Any]) -> List[GoalResult]:
        return judge(self.goals, metrics)

    def log_metrics(self, epoch: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Record one validation: a line of metrics.jsonl and the whole of latest_metrics.json."""
        if self.paths is None:
            return
        record = {"schema": SCHEMA, "time": time.time(), "epoch": epoch, "step": step, **metrics}
        record["goals"] = as_record(self.judge(metrics))
        append_jsonl(self.paths.metrics, record)
        write_json(self.paths.latest_metrics, record)

    def save_checkpoint(self, epoch: int, write: Callable[[BinaryIO], Any]) -> Optional[Path]:
        """Write `epoch`'s checkpoint whole (temp file, fsync, rename) with its checksum beside it."""
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
        return target

    def newest_checkpoint(self) -> Optional[Path]:
        """The newest checkpoint whose checksum holds, or None."""
        if self.paths is None:
            return None
        return next((path for path in self.paths.checkpoints_newest_first() if is_proven(path)), None)

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
    try:
        return RunPaths.checksum(checkpoint).read_bytes().split()
    except OSError:
        return []


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    for chunk in iter(lambda: file.read(1 << 20), b""):
        digest.update(chunk)
    return digest.hexdigest()
