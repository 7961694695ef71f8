"""A Transformer over object tokens that also returns its attention.

Pre-norm encoder layers run over a CLS token and the object tokens, and the last state of CLS is classified. From each
token's last state the model also predicts whether its object is persistent and whether its frame shows a transient.
With `locate` it predicts for each frame whether it shows a transient object, and where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from workers.common.errors import BadInput
from workers.model.attention import KINDS, SelfAttention, first_tokens

CLASSES = 2


@dataclass(frozen=True)
class Architecture:
    """The sizes and parts of a model. Every field must stay the same when a run resumes."""

    width: int = 64
    hidden: int = 64  # width of the feed-forward parts
    layers: int = 3
    heads: int = 4
    dropout: float = 0.1
    attention: str = "softmax"  # one of attention.KINDS
    locate: bool = False  # also predict for each frame whether it shows a transient object, and where

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise BadInput(f"the width {self.width} is not a multiple of the {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise BadInput(f"the dropout is {self.dropout}, but must be at least 0 and below 1")
        if self.attention not in KINDS:
            raise BadInput(f"unknown attention {self.attention!r}; choose one of {', '.join(KINDS)}")


class ModelOutput(NamedTuple):
    """The predictions for a batch. All but `logits` and `located` are per token, in the order of the batch.

    If tokens were not requested, `persistent` and `shows` are [batch, 0] and `located` is None.
    """

    logits: Tensor  # [batch, 2]
    attention: Tensor  # [layers, batch, tokens]: the CLS row, mean over heads, without CLS; exactly 0 at padding
    persistent: Tensor  # [batch, tokens], logits: is the token's object persistent?
    shows: Tensor  # [batch, tokens], logits: does the token's frame show a transient?
    located: Tensor | None  # [batch, frames, 5]: logit that the frame shows a transient; its box, 0 to 1
    matrices: Tensor | None  # [layers, batch, 1 + tokens, 1 + tokens]: every row, if requested


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each applied to the normalised input and added to it."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float, attention: str = "softmax") -> None:
        super().__init__()
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = SelfAttention(width, heads, attention)
        self.forward_part = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor, queries: int, rows: int) -> tuple[Tensor, Tensor]:
        """Return the new states of the first `queries` tokens, and attention weights.

        Args and shapes are those of `SelfAttention.forward`.
        """
        mixed, weights = self.attend(self.norm_attention(states), mask, queries, rows)
        states = first_tokens(queries, states) + self.dropout(mixed)
        return states + self.dropout(self.forward_part(self.norm_forward(states))), weights


class FrameQueries(nn.Module):
    """Predict for each frame whether it shows a transient object, and where, with one learned query per frame.

    The idea is that of DETR (Carion et al. 2020), with frames instead of object slots.
    """

    def __init__(self, width: int, heads: int, frames: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(frames, width) * 0.5)
        self.read = nn.MultiheadAttention(width, heads, batch_first=True)
        self.say = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5))

    def forward(self, states: Tensor, hidden: Tensor) -> Tensor:
        """Read the tokens' states.

        Args:
            states: [batch, n, width].
            hidden: bool [batch, n], True for tokens that must not be read.

        Returns:
            [batch, frames, 5]: the logit that the frame shows a transient, and its box from 0 to 1.
        """
        queries = self.queries.expand(len(states), -1, -1)
        read, _ = self.read(queries, states, states, key_padding_mask=hidden, need_weights=False)
        shows, box = self.say(queries + read).split([1, 4], dim=-1)
        return torch.cat([shows, box.sigmoid()], dim=-1)


class TokenTransformer(nn.Module):
    """Predict the class of a video from its object tokens."""

    def __init__(self, features: int, architecture: Architecture | None = None, frames: int = 16) -> None:
        """Create a model with new weights.

        Args:
            features: numbers per token.
            architecture: sizes and parts; the default ones if missing.
            frames: frames per video.
        """
        super().__init__()
        parts = self.architecture = architecture or Architecture()
        self.embed = nn.Sequential(nn.Linear(features, parts.width), nn.ReLU(), nn.Linear(parts.width, parts.width))
        # A learned embedding makes "the same frame" one dot product.
        self.time = nn.Embedding(frames, parts.width)
        nn.init.normal_(self.time.weight, std=0.5)
        self.cls = nn.Parameter(torch.randn(1, 1, parts.width) * 0.02)
        self.layers = nn.ModuleList(
            EncoderLayer(parts.width, parts.hidden, parts.heads, parts.dropout, parts.attention)
            for _ in range(parts.layers)
        )
        self.norm = nn.LayerNorm(parts.width)
        self.classify = nn.Linear(parts.width, CLASSES)
        self.describe = nn.Linear(parts.width, 2)
        self.locate = FrameQueries(parts.width, parts.heads, frames) if parts.locate else None

    def forward(
        self, features: Tensor, padding: Tensor, frame: Tensor, every_row: bool = False, tokens: bool = True
    ) -> ModelOutput:
        """Predict a batch.

        Args:
            features: float32 [batch, tokens, features].
            padding: bool [batch, tokens], True where there is no token.
            frame: int64 [batch, tokens], -1 at padding.
            every_row: return the attention of every token, and everything else.
            tokens: also predict tokens and frames. If False, the last layer computes the state of CLS alone.
        """
        of_tokens = self.embed(features) + self.time(frame.clamp(min=0))
        states = torch.cat([self.cls.expand(len(features), -1, -1), of_tokens], dim=1)
        mask = KINDS[self.architecture.attention].mask(padding, frame, self.architecture.heads)
        everything, n = tokens or every_row, states.shape[1]
        weights = []
        for layer in self.layers:
            queries = n if everything or layer is not self.layers[-1] else 1
            states, layer_weights = layer(states, mask, queries, n if every_row else 1)
            weights.append(layer_weights)
        states, rows = self.norm(states), torch.stack(weights)
        persistent, shows = self.describe(states[:, 1:]).unbind(dim=-1)
        located = self.locate(states, pad(padding, (1, 0))) if self.locate is not None and everything else None
        attention, matrices = rows[:, :, 0, 1:], rows if every_row else None
        return ModelOutput(self.classify(states[:, 0]), attention, persistent, shows, located, matrices)
