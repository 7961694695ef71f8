"""Self-attention of three kinds. Each also returns the attention weights of the CLS token.

softmax   scaled dot products over all tokens (Vaswani et al. 2017)
sparse    the same within a window: a token sees the tokens of its own frame and of the two next to it; CLS sees every
          token and every token sees CLS (the sliding window with global tokens of Longformer, Beltagy et al. 2020)
linear    kernel feature map elu(x) + 1, cost linear in the number of tokens (Katharopoulos et al. 2020)

Softmax attention is computed as a matrix, because its weights are supervised: with the few tokens of a video this is
faster than a fused kernel plus a second computation of the supervised row.
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
TINY = 1e-6  # minimum sum of kernel values, to avoid a division by zero

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(query [batch x heads, queries, width / heads], key and value [batch x heads, n, width / heads],
mask [batch x heads, 1 or queries, n], rows) -> mixed values [batch x heads, queries, width / heads],
weights [batch x heads, rows, n]
"""


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Attend by softmax (shapes: `Attend`). `mask` is added to the scores: 0 where visible, -inf elsewhere."""
    with _no_autocast(query.device):
        scale = 1 / math.sqrt(query.shape[-1])
        scores = torch.baddbmm(mask, query.float(), key.float().transpose(1, 2), alpha=scale)
    weights = scores.softmax(dim=-1)
    return torch.bmm(weights.to(value.dtype), value), weights[:, :rows]


def linear_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Compute phi(Q) (phi(K)^T V), normalised (shapes: `Attend`). `mask` is 1 where visible to all rows, else 0."""
    query, key = elu(query.float()) + 1, (elu(key.float()) + 1) * mask[:, 0, :, None]
    mixed = query @ (key.transpose(-2, -1) @ value.float())
    mixed = mixed / (query * key.sum(dim=-2, keepdim=True)).sum(dim=-1, keepdim=True).clamp(min=TINY)
    with _no_autocast(query.device):
        kernel = query[:, :rows] @ key.transpose(-2, -1)  # the factor of each token's value
    return mixed.to(value.dtype), kernel / kernel.sum(dim=-1, keepdim=True).clamp(min=TINY)


def first_tokens(tokens: int, states: Tensor) -> Tensor:
    """Return states [batch, :tokens, width]. If these are all tokens, do not slice: a slice's gradient is a copy."""
    return states if tokens == states.shape[1] else states[:, :tokens]


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Compute products in float32 if their factors are float32."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def all_visible(padding: Tensor, frame: Tensor) -> Tensor:
    """Return bool [batch, 1, 1 + tokens]: True for CLS and for each token that is not padding."""
    return pad(~padding, (1, 0), value=True)[:, None]  # every row sees CLS, so that no row is empty


def near_in_time(padding: Tensor, frame: Tensor) -> Tensor:
    """Return bool [batch, 1 + tokens, 1 + tokens]: as `all_visible`, but tokens see only WINDOW frames around them."""
    near = (frame[:, :, None] - frame[:, None, :]).abs() <= WINDOW
    return all_visible(padding, frame) & pad(near, (1, 0, 1, 0), value=True)


class Kind(NamedTuple):
    """One kind of attention: how it attends, which tokens see which, and how its mask encodes that."""

    attend: Attend
    visible: Callable[[Tensor, Tensor], Tensor]
    hidden_value: float  # in the mask, where `visible` is False
    visible_value: float

    def mask(self, padding: Tensor, frame: Tensor, heads: int) -> Tensor:
        """Return the mask of a batch.

        Args:
            padding: bool [batch, tokens].
            frame: int64 [batch, tokens].
            heads: how many heads share the mask.

        Returns:
            float32 [batch x heads, 1 or n, n], with n = 1 + tokens.
        """
        visible = self.visible(padding, frame)
        return torch.where(visible, self.visible_value, self.hidden_value).repeat_interleave(heads, dim=0)


KINDS = {
    "softmax": Kind(softmax_attention, all_visible, hidden_value=-math.inf, visible_value=0.0),
    "sparse": Kind(softmax_attention, near_in_time, hidden_value=-math.inf, visible_value=0.0),
    "linear": Kind(linear_attention, all_visible, hidden_value=0.0, visible_value=1.0),
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
        """Attend from the first tokens to all tokens.

        Args:
            states: [batch, n, width].
            mask: [batch x heads, 1 or n, n], from `Kind.mask`.
            queries: for how many tokens, from the first, to compute the new state.
            rows: for how many of those to return the weights.

        Returns:
            States [batch, queries, width] and weights [batch, rows, n], the mean over heads. A row of weights sums
            to 1 and is exactly 0 where nothing is visible.
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

    def _by_head(self, projected: Tensor, parts: int) -> Tensor:
        """[batch, n, parts x width] -> [parts, batch x heads, n, width / heads]."""
        batch, n, _ = projected.shape
        return projected.view(batch, n, parts, self.heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
