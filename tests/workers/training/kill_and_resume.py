"""Run as a script: train once without a stop, then again and again with SIGKILL at a random step, and resume.

Prints JSON: for each kill the step, and what of the outcome differs from the run without a stop. A process of its own,
because it forks: a child that really dies of SIGKILL, without the seconds that importing torch takes each time.
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
from workers.dataset.videos import SPLITS, VideoDataset
from workers.model.transformer import TokenTransformer
from workers.perception.detector import ObjectDetector
from workers.perception.tokens import Geometry, Packed, tokenise
from workers.runs.variants import VARIANTS
from workers.training.checkpoint import random_states, seed_everything
from workers.training.trainer import Settings, Trainer

EPOCHS, BATCH = 5, 3
VARIANT = VARIANTS["curriculum"]  # worker1, with an order that depends on the epoch as well


class DiesAt(Run):
    """Dies of SIGKILL while its training step number `at` is reported, before anything can be written of it."""

    at, steps = 0, 0

    def beat(self, phase: str, *args: Any, **progress: Any) -> None:
        self.steps += phase == "train"
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer(run: Run, samples: dict[str, Packed]) -> Trainer:
    settings = Settings(epochs=EPOCHS, batch_size=BATCH, validate_every=2)
    seed_everything(settings.seed)
    model = TokenTransformer(8, replace(VARIANT.architecture, width=16, layers=2))
    cpu = torch.device("cpu")
    return Trainer(model, VARIANT.objective, samples["train"], samples["val"], settings, cpu, run, {}, VARIANT.order)


def outcome(made: Trainer) -> dict[str, Any]:
    """By name, as text: equal text is equal to the bit."""
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
        os._exit(0)  # it was to die
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
