"""Adam that never takes a step on a number that is none, without asking the device what the number is."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

FUSED = ("cpu", "cuda")  # where torch's fused Adam reads `found_inf` and skips the step by itself
LARGEST_NORM = 1.0  # of all gradients together; longer ones are shortened to it
WARM_UP, WARM_SHARE = 200, 0.05  # steps, and share of the training, until the learning rate is whole
SCHEDULES = ("cosine", "constant")


class GuardedAdam(torch.optim.Adam):
    """Once a loss or a gradient is not finite no further step is taken; `bad_step` says at which step that was.

    The decision stays on the device: `found_inf` is what the fused kernels read, as `torch.amp.GradScaler` uses it.
    Reading `bad_step` waits for the device, so it is read now and then, not at each step.
    """

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float) -> None:
        held = list(parameters)
        self.device = held[0].device
        self.skips_by_itself = self.device.type in FUSED
        super().__init__(held, lr=learning_rate, fused=self.skips_by_itself or None)
        self.held = held
        self.found_inf: Tensor | None = None
        self.bad_step = torch.zeros((), dtype=torch.int64, device=self.device)
        self.bad_loss = torch.zeros((), device=self.device)

    def guarded_step(self, loss: Tensor, step: int, learning_rate: float) -> None:
        """Step number `step` (from 1) on the gradients that are there; `loss` is what they are of."""
        norm = torch.nn.utils.clip_grad_norm_(self.held, LARGEST_NORM)
        first = ~(loss.isfinite() & norm.isfinite()) & (self.bad_step == 0)
        self.bad_step = torch.where(first, step, self.bad_step)
        self.bad_loss = torch.where(first, loss, self.bad_loss)
        self.found_inf = (self.bad_step > 0).float() if self.skips_by_itself else None
        for group in self.param_groups:
            group["lr"] = learning_rate
        if self.skips_by_itself or self.is_sound():
            self.step()

    def is_sound(self) -> bool:
        """Whether all numbers were finite up to now. Waits for the device."""
        return bool((self.bad_step == 0).item())


def learning_rate(peak: float, schedule: str, step: int, done: float) -> float:
    """Of step number `step` (from 1 over all epochs), with the share `done` of the training behind it.

    `cosine` rises to the peak over WARM_UP steps or a WARM_SHARE of the training, whichever is shorter, and falls to 0
    at its end. `constant` knows no end, so that epochs can be added as if they had been there from the start.
    """
    if schedule == "constant":
        return peak
    warm = min(1.0, max(step / WARM_UP, done / WARM_SHARE))
    return peak * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
