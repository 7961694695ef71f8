from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from remote.contract.files import read_json, read_jsonl
from remote.contract.schema import to_json
from remote.worker import Run
from workers.common.errors import NonFinite, WorkerError
from workers.dataset.dataset_record import DatasetIdentity
from workers.dataset.scenes import Parameters
from workers.evaluation.baselines import baselines
from workers.evaluation.faithfulness import Faithfulness, PredictionChange
from workers.model.transformer import Architecture, ModelOutput
from workers.perception.batching import Batch, Packed
from workers.runs.summary import summarise
from workers.training.loader import BatchLoader
from workers.training.losses import Objective
from workers.training.trainer import Trainer
from workers.training.training_config import TrainingConfig

CHANGE = PredictionChange(flips=0.1, drop=0.1)
FAITHFUL = Faithfulness({"0.2": CHANGE}, {"0.2": CHANGE}, {"0.2": CHANGE}, CHANGE, CHANGE)
IDENTITY = DatasetIdentity(1, 80, 0, Parameters(), "0" * 64)
KEYS = {"val_accuracy", "attention_ratio", "consistency", "loss"}
Make = Callable[..., Trainer]


@pytest.fixture
def make_trainer(samples: dict[str, Packed]) -> Make:
    def make(run: Run, epochs: int, **fields: Any) -> Trainer:
        architecture = Architecture(width=16, layers=2)
        config = TrainingConfig(
            architecture=architecture, objective=Objective(attention=1.0), epochs=epochs, validate_every=2
        )
        train, validation = Packed.of(samples["train"]), Packed.of(samples["val"])
        return Trainer(replace(config, **fields), train, validation, run, torch.device("cpu"))

    return make


def test_validation_runs_every_n_epochs_and_after_the_last(make_run: Callable[..., Run], make_trainer: Make) -> None:
    run = make_run(val_accuracy="> 1")
    make_trainer(run, epochs=5).fit()
    assert run.paths is not None
    records = list(read_jsonl(run.paths.metrics))
    assert [record["epoch"] for record in records] == [2, 4, 5]
    assert all(record.keys() >= KEYS for record in records)
    assert records[-1]["step"] == 5 * 4 and records[-1]["weights"] == "none"
    assert read_json(run.paths.latest_metrics) == records[-1]
    assert [path.name for path in sorted(run.paths.checkpoints.glob("*.pt"))] == [
        "epoch-0002.pt",
        "epoch-0004.pt",
        "epoch-0005.pt",
    ]


def test_training_reaches_the_goals_of_worker1(make_run: Callable[..., Run], make_trainer: Make) -> None:
    trainer = make_trainer(make_run(), epochs=30, validate_every=30, learning_rate=3e-3, schedule="constant", seed=3)
    trainer.fit()
    measured: dict[str, Any] = trainer.evaluate(trainer.train, "test")
    assert measured["accuracy"] >= 0.75  # on the training split, to show that it learns
    assert 1.5 <= measured["attention_ratio"] <= 5 and measured["consistency"] >= 0.9
    assert 1.5 <= measured["attention_ratio_all_layers"] <= 5


def test_training_stops_early_when_all_goals_are_met(
    make_run: Callable[..., Run], make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = make_trainer(make_run(val_accuracy=">= 0 %", loss="< 100"), epochs=8).fit()
    assert progress.epoch - 1 == 2
    said = capsys.readouterr().out
    assert "2 of 2 goals met: stopping early" in said and "loss" in said


def test_training_continues_until_all_goals_are_met_and_names_missed_goals(
    make_run: Callable[..., Run], make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(val_accuracy=">= 0 %", attention_ratio=">= 1000", no_such_metric="> 0")
    assert make_trainer(run, epochs=4).fit().epoch - 1 == 4
    said = capsys.readouterr().out
    assert "val_accuracy" in said and "1 of 3 goals met; attention_ratio" in said
    assert "goal >= 1000: missed" in said and "no_such_metric never reported" in said


def test_without_goals_training_runs_to_the_last_epoch(make_run: Callable[..., Run], make_trainer: Make) -> None:
    assert make_trainer(make_run(), epochs=3).fit().epoch - 1 == 3


def test_every_step_sends_a_heartbeat(
    samples: dict[str, Packed], make_run: Callable[..., Run], make_trainer: Make
) -> None:
    beats: list[tuple[Any, ...]] = []

    class Listening(Run):
        def beat(self, phase: str, *args: Any, **progress: Any) -> None:
            beats.append((phase, *progress.values()))

    make_trainer(make_run(kind=Listening), epochs=2).fit()
    assert beats == [
        *[("train", 1, 2, step, 4) for step in (1, 2, 3, 4)],
        *[("train", 2, 2, step, 4) for step in (1, 2, 3, 4)],
        ("validate", 2, 2, 1, 1),
    ]


@pytest.mark.parametrize(("factor", "shown"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_a_non_finite_loss_ends_the_run_before_the_step(
    make_run: Callable[..., Run], make_trainer: Make, factor: float, shown: str
) -> None:
    run = make_run()
    trainer = make_trainer(run, epochs=1)
    objective, calls = trainer.objective, []

    def broken(output: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        calls.append(state_of(trainer))
        sums, counts = objective(output, batch)
        return sums * (factor if len(calls) == 2 else 1.0), counts

    trainer.objective = broken  # type: ignore[assignment]
    with pytest.raises(NonFinite, match=f"the loss is {shown} .* epoch 1, step 2 of 4; the step was not taken"):
        trainer.fit()
    assert len(calls) == 2 and same(calls[1], state_of(trainer)) and not same(calls[0], calls[1])
    assert run.paths is not None and not run.paths.checkpoints.exists()
    failure = read_json(run.paths.failure) or {}
    assert failure["reason"] == "non_finite" and failure["detail"].startswith(f"the loss is {shown}")


def test_a_non_finite_gradient_ends_the_run_before_the_step(make_trainer: Make) -> None:
    trainer = make_trainer(Run(None, []), epochs=1)
    before = state_of(trainer)
    weight = trainer.model.classify.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        NonFinite, match=r"the loss is \d\.\d+ and the norm of its gradient (inf|nan) in epoch 1, step 1"
    ):
        trainer.fit()
    assert same(before, state_of(trainer))


def test_long_gradients_are_clipped(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(Run(None, []), epochs=1)
    objective, norms = trainer.objective, []

    def large(output: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        sums, counts = objective(output, batch)
        return sums * 1e4, counts

    def step() -> None:
        gradients = [each.grad for each in trainer.model.parameters() if each.grad is not None]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

    trainer.objective = large  # type: ignore[assignment]
    monkeypatch.setattr(trainer.optimizer, "step", step)
    trainer.train_epoch()
    assert norms == pytest.approx([1.0] * 4, rel=1e-4)


LINE = re.compile(r"epoch (\d+)/(\d+) step (\d+)/(\d+) loss (\d+\.\d{4}) lr (\d\.\de[+-]\d\d) (\d+\.\d) ms/step")


@pytest.mark.parametrize(("every", "steps"), [(50, [4]), (3, [3, 4]), (1, [1, 2, 3, 4]), (2, [2, 4])])
def test_progress_lines_come_every_n_steps_and_at_the_end_of_an_epoch(
    make_trainer: Make, capsys: pytest.CaptureFixture[str], every: int, steps: list[int]
) -> None:
    trainer = make_trainer(Run(None, []), epochs=2, log_every=every, schedule="constant", learning_rate=3e-4)
    loss = trainer.train_epoch()
    trainer.train_epoch()
    lines = [LINE.fullmatch(line) for line in capsys.readouterr().out.splitlines()]
    found = [match.groups() for match in lines if match]
    assert len(found) == len(lines)
    assert [tuple(map(int, groups[:4])) for groups in found] == [(e, 2, step, 4) for e in (1, 2) for step in steps]
    assert {groups[5] for groups in found} == {"3.0e-04"}
    if every == 50:
        assert float(found[0][4]) == pytest.approx(loss, abs=1e-3)  # all batches of this epoch have the same size


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], value) for name, value in other.items())


def test_validation_changes_neither_model_nor_random_states(make_trainer: Make) -> None:
    trainer = make_trainer(Run(None, []), epochs=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    state = torch.get_rng_state()
    assert trainer.evaluate(trainer.validation, "validate") == trainer.evaluate(trainer.validation, "validate")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_metrics_do_not_depend_on_the_batch_size(make_trainer: Make) -> None:
    trainers = [make_trainer(Run(None, []), epochs=1, batch_size=size) for size in (3, 16)]
    one, other = (trainer.evaluate(trainer.train, "test") for trainer in trainers)
    assert one == pytest.approx(other, rel=1e-4)


def test_nothing_is_written_outside_a_run(make_trainer: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(Run(None, []), epochs=1)
    progress = trainer.fit()
    trainer.prove_checkpoint()
    summarise(Run(None, []), trainer.config, progress, IDENTITY, {"accuracy": 1.0}, {"b": 1.0}, FAITHFUL)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_does_not_hold_the_model_is_an_error(
    make_run: Callable[..., Run], make_trainer: Make
) -> None:
    trainer = make_trainer(make_run(), epochs=1)
    trainer.fit()
    trainer.prove_checkpoint()
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)
    with pytest.raises(WorkerError, match="does not hold the trained model"):
        trainer.prove_checkpoint()


def test_the_summary_holds_metrics_baselines_and_goals(
    make_run: Callable[..., Run],
    make_trainer: Make,
    samples: dict[str, Packed],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(val_accuracy=">= 0", attention_ratio="> 1000")
    trainer = make_trainer(run, epochs=1)
    progress = trainer.fit()
    tokens = Packed.of(samples["test"])
    test = trainer.evaluate(BatchLoader(tokens, trainer.device), "test")
    compared = baselines(trainer.train.labels, tokens)
    summarise(run, trainer.config, progress, IDENTITY, test, compared, FAITHFUL)
    assert run.results is not None
    summary = json.loads((run.results / "summary.json").read_text())
    assert summary["test"] == test and summary["epochs_done"] == 1 and summary["weights"] == "none"
    assert [goal["holds"] for goal in summary["goals"]] == [True, False]
    assert summary["verdict"].startswith("1 of 2 goals met; attention_ratio")
    assert summary["baselines"]["counting_red_frames"] >= 0.9
    assert summary["faithfulness"]["random"] == {"0.2": {"flips": 0.1, "drop": 0.1}}
    assert summary["data"] == to_json(IDENTITY) and summary["worker"] == "worker1"
    said = capsys.readouterr().out
    assert "goal: val_accuracy" in said and "verdict: 1 of 2 goals met" in said and "counting_red_frames" in said


def test_every_epoch_takes_all_samples_in_a_new_order(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, taken = make_trainer(Run(None, []), epochs=2, batch_size=1), []
    numbers = {
        trainer.train.samples.gather(torch.tensor([number])).features.sum().item(): number for number in range(64)
    }

    def record(batch: Batch, *arguments: float) -> float:
        taken.append(numbers[batch.features.sum().item()])
        return 0.0

    monkeypatch.setattr(trainer, "train_step", record)
    trainer.train_epoch()
    trainer.train_epoch()
    first, second = taken[:64], taken[64:]
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second and first != sorted(first)
