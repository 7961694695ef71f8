"""In which order an epoch takes the samples: any, or the ones richest in transients first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor


class Order(Protocol):
    """The part in which `curriculum` differs. Its repr is in every checkpoint."""

    def __call__(self, epoch: int, labels: Tensor, richness: Tensor, generator: Generator) -> Tensor:
        """int64 indices of the samples that epoch `epoch` (from 1) takes, in their order; labels, richness [samples].

        All randomness comes from `generator`, so the same state draws the same order again.
        """
        ...


@dataclass(frozen=True)
class Shuffled:
    """All samples in an order of its own each epoch."""

    def __call__(self, epoch: int, labels: Tensor, richness: Tensor, generator: Generator) -> Tensor:
        return torch.randperm(len(labels), generator=generator)


@dataclass(frozen=True)
class Curriculum:
    """Shuffled, of the richest samples alone at first: a share that grows to all of them (Bengio et al. 2009).

    Richest within their class: the richest of all are of class 1 without exception, and teach nothing about it.
    """

    first: float = 0.3  # share of the samples in the first epoch
    epochs: int = 8  # until all of them are taken

    def __call__(self, epoch: int, labels: Tensor, richness: Tensor, generator: Generator) -> Tensor:
        share = self.share(epoch)
        taken = [self._richest(torch.nonzero(labels == kind)[:, 0], richness, share) for kind in labels.unique()]
        chosen = torch.cat(taken).sort().values
        return chosen[torch.randperm(len(chosen), generator=generator)]

    def share(self, epoch: int) -> float:
        return min(1.0, self.first + (1 - self.first) * (epoch - 1) / self.epochs)

    @staticmethod
    def _richest(members: Tensor, richness: Tensor, share: float) -> Tensor:
        ranked = members[richness[members].argsort(descending=True, stable=True)]
        return ranked[: max(1, round(share * len(ranked)))]


POOL = 25  # batches among whose samples like goes to like


def in_batches(order: Tensor, lengths: Tensor, size: int, generator: Generator) -> list[Tensor]:
    """The samples of `order` in batches of `size` and of about equal length, drawn in any order; one may be smaller.

    lengths int64 [samples]. A batch is padded to its longest sample, so that samples as they come leave a third of it
    empty. Each pool of POOL batches is sorted, not the whole epoch: who is beside whom stays a matter of chance.
    """
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in order.split(POOL * size)]
    batches = [batch for pool in pools for batch in pool.split(size)]
    return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]
