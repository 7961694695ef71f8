"""The variants by name: one table. Each is worker1 or worker2 with one part exchanged.

worker1      geometry tokens, attention of every layer steered to persistent objects, objects and frames told apart
worker2      frozen ResNet-18 features, cross-entropy alone
tracked      worker1 on one token per tracked object instead of one per detection
multitask    worker1 that also says for each frame whether it shows a transient, and where
curriculum   worker1 that begins with the samples richest in transients
linear       worker1 with linear attention
sparse       worker1 with attention that is local in time
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from workers.model.transformer import Architecture
from workers.training.losses import Objective
from workers.training.sampler import Curriculum, Order, Shuffled


@dataclass(frozen=True)
class Variant:
    """The parts that make one variant differ from another."""

    name: str
    purpose: str
    objective: Objective
    architecture: Architecture = field(default_factory=Architecture)
    order: Order = field(default_factory=Shuffled)
    pretrained: bool = False  # tokens carry frozen ResNet-18 features before their geometry
    tracked: bool = False  # one token a tracked object, not one a detection


WORKER1 = Variant(
    name="worker1",
    purpose="Train a Transformer over object tokens with supervised attention.",
    objective=Objective(attention=1.0, persistent=0.5, shows=1.0),
)
WORKER2 = Variant(
    name="worker2",
    purpose="Train a Transformer over frozen ResNet-18 features of the objects.",
    objective=Objective(),
    pretrained=True,
)
VARIANTS = {
    variant.name: variant
    for variant in (
        WORKER1,
        WORKER2,
        replace(WORKER1, name="tracked", purpose="worker1 with one token per tracked object.", tracked=True),
        replace(
            WORKER1,
            name="multitask",
            purpose="worker1 that also says in which frames a transient shows, and where.",
            architecture=Architecture(locate=True),
            objective=replace(WORKER1.objective, located=1.0),
        ),
        replace(
            WORKER1,
            name="curriculum",
            purpose="worker1 that begins with the samples richest in transients.",
            order=Curriculum(),
        ),
        replace(
            WORKER1,
            name="linear",
            purpose="worker1 with linear attention.",
            architecture=Architecture(attention="linear"),
        ),
        replace(
            WORKER1,
            name="sparse",
            purpose="worker1 with attention that is local in time.",
            architecture=Architecture(attention="sparse"),
        ),
    )
}
