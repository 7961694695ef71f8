"""Dropout whose mask costs little on a CPU, where torch draws a double for each element, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 1 << 16  # of a random number of 16 bits: the share that is kept is a multiple of 1 / LEVELS


class Dropout(nn.Dropout):
    """torch's own, but on a CPU the mask of four elements comes from one random number of 64 bits."""

    def forward(self, states: Tensor) -> Tensor:
        """states [...] -> the same, each element with chance p 0, else divided by the share that is kept."""
        kept = LEVELS - round(self.p * LEVELS)
        drawn_here = self.training and states.device.type == "cpu" and 0 < kept < LEVELS
        if not drawn_here or torch.compiler.is_compiling():
            return super().forward(states)
        drawn = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        mask = drawn[: states.numel()].view(states.shape) < kept - LEVELS // 2  # an int16 begins at -LEVELS / 2
        return states * (mask.to(states.dtype) * (LEVELS / kept))
