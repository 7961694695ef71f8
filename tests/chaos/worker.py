"""The worker of a chaos run: it trains with the real Trainer and injects faults into itself when told to.

It writes a journal of its actions outside the run directory; the harness compares the results with it. A line is
written after the action, so a kill in between leaves one action that is not in the journal. The journal is not
fsynced: it has to survive killed processes, not a crash of the machine.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import signal
import sys
import threading
import time
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ATTEMPT = int(os.environ["ORCH_ATTEMPT"])
CONTROL = Path(os.environ["CHAOS_CONTROL"])  # the harness writes `fault` and `release` here
REHEARSAL = os.environ.get("ORCH_REHEARSAL") == "1"
JOURNAL = os.open(
    os.devnull if REHEARSAL else os.environ["CHAOS_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
)
OWNER = "/".join(Path(os.environ["ORCH_RUN_DIR"]).parts[-3:])  # such as runs/worker1/RUN
# In the working directory, like the output of most scripts. Both jobs of a pair use the same names.
MODEL = Path("model.txt")
HISTORY = Path("history.csv")  # a file of the code
PACE_S = 0.12  # per step, until the run is released
FLOOD_BYTES = int(os.environ.get("CHAOS_FLOOD", "1000000000"))
MEMORY_BYTES = 256 << 20  # on top of what it uses
_lines = 0


def note(**record: Any) -> None:
    os.write(JOURNAL, json.dumps({"attempt": ATTEMPT, **record}).encode() + b"\n")


def print_line(payload: bytes) -> None:
    """Write one line to the log with one write, then record it in the journal."""
    global _lines
    _lines += 1
    line = b"chaos %d %d %s\n" % (ATTEMPT, _lines, payload)
    os.write(1, line)
    note(line=_lines, size=len(line), crc=zlib.crc32(line))


def note_working_files() -> None:
    """Record what an attempt finds in its working directory."""
    note(found=MODEL.read_text() if MODEL.exists() else "", history=HISTORY.read_text().splitlines())


def write_working_files(epoch: int) -> None:
    """Write the model of an epoch, and add the epoch to a file that is part of the code."""
    draft = MODEL.with_suffix(".tmp")
    draft.write_text(f"{OWNER} {epoch}")
    draft.replace(MODEL)
    with HISTORY.open("a") as file:
        file.write(f"{OWNER},{ATTEMPT},{epoch}\n")
    note(owner=OWNER, working_files=epoch)


def start_printing() -> int:
    """Start a process that prints until it is killed or we end; return its pid.

    Importing torch takes seconds, many on a loaded machine, and holds the interpreter lock for most of that time.
    Without output this would count as a stall.
    """
    parent, child = os.getpid(), os.fork()
    if child == 0:
        while os.getppid() == parent:
            os.write(1, b"importing torch\n")
            time.sleep(0.5)
        os._exit(0)
    return child


def main() -> int:
    printing = start_printing()
    import torch

    stub_compiler(torch)
    from remote.worker import Run
    from workers.common.errors import WorkerError
    from workers.model.transformer import Architecture
    from workers.perception.batching import Packed, Sample
    from workers.training.losses import Objective
    from workers.training.trainer import Trainer
    from workers.training.training_config import TrainingConfig

    class ChaosTrainer(Trainer):
        """Ends at the end of an epoch when the harness says so."""

        def goals_met(self) -> bool:
            return (REHEARSAL or (CONTROL / "release").exists()) and bool(self.progress.metrics)

        def train_step(self, batch: Any, weight: float, learning_rate: float, steps: int) -> float:
            inject_if_told(self.run, batch)
            if not (REHEARSAL or (CONTROL / "release").exists()):
                time.sleep(PACE_S)
            loss = super().train_step(batch, weight, learning_rate, steps)
            print_line(b"epoch %d step %d" % (self.progress.epoch, self.progress.step + 1))
            return loss

        def validate(self, epoch: int, loss: float) -> tuple[float, float]:
            score = super().validate(epoch, loss)
            note(metrics=[epoch, self.progress.steps_done])
            return score

        def save(self, score: Any = None) -> None:
            super().save(score)
            path = self.run.newest_checkpoint()
            digest = hashlib.sha256()
            for name, weights in self.model.state_dict().items():
                digest.update(name.encode() + weights.numpy().tobytes())
            # In the middle of an epoch the weights belong to no whole epoch.
            whole = None if self.progress.step else self.progress.epoch - 1
            epoch = self.progress.epoch if self.progress.step else self.progress.epoch - 1
            shown = hashlib.sha256(path.read_bytes()).hexdigest() if path else ""
            note(checkpoint=epoch, sha256=shown, whole_epoch=whole, weights=digest.hexdigest())
            write_working_files(epoch)

    def sample(index: int) -> Sample:
        torch.manual_seed(index)
        tokens = 3 + index % 4
        persistent = torch.arange(tokens) % 2 == 0
        frame, boxes = torch.arange(tokens) % 16, torch.rand(tokens, 4)
        shows = torch.zeros(16, dtype=torch.bool)
        features, label = torch.rand(tokens, 8), index % 2
        return Sample(features, persistent, ~persistent, frame, boxes, shows, label, label, 0.0)

    run = Run.current()
    run.catch_sigterm()
    faulthandler.enable()
    torch.set_num_threads(1)
    train, validation = (Packed.of([sample(index) for index in part]) for part in (range(16), range(100, 108)))
    config = TrainingConfig(
        variant="chaos",
        architecture=Architecture(width=16, layers=1, heads=2),
        objective=Objective(attention=1.0),
        epochs=100_000,
        batch_size=4,
        validate_every=1,
    )
    trainer = ChaosTrainer(config, train, validation, run, torch.device("cpu"))
    os.kill(printing, signal.SIGKILL)
    os.waitpid(printing, 0)
    note_working_files()
    try:
        trainer.resume()
        note(resumed=trainer.progress.epoch - 1 + (trainer.progress.step > 0))
        progress = trainer.fit()
    except WorkerError as error:
        note(end=f"{type(error).__name__}")
        sys.stderr.write(f"chaos: {error}\n")
        return error.exit_code
    assert run.results is not None
    (run.results / "summary.json").write_text(json.dumps({"epochs": progress.epoch - 1}))
    print_line(b"done")
    note(end="done")
    return 0


def stub_compiler(torch: Any) -> None:
    """Stub torch.compile: unused here, but the first optimizer imports it, 1.8 s of CPU in each attempt."""
    stub: Any = types.ModuleType("torch._dynamo")
    stub.disable = lambda function=None, recursive=True, **_: function
    stub.graph_break = lambda *_, **__: None
    sys.modules["torch._dynamo"] = torch._dynamo = stub


# --- faults ----------------------------------------------------------------------------------------------


def inject_if_told(run: Any, batch: Any) -> None:
    if REHEARSAL:
        return
    try:
        name = (CONTROL / "fault").read_text()
        (CONTROL / "fault").unlink()
    except FileNotFoundError:
        return
    note(injected=name)
    FAULTS[name](run, batch)


def exit_1(run: Any, batch: Any) -> None:
    sys.exit(1)


def exit_0(run: Any, batch: Any) -> None:
    os._exit(0)


def segfault(run: Any, batch: Any) -> None:
    import ctypes

    ctypes.string_at(0)


def memory(run: Any, batch: Any) -> None:
    import resource

    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))
    hoard = []
    while True:
        hoard.append(bytearray(16 << 20))


def nan(run: Any, batch: Any) -> None:
    batch.features.fill_(float("nan"))


def deadlock(run: Any, batch: Any) -> None:
    def beat() -> None:
        while True:
            run.beat("train", epoch=1, epochs=100_000, step=1, steps=4)
            time.sleep(0.2)

    threading.Thread(target=beat, daemon=True).start()
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def ignores_sigterm(run: Any, batch: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1.0)


def forks(run: Any, batch: Any) -> None:
    """Leave children in sessions of their own that ignore SIGTERM and hold the log open."""
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(1.0)
    sys.exit(1)


def flood(run: Any, batch: Any) -> None:
    """Print as fast as the output is read."""
    block = b"".join(b"flood %06d %s\n" % (number, b"x" * 50) for number in range(16_000))
    os.write(1, b"flood begins\n")
    digest, left = hashlib.sha256(), FLOOD_BYTES
    while left > 0:
        view = memoryview(block)[: min(left, len(block))]
        left -= len(view)
        digest.update(view)
        while view:
            view = view[os.write(1, view) :]
    os.write(1, b"\nflood ends\n")
    note(flood=FLOOD_BYTES, sha256=digest.hexdigest())


def no_utf8(run: Any, batch: Any) -> None:
    print_line(bytes(range(128, 256)) + b"\xff\xfe\x00\xc3\x28 not UTF-8")


def change_code(run: Any, batch: Any) -> None:
    """Change a file of the snapshot, as `sed -i` with an absolute path does."""
    path = Path(os.environ["ORCH_CODE_DIR"]) / HISTORY
    path.chmod(0o600)
    with path.open("a") as file:
        file.write(f"{OWNER},changed,the code\n")


FAULTS: dict[str, Callable[[Any, Any], None]] = {
    fault.__name__: fault
    for fault in (exit_1, exit_0, segfault, memory, nan, deadlock, ignores_sigterm, forks, flood, no_utf8, change_code)
}

if __name__ == "__main__":
    sys.exit(main())
