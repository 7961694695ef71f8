from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from workers.evaluation.faithfulness import SHARES, PredictionChange, faithfulness, highest
from workers.model.transformer import ModelOutput
from workers.perception.batching import Batch, Packed, collate


class CountsTransients:
    """A model with known predictions: class 1 if it sees at least four transient tokens.

    It attends to the tokens of the kind `looks_at`.
    """

    def __init__(self, batch: Batch, looks_at: str) -> None:
        self.batch, self.looks_at = batch, looks_at

    def __call__(self, features: Tensor, padding: Tensor, frame: Tensor, every_row: bool = False) -> ModelOutput:
        seen = (self.batch.transient & ~padding).sum(dim=1)
        logits = torch.stack([4 - seen - 0.5, seen - 4 + 0.5], dim=1).float()
        mask = getattr(self.batch, self.looks_at) & ~padding
        attention = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
        matrices = torch.eye(1 + padding.shape[1]).repeat(1, len(padding), 1, 1)
        matrices[0, :, 0] = torch.nn.functional.pad(attention, (1, 0))
        nothing = torch.zeros_like(attention)
        return ModelOutput(logits, attention[None], nothing, nothing, None, matrices)


@pytest.fixture
def batch(samples: dict[str, Packed]) -> Batch:
    return collate([sample for sample in samples["train"] if 4 <= sample.transient.sum() <= 6])


def test_attention_is_faithful_if_it_is_on_the_tokens_the_model_uses(batch: Batch) -> None:
    good, bad = (faithfulness(CountsTransients(batch, looks_at), [batch]) for looks_at in ("transient", "persistent"))
    for reading in ("last_layer", "rollout"):
        change: PredictionChange = getattr(good, reading)["0.2"]
        assert change.flips == 1.0 and change.drop > 0.5
        assert getattr(bad, reading)["0.2"] == PredictionChange(flips=0.0, drop=0.0)
    assert 0.2 < good.random["0.2"].flips < 0.9
    assert good.without_transient.flips == 1.0 and good.without_persistent.flips == 0.0
    assert good.random == bad.random  # seeded
    assert "20% most attended tokens 100.0% of the predictions change" in good.text()
    assert list(good.random) == [str(share) for share in SHARES]


def test_batches_weigh_by_their_samples(batch: Batch) -> None:
    def part(of: slice) -> Batch:
        return replace(batch, **{name: getattr(batch, name)[of] for name in Batch.__dataclass_fields__})

    whole = faithfulness(CountsTransients(batch, "transient"), [batch])
    parts = [part(slice(0, 1)), part(slice(1, None))]
    models = iter([CountsTransients(each, "transient") for each in parts for _ in range(1 + 2 + 3 * (2 + 5))])
    split = faithfulness(lambda *inputs: next(models)(*inputs), parts)
    assert vars(split.without_transient) == pytest.approx(vars(whole.without_transient))
    assert vars(split.last_layer["0.5"]) == pytest.approx(vars(whole.last_layer["0.5"]))


def test_the_share_of_tokens_is_rounded_up_and_never_includes_padding() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.9, 0.8, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    padding = torch.tensor([[False] * 4, [False, False, True, True], [True] * 4])
    assert highest(scores, padding, 0.5).tolist() == [
        [False, True, True, False],
        [True, False, False, False],
        [False] * 4,
    ]
    assert highest(scores, padding, 0.1).sum(dim=1).tolist() == [1, 1, 0]
