"""Load the batches of one split onto the training device. If the whole split fits there, keep it there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from workers.perception.batching import Batch, Packed

FITS = 0.5  # share of the device's free memory that a split may take


class BatchLoader:
    """Batches of one split on `device`. The samples are in memory, so a batch is one indexing operation."""

    def __init__(self, samples: Packed, device: torch.device) -> None:
        self.device = device
        self.resident = samples.nbytes <= FITS * free_bytes(device)
        # They stay on the CPU, because the sampler runs there.
        self.labels, self.richness, self.lengths = samples.labels, samples.richness, samples.lengths
        self.samples = samples.to(device) if self.resident else samples

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, parts: Sequence[tuple[Tensor, float]]) -> Iterator[tuple[Batch, float]]:
        """Yield a batch and its weight for each (indices int64 [n] on the CPU, weight), in order."""
        for indices, weight in parts:
            batch = self.samples.gather(indices)
            yield batch if self.resident else self._sent(batch), weight

    def _sent(self, batch: Batch) -> Batch:
        """Send a batch to the device; from pinned memory, so that the host does not wait for the copy."""
        if self.device.type != "cuda":
            return batch.to(self.device)
        pinned = {item.name: getattr(batch, item.name).pin_memory() for item in fields(batch)}
        return Batch(**{name: tensor.to(self.device, non_blocking=True) for name, tensor in pinned.items()})


def free_bytes(device: torch.device) -> float:
    """Return the free memory of a GPU. On a CPU nothing is copied, so everything fits."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
