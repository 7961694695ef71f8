"""What training minimises, as terms that are weighted and added: the part in which most variants differ.

A term is a sum and what it was summed over, so that a batch shared among processes, and a validation in batches of
unequal size, come to the very mean that one large batch would have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from workers.common.errors import BadInput
from workers.evaluation.metrics import box_iou, log_ratio
from workers.evaluation.targets import frame_boxes
from workers.model.transformer import ModelOutput
from workers.perception.tokens import Batch

TARGET_RATIO = 2.5
LAYERS = ("all", "last")

Term = tuple[Tensor, Tensor]
"""A sum, and the count that makes it a mean; both scalars in float32."""


@dataclass(frozen=True)
class Objective:
    """Cross-entropy of the class, plus each other term times its weight. Its repr says how it is set."""

    attention: float = 0.0  # the attention of CLS: `attention_term`
    persistent: float = 0.0  # each object: persistent or transient
    shows: float = 0.0  # each object's frame: does it show a transient
    located: float = 0.0  # each frame: does it show a transient, and where; needs a model that can `locate`
    target: float = TARGET_RATIO
    layers: str = "all"  # whose attention is steered: all, or the last

    def __post_init__(self) -> None:
        if self.layers not in LAYERS:
            raise BadInput(f"the layers to supervise are {' or '.join(LAYERS)}, not {self.layers!r}")
        if not (math.isfinite(self.target) and self.target > 0):
            raise BadInput(f"the target ratio {self.target} is not above 0")
        for item in fields(self)[:4]:
            weight = getattr(self, item.name)
            if not (math.isfinite(weight) and weight >= 0):
                raise BadInput(f"the weight of the {item.name} loss is {weight}, not 0 or more")

    @property
    def reads_tokens(self) -> bool:
        """Whether it is about more than the class and the attention of CLS."""
        return bool(self.persistent or self.shows or self.located)

    def __call__(self, output: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weighted sums [terms] and counts [terms]; the loss is what `mean` makes of them."""
        steered = output.attention if self.layers == "all" else output.attention[-1:]
        terms: list[tuple[float, Term]] = [(1.0, class_term(output.logits, batch.labels))]
        if self.attention:
            terms += [(self.attention, attention_term(steered, batch.persistent, batch.transient, self.target))]
        if self.persistent:
            terms += [(self.persistent, persistent_term(output.persistent, batch))]
        if self.shows:
            terms += [(self.shows, shows_term(output.shows, batch))]
        if self.located and output.located is not None:
            terms += [(self.located, term) for term in located_terms(output.located, batch)]
        sums = torch.stack([weight * term[0] for weight, term in terms])
        return sums, torch.stack([term[1] for _, term in terms])


def mean(sums: Tensor, counts: Tensor) -> Tensor:
    """The loss, a scalar; a term of which nothing was counted is 0."""
    return (sums / counts.clamp(min=1)).sum()


def class_term(logits: Tensor, labels: Tensor) -> Term:
    losses = cross_entropy(logits.float(), labels, reduction="none")
    return _over(losses, torch.ones_like(losses))


def attention_term(attention: Tensor, persistent: Tensor, transient: Tensor, target: float = TARGET_RATIO) -> Term:
    """Squared distance of the log ratio from log(target), mean over layers, over the samples with both kinds.

    attention [layers, batch, tokens], masks bool [batch, tokens]. A target, unlike a hinge or a cross-entropy, keeps
    the ratio from running away.
    """
    ratios, both = log_ratio(attention, persistent, transient)  # [layers, batch], [batch]
    return _over(((ratios - math.log(target)) ** 2).mean(dim=0), both)


def persistent_term(logits: Tensor, batch: Batch) -> Term:
    """Over the objects of known kind."""
    return _binary(logits, batch.persistent, batch.persistent | batch.transient)


def shows_term(logits: Tensor, batch: Batch) -> Term:
    """Over all objects: what stays tells what passes by, so that it need not be looked at to be counted."""
    return _binary(logits, batch.frame_labels.gather(1, batch.frame.clamp(min=0)), ~batch.padding)


def located_terms(located: Tensor, batch: Batch) -> list[Term]:
    """Whether each frame shows a transient; in frames with a detected one L1 and 1 - IoU of the box around them."""
    boxes, there = frame_boxes(batch)
    apart = (located[..., 1:].float() - boxes).abs().sum(dim=-1)
    missed = 1 - box_iou(located[..., 1:].float(), boxes)
    return [
        _binary(located[..., 0], batch.frame_labels, torch.ones_like(batch.frame_labels)),
        _over(apart + missed, there),
    ]


def _binary(logits: Tensor, truth: Tensor, counted: Tensor) -> Term:
    return _over(binary_cross_entropy_with_logits(logits.float(), truth.float(), reduction="none"), counted)


def _over(losses: Tensor, counted: Tensor) -> Term:
    weight = counted.to(losses.dtype)
    return (losses * weight).sum(), weight.sum()
