from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from remote.contract.files import read_json, read_jsonl
from remote.worker import Run
from workers.common.errors import NonFinite, WorkerError
from workers.evaluation.baselines import baselines
from workers.model.transformer import Architecture, ModelOutput, TokenTransformer
from workers.perception.tokens import Batch, Packed
from workers.runs.summary import summarise
from workers.training.checkpoint import seed_everything
from workers.training.loader import Feed
from workers.training.losses import Objective
from workers.training.trainer import Settings, Trainer

FLIPS = {"flips": 0.1, "drop": 0.1}
FAITHFUL = {
    **{name: {"0.2": FLIPS} for name in ("last_layer", "rollout", "random")},
    **dict.fromkeys(("without_persistent", "without_transient"), FLIPS),
}
KEYS = {"val_accuracy", "attention_ratio", "consistency", "loss"}
Make = Callable[..., Trainer]


@pytest.fixture
def make_trainer(samples: dict[str, Packed]) -> Make:
    def make(run: Run, epochs: int, **settings: Any) -> Trainer:
        chosen = replace(Settings(epochs=epochs, validate_every=2), **settings)
        seed_everything(chosen.seed)
        model = TokenTransformer(8, Architecture(width=16, layers=2))
        train, validation = Packed.of(samples["train"]), Packed.of(samples["val"])
        objective, cpu = Objective(attention=1.0), torch.device("cpu")
        return Trainer(model, objective, train, validation, chosen, cpu, run, {"weights": "none"})

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
    trainer = make_trainer(make_run(), epochs=30, validate_every=30, learning_rate=3e-3, schedule="constant", seed=3)
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
    assert "2 of 2 goals met: stopping early" in said and "loss" in said


def test_it_goes_on_while_one_goal_does_not_hold_and_says_which(
    make_run: Callable[..., Run], make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(val_accuracy=">= 0 %", attention_ratio=">= 1000", no_such_metric="> 0")
    assert make_trainer(run, epochs=4).fit().epoch - 1 == 4
    said = capsys.readouterr().out
    assert "val_accuracy" in said and "1 of 3 goals met; attention_ratio" in said
    assert "goal >= 1000: missed" in said and "no_such_metric not measured" in said


def test_without_goals_it_trains_to_the_end(make_run: Callable[..., Run], make_trainer: Make) -> None:
    assert make_trainer(make_run(), epochs=3).fit().epoch - 1 == 3


def test_every_step_beats(samples: dict[str, Packed], make_run: Callable[..., Run], make_trainer: Make) -> None:
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

    def broken(output: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        return output.logits.sum()[None] * float("nan"), torch.ones(1)

    trainer.objective = broken  # type: ignore[assignment]
    with pytest.raises(NonFinite, match="the loss is nan .* epoch 1, step 1 of 4; neither this step was taken"):
        trainer.fit()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_looked_at_now_and_then_it_still_ends_with_the_model_of_before(make_trainer: Make) -> None:
    """As on a GPU: the host looks at the end of the epoch, and step 2 of 4 was bad."""
    trainer, states = make_trainer(Run(None, []), epochs=1), []
    trainer.look_every = 50
    sound = trainer.objective

    def broken(output: ModelOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        sums, counts = sound(output, batch)
        return sums * (float("inf") if len(states) == 2 else 1.0), counts

    trainer.objective = broken  # type: ignore[assignment]
    with pytest.raises(NonFinite, match="the loss is inf .* epoch 1, step 2 of 4"):
        trainer.fit()
    assert len(states) == 4
    assert all(torch.equal(states[1][name], value) for name, value in trainer.model.state_dict().items())


def test_stopped_before_the_host_looked_it_leaves_no_checkpoint_of_it(
    make_run: Callable[..., Run], make_trainer: Make
) -> None:
    class StopsAtOnce(Run):
        def beat(self, *args: Any, **progress: Any) -> None:
            self.stop_requested = True

    run = make_run(kind=StopsAtOnce)
    trainer = make_trainer(run, epochs=1)
    trainer.look_every = 50
    trainer.objective = lambda output, batch: (output.logits.sum()[None] * float("nan"), torch.ones(1))  # type: ignore[assignment]
    with pytest.raises(NonFinite):
        trainer.fit()
    assert run.paths is not None and not run.paths.checkpoints.exists()


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
    assert one == pytest.approx(other, rel=1e-4)


def test_outside_a_run_nothing_is_written(make_trainer: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(Run(None, []), epochs=1)
    progress = trainer.fit()
    trainer.prove_checkpoint()
    summarise(Run(None, []), progress, {"accuracy": 1.0}, {"b": 1.0}, {"weights": "none"}, FAITHFUL)
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
    samples: dict[str, Packed],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(val_accuracy=">= 0", attention_ratio="> 1000")
    trainer = make_trainer(run, epochs=1)
    progress = trainer.fit()
    tokens = Packed.of(samples["test"])
    test = trainer.evaluate(Feed(tokens, trainer.device), "test")
    about = {"worker": "worker1", "weights": "none"}
    summarise(run, progress, test, baselines(trainer.train.labels, tokens), about, FAITHFUL)
    assert run.results is not None
    summary = json.loads((run.results / "summary.json").read_text())
    assert summary["test"] == test and summary["epochs_done"] == 1 and summary["weights"] == "none"
    assert [goal["holds"] for goal in summary["goals"]] == [True, False]
    assert summary["verdict"].startswith("1 of 2 goals met; attention_ratio")
    assert summary["baselines"]["counting_red_frames"] >= 0.9 and summary["faithfulness"] == FAITHFUL
    said = capsys.readouterr().out
    assert "goal: val_accuracy" in said and "verdict: 1 of 2 goals met" in said and "counting_red_frames" in said


def test_every_epoch_takes_all_samples_in_an_order_of_its_own(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, taken = make_trainer(Run(None, []), epochs=2, batch_size=1), []
    numbers = {
        trainer.train.samples.gather(torch.tensor([number])).features.sum().item(): number for number in range(64)
    }

    def record(batch: tuple[Batch, float], steps: int) -> Tensor:
        taken.append(numbers[batch[0].features.sum().item()])
        return torch.tensor(0.0)

    monkeypatch.setattr(trainer, "train_step", record)
    trainer.train_epoch()
    trainer.train_epoch()
    first, second = taken[:64], taken[64:]
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second and first != sorted(first)
