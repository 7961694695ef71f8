from __future__ import annotations

import copy
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from remote.contract.files import read_jsonl
from remote.contract.paths import RunPaths
from remote.worker import Run
from workers.common.errors import BadInput, TrainingStopped
from workers.model.transformer import Architecture
from workers.perception.batching import Packed
from workers.training import checkpoint
from workers.training.checkpoint import random_states, restore_random_states, seed_everything
from workers.training.losses import Objective
from workers.training.sampler import SAMPLERS, Curriculum
from workers.training.trainer import Trainer
from workers.training.training_config import TrainingConfig

Make = Callable[..., Trainer]


@pytest.fixture(scope="module")
def make_trainer(samples: dict[str, Packed]) -> Make:
    """A trainer as a new process would make it, with 4 steps per epoch."""

    def make(run: Run, **fields: Any) -> Trainer:
        config = TrainingConfig(
            architecture=Architecture(width=16, layers=2),
            objective=Objective(attention=1.0, shows=1.0),
            epochs=6,
            batch_size=6,
            schedule="constant",
            validate_every=3,
        )
        train, validation = Packed.of(samples["train"][:21]), Packed.of(samples["val"])
        return Trainer(replace(config, **fields), train, validation, run, torch.device("cpu"))

    return make


def stops_after(steps: int) -> type[Run]:
    """A run that is asked to stop during step number `steps`."""

    class StopsAfter(Run):
        count = 0

        def beat(self, phase: str, *args: Any, **progress: Any) -> None:
            self.count += phase == "train"
            self.stop_requested = self.count >= steps

    return StopsAfter


def same_state(one: Any, other: Any) -> bool:
    """Return whether two nested values are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_state, one, other))
    return bool(one == other)


def outcome(trainer: Trainer) -> tuple[Any, ...]:
    states = (trainer.model.state_dict(), trainer.optimizer.state_dict(), random_states(), vars(trainer.progress))
    return (*states, trainer.evaluate(trainer.validation, "test"))


def records(run: Run) -> list[dict[str, Any]]:
    assert run.paths is not None
    return [{**record, "time": None} for record in read_jsonl(run.paths.metrics)]


@dataclass(frozen=True)
class Straight:
    """Six epochs without a stop: the state in memory and on disk."""

    outcome: tuple[Any, ...]
    records: list[dict[str, Any]]
    directory: Path

    def copy(self, make_run: Callable[..., Run]) -> RunPaths:
        """A copy of the run directory that a test may damage, under the name `copy`."""
        paths = make_run("copy").paths
        assert paths is not None
        shutil.copytree(self.directory, paths.root, dirs_exist_ok=True)
        return paths


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, make_trainer: Make) -> Straight:
    torch.set_num_threads(1)
    run = Run(RunPaths(tmp_path_factory.mktemp("straight")), [])
    trainer = make_trainer(run)
    trainer.fit()
    assert run.paths is not None
    return Straight(copy.deepcopy(outcome(trainer)), records(run), run.paths.root)


def test_three_epochs_and_three_more_equal_six(
    straight: Straight, make_run: Callable[..., Run], make_trainer: Make
) -> None:
    make_trainer(make_run("halves"), epochs=3).fit()
    run = make_run("halves")
    resumed = make_trainer(run)
    resumed.fit()
    assert resumed.progress.steps_done == 24
    assert same_state(outcome(resumed), straight.outcome)
    assert records(run) == straight.records


@pytest.mark.parametrize("steps", [1, 6, 8, 12, 23])  # at the start, within an epoch, at its end, at a validation
def test_a_run_stopped_after_any_step_resumes_exactly(
    straight: Straight, make_run: Callable[..., Run], make_trainer: Make, steps: int
) -> None:
    with pytest.raises(TrainingStopped):
        make_trainer(make_run("stopped", kind=stops_after(steps))).fit()
    run = make_run("stopped")
    resumed = make_trainer(run)
    resumed.fit()
    assert same_state(outcome(resumed), straight.outcome)
    assert records(run) == straight.records


@pytest.mark.parametrize("steps", [1, 5, 9])
def test_curriculum_and_schedule_resume_exactly(
    make_run: Callable[..., Run], make_trainer: Make, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Epochs of 2, 3 and 4 steps, with a learning rate that falls to 0."""
    monkeypatch.setitem(SAMPLERS, "short", Curriculum(first=0.4, epochs=2))
    parts = {"epochs": 3, "sampler": "short", "schedule": "cosine"}
    straight = make_trainer(make_run("straight"), **parts)
    straight.fit()
    with pytest.raises(TrainingStopped):
        make_trainer(make_run("stopped", kind=stops_after(steps)), **parts).fit()
    resumed = make_trainer(make_run("stopped"), **parts)
    resumed.fit()
    assert resumed.progress.steps_done == straight.progress.steps_done == 2 + 3 + 4
    assert same_state(outcome(resumed), outcome(straight))
    with pytest.raises(BadInput, match="sampler was 'short', now 'shuffled'"):
        make_trainer(make_run("stopped"), epochs=3, schedule="cosine").fit()


def test_a_run_stopped_many_times_ends_the_same(
    straight: Straight, make_run: Callable[..., Run], make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(8):  # of 24 steps
        with pytest.raises(TrainingStopped):
            make_trainer(make_run("stopped", kind=stops_after(3))).fit()
    resumed = make_trainer(make_run("stopped"))
    resumed.fit()
    assert same_state(outcome(resumed), straight.outcome)
    assert "WARNING" not in capsys.readouterr().out  # even if one checkpoint replaced another of the same name


def test_another_seed_gives_other_weights(straight: Straight, make_trainer: Make) -> None:
    other = make_trainer(Run(None, []), seed=1)
    other.fit()
    assert not same_state(other.model.state_dict(), straight.outcome[0])


def test_a_finished_run_is_not_trained_further(
    straight: Straight, make_run: Callable[..., Run], make_trainer: Make
) -> None:
    straight.copy(make_run)
    again = make_trainer(make_run("copy"))
    again.fit()
    assert same_state(outcome(again), straight.outcome) and records(make_run("copy")) == straight.records


def test_a_run_that_stopped_early_is_not_trained_further(make_run: Callable[..., Run], make_trainer: Make) -> None:
    make_trainer(make_run(val_accuracy=">= 0")).fit()
    run = make_run(val_accuracy=">= 0")
    assert make_trainer(run).fit().epoch - 1 == 3 and len(records(run)) == 1


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_its_checksum(path: Path) -> None:
    path.with_name(path.name + ".sha256").unlink()


@pytest.mark.parametrize("damage", [truncate, change_a_byte, lose_its_checksum])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(
    straight: Straight,
    make_run: Callable[..., Run],
    make_trainer: Make,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(straight.copy(make_run).checkpoint(6))
    resumed = make_trainer(make_run("copy"))
    resumed.fit()
    said = capsys.readouterr().out
    assert "WARNING: epoch-0006.pt does not load" in said
    assert "resuming from epoch-0003.pt: epoch 4" in said
    assert same_state(outcome(resumed), straight.outcome)


def test_a_file_that_is_not_a_checkpoint_falls_back_to_the_previous_one(
    straight: Straight, make_run: Callable[..., Run], make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    straight.copy(make_run)
    run = make_run("copy")
    run.save_checkpoint(9, lambda file: torch.save({"weights": 0}, file))
    make_trainer(run).fit()
    said = capsys.readouterr().out
    assert f"WARNING: epoch-0009.pt does not load (it is not of format {checkpoint.FORMAT})" in said
    assert "resuming from epoch-0006.pt" in said


def test_training_starts_over_with_a_warning_if_no_checkpoint_loads(
    straight: Straight, make_run: Callable[..., Run], make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in straight.copy(make_run).checkpoints.glob("*.pt"):
        truncate(path)
    resumed = make_trainer(make_run("copy"))
    resumed.fit()
    assert "WARNING: no checkpoint loads; starting from the beginning" in capsys.readouterr().out
    assert same_state(outcome(resumed), straight.outcome)


def test_a_checkpoint_of_another_run_is_refused_and_kept(
    straight: Straight, make_run: Callable[..., Run], make_trainer: Make
) -> None:
    path = straight.copy(make_run).checkpoint(6)
    before = path.read_bytes()
    refusal = r"epoch-0006\.pt was written by a run with other settings \(batch_size was 6, now 8\); use the same"
    with pytest.raises(BadInput, match=refusal):
        make_trainer(make_run("copy"), batch_size=8).fit()
    changed = {"weights": "random", "objective": Objective(attention=2.0, shows=1.0)}
    with pytest.raises(BadInput, match=r"objective.attention was 1.0, now 2.0; weights was 'none', now 'random'"):
        make_trainer(make_run("copy"), **changed).fit()
    assert path.read_bytes() == before


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_sentence(
    make_run: Callable[..., Run], make_trainer: Make
) -> None:
    """Format 4 had one flat parameter in the optimizer, and compared the text of settings."""
    run = make_run("earlier")
    old = {"format": 4, "identity": {}, "progress": {}, "model": {}, "optimizer": {}, "random": []}
    path = run.save_checkpoint(3, lambda file: torch.save(old, file))
    assert path is not None
    with pytest.raises(BadInput, match=r"earlier version of the workers \(format 4, .* or start a new run") as refused:
        make_trainer(run).fit()
    assert str(path) in str(refused.value) and "\n" not in str(refused.value) and path.exists()


def test_a_checkpoint_loads_without_running_code(straight: Straight) -> None:
    path = RunPaths(straight.directory).checkpoint(6)
    state = torch.load(path, weights_only=True)
    assert state["progress"]["epoch"] == checkpoint.read(path).progress.epoch == 7


def test_every_generator_is_restored() -> None:
    seed_everything(3)
    random.gauss(0, 1), np.random.standard_normal()  # both generators make pairs, and now hold the second number
    states = random_states()

    def draw() -> tuple[float, ...]:
        return random.gauss(0, 1), float(np.random.standard_normal()), float(torch.rand(1))

    expected = draw()
    assert draw() != expected
    restore_random_states(states)
    assert draw() == expected
