"""The same code on an accelerator, without one: everything on `meta`, and no operation may mix two devices (row 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from remote.worker import Run
from workers.dataset import VideoDataset
from workers.detector import ObjectDetector
from workers.features import Appearance
from workers.loop import Settings, Trainer
from workers.losses import AttentionSupervised, Classification, Objective
from workers.model import TokenTransformer
from workers.tokens import Batch, Sample, tokenise

ACCELERATOR = torch.device("meta")
OBJECTIVES = [AttentionSupervised(layers="all"), AttentionSupervised(layers="last"), Classification()]


@pytest.fixture
def make_trainer(samples: dict[str, list[Sample]]) -> Callable[..., Trainer]:
    def make(objective: Objective, epochs: int = 1) -> Trainer:
        model = TokenTransformer(8, width=16, layers=2)
        settings = Settings(epochs=epochs, batch_size=2)
        train, validation = samples["train"][:3], samples["val"][:3]
        return Trainer(model, objective, train, validation, settings, ACCELERATOR, Run(None, []), {})

    return make


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_training_and_validation_stay_on_one_device(
    make_trainer: Callable[..., Trainer], one_device: None, objective: Objective
) -> None:
    trainer = make_trainer(objective, epochs=2)
    progress = trainer.fit()
    assert progress.steps_done == 2 * 2 and progress.metrics["val_accuracy"] == 1.0
    assert all(parameter.is_meta for parameter in trainer.model.parameters())
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert any(value.is_meta for value in states)


def test_features_stay_on_one_device(data: Path, one_device: None) -> None:
    samples = tokenise(
        VideoDataset(data, "test", limit=3), ObjectDetector(), Appearance("random", ACCELERATOR), Run(None, [])
    )
    assert [sample.features.shape[1] for sample in samples] == [520] * 3
    assert not any(sample.features.is_meta for sample in samples)


@pytest.mark.parametrize("forgotten", list(Batch.__dataclass_fields__))
def test_a_tensor_left_on_the_cpu_is_caught(
    make_trainer: Callable[..., Trainer],
    one_device: None,
    mixed_devices: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    forgotten: str,
) -> None:
    move = Batch.to
    monkeypatch.setattr(
        Batch, "to", lambda batch, device: replace(move(batch, device), **{forgotten: getattr(batch, forgotten)})
    )
    with pytest.raises((mixed_devices, ValueError), match=r"cpu.*meta|meta.*cpu"):
        make_trainer(AttentionSupervised()).fit()


def test_the_checker_catches_the_error_of_that_day(one_device: None, mixed_devices: type[Exception]) -> None:
    """Labels on the CPU, attention on the GPU, and the other way about."""
    attention, labels = torch.rand(16, 40, device=ACCELERATOR), torch.zeros(16, dtype=torch.int64)
    with pytest.raises(mixed_devices, match=r"index.* on cpu, meta"):
        attention[labels]
    with pytest.raises(mixed_devices, match=r"index.* on cpu, meta"):
        torch.rand(16, 40)[labels.to(ACCELERATOR)]
    assert attention[labels.to(ACCELERATOR)].shape == (16, 40)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_real_step_on_cuda(samples: dict[str, list[Sample]]) -> None:
    settings = Settings(epochs=1, validate_every=1)
    model = TokenTransformer(8, width=16, layers=2)
    trainer = Trainer(
        model,
        AttentionSupervised(),
        samples["train"],
        samples["val"],
        settings,
        torch.device("cuda"),
        Run(None, []),
        {},
    )
    assert trainer.fit().metrics["samples"] == len(samples["val"])
