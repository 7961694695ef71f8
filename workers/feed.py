"""How samples get to the device: once and for all where they fit, else batch by batch, one ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from workers.tokens import Batch, Packed

FITS = 0.5  # share of the device's free memory that a split may take


class Feed:
    """Batches of one split on `device`."""

    def __init__(self, samples: Packed, device: torch.device) -> None:
        self.device = device
        self.resident = samples.nbytes <= FITS * free_bytes(device)
        # On the CPU, where orders are drawn.
        self.labels, self.richness, self.lengths = samples.labels, samples.richness, samples.lengths
        self.samples = samples.to(device) if self.resident else samples

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, parts: Sequence[tuple[Tensor, float]]) -> Iterator[tuple[Batch, float]]:
        """A batch for each (indices [n] on the CPU, weight), in their order."""
        if self.resident:
            for indices, weight in parts:
                yield self.samples.gather(indices), weight
            return
        ahead: tuple[Batch, float] | None = None
        for indices, weight in parts:
            # The copy runs while the batch before it is worked on.
            fetched = self._sent(self.samples.gather(indices)), weight
            if ahead is not None:
                yield ahead
            ahead = fetched
        if ahead is not None:
            yield ahead

    def _sent(self, batch: Batch) -> Batch:
        """On its way to the device; from pinned memory, so that nothing waits for the copy."""
        if self.device.type != "cuda":
            return batch.to(self.device)
        parts = {item.name: getattr(batch, item.name).pin_memory() for item in fields(batch)}
        return Batch(**{name: part.to(self.device, non_blocking=True) for name, part in parts.items()})


def free_bytes(device: torch.device) -> float:
    """Of a GPU; on a CPU the samples are where they are, and nothing is copied."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
