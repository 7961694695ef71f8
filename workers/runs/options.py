"""The command line of a variant: from options to a `TrainingConfig`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from remote.contract.protocol import ENV_DATA_DIR
from workers.common.errors import BadInput
from workers.runs.variants import Variant
from workers.training.losses import LAYERS
from workers.training.optimizer import OPTIMIZERS, SCHEDULES
from workers.training.training_config import TrainingConfig


def parse(variant: Variant, argv: Sequence[str] | None = None) -> TrainingConfig:
    """Return the variant's config with the fields that the options replace. `auto` is resolved for this machine.

    Raises:
        BadInput: an option has a value that cannot be used.
        SystemExit: an option is unknown or malformed.
    """
    options = parser(variant).parse_args(argv)
    if not options.data:
        raise BadInput(f"no dataset given: use --data DIR or set {ENV_DATA_DIR}")
    device = choose_device(options.device)
    defaults = variant.config
    return replace(
        defaults,
        architecture=replace(defaults.architecture, dropout=options.dropout),
        objective=replace(
            defaults.objective,
            attention=options.attention_weight,
            target=options.attention_target,
            layers=options.attention_layers,
        ),
        data=options.data,
        limit=options.limit,
        weights=options.weights if defaults.pretrained else defaults.weights,
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        schedule=options.schedule,
        seed=options.seed,
        bf16=uses_bf16(options.precision, device),
        validate_every=options.validate_every,
        log_every=options.log_every,
        device=device.type,
        threads=options.threads,
        compile=uses_compile(options.compile, device),
    )


def parser(variant: Variant) -> argparse.ArgumentParser:
    """Return the parser of a variant's options. Their defaults are those of its config."""
    made = argparse.ArgumentParser(prog=f"workers.{variant.name}", description=variant.purpose)
    add, config = made.add_argument, variant.config
    data = os.environ.get(ENV_DATA_DIR) or None
    add("--data", type=Path, metavar="DIR", default=data, help=f"default: ${ENV_DATA_DIR}")
    add("--epochs", type=_positive, default=config.epochs, help="default: %(default)s")
    add("--batch-size", type=_positive, default=config.batch_size, help="of all processes together (%(default)s)")
    add("--validate-every", type=_positive, default=config.validate_every, metavar="EPOCHS", help="%(default)s")
    add("--log-every", type=_positive, default=config.log_every, metavar="STEPS", help="print progress (%(default)s)")
    add("--optimizer", choices=OPTIMIZERS, default=config.optimizer, help="default: %(default)s")
    add("--learning-rate", type=_positive_number, default=config.learning_rate, help="its peak (%(default)s)")
    add("--weight-decay", type=_number_from_0, default=config.weight_decay, help="of matrices (%(default)s)")
    add("--schedule", choices=SCHEDULES, default=config.schedule, help="of the learning rate (%(default)s)")
    add("--dropout", type=float, default=config.architecture.dropout, help="default: %(default)s")
    add("--seed", type=int, default=config.seed, help="default: %(default)s")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    add("--precision", choices=("auto", "float32", "bf16"), default="auto", help="auto: bf16 if the GPU computes it")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile; auto: on a GPU")
    threads_help = "CPU threads; default: 1 for training, torch's default for preparing the data"
    add("--threads", type=_positive, metavar="N", help=threads_help)
    add("--limit", type=_positive, metavar="N", help="use only the first N samples of each split")
    objective = config.objective
    add("--attention-weight", type=float, default=objective.attention, help="of the attention loss (%(default)s)")
    add("--attention-target", type=float, default=objective.target, help="the attention ratio to reach (%(default)s)")
    add("--attention-layers", choices=LAYERS, default=objective.layers, help="which layers to supervise (%(default)s)")
    if config.pretrained:
        weights_help = "imagenet, random, or a state_dict file; auto: imagenet, or random with a warning"
        add("--weights", default=config.weights, help=weights_help)
    return made


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`. `auto` is CUDA if available.

    Raises:
        BadInput: `cuda` was requested but is not available. A CPU never replaces it silently.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise BadInput(
            f"--device cuda: torch {torch.__version__} sees no CUDA device; see nvidia-smi, or use --device cpu"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Return whether to compute matrix products in bfloat16. `auto`: on a GPU from Ampere on, which computes it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return precision == "bf16"


def uses_compile(choice: str, device: torch.device) -> bool:
    """Return whether to use torch.compile. `auto`: on a GPU."""
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _number_from_0(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value
