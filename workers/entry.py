"""From a command line to a trained model: what every worker's entry point shares."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from remote.protocol import ENV_DATA_DIR, ENV_GOALS
from remote.worker import Run
from workers.checkpoint import seed_everything
from workers.dataset import SPLITS, VideoDataset
from workers.detector import ObjectDetector
from workers.errors import BadInput, WorkerError
from workers.loop import Settings, Trainer
from workers.losses import Objective
from workers.model import TokenTransformer
from workers.rehearsal import Job, rehearse
from workers.summary import baselines, summarise
from workers.tokens import Sample, TokenFeatures, tokenise


@dataclass(frozen=True)
class Worker:
    """The parts that make one worker differ from another."""

    name: str
    purpose: str
    features: Callable[[argparse.Namespace, torch.device], TokenFeatures]
    objective: Callable[[argparse.Namespace], Objective]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def main(worker: Worker, argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 trained (whether or not the goals hold) or rehearsed, 1 failed, 2 bad input, 143 stopped."""
    options = _parser(worker).parse_args(argv)
    try:
        train(worker, options)
    except WorkerError as error:
        print(f"{worker.name}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def train(worker: Worker, options: argparse.Namespace) -> None:
    began = perf_counter()
    run = _current_run()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    objective = worker.objective(options)
    datasets = {split: VideoDataset(_data(options), split, limit=options.limit) for split in SPLITS}
    features = worker.features(options, device)
    print(f"{worker.name} on {device}: {_counts(datasets)}; pre-trained weights: {features.weights}", flush=True)
    detector = ObjectDetector(confidence_threshold=0.4)
    settings = Settings(options.epochs, options.batch_size, options.validate_every, options.learning_rate, options.seed)
    about = {
        "worker": worker.name,
        "weights": features.weights,
        "data": datasets["train"].identity,
        "limit": options.batch_size if run.is_rehearsal else options.limit,  # no real run resumes from a rehearsal
    }

    def prepare(dataset: VideoDataset) -> list[Sample]:
        return tokenise(dataset, detector, features, run)

    def make_trainer(samples: Mapping[str, Sequence[Sample]], settings: Settings) -> Trainer:
        seed_everything(options.seed)
        identity = {**about, "features": features.size, "objective": repr(objective)}
        model = TokenTransformer(features.size)
        return Trainer(model, objective, samples["train"], samples["val"], settings, device, run, identity)

    if run.is_rehearsal:
        rehearse(Job(datasets, prepare, make_trainer, settings, run, began))
        return
    samples = {split: prepare(dataset) for split, dataset in datasets.items()}
    trainer = make_trainer(samples, settings)
    progress = trainer.fit()
    trainer.prove_checkpoint()
    test = trainer.evaluate(samples["test"], "test")
    summarise(run, progress, test, baselines(samples["train"], samples["test"]), about)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; asking for `cuda` where there is none is an error, never a slow surprise."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise BadInput(
            f"--device cuda: torch {torch.__version__} sees no CUDA device; see nvidia-smi, or use --device cpu"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _current_run() -> Run:
    try:
        run = Run.current()
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"{ENV_GOALS} is not understood: {error}") from error
    run.catch_sigterm()
    return run


def _data(options: argparse.Namespace) -> Path:
    if not options.data:
        raise BadInput(f"say where the dataset is: --data DIR or {ENV_DATA_DIR}")
    return Path(options.data)


def _counts(datasets: dict[str, VideoDataset]) -> str:
    return ", ".join(f"{len(dataset)} {split}" for split, dataset in datasets.items())


def _parser(worker: Worker) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"workers.{worker.name}", description=worker.purpose)
    parser.add_argument("--data", metavar="DIR", default=os.environ.get(ENV_DATA_DIR), help=f"default: ${ENV_DATA_DIR}")
    parser.add_argument("--epochs", type=_positive, default=30)
    parser.add_argument("--batch-size", type=_positive, default=16)
    parser.add_argument("--validate-every", type=_positive, default=5, metavar="EPOCHS")
    parser.add_argument("--learning-rate", type=_positive_number, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads; left to torch where not given")
    parser.add_argument("--limit", type=_positive, metavar="N", help="use the first N samples of each split only")
    worker.add_options(parser)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value
