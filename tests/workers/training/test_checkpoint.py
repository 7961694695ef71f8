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
from workers.model.transformer import Architecture, TokenTransformer
from workers.perception.tokens import Packed
from workers.training import checkpoint
from workers.training.checkpoint import random_states, restore_random_states, seed_everything
from workers.training.losses import Objective
from workers.training.sampler import Curriculum, Order
from workers.training.trainer import Settings, Trainer

Make = Callable[..., Trainer]


@pytest.fixture(scope="module")
def make_trainer(samples: dict[str, Packed]) -> Make:
    """A trainer as a new process would make it: seeded alike, with its model as initialised; 4 steps an epoch."""

    def make(
        run: Run,
        epochs: int = 6,
        identity: dict[str, Any] | None = None,
        order: Order | None = None,
        **settings: Any,
    ) -> Trainer:
        chosen = replace(Settings(epochs=epochs, validate_every=3, batch_size=6, schedule="constant"), **settings)
        seed_everything(chosen.seed)
        model = TokenTransformer(8, Architecture(width=16, layers=2))
        train, validation = Packed.of(samples["train"][:21]), Packed.of(samples["val"])
        objective, cpu = Objective(attention=1.0, shows=1.0), torch.device("cpu")
        return Trainer(model, objective, train, validation, chosen, cpu, run, identity or {}, order)

    return make


def stops_after(steps: int) -> type[Run]:
    """A run that is asked to stop while its step number `steps` is under way."""

    class StopsAfter(Run):
        count = 0

        def beat(self, phase: str, *args: Any, **progress: Any) -> None:
            self.count += phase == "train"
            self.stop_requested = self.count >= steps

    return StopsAfter


def same_state(one: Any, other: Any) -> bool:
    """Bit for bit, however deep."""
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
    """Six epochs without a stop: what is left in memory and on disk."""

    outcome: tuple[Any, ...]
    records: list[dict[str, Any]]
    directory: Path

    def copy(self, make_run: Callable[..., Run]) -> RunPaths:
        """The run directory, free to be damaged, under the name `copy`."""
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


def test_three_epochs_and_three_more_are_six(
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
def test_stopped_after_any_step_it_goes_on_as_if_it_had_not(
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
def test_the_curriculum_and_the_schedule_go_on_where_they_were(
    make_run: Callable[..., Run], make_trainer: Make, steps: int
) -> None:
    """Epochs of 2, 3 and 4 steps, at a learning rate that falls to nothing."""
    parts = {"epochs": 3, "order": Curriculum(first=0.4, epochs=2), "schedule": "cosine"}
    straight = make_trainer(make_run("straight"), **parts)
    straight.fit()
    with pytest.raises(TrainingStopped):
        make_trainer(make_run("stopped", kind=stops_after(steps)), **parts).fit()
    resumed = make_trainer(make_run("stopped"), **parts)
    resumed.fit()
    assert resumed.progress.steps_done == straight.progress.steps_done == 2 + 3 + 4
    assert same_state(outcome(resumed), outcome(straight))
    with pytest.raises(BadInput, match="order 'Curriculum"):
        make_trainer(make_run("stopped"), epochs=3, schedule="cosine").fit()


def test_stopped_again_and_again_it_still_ends_the_same(
    straight: Straight, make_run: Callable[..., Run], make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(8):  # of 24 steps
        with pytest.raises(TrainingStopped):
            make_trainer(make_run("stopped", kind=stops_after(3))).fit()
    resumed = make_trainer(make_run("stopped"))
    resumed.fit()
    assert same_state(outcome(resumed), straight.outcome)
    assert "WARNING" not in capsys.readouterr().out  # also where one checkpoint replaced another of its name


def test_the_outcome_depends_on_the_seed(straight: Straight, make_trainer: Make) -> None:
    other = make_trainer(Run(None, []), seed=1)
    other.fit()
    assert not same_state(other.model.state_dict(), straight.outcome[0])


def test_a_finished_run_started_again_trains_no_further(
    straight: Straight, make_run: Callable[..., Run], make_trainer: Make
) -> None:
    straight.copy(make_run)
    again = make_trainer(make_run("copy"))
    again.fit()
    assert same_state(outcome(again), straight.outcome) and records(make_run("copy")) == straight.records


def test_a_run_that_stopped_early_stays_stopped(make_run: Callable[..., Run], make_trainer: Make) -> None:
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
def test_a_damaged_checkpoint_falls_back_to_the_one_before_it(
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


def test_a_sound_file_that_is_no_checkpoint_falls_back_too(
    straight: Straight, make_run: Callable[..., Run], make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    straight.copy(make_run)
    run = make_run("copy")
    run.save_checkpoint(9, lambda file: torch.save({"format": 0}, file))
    make_trainer(run).fit()
    said = capsys.readouterr().out
    assert f"WARNING: epoch-0009.pt does not load (it is not of format {checkpoint.FORMAT})" in said
    assert "resuming from epoch-0006.pt" in said


def test_with_no_checkpoint_that_loads_it_begins_again_and_says_so(
    straight: Straight, make_run: Callable[..., Run], make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in straight.copy(make_run).checkpoints.glob("*.pt"):
        truncate(path)
    resumed = make_trainer(make_run("copy"))
    resumed.fit()
    assert "WARNING: no checkpoint loads; starting from the beginning" in capsys.readouterr().out
    assert same_state(outcome(resumed), straight.outcome)


def test_a_checkpoint_of_another_run_is_refused_not_overwritten(
    straight: Straight, make_run: Callable[..., Run], make_trainer: Make
) -> None:
    straight.copy(make_run)
    with pytest.raises(BadInput, match=r"epoch-0006\.pt is of another run \(batch_size 6, now 8\)"):
        make_trainer(make_run("copy"), batch_size=8).fit()
    with pytest.raises(BadInput, match="weights None, now 'random'"):
        make_trainer(make_run("copy"), identity={"weights": "random"}).fit()


def test_a_checkpoint_needs_no_trust_to_be_loaded(straight: Straight) -> None:
    path = RunPaths(straight.directory).checkpoint(6)
    state = torch.load(path, weights_only=True)  # no code runs
    assert state["progress"]["epoch"] == 7
    assert checkpoint.read(path).keys() == state.keys()


def test_every_generator_is_restored() -> None:
    seed_everything(3)
    random.gauss(0, 1), np.random.standard_normal()  # leaves half a pair behind in both
    states = random_states()

    def draw() -> tuple[float, ...]:
        return random.gauss(0, 1), float(np.random.standard_normal()), float(torch.rand(1))

    expected = draw()
    assert draw() != expected
    restore_random_states(states)
    assert draw() == expected
