"""A script: train once without a stop, then many times with SIGKILL at a random step, and resume.

It prints JSON: for each kill the step, and which parts of the outcome differ from the run without a stop. It is a
process of its own because it forks: each child really dies of SIGKILL, without importing torch each time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from remote.contract.files import read_jsonl
from remote.contract.paths import RunPaths
from remote.worker import Run
from workers.dataset.dataset_record import SPLITS
from workers.dataset.videos import VideoDataset
from workers.perception.batching import Packed
from workers.perception.detector import ObjectDetector
from workers.perception.tokens import Geometry, tokenise
from workers.runs.variants import VARIANTS
from workers.training.checkpoint import random_states
from workers.training.trainer import Trainer

EPOCHS, BATCH = 5, 3
VARIANT = VARIANTS["curriculum"]  # worker1, with an order that also depends on the epoch


class DiesAt(Run):
    """Dies of SIGKILL when training step number `at` is reported, before anything is written about it."""

    at, steps = 0, 0

    def beat(self, phase: str, *args: Any, **progress: Any) -> None:
        self.steps += phase == "train"
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer(run: Run, samples: dict[str, Packed]) -> Trainer:
    config = replace(
        VARIANT.config,
        architecture=replace(VARIANT.config.architecture, width=16, layers=2),
        epochs=EPOCHS,
        batch_size=BATCH,
        validate_every=2,
    )
    return Trainer(config, samples["train"], samples["val"], run, torch.device("cpu"))


def outcome(made: Trainer) -> dict[str, Any]:
    """By name, as text: equal text is equal bit for bit."""
    assert made.run.paths is not None
    metrics = {record["epoch"]: {**record, "time": None} for record in read_jsonl(made.run.paths.metrics)}
    weights = {name: tensor.tolist() for name, tensor in made.model.state_dict().items()}
    moments = [[value.tolist() for value in state.values()] for state in made.optimizer.state.values()]
    test = made.evaluate(made.train, "test")
    parts = {"metrics": metrics, "weights": weights, "moments": moments, "test": test, "random": random_states()}
    return {name: repr(part) for name, part in parts.items()}


def killed(folder: Path, at: int, samples: dict[str, Packed]) -> None:
    child = os.fork()
    if child == 0:
        run = DiesAt(RunPaths(folder), [])
        run.at = at
        trainer(run, samples).fit()
        os._exit(0)  # not reached if the child dies as planned
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


def main() -> None:
    data, out, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    detector, run = ObjectDetector(), Run(None, [])
    samples = {split: tokenise(VideoDataset(data, split, limit=40), detector, Geometry(), run) for split in SPLITS}
    (out / "straight").mkdir()
    straight = trainer(Run(RunPaths(out / "straight"), []), samples)
    straight.fit()
    expected = outcome(straight)
    said = []
    for at in sorted(random.Random(0).sample(range(1, straight.progress.steps_done + 1), kills)):
        folder = out / f"killed-{at}"
        folder.mkdir()
        killed(folder, at, samples)
        resumed = trainer(Run(RunPaths(folder), []), samples)
        resumed.fit()
        found = outcome(resumed)
        said.append({"at": at, "differs": [name for name in expected if found[name] != expected[name]]})
    sys.stdout.write(json.dumps({"steps": straight.progress.steps_done, "kills": said}) + "\n")


if __name__ == "__main__":
    main()
