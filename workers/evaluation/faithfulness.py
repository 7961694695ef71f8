"""Does the prediction change when what attention points at is taken away, more than when anything else is?

The deletion test behind `comprehensiveness` of ERASER (DeYoung et al. 2020): the tokens with the most attention are
removed, and what the model then says of its first prediction is set beside the removal of as many random tokens. What
carries the prediction is further shown by removing all tokens of one kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from workers.evaluation.metrics import rollout
from workers.model.transformer import ModelOutput
from workers.perception.tokens import Batch

SHARES = (0.1, 0.2, 0.5)  # of a sample's tokens, rounded up
DRAWS = 5  # of random tokens

Ask = Callable[[Tensor, Tensor, Tensor, bool], ModelOutput]
"""(features, padding, frame, every_row) -> what the model says; without a token where padding is True."""


@torch.no_grad()
def faithfulness(ask: Ask, batches: Iterable[Batch], seed: int = 0) -> dict[str, Any]:
    """For each way of removing tokens: `flips`, the share of predictions that change, and `drop`, the mean fall of the
    probability of the class first predicted. Keys: last_layer, rollout and random by share of tokens removed, and
    without_persistent and without_transient."""
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    samples = 0
    for batch in batches:
        samples += len(batch)
        first = ask(batch.features, batch.padding, batch.frame, True)
        for name, removed, weight in _removals(first, batch, generator):
            output = ask(batch.features, batch.padding | removed, batch.frame, False)
            sums[name] = sums.get(name, torch.zeros(2).double()) + _changed(first, output) * weight
    return _record({name: (total / samples).tolist() for name, total in sums.items()})


def _removals(first: ModelOutput, batch: Batch, generator: torch.Generator) -> Iterable[tuple[str, Tensor, float]]:
    """(name, what is removed bool [batch, tokens], its weight in the mean)."""
    assert first.matrices is not None
    read = {"last_layer": first.attention[-1], "rollout": rollout(first.matrices)}
    for share in SHARES:
        for name, attention in read.items():
            yield f"{name}/{share}", most(attention, batch.padding, share), 1.0
        for _ in range(DRAWS):
            scores = torch.rand(batch.padding.shape, generator=generator).to(batch.padding.device)
            yield f"random/{share}", most(scores, batch.padding, share), 1 / DRAWS
    yield "without_persistent", batch.persistent, 1.0
    yield "without_transient", batch.transient, 1.0


def most(scores: Tensor, padding: Tensor, share: float) -> Tensor:
    """The `share` of each sample's tokens with the highest scores, at least one where there is any: bool like them."""
    count = ((~padding).sum(dim=1, keepdim=True) * share).ceil()
    order = scores.masked_fill(padding, -math.inf).argsort(dim=1, descending=True, stable=True)
    return (order.argsort(dim=1) < count) & ~padding


def _changed(first: ModelOutput, output: ModelOutput) -> Tensor:
    """Sums over the batch: predictions that changed, and what the predicted class lost in probability."""
    predicted = first.logits.argmax(dim=-1, keepdim=True)
    flips = output.logits.argmax(dim=-1, keepdim=True) != predicted
    before, after = (logits.float().softmax(dim=-1).gather(1, predicted) for logits in (first.logits, output.logits))
    return torch.stack([flips.double().sum(), (before - after).double().sum()]).cpu()


def _record(means: Mapping[str, list[float]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, (flips, drop) in means.items():
        kind, _, share = name.partition("/")
        figures = {"flips": flips, "drop": drop}
        if share:
            record.setdefault(kind, {})[share] = figures
        else:
            record[kind] = figures
    return record


def in_words(record: Mapping[str, Any], share: float = 0.2) -> str:
    """One sentence for the log."""
    flips = {name: record[name][str(share)]["flips"] for name in ("last_layer", "rollout", "random")}
    return (
        f"without the {share:.0%} most attended tokens {flips['last_layer']:.1%} of the predictions change"
        f" (by rollout {flips['rollout']:.1%}), without as many random ones {flips['random']:.1%};"
        f" without all persistent ones {record['without_persistent']['flips']:.1%},"
        f" without all transient ones {record['without_transient']['flips']:.1%}"
    )
