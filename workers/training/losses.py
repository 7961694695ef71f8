"""The training objective: weighted terms that are added. Most variants differ here.

A term is a sum and a count rather than a mean. Terms of a batch that several processes share, or of validation batches
of unequal size, then add up to exactly the mean of one large batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from workers.common.errors import BadInput
from workers.evaluation.metrics import log_ratio
from workers.model.transformer import ModelOutput
from workers.perception.batching import Batch
from workers.perception.boxes import frame_boxes, predicted_iou

TARGET_RATIO = 2.5
LAYERS = ("all", "last")

Term = tuple[Tensor, Tensor]
"""A sum, and the count that makes it a mean; both scalars in float32."""


@dataclass(frozen=True)
class Objective:
    """Cross-entropy of the class, plus each other term times its weight."""

    attention: float = 0.0  # the attention of CLS: `attention_term`
    persistent: float = 0.0  # each object: persistent or transient
    shows: float = 0.0  # each object's frame: does it show a transient
    located: float = 0.0  # each frame: does it show a transient, and where; needs a model with `locate`
    target: float = TARGET_RATIO
    layers: str = "all"  # whose attention is supervised: all, or the last

    def __post_init__(self) -> None:
        if self.layers not in LAYERS:
            raise BadInput(f"unknown layers to supervise {self.layers!r}; choose {' or '.join(LAYERS)}")
        if not (math.isfinite(self.target) and self.target > 0):
            raise BadInput(f"the target ratio is {self.target}, but must be above 0")
        for item in fields(self)[:4]:
            weight = getattr(self, item.name)
            if not (math.isfinite(weight) and weight >= 0):
                raise BadInput(f"the weight of the {item.name} loss is {weight}, but must be 0 or more")

    @property
    def reads_tokens(self) -> bool:
        """Whether it needs more of the model than the class and the attention of CLS."""
        return bool(self.persistent or self.shows or self.located)

    def __call__(self, output: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the weighted sums [terms] and counts [terms] of a batch; `mean` makes them the loss."""
        supervised = output.attention if self.layers == "all" else output.attention[-1:]
        terms: list[tuple[float, Term]] = [(1.0, class_term(output.logits, batch.labels))]
        if self.attention:
            terms += [(self.attention, attention_term(supervised, batch.persistent, batch.transient, self.target))]
        if self.persistent:
            terms += [(self.persistent, persistent_term(output.persistent, batch))]
        if self.shows:
            terms += [(self.shows, shows_term(output.shows, batch))]
        if self.located and output.located is not None:
            terms += [(self.located, term) for term in located_terms(output.located, batch)]
        sums = torch.stack([weight * term[0] for weight, term in terms])
        return sums, torch.stack([term[1] for _, term in terms])


def mean(sums: Tensor, counts: Tensor) -> Tensor:
    """Return the loss, a scalar. A term that counted nothing is 0."""
    return (sums / counts.clamp(min=1)).sum()


def class_term(logits: Tensor, labels: Tensor) -> Term:
    """Return the cross-entropy of the class: logits [batch, 2], labels int64 [batch]."""
    losses = cross_entropy(logits.float(), labels, reduction="none")
    return _over(losses, torch.ones_like(losses))


def attention_term(attention: Tensor, persistent: Tensor, transient: Tensor, target: float = TARGET_RATIO) -> Term:
    """Return the squared distance of the log attention ratio from log(target).

    Unlike a hinge or a cross-entropy, a target keeps the ratio bounded.

    Args:
        attention: [layers, batch, tokens]; the term is the mean over layers.
        persistent: bool [batch, tokens].
        transient: bool [batch, tokens]; samples without tokens of both kinds do not count.
        target: the ratio to reach.
    """
    ratios, both = log_ratio(attention, persistent, transient)  # [layers, batch], [batch]
    return _over(((ratios - math.log(target)) ** 2).mean(dim=0), both)


def persistent_term(logits: Tensor, batch: Batch) -> Term:
    """Return the cross-entropy of the kind, over objects of known kind: logits [batch, tokens]."""
    return _binary(logits, batch.persistent, batch.persistent | batch.transient)


def shows_term(logits: Tensor, batch: Batch) -> Term:
    """Return the cross-entropy of "the object's frame shows a transient", over all objects: logits [batch, tokens].

    The states of persistent tokens then show which frames have a transient. So CLS can count these frames without
    attending to the transient tokens.
    """
    return _binary(logits, batch.frame_labels.gather(1, batch.frame.clamp(min=0)), ~batch.padding)


def located_terms(located: Tensor, batch: Batch) -> list[Term]:
    """Return two terms: does the frame show a transient; and the box around the detected ones (L1 and 1 - IoU).

    Args:
        located: [batch, frames, 5], as in `ModelOutput`.
        batch: the truth.
    """
    boxes, present = frame_boxes(batch)
    predicted = located[..., 1:].float()
    distance = (predicted - boxes).abs().sum(dim=-1) + 1 - predicted_iou(predicted, boxes)
    return [
        _binary(located[..., 0], batch.frame_labels, torch.ones_like(batch.frame_labels)),
        _over(distance, present),
    ]


def _binary(logits: Tensor, truth: Tensor, counted: Tensor) -> Term:
    return _over(binary_cross_entropy_with_logits(logits.float(), truth.float(), reduction="none"), counted)


def _over(losses: Tensor, counted: Tensor) -> Term:
    weight = counted.to(losses.dtype)
    return (losses * weight).sum(), weight.sum()
