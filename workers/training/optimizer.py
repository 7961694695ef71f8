"""Adam that never takes a step on a number that is none, without asking the device what the number is."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

FUSED = ("cpu", "cuda")  # where torch's fused Adam reads `found_inf` and skips the step by itself
ALIGNED = 16  # elements: each parameter begins at a multiple of 64 bytes, as one of its own would
LARGEST_NORM = 1.0  # of all gradients together; longer ones are shortened to it
TINY = 1e-6  # of a norm: no division by zero
WARM_UP, WARM_SHARE = 200, 0.05  # steps, and share of the training, until the learning rate is whole
SCHEDULES = ("cosine", "constant")


def end_to_end(parameters: Iterable[Tensor]) -> Parameter:
    """One parameter [n] of which all of these become views, and its gradient, of which theirs do.

    What is done to all of them is then one operation instead of one for each: with fifty small parameters most of
    the time of an optimizer's step goes into the calls.
    """
    held = list(parameters)
    sizes = [math.ceil(parameter.numel() / ALIGNED) * ALIGNED for parameter in held]
    whole = Parameter(held[0].new_zeros(sum(sizes)))
    whole.grad = torch.zeros_like(whole)
    parts = zip(held, whole.detach().split(sizes), whole.grad.split(sizes), strict=True)
    for parameter, values, gradient in parts:
        values[: parameter.numel()] = parameter.detach().flatten()
        parameter.data = values[: parameter.numel()].view_as(parameter)
        parameter.grad = gradient[: parameter.numel()].view_as(parameter)
    return whole


class GuardedAdam(torch.optim.Adam):
    """Once a loss or a gradient is not finite no further step is taken; `bad_step` says at which step that was.

    The decision stays on the device: `found_inf` is what the fused kernels read, as `torch.amp.GradScaler` uses it.
    Reading `bad_step` waits for the device, so it is read now and then, not at each step.
    """

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float) -> None:
        """The parameters stay where they are from now on: to move or replace them parts them from the optimizer."""
        whole = end_to_end(parameters)
        assert whole.grad is not None
        self.gradient = whole.grad  # [n], of all parameters; backward() adds to it
        self.device = whole.device
        self.skips_by_itself = self.device.type in FUSED
        super().__init__([whole], lr=learning_rate, fused=self.skips_by_itself or None)
        self.found_inf: Tensor | None = None
        self.bad_step = torch.zeros((), dtype=torch.int64, device=self.device)
        self.bad_loss = torch.zeros((), device=self.device)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """To zero, never to None: the gradients are views."""
        self.gradient.zero_()

    def guarded_step(self, loss: Tensor, step: int, learning_rate: float) -> None:
        """Step number `step` (from 1) on the gradients that are there; `loss` is what they are of."""
        norm = torch.linalg.vector_norm(self.gradient)
        self.gradient.mul_((LARGEST_NORM / (norm + TINY)).clamp(max=1))
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
