"""Ratio, consistency and rollout, compared with values computed by hand and with plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.workers.attentions import Attention, attentions
from workers.evaluation.metrics import MetricSums, log_ratio, rollout
from workers.model.transformer import ModelOutput
from workers.perception.batching import Batch
from workers.perception.boxes import predicted_iou

YES, NO = True, False
NO_TERMS = torch.zeros(1), torch.zeros(1)


def batch_of(persistent: list[list[bool]], transient: list[list[bool]], labels: list[int]) -> Batch:
    one, two = torch.tensor(persistent), torch.tensor(transient)
    nowhere, unlabelled = torch.zeros(*one.shape, 4), torch.zeros(len(labels), 16, dtype=torch.bool)
    frame = torch.zeros_like(one, dtype=torch.int64)
    return Batch(
        features=torch.zeros(*one.shape, 8),
        padding=~(one | two),
        persistent=one,
        transient=two,
        labels=torch.tensor(labels),
        frame=frame,
        boxes=nowhere,
        frame_labels=unlabelled,
    )


def output_of(logits: Tensor, attention: Tensor) -> ModelOutput:
    """The attention that is not on tokens is on CLS. Tokens attend to CLS alone."""
    layers, samples, tokens = attention.shape
    matrices = torch.zeros(layers, samples, 1 + tokens, 1 + tokens)
    matrices[..., 0] = 1
    matrices[:, :, 0, 0] = 1 - attention.sum(dim=-1)
    matrices[:, :, 0, 1:] = attention
    nothing = torch.zeros(samples, tokens)
    return ModelOutput(logits, attention, nothing, nothing, None, matrices)


@pytest.fixture
def by_hand() -> tuple[Tensor, Batch]:
    """Two layers, with ratios 4 and 1/2 in the last one. The third sample has no transient."""
    last = torch.tensor([[0.4, 0.4, 0.1], [0.1, 0.2, 0.3], [0.5, 0.5, 0.0]])
    first = torch.tensor([[0.1, 0.3, 0.2], [0.3, 0.2, 0.3], [0.5, 0.5, 0.0]])
    persistent = [[YES, YES, NO], [YES, YES, NO], [YES, YES, NO]]
    transient = [[NO, NO, YES], [NO, NO, YES], [NO, NO, NO]]
    return torch.stack([first, last]), batch_of(persistent, transient, [1, 0, 0])


def test_metrics_equal_those_computed_by_hand(by_hand: tuple[Tensor, Batch]) -> None:
    attention, batch = by_hand
    logits = torch.tensor([[0.0, 1], [1, 0], [0, 1]])
    measures = MetricSums()
    # Two terms: 1.2 over 2 samples and 3 over none.
    measures.add(output_of(logits, attention), batch, (torch.tensor([1.2, 3.0]), torch.tensor([2.0, 0.0])))
    result = measures.result()
    assert result["accuracy"] == pytest.approx(2 / 3) and result["loss"] == pytest.approx(0.6 + 3.0)
    assert result["attention_ratio"] == pytest.approx(math.sqrt(4 * 0.5))
    assert result["consistency"] == pytest.approx(1 / 2)
    assert result["attention_ratio_all_layers"] == pytest.approx(math.sqrt(0.3 / 0.15 * 0.2 / 0.3))
    assert result["consistency_all_layers"] == pytest.approx(1 / 2)
    assert (result["samples"], result["samples_with_both_kinds"]) == (3, 2)


def test_batches_count_by_their_samples(by_hand: tuple[Tensor, Batch]) -> None:
    attention, batch = by_hand
    logits = torch.tensor([[0.0, 1], [1, 0], [0, 1]])
    whole, parts = MetricSums(), MetricSums()
    whole.add(output_of(logits, attention), batch, (torch.tensor([6.0]), torch.tensor([3.0])))
    for part, total in ((slice(0, 2), 2.0), (slice(2, 3), 4.0)):
        some = Batch(**{name: getattr(batch, name)[part] for name in Batch.__dataclass_fields__})
        terms = torch.tensor([total]), torch.tensor([float(len(some))])
        parts.add(output_of(logits[part], attention[:, part]), some, terms)
        parts.add(output_of(logits[part], attention[:, part]), some, terms, weight=0.0)  # a placeholder
    assert parts.result() == pytest.approx(whole.result())
    assert whole.result()["loss"] == pytest.approx(2.0)


def test_there_is_no_ratio_without_a_sample_of_both_kinds() -> None:
    batch = batch_of([[YES, YES]], [[NO, NO]], [0])
    measures = MetricSums()
    measures.add(output_of(torch.zeros(1, 2), torch.full((2, 1, 2), 0.5)), batch, NO_TERMS)
    result = measures.result()
    assert result["attention_ratio"] is None and result["consistency"] is None
    assert result["samples_with_both_kinds"] == 0


def plain_log_ratio(row: list[float], persistent: list[bool], transient: list[bool]) -> float | None:
    kinds = [[value for value, flag in zip(row, mask, strict=True) if flag] for mask in (persistent, transient)]
    if not all(kinds):
        return None
    return math.log(sum(kinds[0]) / len(kinds[0])) - math.log(sum(kinds[1]) / len(kinds[1]))


@given(attentions())
@settings(max_examples=60, deadline=None)
def test_log_ratio_agrees_with_plain_loops(attention: Attention) -> None:
    rows, persistent, transient = attention
    weights = torch.tensor([rows], dtype=torch.float64)
    ratios, both = log_ratio(weights, torch.tensor(persistent), torch.tensor(transient))
    expected = [plain_log_ratio(*parts) for parts in zip(rows, persistent, transient, strict=True)]
    assert both.tolist() == [value is not None for value in expected]
    assert ratios[0].tolist() == pytest.approx([value or 0.0 for value in expected], abs=1e-9)


def test_a_mask_of_wrong_shape_type_or_device_is_refused() -> None:
    attention = torch.rand(2, 16, 40)
    mask = torch.zeros(16, 40, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"the persistent mask is \[16\], the attention \[2, 16, 40\]: .*\[16, 40\]"):
        log_ratio(attention, mask[:, 0], mask)
    with pytest.raises(ValueError, match=r"the transient mask is \[1, 40\]"):
        log_ratio(attention, mask, mask[:1])
    with pytest.raises(ValueError, match=r"the transient mask is torch\.float32, not bool"):
        log_ratio(attention, mask, mask.float())
    with pytest.raises(ValueError, match="the persistent mask is on cpu, the attention on meta"):
        log_ratio(attention.to("meta"), mask, mask)


def test_rollout_is_the_product_of_matrices_mixed_with_the_identity() -> None:
    torch.manual_seed(0)
    matrices = torch.rand(3, 2, 5, 5, dtype=torch.float64).softmax(dim=-1)
    product = torch.eye(5, dtype=torch.float64).expand(2, 5, 5)
    for matrix in matrices:  # the first layer is applied first
        product = (0.5 * matrix + 0.5 * torch.eye(5, dtype=torch.float64)) @ product
    torch.testing.assert_close(rollout(matrices), product[:, 0, 1:])


def test_rollout_includes_indirect_attention() -> None:
    """CLS attends only to token 1, which attended to token 2. The last row does not show token 2."""
    looks = torch.eye(3).repeat(2, 1, 1, 1)  # [layers, 1, 3, 3]
    looks[0, 0, 1] = torch.tensor([0.0, 0.0, 1.0])
    looks[1, 0, 0] = torch.tensor([0.0, 1.0, 0.0])
    assert rollout(looks).tolist() == [[0.25, 0.25]]


def test_metrics_without_every_row_are_refused(by_hand: tuple[Tensor, Batch]) -> None:
    attention, batch = by_hand
    output = output_of(torch.zeros(3, 2), attention)._replace(matrices=None)
    with pytest.raises(ValueError, match="every_row=True"):
        MetricSums().add(output, batch, NO_TERMS)


def test_iou_equals_that_computed_by_hand() -> None:
    one = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 1.0], [0.9, 0.9, 0.1, 0.1]])
    other = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.0, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    assert predicted_iou(one, other).tolist() == pytest.approx([0.0, 0.25 / 0.75, 0.0])
