"""Metrics: accuracy, attention ratio, consistency and, for multitask, the accuracy per frame.

The ratio of a sample is the mean attention (CLS row) on its persistent tokens divided by that on its transient tokens.
Over samples it is the geometric mean, because a single sample can ruin the arithmetic mean. Consistency is the share
of samples with a ratio above 1. Both use only samples that have tokens of both kinds, and the number of those is
reported. Both are measured in the last layer, in the attention averaged over all layers, and in its rollout.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from workers.model.transformer import ModelOutput
from workers.perception.batching import Batch
from workers.perception.boxes import frame_boxes, predicted_iou

TINY = 1e-12  # minimum attention in a logarithm, so that the logarithm is finite
READINGS = ("", "_all_layers", "_rollout")  # suffixes of attention_ratio and consistency

Metrics = dict[str, float | int | str | None]
"""Metrics by name. None if no sample allows measuring it."""


def check_masks(attention: Tensor, persistent: Tensor, transient: Tensor) -> None:
    """Check the masks of `attention` [..., batch, tokens].

    Raises:
        ValueError: a mask is not bool, not [batch, tokens], or not on the device of the attention.
    """
    for name, mask in (("persistent", persistent), ("transient", transient)):
        if mask.shape != attention.shape[-2:]:
            raise ValueError(
                f"the {name} mask is {list(mask.shape)}, the attention {list(attention.shape)}:"
                f" a mask needs one entry for each token of each sample, {list(attention.shape[-2:])}"
            )
        if mask.dtype != torch.bool:
            raise ValueError(f"the {name} mask is {mask.dtype}, not bool")
        if mask.device != attention.device:
            raise ValueError(f"the {name} mask is on {mask.device}, the attention on {attention.device}")


def log_ratio(attention: Tensor, persistent: Tensor, transient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log of the attention ratio of each sample.

    Args:
        attention: [..., batch, tokens].
        persistent: bool [batch, tokens].
        transient: bool [batch, tokens].

    Returns:
        The log ratio [..., batch], 0 for a sample that lacks a kind; and bool [batch], whether it has both kinds.
    """
    check_masks(attention, persistent, transient)
    both = persistent.any(dim=-1) & transient.any(dim=-1)
    difference = _log_mean(attention, persistent) - _log_mean(attention, transient)
    return torch.where(both, difference, torch.zeros_like(difference)), both


def _log_mean(attention: Tensor, mask: Tensor) -> Tensor:
    weight = mask.to(attention.dtype)
    return ((attention * weight).sum(dim=-1) / weight.sum(dim=-1).clamp(min=1)).clamp(min=TINY).log()


def rollout(matrices: Tensor) -> Tensor:
    """Return the attention of CLS on each token through all layers (Abnar and Zuidema 2020).

    It is the product of the layers' matrices, each mixed half and half with the identity for the residual connection.

    Args:
        matrices: [layers, batch, n, n], rows sum to 1.

    Returns:
        [batch, n - 1], without CLS.
    """
    row = torch.zeros_like(matrices[0, :, 0])  # only the row of CLS is needed, so no matrix is multiplied by another
    row[:, 0] = 1
    for matrix in matrices.flip(0):
        row = 0.5 * row + 0.5 * (row[:, None] @ matrix)[:, 0]
    return row[:, 1:]


class MetricSums:
    """Sums over batches, kept on the device of the model; `result` reads them once."""

    def __init__(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> None:
        """Start with nothing measured. `reduce` adds up the sums of all processes."""
        self._reduce = reduce
        self._names: list[str] = []
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, output: ModelOutput, batch: Batch, terms: tuple[Tensor, Tensor], weight: float = 1.0) -> None:
        """Add a batch.

        Args:
            output: the model's output, with every row of attention.
            batch: the truth.
            terms: the sums and counts of the objective.
            weight: 0 if the batch is only a placeholder.
        """
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

    def result(self) -> Metrics:
        """Return accuracy, loss, ratios, consistencies and the number of samples.

        Ratios and consistencies are None if no sample has both kinds.
        """
        if self._sums is None:
            raise ValueError("nothing was measured")
        total = dict(zip(self._names, self._reduce(self._sums).cpu().tolist(), strict=True))
        terms = sum(name.startswith("sum ") for name in total)
        result: Metrics = {
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
    """Return per sample: has it both kinds, and for each reading its log ratio and whether that is above 0."""
    if output.matrices is None:
        raise ValueError("metrics need every row of attention: call the model with every_row=True")
    read = (output.attention[-1], output.attention.mean(dim=0), rollout(output.matrices))
    sums = {}
    for name, attention in zip(READINGS, read, strict=True):
        ratio, both = log_ratio(attention, batch.persistent, batch.transient)
        sums.update({"both": both, "ratio" + name: ratio, "above" + name: (ratio > 0) & both})
    return sums


def _located_sums(located: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Return per frame: is the prediction right, was a transient detected, and the overlap of its box if so."""
    boxes, present = frame_boxes(batch)
    return {
        "frames": torch.ones_like(present),
        "frames right": (located[..., 0] > 0) == batch.frame_labels,
        "boxes": present,
        "iou": predicted_iou(located[..., 1:].float(), boxes) * present,
    }
