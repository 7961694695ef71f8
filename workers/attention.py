"""Self-attention in three kinds, each of which also says what the CLS token looked at.

softmax   scaled dot products over all tokens (Vaswani et al. 2017)
sparse    the same over a window: a token sees the tokens of its own frame and of the two beside it, CLS sees all and
          is seen by all (the sliding window with global tokens of Longformer, Beltagy et al. 2020, along time)
linear    kernel feature map elu(x) + 1, cost linear in tokens (Katharopoulos et al. 2020)

Outputs never go through a matrix of weights; the one row that is supervised and measured is worked out beside them
from the same queries and keys. The whole matrix is made on request alone, for rollout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, scaled_dot_product_attention

WINDOW = 1  # frames on either side that a token sees in sparse attention
TINY = 1e-6  # of a sum of kernel values: no division by zero

Mix = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(query, key, value [batch, heads, n, width / heads], visible) -> [batch, heads, n, width / heads]"""
Weigh = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query [batch, heads, rows, ...], key [batch, heads, n, ...], visible) -> weights [batch, heads, rows, n]"""


def softmax_mix(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=visible[:, None])


def softmax_weights(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    scores = _products(query, key) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~visible[:, None], -math.inf).softmax(dim=-1)


def linear_mix(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """phi(Q) (phi(K)^T V), normalised; the same tokens are visible from every row."""
    query, key = elu(query.float()) + 1, (elu(key.float()) + 1) * visible[:, None, 0, :, None]
    mixed = query @ (key.transpose(-2, -1) @ value.float())
    return (mixed / (query * key.sum(dim=-2, keepdim=True)).sum(dim=-1, keepdim=True).clamp(min=TINY)).to(value.dtype)


def linear_weights(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    """The normalised kernel values: what each token's value is multiplied by in `linear_mix`."""
    kernel = _products(elu(query.float()) + 1, elu(key.float()) + 1) * visible[:, None]
    return kernel / kernel.sum(dim=-1, keepdim=True).clamp(min=TINY)


def _products(query: Tensor, key: Tensor) -> Tensor:
    """[..., rows, width], [..., n, width] -> [..., rows, n] in float32, also where autocast would make it bfloat16."""
    kind = query.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        return query.float() @ key.float().transpose(-2, -1)


def all_visible(padding: Tensor, frame: Tensor) -> Tensor:
    """[batch, 1 + tokens, 1 + tokens], True where the row may look at the column: at CLS and at each token."""
    shown = nn.functional.pad(~padding, (1, 0), value=True)  # CLS always sees itself: no row is empty
    return shown[:, None, :].expand(-1, shown.shape[1], -1)


def near_in_time(padding: Tensor, frame: Tensor) -> Tensor:
    """As `all_visible`, but a token sees CLS and the tokens within WINDOW frames of its own."""
    near = (frame[:, :, None] - frame[:, None, :]).abs() <= WINDOW
    window = nn.functional.pad(near, (1, 0, 1, 0), value=True)
    return all_visible(padding, frame) & window


class Kind(NamedTuple):
    mix: Mix
    weigh: Weigh
    who_sees: Callable[[Tensor, Tensor], Tensor]


KINDS = {
    "softmax": Kind(softmax_mix, softmax_weights, all_visible),
    "sparse": Kind(softmax_mix, softmax_weights, near_in_time),
    "linear": Kind(linear_mix, linear_weights, all_visible),
}


class SelfAttention(nn.Module):
    """Multi-head self-attention of one of KINDS."""

    def __init__(self, width: int, heads: int, kind: str) -> None:
        super().__init__()
        self.heads = heads
        self.kind = KINDS[kind]
        self.query_key_value = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)

    def forward(self, states: Tensor, visible: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """states [batch, n, width], visible bool [batch, n, n] -> mixed states, weights [batch, rows, n].

        The weights are of the first `rows` rows, mean over heads: a row sums to 1 and is exactly 0 where not visible.
        """
        batch, n, width = states.shape
        split = self.query_key_value(states).view(batch, n, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = self.kind.mix(query, key, value, visible).transpose(1, 2).reshape(batch, n, width)
        weights = self.kind.weigh(query[:, :, :rows], key, visible[:, :rows])
        return self.merge(mixed), weights.mean(dim=1)
