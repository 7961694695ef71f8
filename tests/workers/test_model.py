from __future__ import annotations

import pytest
import torch

from workers.model import TokenTransformer


@pytest.fixture
def model() -> TokenTransformer:
    torch.manual_seed(0)
    return TokenTransformer(8, width=32, layers=3, heads=4).eval()


def padded(lengths: list[int], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    padding = torch.arange(tokens) >= torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), tokens, 8), padding


@torch.no_grad()
def test_shapes_and_attention_that_is_exactly_zero_at_padding(model: TokenTransformer) -> None:
    features, padding = padded([5, 2, 0], 5)
    logits, attention = model(features, padding)
    assert logits.shape == (3, 2) and attention.shape == (3, 3, 5)
    assert (attention[:, padding] == 0).all() and (attention[:, ~padding] > 0).all()
    assert (attention.sum(dim=-1) < 1).all()  # the rest is on CLS itself
    assert torch.isfinite(logits).all()


@torch.no_grad()
def test_what_stands_in_padding_changes_nothing(model: TokenTransformer) -> None:
    features, padding = padded([5, 2], 5)
    other = features.masked_fill(padding[:, :, None], 1e6)
    for one, two in zip(model(features, padding), model(other, padding), strict=True):
        assert torch.equal(one, two)


@torch.no_grad()
def test_a_sample_is_answered_as_it_would_be_alone(model: TokenTransformer) -> None:
    features, padding = padded([5, 2], 5)
    logits, attention = model(features, padding)
    alone_logits, alone_attention = model(features[1:, :2], padding[1:, :2])
    torch.testing.assert_close(logits[1:], alone_logits)
    torch.testing.assert_close(attention[:, 1:, :2], alone_attention)


@torch.no_grad()
def test_tokens_are_a_set(model: TokenTransformer) -> None:
    features, padding = padded([5], 5)
    order = torch.tensor([3, 1, 4, 0, 2])
    logits, attention = model(features, padding)
    moved_logits, moved_attention = model(features[:, order], padding)
    torch.testing.assert_close(logits, moved_logits)
    torch.testing.assert_close(attention[:, :, order], moved_attention)


@torch.no_grad()
def test_one_layer_is_the_encoder_of_pytorch() -> None:
    """An independent implementation with the same weights gives the same states and the same attention."""
    torch.manual_seed(0)
    ours = TokenTransformer(8, width=32, layers=1, heads=4, dropout=0.0).eval()
    theirs = torch.nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    layer = ours.layers[0]
    theirs.self_attn.in_proj_weight.copy_(layer.query_key_value.weight)
    theirs.self_attn.in_proj_bias.copy_(layer.query_key_value.bias)
    for target, source in (
        (theirs.self_attn.out_proj, layer.merge),
        (theirs.linear1, layer.forward_part[0]),
        (theirs.linear2, layer.forward_part[2]),
    ):
        target.load_state_dict(source.state_dict())
    states, hidden = torch.randn(2, 6, 32), torch.arange(6) >= torch.tensor([6, 4])[:, None]
    result, weights = layer(states, hidden)
    torch.testing.assert_close(result[~hidden], theirs(states, src_key_padding_mask=hidden)[~hidden])
    normed = layer.norm_attention(states)
    _, expected = theirs.self_attn(normed, normed, normed, key_padding_mask=hidden, average_attn_weights=False)
    torch.testing.assert_close(weights, expected)


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="width 30 cannot be divided among 4 heads"):
        TokenTransformer(8, width=30, heads=4)
