"""From a command line to a trained model: what every variant's entry point shares."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch

from remote.contract.protocol import ENV_DATA_DIR, ENV_GOALS
from remote.worker import Run
from workers.common.errors import BadInput, WorkerError
from workers.common.parallel import TRAINING_THREADS, torch_threads
from workers.dataset.videos import SPLITS, VideoDataset
from workers.model.transformer import TokenTransformer
from workers.perception.detector import ObjectDetector
from workers.perception.tokens import Geometry, Packed, TokenFeatures, tokenise
from workers.runs.dry_run import TrainingJob, rehearse
from workers.runs.evaluate import examine
from workers.runs.options import bf16, choose_device, compiles, parser
from workers.runs.variants import Variant
from workers.training.checkpoint import seed_everything
from workers.training.distributed import Follower, Group
from workers.training.losses import Objective
from workers.training.trainer import Settings, Trainer


def main(variant: Variant, argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 trained (whether or not the goals hold) or rehearsed, 1 failed, 2 bad input, 143 stopped."""
    options = parser(variant).parse_args(argv)
    try:
        group = Group.join()
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if group.rank else sys.stdout):
            train(variant, options, group)
    except WorkerError as error:
        print(f"{variant.name}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    finally:
        Group.leave()
    return 0


def train(variant: Variant, options: argparse.Namespace, group: Group) -> None:
    began = perf_counter()
    run = _current_run(group)
    if options.threads:
        torch.set_num_threads(options.threads)  # and as many processes look for objects
    device = group.device(choose_device(options.device))
    objective, architecture = _objective(variant, options), replace(variant.architecture, dropout=options.dropout)
    datasets = {split: VideoDataset(_data(options), split, limit=options.limit) for split in SPLITS}
    features = _features(variant, options, device)
    print(f"{variant.name} on {device}: {_counts(datasets)}; pre-trained weights: {features.weights}", flush=True)
    detector = ObjectDetector(confidence_threshold=0.4)
    settings = _settings(options, device)
    about = {
        "worker": variant.name,
        "weights": features.weights,
        "data": datasets["train"].identity,
        "limit": options.batch_size if run.is_rehearsal else options.limit,  # no real run resumes from a rehearsal
    }

    def prepare(dataset: VideoDataset) -> Packed:
        return tokenise(dataset, detector, features, run, tracked=variant.tracked)

    def make_trainer(samples: Mapping[str, Packed], settings: Settings) -> Trainer:
        seed_everything(options.seed)
        width = samples["train"].width
        model = TokenTransformer(width, architecture)
        seed_everything(options.seed + group.rank)  # the same weights everywhere, dropout of its own in each process
        identity = {**about, "features": width, "tracked": variant.tracked}
        train, val = samples["train"], samples["val"]
        return Trainer(model, objective, train, val, settings, device, run, identity, variant.order, group)

    threads = torch.get_num_threads() if options.threads or device.type != "cpu" else TRAINING_THREADS
    if run.is_rehearsal:
        rehearse(TrainingJob(datasets, prepare, make_trainer, settings, run, began, threads))
        return
    samples = {split: prepare(datasets[split]) for split in ("train", "val")}
    trainer = make_trainer(samples, settings)
    with torch_threads(threads):
        trainer.fit()
    trainer.prove_checkpoint()
    test = prepare(datasets["test"])
    detections = tokenise(datasets["test"], detector, Geometry(), run) if variant.tracked else test
    with torch_threads(threads):
        examine(trainer, datasets["test"], test, detections, about)


def _current_run(group: Group) -> Run:
    try:
        run = Run.current() if group.rank == 0 else Follower.current()
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"{ENV_GOALS} is not understood: {error}") from error
    run.catch_sigterm()
    return run


def _settings(options: argparse.Namespace, device: torch.device) -> Settings:
    return Settings(
        options.epochs,
        options.batch_size,
        options.validate_every,
        options.learning_rate,
        options.schedule,
        options.seed,
        bf16=bf16(options.precision, device),
        compile=compiles(options.compile, device),
    )


def _objective(variant: Variant, options: argparse.Namespace) -> Objective:
    return replace(
        variant.objective,
        attention=options.attention_weight,
        target=options.attention_target,
        layers=options.attention_layers,
    )


def _features(variant: Variant, options: argparse.Namespace, device: torch.device) -> TokenFeatures:
    if not variant.pretrained:
        return Geometry()
    from workers.perception.features import Appearance  # torchvision is only needed here

    return Appearance(options.weights, device)


def _data(options: argparse.Namespace) -> Path:
    if not options.data:
        raise BadInput(f"say where the dataset is: --data DIR or {ENV_DATA_DIR}")
    return Path(options.data)


def _counts(datasets: dict[str, VideoDataset]) -> str:
    return ", ".join(f"{len(dataset)} {split}" for split, dataset in datasets.items())
