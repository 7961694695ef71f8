from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from workers.common.errors import BadInput
from workers.model.attention import KINDS, SelfAttention
from workers.model.transformer import Architecture, EncoderLayer, ModelOutput, TokenTransformer

Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> TokenTransformer:
    torch.manual_seed(0)
    return TokenTransformer(8, Architecture(width=32, layers=3, attention=request.param, locate=True)).eval()


def padded(lengths: list[int], tokens: int) -> Inputs:
    """Features, padding and frames of samples with these numbers of tokens."""
    torch.manual_seed(1)
    padding = torch.arange(tokens) >= torch.tensor(lengths)[:, None]
    frame = (torch.arange(tokens) * 2).expand(len(lengths), -1).masked_fill(padding, -1)
    return torch.randn(len(lengths), tokens, 8), padding, frame


def tensors(output: ModelOutput) -> list[Tensor]:
    return [part for part in output if part is not None]


@torch.no_grad()
def test_output_has_the_documented_shapes_and_no_attention_at_padding(model: TokenTransformer) -> None:
    features, padding, frame = padded([5, 2, 0], 5)
    output = model(features, padding, frame, every_row=True)
    assert output.logits.shape == (3, 2) and output.attention.shape == (3, 3, 5)
    assert output.persistent.shape == output.shows.shape == (3, 5)
    assert output.located is not None and output.located.shape == (3, 16, 5)
    assert output.matrices is not None and output.matrices.shape == (3, 3, 6, 6)
    assert (output.attention[:, padding] == 0).all() and (output.attention[:, ~padding] > 0).all()
    assert (output.attention.sum(dim=-1) < 1).all()  # the rest is on CLS itself
    torch.testing.assert_close(output.matrices.sum(dim=-1), torch.ones(3, 3, 6))
    assert all(torch.isfinite(part).all() for part in tensors(output))


@torch.no_grad()
def test_the_cls_row_is_the_same_with_and_without_the_other_rows(model: TokenTransformer) -> None:
    inputs = padded([5, 2], 5)
    alone, every = model(*inputs), model(*inputs, every_row=True)
    assert alone.matrices is None
    torch.testing.assert_close(alone.attention, every.attention)
    torch.testing.assert_close(every.matrices[:, :, 0, 1:], every.attention)


@torch.no_grad()
def test_features_at_padding_change_nothing(model: TokenTransformer) -> None:
    features, padding, frame = padded([5, 2], 5)
    other = features.masked_fill(padding[:, :, None], 1e6)
    one, two = model(features, padding, frame), model(other, padding, frame)
    for name in ("logits", "attention", "located"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert torch.equal(one.shows[~padding], two.shows[~padding])


@torch.no_grad()
def test_a_sample_gets_the_same_output_alone_and_in_a_batch(model: TokenTransformer) -> None:
    features, padding, frame = padded([5, 2], 5)
    together, alone = model(features, padding, frame), model(features[1:, :2], padding[1:, :2], frame[1:, :2])
    torch.testing.assert_close(together.logits[1:], alone.logits)
    torch.testing.assert_close(together.attention[:, 1:, :2], alone.attention)
    torch.testing.assert_close(together.located[1:], alone.located)


@torch.no_grad()
def test_the_order_of_tokens_does_not_matter(model: TokenTransformer) -> None:
    features, padding, frame = padded([5], 5)
    order = torch.tensor([3, 1, 4, 0, 2])
    one, other = model(features, padding, frame), model(features[:, order], padding, frame[:, order])
    torch.testing.assert_close(one.logits, other.logits)
    torch.testing.assert_close(one.attention[:, :, order], other.attention)
    torch.testing.assert_close(one.shows[:, order], other.shows)


@torch.no_grad()
def test_one_layer_equals_the_encoder_layer_of_pytorch() -> None:
    """An independent implementation with the same weights gives the same states and the same attention."""
    torch.manual_seed(0)
    layer = EncoderLayer(32, 48, 4, dropout=0.0).eval()
    theirs = torch.nn.TransformerEncoderLayer(32, 4, 48, 0.0, "relu", batch_first=True, norm_first=True)
    theirs.self_attn.in_proj_weight.copy_(layer.attend.project.weight)
    theirs.self_attn.in_proj_bias.copy_(layer.attend.project.bias)
    for target, source in (
        (theirs.self_attn.out_proj, layer.attend.merge),
        (theirs.linear1, layer.forward_part[0]),
        (theirs.linear2, layer.forward_part[2]),
    ):
        target.load_state_dict(source.state_dict())
    states, hidden = torch.randn(2, 6, 32), torch.arange(6) >= torch.tensor([6, 4])[:, None]
    mask = KINDS["softmax"].mask(hidden[:, 1:], torch.zeros(2, 5, dtype=torch.int64), heads=4)
    result, weights = layer(states, mask, queries=6, rows=6)
    torch.testing.assert_close(result[~hidden], theirs(states, src_key_padding_mask=hidden)[~hidden])
    normed = layer.norm_attention(states)
    _, expected = theirs.self_attn(normed, normed, normed, key_padding_mask=hidden)
    torch.testing.assert_close(weights, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_returned_weights_are_those_that_mix_the_values(kind: str) -> None:
    """Linear attention computes its output without the matrix, so it is compared with that of the matrix."""
    torch.manual_seed(0)
    attend = SelfAttention(16, heads=1, kind=kind)
    _, padding, frame = padded([5, 3], 5)
    states, mask = torch.randn(2, 6, 16), KINDS[kind].mask(padding, frame, heads=1)
    mixed, weights = attend(states, mask, queries=6, rows=6)
    value = attend.project(states)[:, :, 32:]
    torch.testing.assert_close(mixed, attend.merge(weights @ value))


@pytest.mark.parametrize("training", [False, True])
def test_class_and_attention_are_the_same_without_tokens(model: TokenTransformer, training: bool) -> None:
    """So are the gradients of the class: the last layer only omits what is not read (apart from dropout)."""
    inputs = padded([5, 2, 0], 5)
    gradients, outputs = [], []
    for module in model.modules():
        module.train(training and not isinstance(module, nn.Dropout))
    for tokens in (True, False):
        output = model(*inputs, tokens=tokens)
        model.zero_grad()
        output.logits.sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        outputs.append(output)
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    torch.testing.assert_close(outputs[0].attention, outputs[1].attention)
    assert outputs[1].persistent.shape == outputs[1].shows.shape == (3, 0)
    assert outputs[1].located is None and outputs[1].matrices is None
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


@torch.no_grad()
def test_every_row_returns_everything(model: TokenTransformer) -> None:
    output = model(*padded([5, 2], 5), every_row=True, tokens=False)
    assert output.shows.shape == (2, 5) and output.located is not None and output.matrices is not None


def test_sparse_attention_sees_neighbouring_frames_and_cls() -> None:
    frame, padding = torch.tensor([[0, 0, 1, 2, 9, -1]]), torch.tensor([[False] * 5 + [True]])
    seen = (KINDS["sparse"].mask(padding, frame, heads=2)[1] == 0).int().tolist()
    assert seen[:6] == [
        [1, 1, 1, 1, 1, 1, 0],  # CLS
        [1, 1, 1, 1, 0, 0, 0],  # frame 0
        [1, 1, 1, 1, 0, 0, 0],  # frame 0
        [1, 1, 1, 1, 1, 0, 0],  # frame 1
        [1, 0, 0, 1, 1, 0, 0],  # frame 2
        [1, 0, 0, 0, 0, 1, 0],  # frame 9
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 30}, "the width 30 is not a multiple of the 4 heads"),
        ({"dropout": 1.0}, r"the dropout is 1\.0, but must be at least 0 and below 1"),
        ({"attention": "flash"}, "unknown attention 'flash'; choose one of softmax, sparse, linear"),
    ],
)
def test_an_impossible_architecture_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Architecture(**wrong)  # type: ignore[arg-type]
