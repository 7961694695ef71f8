"""A Transformer over object tokens that says what it looked at.

Pre-norm encoder layers over a CLS token and the object tokens; the last state of CLS is classified. Beside the class
each token says what its own object is and whether its frame shows a transient, and where the model is made for it,
each frame says whether it shows one, and where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from workers.common.errors import BadInput
from workers.dataset.scenes import FRAMES
from workers.model.attention import KINDS, SelfAttention, first
from workers.model.dropout import Dropout

CLASSES = 2


@dataclass(frozen=True)
class Architecture:
    """What a model is made of. Its repr is in every checkpoint."""

    width: int = 64
    hidden: int = 64  # width of the feed-forward parts
    layers: int = 3
    heads: int = 4
    dropout: float = 0.1
    attention: str = "softmax"  # one of attention.KINDS
    locate: bool = False  # also say for each frame whether it shows a transient, and where

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise BadInput(f"width {self.width} cannot be divided among {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise BadInput(f"the dropout {self.dropout} is not from 0 to below 1")
        if self.attention not in KINDS:
            raise BadInput(f"there is no attention {self.attention!r}; there is {', '.join(KINDS)}")


class ModelOutput(NamedTuple):
    """What the model says of a batch; everything but `logits` and `located` is by token, in the batch's order.

    Where tokens were not asked for, `persistent` and `shows` are [batch, 0] and `located` is None.
    """

    logits: Tensor  # [batch, 2]
    attention: Tensor  # [layers, batch, tokens]: the row of CLS, mean over heads, without CLS; exactly 0 at padding
    persistent: Tensor  # [batch, tokens], logits: is the token's object persistent?
    shows: Tensor  # [batch, tokens], logits: does the token's frame show a transient?
    located: Tensor | None  # [batch, frames, 5]: logit that the frame shows a transient; its box, 0 to 1
    matrices: Tensor | None  # [layers, batch, 1 + tokens, 1 + tokens]: every row, where they were asked for


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each on the normalised input and added to it."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float, attention: str = "softmax") -> None:
        super().__init__()
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = SelfAttention(width, heads, attention)
        self.forward_part = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.dropout = Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor, queries: int, rows: int) -> tuple[Tensor, Tensor]:
        """states [batch, n, width], mask [batch x heads, 1 or n, n] -> states [batch, queries, width] of the first
        tokens, and weights [batch, rows, n]: what becomes of the other tokens is not worked out.
        """
        mixed, weights = self.attend(self.norm_attention(states), mask, queries, rows)
        states = first(queries, states) + self.dropout(mixed)
        return states + self.dropout(self.forward_part(self.norm_forward(states))), weights


class FrameQueries(nn.Module):
    """One learned query a frame reads the tokens' states and says whether the frame shows a transient, and where.

    The idea is DETR's (Carion et al. 2020), with the frames in the place of its object slots.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(FRAMES, width) * 0.5)
        self.read = nn.MultiheadAttention(width, heads, batch_first=True)
        self.say = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5))

    def forward(self, states: Tensor, hidden: Tensor) -> Tensor:
        """states [batch, n, width], hidden bool [batch, n] (True: not to be read) -> [batch, frames, 5]."""
        queries = self.queries.expand(len(states), -1, -1)
        read, _ = self.read(queries, states, states, key_padding_mask=hidden, need_weights=False)
        shows, box = self.say(queries + read).split([1, 4], dim=-1)
        return torch.cat([shows, box.sigmoid()], dim=-1)


class TokenTransformer(nn.Module):
    """Object tokens -> class, with the attention of CLS on each token in each layer."""

    def __init__(self, features: int, architecture: Architecture | None = None) -> None:
        super().__init__()
        made = self.architecture = architecture or Architecture()
        self.embed = nn.Sequential(nn.Linear(features, made.width), nn.ReLU(), nn.Linear(made.width, made.width))
        # Learned, so that "the same frame" is one dot product; a scalar time has to be unfolded first.
        self.time = nn.Embedding(FRAMES, made.width)
        nn.init.normal_(self.time.weight, std=0.5)
        self.cls = nn.Parameter(torch.randn(1, 1, made.width) * 0.02)
        self.layers = nn.ModuleList(
            EncoderLayer(made.width, made.hidden, made.heads, made.dropout, made.attention) for _ in range(made.layers)
        )
        self.norm = nn.LayerNorm(made.width)
        self.classify = nn.Linear(made.width, CLASSES)
        self.describe = nn.Linear(made.width, 2)
        self.locate = FrameQueries(made.width, made.heads) if made.locate else None

    def forward(
        self, features: Tensor, padding: Tensor, frame: Tensor, every_row: bool = False, tokens: bool = True
    ) -> ModelOutput:
        """features [batch, tokens, features], padding bool and frame int64 (-1 at padding) [batch, tokens].

        `every_row` asks for everything. Without it and without `tokens` nothing is said of tokens and frames, and the
        last layer works out the state of CLS alone.
        """
        of_tokens = self.embed(features) + self.time(frame.clamp(min=0))
        states = torch.cat([self.cls.expand(len(features), -1, -1), of_tokens], dim=1)
        mask = KINDS[self.architecture.attention].mask(padding, frame, self.architecture.heads)
        everything, n = tokens or every_row, states.shape[1]
        weights = []
        for layer in self.layers:
            queries = n if everything or layer is not self.layers[-1] else 1
            states, looked_at = layer(states, mask, queries, n if every_row else 1)
            weights.append(looked_at)
        states, rows = self.norm(states), torch.stack(weights)
        persistent, shows = self.describe(states[:, 1:]).unbind(dim=-1)
        located = self.locate(states, pad(padding, (1, 0))) if self.locate is not None and everything else None
        attention, matrices = rows[:, :, 0, 1:], rows if every_row else None
        return ModelOutput(self.classify(states[:, 0]), attention, persistent, shows, located, matrices)
