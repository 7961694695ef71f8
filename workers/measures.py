"""What is measured of a model: accuracy, attention ratio, consistency.

Ratio of a sample: mean attention (CLS row) on its persistent tokens over mean attention on its transient ones. Over
samples the geometric mean, because one sample can ruin the arithmetic one. Consistency: the share of samples whose
ratio is above 1. Both count only samples that have tokens of both kinds, and say how many those were. They are read
in the last layer; beside it stands the same of the attention averaged over all layers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from workers.tokens import Batch

TINY = 1e-12  # attention below it counts as it: the logarithm stays finite


def check_masks(attention: Tensor, persistent: Tensor, transient: Tensor) -> None:
    """ValueError unless both masks are [batch, tokens] of `attention` [..., batch, tokens], bool, on its device."""
    for name, mask in (("persistent", persistent), ("transient", transient)):
        if mask.shape != attention.shape[-2:]:
            raise ValueError(
                f"the {name} mask is {list(mask.shape)}, the attention {list(attention.shape)}:"
                f" a mask has one entry for each token of each sample, {list(attention.shape[-2:])}"
            )
        if mask.dtype != torch.bool:
            raise ValueError(f"the {name} mask is {mask.dtype}, not bool")
        if mask.device != attention.device:
            raise ValueError(f"the {name} mask is on {mask.device}, the attention on {attention.device}")


def log_ratio(attention: Tensor, persistent: Tensor, transient: Tensor) -> tuple[Tensor, Tensor]:
    """attention [..., batch, tokens], masks bool [batch, tokens] -> log ratio [..., batch], has both kinds [batch].

    The log ratio is 0 where a sample lacks a kind.
    """
    check_masks(attention, persistent, transient)
    both = persistent.any(dim=-1) & transient.any(dim=-1)
    difference = _log_mean(attention, persistent) - _log_mean(attention, transient)
    return torch.where(both, difference, torch.zeros_like(difference)), both


def _log_mean(attention: Tensor, mask: Tensor) -> Tensor:
    weight = mask.to(attention.dtype)
    return ((attention * weight).sum(dim=-1) / weight.sum(dim=-1).clamp(min=1)).clamp(min=TINY).log()


class Measures:
    """Sums over batches, kept on the device of the model; `result` brings them home once."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, logits: Tensor, attention: Tensor, batch: Batch, loss: Tensor) -> None:
        """logits [batch, 2], attention [layers, batch, tokens], `loss` the mean over the batch."""
        last, both = log_ratio(attention[-1], batch.persistent, batch.transient)
        average, _ = log_ratio(attention.mean(dim=0), batch.persistent, batch.transient)
        counted = both.to(logits.dtype)
        right = (logits.argmax(dim=-1) == batch.labels).to(logits.dtype)
        sums = (
            torch.ones_like(counted),
            right,
            loss.expand_as(counted),
            counted,
            last,
            (last > 0) * counted,
            average,
            (average > 0) * counted,
        )
        added = torch.stack(sums).double().sum(dim=1)
        self._sums = added if self._sums is None else self._sums + added

    def result(self) -> dict[str, Any]:
        """accuracy, loss, the ratios and consistencies (None where no sample has both kinds), and the counts."""
        if self._sums is None:
            raise ValueError("nothing was measured")
        samples, right, loss, both, last, last_above, average, average_above = self._sums.cpu().tolist()
        return {
            "accuracy": right / samples,
            "loss": loss / samples,
            "attention_ratio": math.exp(last / both) if both else None,
            "consistency": last_above / both if both else None,
            "attention_ratio_all_layers": math.exp(average / both) if both else None,
            "consistency_all_layers": average_above / both if both else None,
            "samples": int(samples),
            "samples_with_both_kinds": int(both),
        }
