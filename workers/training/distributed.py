"""Several processes that train one model, as `torchrun` starts them; alone, all of this does nothing.

Each process works on its share of every batch. Losses are sums and counts (`losses.py`), so counts and gradients are
added over the processes and the step is the one that a single process would have taken. That takes one all-reduce a
step over all gradients at once, and needs no equal shares: DistributedDataParallel would average means of unequal
shares, and waits for ever for a process that has no sample left.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from remote.worker import Run
from workers.common.errors import BadInput

TIMEOUT = timedelta(minutes=30)  # the slowest thing that others wait for: one process that prepares the tokens


@dataclass(frozen=True)
class Group:
    """This process's place among those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Group:
        """The group that the environment of torchrun describes; a group of one without it."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        # CPU tensors go through gloo also beside GPUs: what the hosts agree upon never waits for a GPU.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
        return cls(dist.get_rank(), size)

    @staticmethod
    def leave() -> None:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    @staticmethod
    def exit(code: int) -> NoReturn:
        """End the process. One of several does without the tearing down of the interpreter, in which threads of gloo
        that are still there abort it ("terminate called without an active exception") after all has gone well.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        sys.exit(code)

    def device(self, device: torch.device) -> torch.device:
        """The GPU of this process; BadInput where there are more processes than GPUs."""
        if device.type != "cuda" or self.size == 1:
            return device
        number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= there:
            raise BadInput(f"process {number} of this machine has no GPU of its own: torch sees {there}")
        torch.cuda.set_device(number)
        return torch.device("cuda", number)

    def share(self, indices: Tensor) -> tuple[Tensor, float]:
        """Every `size`-th of `indices` and weight 1; where none is left, any of them and weight 0, to keep in step."""
        mine = indices[self.rank :: self.size]
        return (mine, 1.0) if len(mine) else (indices[:1], 0.0)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, gradient: Tensor, loss: Tensor) -> Tensor:
        """Replace `gradient` [n] by the sum over all processes; returns the sum of `loss`. One exchange."""
        if self.size == 1:
            return loss
        total = self.sum(torch.cat([loss.reshape(1), gradient]))
        gradient.copy_(total[1:])
        return total[0]

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all of them then do the same thing at the same step."""
        return bool(self.sum(torch.tensor(float(flag)))) if self.size > 1 else flag

    def gather(self, mine: Any) -> Sequence[Any]:
        """Everybody's, by rank."""
        everybody: list[Any] = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(everybody, mine)
        return everybody


class Follower(Run):
    """The run as seen by all processes but the first: read, never written."""

    def beat(self, phase: str, *args: Any, **progress: Any) -> None:
        pass

    def log_metrics(self, *args: Any, **metrics: Any) -> None:
        pass

    def save_checkpoint(self, *args: Any, **content: Any) -> None:
        pass

    def fail(self, *args: Any) -> None:
        pass
