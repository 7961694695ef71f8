"""A worker like `worker.py` that starts in a tenth of a second: the same faults, but no training."""

from __future__ import annotations

import hashlib
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.chaos.worker import (
        CONTROL,
        REHEARSAL,
        inject_if_told,
        note,
        note_working_files,
        print_line,
        write_working_files,
    )
else:  # next to this file in a pair's project
    from worker import CONTROL, REHEARSAL, inject_if_told, note, note_working_files, print_line, write_working_files

from remote.worker import Run

PACE_S = 0.02


class Weights:
    """A substitute for the model: as with a fixed seed, its content depends only on the number of steps."""

    def __init__(self, state: bytes) -> None:
        self.state = state
        self.is_poisoned = False

    @property
    def features(self) -> Weights:
        return self

    def fill_(self, value: float) -> None:
        self.is_poisoned = True

    def step(self) -> None:
        if self.is_poisoned:
            sys.stderr.write("chaos: the loss is nan in this step\n")
            sys.exit(1)
        self.state = hashlib.sha256(self.state).digest()


def resume(run: Run) -> tuple[int, Weights]:
    path = run.newest_checkpoint()
    if path is None:
        return 0, Weights(b"seed")
    return int(path.stem.rpartition("-")[2]), Weights(path.read_bytes())


def save(run: Run, epoch: int, state: bytes) -> None:
    path = run.save_checkpoint(epoch, lambda file: file.write(state))
    assert path is not None  # it is run as a worker
    shown = hashlib.sha256(path.read_bytes()).hexdigest()
    note(checkpoint=epoch, sha256=shown, whole_epoch=epoch, weights=state.hex())


def main() -> int:
    run: Any = Run.current()
    run.catch_sigterm()
    epoch, weights = resume(run)
    note(resumed=epoch)
    note_working_files()
    while not (epoch and (REHEARSAL or (CONTROL / "release").exists())):
        epoch += 1
        for step in range(1, 5):
            inject_if_told(run, weights)
            weights.step()
            print_line(b"epoch %d step %d" % (epoch, step))
            run.beat("train", epoch=epoch, epochs=100_000, step=step, steps=4)
            time.sleep(PACE_S)
        run.log_metrics(epoch=epoch, step=4 * epoch, metrics={"loss": 1.0 / epoch})
        note(metrics=[epoch, 4 * epoch])
        save(run, epoch, weights.state)
        write_working_files(epoch)
        if run.stop_requested:
            note(end="stopped")
            return 143
    (run.results / "summary.json").write_text("{}")
    print_line(b"done")
    note(end="done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
