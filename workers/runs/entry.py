"""From a command line to a trained model: what the entry points of all variants share."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from time import perf_counter

import torch

from remote.contract.protocol import ENV_GOALS
from remote.worker import Run
from workers.common.errors import BadInput, WorkerError
from workers.common.parallel import TRAINING_THREADS, torch_threads
from workers.dataset.dataset_record import SPLITS
from workers.dataset.videos import VideoDataset
from workers.perception.batching import Packed
from workers.perception.detector import ObjectDetector
from workers.perception.tokens import Geometry, TokenFeatures, tokenise
from workers.runs.dry_run import TrainingJob, rehearse
from workers.runs.evaluate import final_evaluation
from workers.runs.options import parse
from workers.runs.variants import Variant
from workers.training.distributed import Follower, Group
from workers.training.trainer import Trainer
from workers.training.training_config import TrainingConfig


def main(variant: Variant, argv: Sequence[str] | None = None) -> int:
    """Train a variant, or rehearse it if the environment says so.

    Returns:
        The exit code: 0 trained (whether or not the goals are met) or rehearsed, 1 failed, 2 bad input, 143 stopped.
    """
    try:
        config = parse(variant, argv)
        group = Group.join()
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if group.rank else sys.stdout):
            train(config, group)
    except WorkerError as error:
        print(f"{variant.name}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    finally:
        Group.leave()
    return 0


def train(config: TrainingConfig, group: Group) -> None:
    """Prepare the tokens, train, evaluate on the test set, and write the summary."""
    began = perf_counter()
    run = _current_run(group)
    if config.threads:
        torch.set_num_threads(config.threads)  # also the number of processes that read the data
    device = group.device(torch.device(config.device))
    assert config.data is not None
    datasets = {split: VideoDataset(config.data, split, limit=config.limit) for split in SPLITS}
    features = _token_features(config, device)
    config = replace(config, dataset=datasets["train"].identity.text, weights=features.weights)
    counts = ", ".join(f"{len(dataset)} {split}" for split, dataset in datasets.items())
    print(f"{config.variant} on {device}: {counts}; pre-trained weights: {features.weights}", flush=True)
    detector = ObjectDetector(confidence_threshold=0.4)

    def prepare(dataset: VideoDataset) -> Packed:
        return tokenise(dataset, detector, features, run, tracked=config.tracked)

    threads = torch.get_num_threads() if config.threads or device.type != "cpu" else TRAINING_THREADS
    if run.is_rehearsal:
        rehearse(TrainingJob(replace(config, rehearsal=True), datasets, prepare, run, device, group, began, threads))
        return
    trainer = Trainer(config, prepare(datasets["train"]), prepare(datasets["val"]), run, device, group)
    with torch_threads(threads):
        trainer.fit()
    trainer.prove_checkpoint()
    test = prepare(datasets["test"])
    detections = tokenise(datasets["test"], detector, Geometry(), run) if config.tracked else test
    with torch_threads(threads):
        final_evaluation(trainer, datasets["test"], test, detections)


def _current_run(group: Group) -> Run:
    try:
        run = Run.current() if group.rank == 0 else Follower.current()
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"cannot read the goals in {ENV_GOALS}: {error}") from error
    run.catch_sigterm()
    return run


def _token_features(config: TrainingConfig, device: torch.device) -> TokenFeatures:
    if not config.pretrained:
        return Geometry()
    from workers.perception.features import Appearance  # imports torchvision, which the other variants do not need

    return Appearance(config.weights, device)
