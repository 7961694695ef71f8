"""Which samples an epoch takes, and in which order. A sampler has a name; to add one, add it to SAMPLERS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor


class EpochSampler(Protocol):
    """Chooses and orders the samples of an epoch."""

    def __call__(self, epoch: int, labels: Tensor, richness: Tensor, generator: Generator) -> Tensor:
        """Return the samples of an epoch.

        Args:
            epoch: from 1.
            labels: int64 [samples].
            richness: float32 [samples], the share of frames that show a transient object.
            generator: the only source of randomness, so that the same state gives the same order.

        Returns:
            int64 indices of the samples, in order.
        """
        ...


@dataclass(frozen=True)
class Shuffled:
    """All samples, in a new random order each epoch."""

    def __call__(self, epoch: int, labels: Tensor, richness: Tensor, generator: Generator) -> Tensor:
        """Return a random permutation of all samples."""
        return torch.randperm(len(labels), generator=generator)


@dataclass(frozen=True)
class Curriculum:
    """Shuffled, but the first epochs use only the richest samples (Bengio et al. 2009).

    Samples are ranked within their class. If they were ranked over both classes, the richest would all be of class 1,
    and the model could not learn the class from them.
    """

    first: float = 0.3  # share of the samples in the first epoch
    epochs: int = 8  # until all of them are used

    def __call__(self, epoch: int, labels: Tensor, richness: Tensor, generator: Generator) -> Tensor:
        """Return the richest samples of each class, shuffled."""
        share = self.share(epoch)
        taken = [self._richest(torch.nonzero(labels == kind)[:, 0], richness, share) for kind in labels.unique()]
        chosen = torch.cat(taken).sort().values
        return chosen[torch.randperm(len(chosen), generator=generator)]

    def share(self, epoch: int) -> float:
        """Return the share of the samples that `epoch` (from 1) uses."""
        return min(1.0, self.first + (1 - self.first) * (epoch - 1) / self.epochs)

    @staticmethod
    def _richest(members: Tensor, richness: Tensor, share: float) -> Tensor:
        ranked = members[richness[members].argsort(descending=True, stable=True)]
        return ranked[: max(1, round(share * len(ranked)))]


SAMPLERS: dict[str, EpochSampler] = {"shuffled": Shuffled(), "curriculum": Curriculum()}

POOL = 25  # batches whose samples are sorted by length together


def batches_of_similar_length(order: Tensor, lengths: Tensor, size: int, generator: Generator) -> list[Tensor]:
    """Divide samples into batches of about equal length, in random order.

    A batch is padded to its longest sample; with samples in random order a third of it would be padding. Each pool of
    POOL batches is sorted rather than the whole epoch, so that batches stay random.

    Args:
        order: int64 indices of the samples.
        lengths: int64 [samples], tokens of each sample.
        size: samples per batch; one batch per pool may be smaller.
        generator: orders the batches.
    """
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in order.split(POOL * size)]
    batches = [batch for pool in pools for batch in pool.split(size)]
    return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]
