"""The command line of a variant, and what `auto` comes to on a device."""

from __future__ import annotations

import argparse
import os

import torch

from remote.contract.protocol import ENV_DATA_DIR
from workers.common.errors import BadInput
from workers.runs.variants import Variant
from workers.training.losses import LAYERS
from workers.training.optimizer import SCHEDULES


def parser(variant: Variant) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=f"workers.{variant.name}", description=variant.purpose)
    add = made.add_argument
    add("--data", metavar="DIR", default=os.environ.get(ENV_DATA_DIR), help=f"default: ${ENV_DATA_DIR}")
    add("--epochs", type=_positive, default=30)
    add("--batch-size", type=_positive, default=16, help="of all processes together (default: 16)")
    add("--validate-every", type=_positive, default=5, metavar="EPOCHS")
    add("--learning-rate", type=_positive_number, default=1e-3)
    add("--schedule", choices=SCHEDULES, default="cosine", help="of the learning rate, after a warm-up")
    add("--dropout", type=float, default=variant.architecture.dropout)
    add("--seed", type=int, default=0)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--precision", choices=("auto", "float32", "bf16"), default="auto", help="auto: bf16 on a GPU that computes it")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile; auto: on a GPU")
    add(
        "--threads",
        type=_positive,
        metavar="N",
        help="CPU threads; where not given one trains, and torch says how many prepare",
    )
    add("--limit", type=_positive, metavar="N", help="use the first N samples of each split only")
    objective = variant.objective
    add("--attention-weight", type=float, default=objective.attention, help="of the attention loss")
    add("--attention-target", type=float, default=objective.target, help="the attention ratio to aim at")
    add("--attention-layers", choices=LAYERS, default=objective.layers, help="which layers are supervised")
    if variant.pretrained:
        add(
            "--weights",
            default="auto",
            help="imagenet, random, or a state_dict file; auto: imagenet, or random with a warning where there is none",
        )
    return made


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; asking for `cuda` where there is none is an error, never a slow surprise."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise BadInput(
            f"--device cuda: torch {torch.__version__} sees no CUDA device; see nvidia-smi, or use --device cpu"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def bf16(precision: str, device: torch.device) -> bool:
    """Whether matrix products are in bfloat16; `auto` where the GPU computes it itself (Ampere and later)."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return precision == "bf16"


def compiles(wish: str, device: torch.device) -> bool:
    return wish == "on" or (wish == "auto" and device.type == "cuda")


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
