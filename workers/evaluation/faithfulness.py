"""Does the prediction change when the most attended tokens are removed, more than when random tokens are?

The deletion test behind `comprehensiveness` of ERASER (DeYoung et al. 2020): the tokens with the most attention are
removed, and for comparison as many random ones. Removing all tokens of one kind shows which kind the prediction needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.evaluation.metrics import rollout
from workers.model.transformer import ModelOutput
from workers.perception.batching import Batch

SHARES = (0.1, 0.2, 0.5)  # shares of a sample's tokens to remove, rounded up
DRAWS = 5  # how often random tokens are drawn

Predict = Callable[[Tensor, Tensor, Tensor, bool], ModelOutput]
"""(features, padding, frame, every_row) -> the predictions, without the tokens where padding is True."""


@dataclass(frozen=True)
class PredictionChange:
    """What removing tokens changes, over all samples."""

    flips: float  # share of the predictions that change
    drop: float  # mean decrease of the probability of the class that was predicted first


@dataclass(frozen=True)
class Faithfulness:
    """The changes for each way to remove tokens. The first three are by the share of tokens removed, as text."""

    last_layer: dict[str, PredictionChange]
    rollout: dict[str, PredictionChange]
    random: dict[str, PredictionChange]
    without_persistent: PredictionChange
    without_transient: PredictionChange

    def text(self, share: float = 0.2) -> str:
        """Return one sentence for the log."""
        key = str(share)
        return (
            f"without the {share:.0%} most attended tokens {self.last_layer[key].flips:.1%} of the predictions change"
            f" (by rollout {self.rollout[key].flips:.1%}), without as many random tokens {self.random[key].flips:.1%};"
            f" without all persistent tokens {self.without_persistent.flips:.1%},"
            f" without all transient tokens {self.without_transient.flips:.1%}"
        )


@torch.no_grad()
def faithfulness(predict: Predict, batches: Iterable[Batch], seed: int = 0) -> Faithfulness:
    """Measure the faithfulness of attention.

    Args:
        predict: the model.
        batches: the samples.
        seed: the seed for the random tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[tuple[str, str], Tensor] = {}
    samples = 0
    for batch in batches:
        samples += len(batch)
        first = predict(batch.features, batch.padding, batch.frame, True)
        for name, removed, weight in _removals(first, batch, generator):
            output = predict(batch.features, batch.padding | removed, batch.frame, False)
            sums[name] = sums.get(name, torch.zeros(2).double()) + _changed(first, output) * weight
    changes = {name: PredictionChange(*(total / samples).tolist()) for name, total in sums.items()}
    by_share = {
        kind: {str(share): changes[kind, str(share)] for share in SHARES}
        for kind in ("last_layer", "rollout", "random")
    }
    return Faithfulness(
        **by_share,
        without_persistent=changes["without_persistent", ""],
        without_transient=changes["without_transient", ""],
    )


def _removals(
    first: ModelOutput, batch: Batch, generator: torch.Generator
) -> Iterator[tuple[tuple[str, str], Tensor, float]]:
    """Yield ((way, share), the tokens to remove bool [batch, tokens], weight in the mean)."""
    assert first.matrices is not None
    read = {"last_layer": first.attention[-1], "rollout": rollout(first.matrices)}
    for share in SHARES:
        for name, attention in read.items():
            yield (name, str(share)), highest(attention, batch.padding, share), 1.0
        for _ in range(DRAWS):
            scores = torch.rand(batch.padding.shape, generator=generator).to(batch.padding.device)
            yield ("random", str(share)), highest(scores, batch.padding, share), 1 / DRAWS
    yield ("without_persistent", ""), batch.persistent, 1.0
    yield ("without_transient", ""), batch.transient, 1.0


def highest(scores: Tensor, padding: Tensor, share: float) -> Tensor:
    """Return which tokens of each sample have the highest scores.

    Args:
        scores: [batch, tokens].
        padding: bool [batch, tokens].
        share: the share of a sample's tokens, rounded up.

    Returns:
        bool [batch, tokens]; at least one token per sample that has any.
    """
    count = ((~padding).sum(dim=1, keepdim=True) * share).ceil()
    order = scores.masked_fill(padding, -math.inf).argsort(dim=1, descending=True, stable=True)
    return (order.argsort(dim=1) < count) & ~padding


def _changed(first: ModelOutput, output: ModelOutput) -> Tensor:
    """Return [2], sums over the batch: predictions that changed, and the decrease of the first class's probability."""
    predicted = first.logits.argmax(dim=-1, keepdim=True)
    flips = output.logits.argmax(dim=-1, keepdim=True) != predicted
    before, after = (logits.float().softmax(dim=-1).gather(1, predicted) for logits in (first.logits, output.logits))
    return torch.stack([flips.double().sum(), (before - after).double().sum()]).cpu()
