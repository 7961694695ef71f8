"""The code of an accelerator without one: everything on `meta`, and no operation may mix two devices."""

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
from workers.model.transformer import Architecture
from workers.perception.batching import Batch, Packed
from workers.perception.detector import ObjectDetector
from workers.perception.features import Appearance
from workers.perception.tokens import tokenise
from workers.runs.variants import VARIANTS, WORKER1, Variant
from workers.training.trainer import Trainer

ACCELERATOR = torch.device("meta")


@pytest.fixture
def make_trainer(samples: dict[str, Packed]) -> Callable[..., Trainer]:
    def make(variant: Variant, epochs: int = 1) -> Trainer:
        architecture = replace(variant.config.architecture, width=16)
        config = replace(variant.config, architecture=architecture, epochs=epochs, batch_size=2)
        train, validation = Packed.of(samples["train"][:3]), Packed.of(samples["val"][:3])
        return Trainer(config, train, validation, Run(None, []), ACCELERATOR)

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


def test_an_index_on_another_device_is_caught(one_device: None, mixed_devices: type[Exception]) -> None:
    """Labels on the CPU with attention on the GPU, and the reverse."""
    attention, labels = torch.rand(16, 40, device=ACCELERATOR), torch.zeros(16, dtype=torch.int64)
    with pytest.raises(mixed_devices, match=r"index.* on cpu, meta"):
        attention[labels]
    with pytest.raises(mixed_devices, match=r"index.* on cpu, meta"):
        torch.rand(16, 40)[labels.to(ACCELERATOR)]
    assert attention[labels.to(ACCELERATOR)].shape == (16, 40)


def trains(samples: dict[str, Packed], call: Callable[..., Any] | None = None, **fields: Any) -> Trainer:
    config = replace(
        WORKER1.config,
        architecture=Architecture(width=16, layers=2, dropout=0.0),
        epochs=3,
        validate_every=3,
        batch_size=20,
        schedule="constant",
    )
    train, val = Packed.of(samples["train"]), Packed.of(samples["val"])
    trainer = Trainer(replace(config, **fields), train, val, Run(None, []), torch.device("cpu"))
    trainer.call = call(trainer.model) if call else trainer.call
    trainer.fit()
    return trainer


def test_bfloat16_keeps_weights_and_attention_in_float32(samples: dict[str, Packed]) -> None:
    plain, mixed = trains(samples), trains(samples, bf16=True)
    assert all(weight.dtype == torch.float32 for weight in mixed.model.parameters())
    batch, _ = next(iter(mixed.train.batches([(torch.tensor([0, 1]), 1.0)])))
    output, _ = mixed.predict(batch, 1.0)
    assert output.logits.dtype == torch.bfloat16 and output.attention.dtype == torch.float32
    for key in ("val_loss", "loss", "attention_ratio"):
        one, other = plain.progress.metrics[key], mixed.progress.metrics[key]
        assert one != other and other == pytest.approx(one, rel=0.05)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own modules
def test_the_compiled_model_is_one_graph_with_the_same_results(samples: dict[str, Packed]) -> None:
    """torch.compile up to its code generator, which would make C++ or Triton from the same graph."""
    plain = trains(samples)
    compiled = trains(
        samples, call=lambda model: torch.compile(model, dynamic=True, fullgraph=True, backend="aot_eager")
    )
    for key in ("val_loss", "loss", "attention_ratio", "attention_ratio_rollout"):
        assert compiled.progress.metrics[key] == pytest.approx(plain.progress.metrics[key], rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_real_step_on_cuda(samples: dict[str, Packed]) -> None:
    config = replace(WORKER1.config, architecture=Architecture(width=16), epochs=1, device="cuda")
    train, validation = Packed.of(samples["train"]), Packed.of(samples["val"])
    trainer = Trainer(config, train, validation, Run(None, []), torch.device("cuda"))
    assert trainer.fit().metrics["samples"] == len(samples["val"])
    assert all(group["fused"] for group in trainer.optimizer.param_groups)
