from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from remote.files import read_json, read_jsonl
from remote.worker import Run
from workers.checkpoint import seed_everything
from workers.errors import NonFinite, WorkerError
from workers.loop import Settings, Trainer
from workers.losses import AttentionSupervised
from workers.model import TokenTransformer
from workers.summary import baselines, summarise
from workers.tokens import Batch, Sample

KEYS = {"val_accuracy", "attention_ratio", "consistency", "loss"}
Make = Callable[..., Trainer]


@pytest.fixture
def make_trainer(samples: dict[str, list[Sample]]) -> Make:
    def make(run: Run, epochs: int, **settings: Any) -> Trainer:
        chosen = replace(Settings(epochs=epochs, validate_every=2), **settings)
        seed_everything(chosen.seed)
        model = TokenTransformer(8, width=16, layers=2)
        cpu = torch.device("cpu")
        return Trainer(
            model, AttentionSupervised(), samples["train"], samples["val"], chosen, cpu, run, {"weights": "none"}
        )

    return make


def test_validation_is_every_so_many_epochs_and_at_the_last(make_run: Callable[..., Run], make_trainer: Make) -> None:
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
    trainer = make_trainer(make_run(), epochs=16, validate_every=16, learning_rate=3e-3)
    trainer.fit()
    measured = trainer.evaluate(trainer.train, "test")
    assert measured["accuracy"] >= 0.75  # on what it was trained on: it learns
    assert 1.5 <= measured["attention_ratio"] <= 5 and measured["consistency"] >= 0.9
    assert 1.5 <= measured["attention_ratio_all_layers"] <= 5


def test_it_stops_early_when_all_goals_hold(
    make_run: Callable[..., Run], make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = make_trainer(make_run(val_accuracy=">= 0 %", loss="< 100"), epochs=8).fit()
    assert progress.epoch - 1 == 2
    said = capsys.readouterr().out
    assert "2 of 2 goals hold: stopping early" in said and "loss" in said


def test_it_goes_on_while_one_goal_does_not_hold_and_says_which(
    make_run: Callable[..., Run], make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(val_accuracy=">= 0 %", attention_ratio=">= 1000", no_such_metric="> 0")
    assert make_trainer(run, epochs=4).fit().epoch - 1 == 4
    said = capsys.readouterr().out
    assert "val_accuracy" in said and "1 of 3 goals hold; attention_ratio" in said
    assert "(>= 1000: does not hold)" in said and "no_such_metric not measured" in said


def test_without_goals_it_trains_to_the_end(make_run: Callable[..., Run], make_trainer: Make) -> None:
    assert make_trainer(make_run(), epochs=3).fit().epoch - 1 == 3


def test_every_step_beats(samples: dict[str, list[Sample]], make_run: Callable[..., Run], make_trainer: Make) -> None:
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


def test_a_loss_that_is_not_finite_ends_before_the_step(make_trainer: Make) -> None:
    trainer = make_trainer(Run(None, []), epochs=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    def broken(logits: Tensor, attention: Tensor, batch: Batch) -> Tensor:
        return logits.sum() * float("nan")

    trainer.objective = broken
    with pytest.raises(NonFinite, match="the loss is nan in epoch 1, step 1; the step was not taken"):
        trainer.fit()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_validation_changes_neither_the_model_nor_what_is_drawn_next(make_trainer: Make) -> None:
    trainer = make_trainer(Run(None, []), epochs=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    state = torch.get_rng_state()
    assert trainer.evaluate(trainer.validation, "validate") == trainer.evaluate(trainer.validation, "validate")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_measures_do_not_depend_on_how_samples_are_batched(make_trainer: Make) -> None:
    trainers = [make_trainer(Run(None, []), epochs=1, batch_size=size) for size in (3, 16)]
    one, other = (trainer.evaluate(trainer.train, "test") for trainer in trainers)
    del one["loss"], other["loss"]  # its attention term is a mean over those of a batch that have both kinds
    assert one == pytest.approx(other, rel=1e-4)


def test_outside_a_run_nothing_is_written(make_trainer: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(Run(None, []), epochs=1)
    progress = trainer.fit()
    trainer.prove_checkpoint()
    summarise(Run(None, []), progress, {"accuracy": 1.0}, {"b": 1.0}, {"weights": "none"})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_the_model_is_noticed(make_run: Callable[..., Run], make_trainer: Make) -> None:
    trainer = make_trainer(make_run(), epochs=1)
    trainer.fit()
    trainer.prove_checkpoint()
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)
    with pytest.raises(WorkerError, match="is not in its newest checkpoint"):
        trainer.prove_checkpoint()


def test_the_summary_says_what_was_measured_beside_what(
    make_run: Callable[..., Run],
    make_trainer: Make,
    samples: dict[str, list[Sample]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(val_accuracy=">= 0", attention_ratio="> 1000")
    trainer = make_trainer(run, epochs=1)
    progress = trainer.fit()
    test = trainer.evaluate(samples["test"], "test")
    about = {"worker": "worker1", "weights": "none"}
    summarise(run, progress, test, baselines(samples["train"], samples["test"]), about)
    assert run.results is not None
    summary = json.loads((run.results / "summary.json").read_text())
    assert summary["test"] == test and summary["epochs_done"] == 1 and summary["weights"] == "none"
    assert [goal["holds"] for goal in summary["goals"]] == [True, False]
    assert summary["verdict"].startswith("1 of 2 goals hold; attention_ratio")
    assert summary["baselines"]["counting_red_frames"] >= 0.9
    said = capsys.readouterr().out
    assert "goal: val_accuracy" in said and "verdict: 1 of 2 goals hold" in said and "counting_red_frames" in said


def test_baselines_worked_out_by_hand() -> None:
    empty, none = torch.zeros(0, 8), torch.zeros(0, dtype=torch.bool)

    def samples(*pairs: tuple[int, int]) -> list[Sample]:
        return [Sample(empty, none, none, label, red) for label, red in pairs]

    found = baselines(samples((1, 1), (1, 0), (0, 0)), samples((1, 1), (0, 0), (0, 1), (0, 0)))
    assert found == {"counting_red_frames": 0.75, "most_common_class": 0.25}


def test_every_epoch_takes_all_samples_in_an_order_of_its_own(
    make_trainer: Make, samples: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, taken = make_trainer(Run(None, []), epochs=2, batch_size=1), []
    numbers = {sample.features.sum().item(): number for number, sample in enumerate(trainer.train)}

    def record(batch: Batch) -> float:
        taken.append(numbers[batch.features[0].sum().item()])
        return 0.0

    monkeypatch.setattr(trainer, "train_step", record)
    trainer.train_epoch()
    trainer.train_epoch()
    first, second = taken[:64], taken[64:]
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second and first != sorted(first)
