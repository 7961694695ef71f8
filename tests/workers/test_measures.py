"""Ratio, consistency and the attention loss, against values worked out by hand and against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.errors import BadInput
from workers.losses import AttentionSupervised, Classification, attention_loss
from workers.measures import Measures, log_ratio
from workers.tokens import Batch

YES, NO = True, False


def batch_of(persistent: list[list[bool]], transient: list[list[bool]], labels: list[int]) -> Batch:
    one, two = torch.tensor(persistent), torch.tensor(transient)
    return Batch(torch.zeros(*one.shape, 8), ~(one | two), one, two, torch.tensor(labels))


@pytest.fixture
def by_hand() -> tuple[Tensor, Batch]:
    """Two layers; ratios 4 and 1/2 in the last one; the third sample has no transient."""
    last = torch.tensor([[0.4, 0.4, 0.1], [0.1, 0.2, 0.3], [0.5, 0.5, 0.0]])
    first = torch.tensor([[0.1, 0.3, 0.2], [0.3, 0.2, 0.3], [0.5, 0.5, 0.0]])
    persistent = [[YES, YES, NO], [YES, YES, NO], [YES, YES, NO]]
    transient = [[NO, NO, YES], [NO, NO, YES], [NO, NO, NO]]
    return torch.stack([first, last]), batch_of(persistent, transient, [1, 0, 0])


def test_measures_worked_out_by_hand(by_hand: tuple[Tensor, Batch]) -> None:
    attention, batch = by_hand
    logits = torch.tensor([[0.0, 1], [1, 0], [0, 1]])
    measures = Measures()
    measures.add(logits, attention, batch, torch.tensor(0.6))
    result = measures.result()
    assert result["accuracy"] == pytest.approx(2 / 3) and result["loss"] == pytest.approx(0.6)
    assert result["attention_ratio"] == pytest.approx(math.sqrt(4 * 0.5))
    assert result["consistency"] == pytest.approx(1 / 2)
    assert result["attention_ratio_all_layers"] == pytest.approx(math.sqrt(0.3 / 0.15 * 0.2 / 0.3))
    assert result["consistency_all_layers"] == pytest.approx(1 / 2)
    assert (result["samples"], result["samples_with_both_kinds"]) == (3, 2)


def test_batches_of_unequal_size_weigh_by_samples(by_hand: tuple[Tensor, Batch]) -> None:
    attention, batch = by_hand
    logits = torch.tensor([[0.0, 1], [1, 0], [0, 1]])
    whole, parts = Measures(), Measures()
    whole.add(logits, attention, batch, torch.tensor((1.0 * 2 + 4.0) / 3))
    for part, loss in ((slice(0, 2), 1.0), (slice(2, 3), 4.0)):
        some = Batch(*(getattr(batch, name)[part] for name in Batch.__dataclass_fields__))
        parts.add(logits[part], attention[:, part], some, torch.tensor(loss))
    assert parts.result() == pytest.approx(whole.result())


def test_without_a_sample_of_both_kinds_there_is_no_ratio() -> None:
    batch = batch_of([[YES, YES]], [[NO, NO]], [0])
    measures = Measures()
    measures.add(torch.zeros(1, 2), torch.full((2, 1, 2), 0.5), batch, torch.tensor(1.0))
    result = measures.result()
    assert result["attention_ratio"] is None and result["consistency"] is None
    assert result["samples_with_both_kinds"] == 0


def plain_log_ratio(row: list[float], persistent: list[bool], transient: list[bool]) -> float | None:
    kinds = [[value for value, flag in zip(row, mask, strict=True) if flag] for mask in (persistent, transient)]
    if not all(kinds):
        return None
    return math.log(sum(kinds[0]) / len(kinds[0])) - math.log(sum(kinds[1]) / len(kinds[1]))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_log_ratio_and_loss_agree_with_plain_loops(data: st.DataObject) -> None:
    samples, tokens = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    values = st.lists(st.floats(0.001, 1.0), min_size=tokens, max_size=tokens)
    rows = data.draw(st.lists(values, min_size=samples, max_size=samples))
    kinds = data.draw(
        st.lists(st.lists(st.integers(0, 2), min_size=tokens, max_size=tokens), min_size=samples, max_size=samples)
    )
    persistent, transient = ([[kind == wanted for kind in row] for row in kinds] for wanted in (0, 1))
    attention = torch.tensor([rows], dtype=torch.float64)
    ratios, both = log_ratio(attention, torch.tensor(persistent), torch.tensor(transient))
    expected = [plain_log_ratio(*parts) for parts in zip(rows, persistent, transient, strict=True)]
    assert both.tolist() == [value is not None for value in expected]
    assert ratios[0].tolist() == pytest.approx([value or 0.0 for value in expected], abs=1e-9)
    counted = [(value - math.log(2.5)) ** 2 for value in expected if value is not None]
    loss = attention_loss(attention, torch.tensor(persistent), torch.tensor(transient))
    assert loss.item() == pytest.approx(sum(counted) / len(counted) if counted else 0.0, abs=1e-9)


@pytest.mark.parametrize("call", [log_ratio, attention_loss])
def test_one_mask_entry_a_batch_entry_is_refused_in_plain_words(call: Any) -> None:
    """Row 4: the attention of one batch, labels of 16 samples."""
    attention = torch.rand(2, 16, 40)
    mask = torch.zeros(16, 40, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"the persistent mask is \[16\], the attention \[2, 16, 40\]: .*\[16, 40\]"):
        call(attention, mask[:, 0], mask)
    with pytest.raises(ValueError, match=r"the transient mask is \[1, 40\]"):
        call(attention, mask, mask[:1])
    with pytest.raises(ValueError, match=r"the transient mask is torch\.float32, not bool"):
        call(attention, mask, mask.float())
    with pytest.raises(ValueError, match="the persistent mask is on cpu, the attention on meta"):
        call(attention.to("meta"), mask, mask)


def test_the_attention_loss_is_zero_at_its_target_and_bounded_on_both_sides() -> None:
    persistent, transient = torch.tensor([[YES, NO]]), torch.tensor([[NO, YES]])

    def loss(ratio: float) -> float:
        attention = torch.tensor([[[ratio / (1 + ratio), 1 / (1 + ratio)]]])
        return attention_loss(attention, persistent, transient, target=2.5).item()

    assert loss(2.5) == pytest.approx(0, abs=1e-9)
    assert loss(1.0) == pytest.approx(math.log(2.5) ** 2, rel=1e-5)
    assert loss(25.0) == pytest.approx(math.log(10) ** 2, rel=1e-5)


def test_gradients_are_finite_where_a_kind_is_missing_or_attention_is_nothing() -> None:
    attention = torch.tensor([[[0.0, 0.5, 0.5], [0.2, 0.3, 0.5]]], requires_grad=True)
    persistent = torch.tensor([[YES, NO, NO], [YES, YES, YES]])
    transient = torch.tensor([[NO, YES, NO], [NO, NO, NO]])
    attention_loss(attention, persistent, transient).backward()
    assert attention.grad is not None and torch.isfinite(attention.grad).all()
    assert (attention.grad[0, 1] == 0).all()


def test_which_layers_are_supervised(by_hand: tuple[Tensor, Batch]) -> None:
    attention, batch = by_hand
    logits = torch.zeros(3, 2)
    plain = Classification()(logits, attention, batch).item()
    per_layer = [
        attention_loss(attention[index : index + 1], batch.persistent, batch.transient).item() for index in (0, 1)
    ]
    last = AttentionSupervised(weight=2.0, layers="last")(logits, attention, batch).item()
    both = AttentionSupervised(weight=2.0)(logits, attention, batch).item()
    assert plain == pytest.approx(math.log(2))
    assert last == pytest.approx(plain + 2 * per_layer[1])
    assert both == pytest.approx(plain + 2 * sum(per_layer) / 2)


@pytest.mark.parametrize("wrong", [{"layers": "first"}, {"target": 0.0}, {"weight": -1.0}, {"target": math.nan}])
def test_settings_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        AttentionSupervised(**wrong)
