"""A Transformer over object tokens that says what it looked at.

Pre-norm encoder layers with an explicit softmax, so that the weights which are supervised and measured are the ones
that were used. A CLS token is put before the object tokens; its last state is classified.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

CLASSES = 2


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each on the normalised input and added to it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.forward_part = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """states [batch, n, width], hidden bool [batch, n] (True: not to be looked at) -> states, [batch, heads, n, n].

        The weights are those before dropout: each row sums to 1 and is exactly 0 where hidden.
        """
        mixed, weights = self._attend(self.norm_attention(states), hidden)
        states = states + self.dropout(mixed)
        return states + self.dropout(self.forward_part(self.norm_forward(states))), weights

    def _attend(self, states: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        batch, n, width = states.shape
        split = self.query_key_value(states).view(batch, n, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [batch, heads, n, width / heads]
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        weights = scores.masked_fill(hidden[:, None, None, :], -math.inf).softmax(dim=-1)
        mixed = self.dropout(weights) @ value
        return self.merge(mixed.transpose(1, 2).reshape(batch, n, width)), weights


class TokenTransformer(nn.Module):
    """Object tokens -> class, with the attention of CLS on each token in each layer."""

    def __init__(self, features: int, width: int = 64, layers: int = 2, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be divided among {heads} heads")
        self.embed = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))
        self.cls = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, CLASSES)

    def forward(self, features: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """features [batch, tokens, features], padding bool [batch, tokens] -> logits [batch, 2], attention.

        attention [layers, batch, tokens]: the row of CLS without its own column, mean over heads; exactly 0 at padding.
        """
        states = torch.cat([self.cls.expand(len(features), -1, -1), self.embed(features)], dim=1)
        hidden = torch.cat([torch.zeros_like(padding[:, :1]), padding], dim=1)  # CLS always sees itself: no empty row
        rows = []
        for layer in self.layers:
            states, weights = layer(states, hidden)
            rows.append(weights[:, :, 0, 1:].mean(dim=1))
        return self.classify(self.norm(states[:, 0])), torch.stack(rows)
