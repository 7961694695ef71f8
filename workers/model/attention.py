"""Self-attention in three kinds, each of which also says what the CLS token looked at.

softmax   scaled dot products over all tokens (Vaswani et al. 2017)
sparse    the same over a window: a token sees the tokens of its own frame and of the two beside it, CLS sees all and
          is seen by all (the sliding window with global tokens of Longformer, Beltagy et al. 2020, along time)
linear    kernel feature map elu(x) + 1, cost linear in tokens (Katharopoulos et al. 2020)

The softmax is worked out as a matrix, from which its weights are read: with as few tokens as a video has that is
quicker than a fused kernel, beside which the supervised row has to be made a second time. Linear attention makes the
rows that are asked for beside its output, from the same queries and keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, linear, pad

WINDOW = 1  # frames on either side that a token sees in sparse attention
TINY = 1e-6  # of a sum of kernel values: no division by zero

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(query [batch x heads, queries, width / heads], key and value [batch x heads, n, width / heads],
mask [batch x heads, 1 or queries, n], rows) -> mixed values [batch x heads, queries, width / heads],
weights [batch x heads, rows, n]
"""


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """`mask` is added to the scores: 0 where the row may look, -inf where not."""
    with _no_autocast(query.device):
        scale = 1 / math.sqrt(query.shape[-1])
        scores = torch.baddbmm(mask, query.float(), key.float().transpose(1, 2), alpha=scale)
    weights = scores.softmax(dim=-1)
    return torch.bmm(weights.to(value.dtype), value), weights[:, :rows]


def linear_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """phi(Q) (phi(K)^T V), normalised; `mask` is 1 where every row may look, 0 where none."""
    query, key = elu(query.float()) + 1, (elu(key.float()) + 1) * mask[:, 0, :, None]
    mixed = query @ (key.transpose(-2, -1) @ value.float())
    mixed = mixed / (query * key.sum(dim=-2, keepdim=True)).sum(dim=-1, keepdim=True).clamp(min=TINY)
    with _no_autocast(query.device):
        kernel = query[:, :rows] @ key.transpose(-2, -1)  # what each token's value is multiplied by
    return mixed.to(value.dtype), kernel / kernel.sum(dim=-1, keepdim=True).clamp(min=TINY)


def first(tokens: int, states: Tensor) -> Tensor:
    """states [batch, n, width] -> [batch, tokens, width]; no slice where all are wanted: its gradient is a copy."""
    return states if tokens == states.shape[1] else states[:, :tokens]


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Products within are in float32 where their factors are."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def all_visible(padding: Tensor, frame: Tensor) -> Tensor:
    """bool [batch, 1, 1 + tokens], True where every row may look at the column: at CLS and at each token."""
    return pad(~padding, (1, 0), value=True)[:, None]  # CLS always sees itself: no row is empty


def near_in_time(padding: Tensor, frame: Tensor) -> Tensor:
    """bool [batch, 1 + tokens, 1 + tokens]: as `all_visible`, but a token sees CLS and what is within WINDOW frames."""
    near = (frame[:, :, None] - frame[:, None, :]).abs() <= WINDOW
    return all_visible(padding, frame) & pad(near, (1, 0, 1, 0), value=True)


class Kind(NamedTuple):
    attend: Attend
    who_sees: Callable[[Tensor, Tensor], Tensor]
    unseen: float  # what stands in the mask where `who_sees` says False
    seen: float

    def mask(self, padding: Tensor, frame: Tensor, heads: int) -> Tensor:
        """padding bool and frame int64 [batch, tokens] -> float32 [batch x heads, 1 or n, n], n = 1 + tokens."""
        visible = self.who_sees(padding, frame)
        return torch.where(visible, self.seen, self.unseen).repeat_interleave(heads, dim=0)


KINDS = {
    "softmax": Kind(softmax_attention, all_visible, unseen=-math.inf, seen=0.0),
    "sparse": Kind(softmax_attention, near_in_time, unseen=-math.inf, seen=0.0),
    "linear": Kind(linear_attention, all_visible, unseen=0.0, seen=1.0),
}


class SelfAttention(nn.Module):
    """Multi-head self-attention of one of KINDS."""

    def __init__(self, width: int, heads: int, kind: str) -> None:
        super().__init__()
        self.heads = heads
        self.kind = KINDS[kind]
        self.project = nn.Linear(width, 3 * width)  # query, key and value of all heads
        self.merge = nn.Linear(width, width)

    def forward(self, states: Tensor, mask: Tensor, queries: int, rows: int) -> tuple[Tensor, Tensor]:
        """states [batch, n, width], mask [batch x heads, 1 or n, n] -> states [batch, queries, width], weights
        [batch, rows, n].

        The states are of the first `queries` tokens, the weights of the first `rows` of those, mean over heads: a row
        sums to 1 and is exactly 0 where not visible.
        """
        batch, n, width = states.shape
        if queries == n:
            query, key, value = self._by_head(self.project(states), 3)
        else:
            weight, bias = self.project.weight, self.project.bias
            (query,) = self._by_head(linear(states[:, :queries], weight[:width], bias[:width]), 1)
            key, value = self._by_head(linear(states, weight[width:], bias[width:]), 2)
        mixed, weights = self.kind.attend(query, key, value, mask[:, :queries], rows)
        mixed = mixed.view(batch, self.heads, queries, -1).transpose(1, 2).reshape(batch, queries, width)
        return self.merge(mixed), weights.view(batch, self.heads, rows, n).mean(dim=1)

    def _by_head(self, projected: Tensor, kinds: int) -> Tensor:
        """[batch, n, kinds x width] -> [kinds, batch x heads, n, width / heads]."""
        batch, n, _ = projected.shape
        return projected.view(batch, n, kinds, self.heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
