"""What is measured of a model: accuracy, attention ratio, consistency, and where frames are told apart, that.

Ratio of a sample: mean attention (CLS row) on its persistent tokens over mean attention on its transient ones. Over
samples the geometric mean, because one sample can ruin the arithmetic one. Consistency: the share of samples whose
ratio is above 1. Both count only samples that have tokens of both kinds, and say how many those were. They are read
three times: in the last layer, in the attention averaged over all layers, and in its rollout through them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workers.evaluation.targets import frame_boxes
from workers.model.transformer import ModelOutput
from workers.perception.matching import pairwise_iou
from workers.perception.tokens import Batch

TINY = 1e-12  # attention below it counts as it: the logarithm stays finite
READINGS = ("", "_all_layers", "_rollout")  # suffixes of attention_ratio and consistency


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


def rollout(matrices: Tensor) -> Tensor:
    """Attention of CLS on each token through all layers: [layers, batch, n, n] -> [batch, n - 1].

    Abnar and Zuidema 2020: the product of the layers' matrices, each mixed half and half with what the residual
    connection passes by. Rows sum to 1, so only the row of CLS has to be followed.
    """
    row = torch.zeros_like(matrices[0, :, 0])
    row[:, 0] = 1
    for matrix in matrices.flip(0):
        row = 0.5 * row + 0.5 * (row[:, None] @ matrix)[:, 0]
    return row[:, 1:]


def box_iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4], pair by pair; a box whose corners are crossed has no area."""
    ordered = torch.cat([one[..., :2], torch.maximum(one[..., :2], one[..., 2:])], dim=-1)
    return pairwise_iou(ordered, other)


class Measures:
    """Sums over batches, kept on the device of the model; `result` brings them home once."""

    def __init__(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> None:
        """`reduce` adds the sums of all processes that measure together."""
        self._reduce = reduce
        self._names: list[str] = []
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, output: ModelOutput, batch: Batch, terms: tuple[Tensor, Tensor], weight: float = 1.0) -> None:
        """`terms` are the objective's sums and counts; `weight` is 0 where the batch only keeps others company."""
        sums, counts = terms
        found = {
            "samples": torch.ones_like(batch.labels),
            "right": output.logits.argmax(dim=-1) == batch.labels,
            **_attention_sums(output, batch),
            **(_located_sums(output.located, batch) if output.located is not None else {}),
            **{f"sum {number}": value for number, value in enumerate(sums.unbind())},
            **{f"count {number}": value for number, value in enumerate(counts.unbind())},
        }
        self._names = list(found)
        added = torch.stack([value.double().sum() for value in found.values()]) * weight
        self._sums = added if self._sums is None else self._sums + added

    def result(self) -> dict[str, Any]:
        """accuracy, loss, the ratios and consistencies (None where no sample has both kinds), and the counts."""
        if self._sums is None:
            raise ValueError("nothing was measured")
        total = dict(zip(self._names, self._reduce(self._sums).cpu().tolist(), strict=True))
        terms = sum(name.startswith("sum ") for name in total)
        result: dict[str, Any] = {
            "accuracy": total["right"] / total["samples"],
            "loss": sum(total[f"sum {number}"] / max(1.0, total[f"count {number}"]) for number in range(terms)),
        }
        both = total["both"]
        for reading in READINGS:
            result["attention_ratio" + reading] = math.exp(total["ratio" + reading] / both) if both else None
            result["consistency" + reading] = total["above" + reading] / both if both else None
        if "boxes" in total:
            result["frame_accuracy"] = total["frames right"] / total["frames"]
            result["box_iou"] = total["iou"] / total["boxes"] if total["boxes"] else None
        return {**result, "samples": int(total["samples"]), "samples_with_both_kinds": int(both)}


def _attention_sums(output: ModelOutput, batch: Batch) -> dict[str, Tensor]:
    """By sample: has it both kinds, and for each reading its log ratio, and whether that is above 0."""
    if output.matrices is None:
        raise ValueError("to be measured, attention is needed in every row: every_row=True")
    read = (output.attention[-1], output.attention.mean(dim=0), rollout(output.matrices))
    sums = {}
    for name, attention in zip(READINGS, read, strict=True):
        ratio, both = log_ratio(attention, batch.persistent, batch.transient)
        sums.update({"both": both, "ratio" + name: ratio, "above" + name: (ratio > 0) & both})
    return sums


def _located_sums(located: Tensor, batch: Batch) -> dict[str, Tensor]:
    """By frame: is it told right whether it shows a transient; where one was detected, how the boxes overlap."""
    boxes, there = frame_boxes(batch)
    return {
        "frames": torch.ones_like(there),
        "frames right": (located[..., 0] > 0) == batch.frame_labels,
        "boxes": there,
        "iou": box_iou(located[..., 1:].float(), boxes) * there,
    }
