"""The variants by name, in one table. Each is worker1 or worker2 with one part replaced.

worker1      geometry tokens; losses move the attention of every layer to persistent objects, and classify objects and
             frames
worker2      frozen ResNet-18 features; cross-entropy alone
tracked      worker1 with one token per tracked object instead of one per detection
multitask    worker1 that also predicts for each frame whether it shows a transient object, and where
curriculum   worker1 that starts with the samples that have the most transient frames
linear       worker1 with linear attention
sparse       worker1 with attention that is local in time
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from workers.model.transformer import Architecture
from workers.training.losses import Objective
from workers.training.training_config import TrainingConfig


@dataclass(frozen=True)
class Variant:
    """A named set of defaults."""

    purpose: str
    config: TrainingConfig

    @property
    def name(self) -> str:
        """The name, as in `python -m workers.train NAME`."""
        return self.config.variant


_CONFIG1 = TrainingConfig(variant="worker1", objective=Objective(attention=1.0, persistent=0.5, shows=1.0))
WORKER1 = Variant("Train a Transformer over object tokens with supervised attention.", _CONFIG1)
WORKER2 = Variant(
    "Train a Transformer over frozen ResNet-18 features of the objects.",
    TrainingConfig(variant="worker2", pretrained=True, weights="auto"),
)
VARIANTS = {
    variant.name: variant
    for variant in (
        WORKER1,
        WORKER2,
        Variant("worker1 with one token per tracked object.", replace(_CONFIG1, variant="tracked", tracked=True)),
        Variant(
            "worker1 that also predicts in which frames a transient shows, and where.",
            replace(
                _CONFIG1,
                variant="multitask",
                architecture=Architecture(locate=True),
                objective=replace(_CONFIG1.objective, located=1.0),
            ),
        ),
        Variant(
            "worker1 that starts with the samples that have the most transient frames.",
            replace(_CONFIG1, variant="curriculum", sampler="curriculum"),
        ),
        Variant(
            "worker1 with linear attention.",
            replace(_CONFIG1, variant="linear", architecture=Architecture(attention="linear")),
        ),
        Variant(
            "worker1 with attention that is local in time.",
            replace(_CONFIG1, variant="sparse", architecture=Architecture(attention="sparse")),
        ),
    )
}
