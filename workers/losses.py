"""What training minimises: the part in which worker1 and worker2 differ beside their features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from workers.errors import BadInput
from workers.measures import log_ratio
from workers.tokens import Batch

TARGET_RATIO = 2.5
LAYERS = ("all", "last")

Objective = Callable[[Tensor, Tensor, Batch], Tensor]
"""(logits [batch, 2], attention [layers, batch, tokens], batch) -> the loss, a scalar. Its repr says how it is set."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy alone; attention goes where it likes."""

    def __call__(self, logits: Tensor, attention: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(logits, batch.labels)


@dataclass(frozen=True)
class AttentionSupervised:
    """Cross-entropy plus `weight` times the attention loss."""

    weight: float = 1.0
    target: float = TARGET_RATIO
    layers: str = "all"

    def __post_init__(self) -> None:
        if self.layers not in LAYERS:
            raise BadInput(f"the layers to supervise are {' or '.join(LAYERS)}, not {self.layers!r}")
        if not (math.isfinite(self.target) and self.target > 0 and math.isfinite(self.weight) and self.weight >= 0):
            raise BadInput(f"the target ratio {self.target} is not above 0, or the weight {self.weight} is below 0")

    def __call__(self, logits: Tensor, attention: Tensor, batch: Batch) -> Tensor:
        read = attention if self.layers == "all" else attention[-1:]
        steer = attention_loss(read, batch.persistent, batch.transient, self.target)
        return cross_entropy(logits, batch.labels) + self.weight * steer


def attention_loss(attention: Tensor, persistent: Tensor, transient: Tensor, target: float = TARGET_RATIO) -> Tensor:
    """Squared distance of the log ratio from log(target), mean over layers and over samples with both kinds.

    attention [layers, batch, tokens], masks bool [batch, tokens]; 0 where no sample has both kinds. A target, unlike
    a hinge or a cross-entropy, keeps the ratio from running away.
    """
    ratios, both = log_ratio(attention, persistent, transient)  # [layers, batch], [batch]
    counted = both.to(ratios.dtype)
    distance = (ratios - math.log(target)) ** 2 * counted
    return distance.mean(dim=0).sum() / counted.sum().clamp(min=1)
