"""The optimizer and the learning-rate schedule, by name. To add one, add it to its table here."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
FUSED = ("cpu", "cuda")  # devices for which torch has a fused kernel of each optimizer
MAX_GRADIENT_NORM = 1.0  # norm of all gradients together; larger gradients are scaled down to it
WARM_UP_STEPS, WARM_UP_SHARE = 200, 0.05  # the learning rate rises for this many steps or share of the training

Schedule = Callable[[int, float], float]
"""(step, from 1 over all epochs; share of the training done, 0 to 1) -> factor of the learning rate"""


def make_optimizer(name: str, model: nn.Module, learning_rate: float, weight_decay: float = 0.0) -> Optimizer:
    """Return the optimizer of a model.

    Args:
        name: one of OPTIMIZERS.
        model: on its final device.
        learning_rate: the peak of the learning rate; the schedule multiplies it by a factor.
        weight_decay: for matrices and embeddings; biases and norms have none.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in FUSED
    return OPTIMIZERS[name](groups, lr=learning_rate, fused=fused or None)


def cosine(step: int, done: float) -> float:
    """Rise from 0 to 1 during the warm-up (whichever of its two limits is reached first), then fall to 0."""
    warm = min(1.0, max(step / WARM_UP_STEPS, done / WARM_UP_SHARE))
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def constant(step: int, done: float) -> float:
    """Return 1. Epochs can then be added later as if they had been planned from the start."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "constant": constant}
