"""Each term of the loss, compared with values computed by hand and with plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.workers.attentions import Attention, attentions
from workers.common.errors import BadInput
from workers.model.transformer import ModelOutput
from workers.perception.batching import Batch, Packed, collate
from workers.perception.boxes import frame_boxes
from workers.training.losses import Objective, attention_term, class_term, mean, shows_term

YES, NO = True, False


def value(term: tuple[Tensor, Tensor]) -> float:
    return float(mean(torch.stack([term[0]]), torch.stack([term[1]])))


@pytest.fixture
def batch(samples: dict[str, Packed]) -> Batch:
    return collate(samples["train"][:6])


@pytest.fixture
def output(batch: Batch) -> ModelOutput:
    torch.manual_seed(0)
    tokens, count = batch.padding.shape[1], len(batch)
    attention = torch.rand(3, count, tokens) * ~batch.padding
    parts = torch.randn(count, 2), attention, torch.randn(count, tokens), torch.randn(count, tokens)
    return ModelOutput(*parts, located=torch.rand(count, 16, 5), matrices=None)


def plain(row: list[float], persistent: list[bool], transient: list[bool]) -> float | None:
    kinds = [[value for value, flag in zip(row, mask, strict=True) if flag] for mask in (persistent, transient)]
    if not all(kinds):
        return None
    ratio = (sum(kinds[0]) / len(kinds[0])) / (sum(kinds[1]) / len(kinds[1]))
    return (math.log(ratio) - math.log(2.5)) ** 2


@given(attentions())
@settings(max_examples=60, deadline=None)
def test_the_attention_term_agrees_with_plain_loops(attention: Attention) -> None:
    rows, persistent, transient = attention
    weights = torch.tensor([rows], dtype=torch.float64)
    expected = [plain(*parts) for parts in zip(rows, persistent, transient, strict=True)]
    counted = [distance for distance in expected if distance is not None]
    total, count = attention_term(weights, torch.tensor(persistent), torch.tensor(transient))
    assert count == len(counted)
    assert value((total, count)) == pytest.approx(sum(counted) / len(counted) if counted else 0.0, abs=1e-9)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the persistent mask is \[16\], the attention \[2, 16, 40\]"):
        attention_term(torch.rand(2, 16, 40), torch.zeros(16, dtype=torch.bool), torch.zeros(16, 40, dtype=torch.bool))


def test_the_attention_term_is_zero_at_its_target_and_grows_on_both_sides() -> None:
    persistent, transient = torch.tensor([[YES, NO]]), torch.tensor([[NO, YES]])

    def loss(ratio: float) -> float:
        attention = torch.tensor([[[ratio / (1 + ratio), 1 / (1 + ratio)]]])
        return value(attention_term(attention, persistent, transient, target=2.5))

    assert loss(2.5) == pytest.approx(0, abs=1e-9)
    assert loss(1.0) == pytest.approx(math.log(2.5) ** 2, rel=1e-5)
    assert loss(25.0) == pytest.approx(math.log(10) ** 2, rel=1e-5)


def test_gradients_are_finite_without_a_kind_or_without_attention() -> None:
    attention = torch.tensor([[[0.0, 0.5, 0.5], [0.2, 0.3, 0.5]]], requires_grad=True)
    persistent = torch.tensor([[YES, NO, NO], [YES, YES, YES]])
    transient = torch.tensor([[NO, YES, NO], [NO, NO, NO]])
    attention_term(attention, persistent, transient)[0].backward()
    assert attention.grad is not None and torch.isfinite(attention.grad).all()
    assert (attention.grad[0, 1] == 0).all()


def test_attention_is_supervised_in_all_layers_or_the_last(output: ModelOutput, batch: Batch) -> None:
    plain = value(class_term(output.logits, batch.labels))
    layers = [
        value(attention_term(output.attention[index : index + 1], batch.persistent, batch.transient))
        for index in range(3)
    ]
    assert float(mean(*Objective()(output, batch))) == pytest.approx(plain)
    last = Objective(attention=2.0, layers="last")(output, batch)
    assert float(mean(*last)) == pytest.approx(plain + 2 * layers[2], rel=1e-5)
    every = Objective(attention=2.0)(output, batch)
    assert float(mean(*every)) == pytest.approx(plain + 2 * sum(layers) / 3, rel=1e-5)


def test_each_token_predicts_whether_its_own_frame_shows_a_transient(output: ModelOutput, batch: Batch) -> None:
    losses = [
        binary_cross_entropy_with_logits(output.shows[row, token], batch.frame_labels[row, frame].float())
        for row in range(len(batch))
        for token, frame in enumerate(batch.frame[row].tolist())
        if frame >= 0
    ]
    assert value(shows_term(output.shows, batch)) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_the_box_of_a_frame_contains_all_its_transients(batch: Batch) -> None:
    boxes, there = frame_boxes(batch)
    assert there.any() and not there.all()
    for row in range(len(batch)):
        for frame in range(16):
            inside = batch.boxes[row][batch.transient[row] & (batch.frame[row] == frame)]
            assert bool(there[row, frame]) == (len(inside) > 0)
            expected = torch.cat([inside[:, :2].amin(0), inside[:, 2:].amax(0)]) if len(inside) else torch.zeros(4)
            assert torch.equal(boxes[row, frame], expected)


def test_parts_of_a_batch_add_up_to_the_loss_of_the_whole(output: ModelOutput, batch: Batch) -> None:
    """Several processes rely on this: sums and counts add up, means do not."""
    objective = Objective(attention=1.0, persistent=0.5, shows=1.0, located=1.0)
    whole = objective(output, batch)
    assert output.located is not None
    parts = []
    for part in (slice(0, 1), slice(1, 6)):
        some = Batch(**{name: getattr(batch, name)[part] for name in Batch.__dataclass_fields__})
        said = ModelOutput(
            logits=output.logits[part],
            attention=output.attention[:, part],
            persistent=output.persistent[part],
            shows=output.shows[part],
            located=output.located[part],
            matrices=None,
        )
        parts.append(objective(said, some))
    sums, counts = (torch.stack(each).sum(dim=0) for each in zip(*parts, strict=True))
    torch.testing.assert_close(mean(sums, counts), mean(*whole))
    assert len(sums) == 6


@pytest.mark.parametrize(
    "wrong", [{"layers": "first"}, {"target": 0.0}, {"attention": -1.0}, {"target": math.nan}, {"shows": math.inf}]
)
def test_invalid_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Objective(**wrong)
