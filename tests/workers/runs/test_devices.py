"""The same code on an accelerator, without one: everything on `meta`, and no operation may mix two devices (row 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remote.worker import Run
from workers.dataset.videos import VideoDataset
from workers.model.transformer import Architecture, TokenTransformer
from workers.perception.detector import ObjectDetector
from workers.perception.features import Appearance
from workers.perception.tokens import Batch, Packed, tokenise
from workers.runs.variants import VARIANTS, WORKER1, Variant
from workers.training.checkpoint import seed_everything
from workers.training.trainer import LOOK_EVERY, Settings, Trainer

ACCELERATOR = torch.device("meta")


@pytest.fixture
def make_trainer(samples: dict[str, Packed]) -> Callable[..., Trainer]:
    def make(variant: Variant, epochs: int = 1) -> Trainer:
        model = TokenTransformer(8, replace(variant.architecture, width=16))
        settings = Settings(epochs=epochs, batch_size=2)
        train, validation = Packed.of(samples["train"][:3]), Packed.of(samples["val"][:3])
        run = Run(None, [])
        return Trainer(model, variant.objective, train, validation, settings, ACCELERATOR, run, {}, variant.order)

    return make


@pytest.mark.parametrize("name", VARIANTS)
def test_training_and_validation_stay_on_one_device(
    make_trainer: Callable[..., Trainer], one_device: None, name: str
) -> None:
    trainer = make_trainer(VARIANTS[name], epochs=2)
    progress = trainer.fit()
    assert progress.steps_done >= 2 and progress.metrics["val_accuracy"] == 1.0
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
    gather = Packed.gather

    def forgetful(packed: Packed, indices: Tensor) -> Batch:
        batch = gather(packed, indices)
        return replace(batch, **{forgotten: getattr(batch, forgotten).to("cpu")})

    monkeypatch.setattr(Packed, "gather", forgetful)
    with pytest.raises((mixed_devices, ValueError), match=r"cpu.*meta|meta.*cpu"):
        make_trainer(VARIANTS["multitask"]).fit()


def test_the_checker_catches_the_error_of_that_day(one_device: None, mixed_devices: type[Exception]) -> None:
    """Labels on the CPU, attention on the GPU, and the other way about."""
    attention, labels = torch.rand(16, 40, device=ACCELERATOR), torch.zeros(16, dtype=torch.int64)
    with pytest.raises(mixed_devices, match=r"index.* on cpu, meta"):
        attention[labels]
    with pytest.raises(mixed_devices, match=r"index.* on cpu, meta"):
        torch.rand(16, 40)[labels.to(ACCELERATOR)]
    assert attention[labels.to(ACCELERATOR)].shape == (16, 40)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_waits_for_no_number_from_the_device(
    make_trainer: Callable[..., Trainer], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the checker the meta device has no numbers: `item`, a boolean index or a copy home raises."""
    trainer = make_trainer(VARIANTS[name])
    trainer.look_every = LOOK_EVERY
    trainer.optimizer.skips_by_itself = True  # as on CUDA, whose fused kernel this device lacks
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    trainer.model.train()
    for part in trainer.train.batches([(torch.tensor([0, 1]), 1.0), (torch.tensor([2]), 1.0)]):
        loss = trainer.train_step(part, steps=2)
    with pytest.raises((RuntimeError, NotImplementedError)):
        loss.item()


def trains(samples: dict[str, Packed], call: Callable[..., Any] | None = None, **settings: Any) -> Trainer:
    seed_everything(0)
    model = TokenTransformer(8, Architecture(width=16, layers=2, dropout=0.0))
    made = Settings(epochs=3, validate_every=3, batch_size=20, schedule="constant", **settings)
    train, val = Packed.of(samples["train"]), Packed.of(samples["val"])
    trainer = Trainer(model, WORKER1.objective, train, val, made, torch.device("cpu"), Run(None, []), {})
    trainer.call = call(trainer.model) if call else trainer.call
    trainer.fit()
    return trainer


def test_bfloat16_trains_in_float32_weights_and_measures_attention_in_float32(samples: dict[str, Packed]) -> None:
    plain, mixed = trains(samples), trains(samples, bf16=True)
    assert all(weight.dtype == torch.float32 for weight in mixed.model.parameters())
    batch, _ = next(iter(mixed.train.batches([(torch.tensor([0, 1]), 1.0)])))
    output, _ = mixed.terms(batch, 1.0)
    assert output.logits.dtype == torch.bfloat16 and output.attention.dtype == torch.float32
    for key in ("val_loss", "loss", "attention_ratio"):
        one, other = plain.progress.metrics[key], mixed.progress.metrics[key]
        assert one != other and other == pytest.approx(one, rel=0.05)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own modules
def test_the_model_is_one_graph_and_trains_alike_through_the_compiler(samples: dict[str, Packed]) -> None:
    """torch.compile up to its code generator: what is left out is the making of C++ or Triton from the same graph."""
    plain = trains(samples)
    compiled = trains(
        samples, call=lambda model: torch.compile(model, dynamic=True, fullgraph=True, backend="aot_eager")
    )
    for key in ("val_loss", "loss", "attention_ratio", "attention_ratio_rollout"):
        assert compiled.progress.metrics[key] == pytest.approx(plain.progress.metrics[key], rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_real_step_on_cuda(samples: dict[str, Packed]) -> None:
    settings = Settings(epochs=1, validate_every=1)
    model = TokenTransformer(8, Architecture(width=16))
    trainer = Trainer(
        model,
        WORKER1.objective,
        Packed.of(samples["train"]),
        Packed.of(samples["val"]),
        settings,
        torch.device("cuda"),
        Run(None, []),
        {},
    )
    assert trainer.fit().metrics["samples"] == len(samples["val"])
