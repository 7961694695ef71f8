"""Training with several processes, as started by `torchrun`. In a single process all of this does nothing.

Each process computes its share of every batch. Losses are sums and counts (`losses.py`), so counts and gradients are
summed over the processes, and a step is the same as in a single process. This takes one all-reduce of all gradients
per step, and shares may be unequal. DistributedDataParallel would average means of unequal shares, and would hang when
one process has no sample left.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from remote.worker import Run
from workers.common.errors import BadInput

TIMEOUT = timedelta(minutes=30)  # limit for waiting; the longest wait is for the process that prepares the tokens


@dataclass(frozen=True)
class Group:
    """The place of this process among those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Group:
        """Join the group that the environment of torchrun describes; without it, return a group of one."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        # CPU tensors always use gloo, so that agreements between the hosts never wait for a GPU.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
        return cls(dist.get_rank(), size)

    @staticmethod
    def leave() -> None:
        """Leave the group, if this process joined one."""
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    @staticmethod
    def exit(code: int) -> NoReturn:
        """End the process with an exit code.

        One of several processes skips the shutdown of the interpreter: threads of gloo that still run would abort it
        ("terminate called without an active exception") after everything went well.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        sys.exit(code)

    def device(self, device: torch.device) -> torch.device:
        """Return the GPU of this process. Raise BadInput if there are more processes than GPUs."""
        if device.type != "cuda" or self.size == 1:
            return device
        number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= count:
            raise BadInput(f"process {number} of this machine has no GPU of its own: torch sees {count}")
        torch.cuda.set_device(number)
        return torch.device("cuda", number)

    def share(self, indices: Tensor) -> tuple[Tensor, float]:
        """Return this process's share of a batch: every `size`-th of `indices` [n], and its weight 1.

        If none is left, return any of them with weight 0, because all processes must take part in every step.
        """
        mine = indices[self.rank :: self.size]
        return (mine, 1.0) if len(mine) else (indices[:1], 0.0)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over all processes."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Iterable[Parameter], loss: Tensor) -> Tensor:
        """Replace the gradient of each parameter by its sum over all processes, in one exchange.

        Returns:
            The sum of `loss`, a scalar.
        """
        if self.size == 1:
            return loss
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = self.sum(torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)]))
        for gradient, summed in zip(gradients, total[1:].split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))
        return total[0]

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process, so that all of them act at the same step."""
        return bool(self.sum(torch.tensor(float(flag)))) if self.size > 1 else flag

    def gather(self, mine: Any) -> Sequence[Any]:
        """Return the objects of all processes, by rank."""
        gathered: list[Any] = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(gathered, mine)
        return gathered


class Follower(Run):
    """The run in all processes but the first: they read it and never write."""

    def beat(self, phase: str, *args: Any, **progress: Any) -> None:
        """Do nothing."""

    def log_metrics(self, *args: Any, **metrics: Any) -> None:
        """Do nothing."""

    def save_checkpoint(self, *args: Any, **content: Any) -> None:
        """Do nothing."""

    def fail(self, *args: Any) -> None:
        """Do nothing."""
