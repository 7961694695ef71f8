"""How samples get to the device: once and for all where they fit, else batch by batch; a batch is made one ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor

from workers.common.parallel import thread_pool
from workers.perception.tokens import Batch, Packed

T = TypeVar("T")

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
        """A batch for each (indices [n] on the CPU, weight), in their order, made while the one before it is used."""
        fetch = self.samples.gather if self.resident else self._streamed
        if self.device.type != "cpu":  # what a GPU is asked for it does by itself
            yield from _one_ahead((fetch(indices), weight) for indices, weight in parts)
            return
        with thread_pool(1) as pool:  # torch copies without Python's lock
            for batch, weight in _one_ahead((pool.submit(fetch, indices), weight) for indices, weight in parts):
                yield batch.result(), weight

    def _streamed(self, indices: Tensor) -> Batch:
        """On its way to the device; from pinned memory, so that nothing waits for the copy."""
        batch = self.samples.gather(indices)
        if self.device.type != "cuda":
            return batch.to(self.device)
        parts = {item.name: getattr(batch, item.name).pin_memory() for item in fields(batch)}
        return Batch(**{name: part.to(self.device, non_blocking=True) for name, part in parts.items()})


def _one_ahead(made: Iterator[T]) -> Iterator[T]:
    """The same, each asked for before the one before it is given."""
    ahead = next(made, None)
    while ahead is not None:
        given, ahead = ahead, next(made, None)
        yield given


def free_bytes(device: torch.device) -> float:
    """Of a GPU; on a CPU the samples are where they are, and nothing is copied."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
