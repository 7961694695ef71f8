"""Checkpoints from which a run continues as if it had never stopped: bit for bit on the CPU.

A checkpoint is taken between two steps. It holds the model, the optimizer, the state of every random number generator,
the current epoch, how many of its steps are done, and the state of the sampler's generator when that epoch began. A
resumed run draws the same order of the epoch from that state, and skips the steps that are done.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from remote.checkpoints import matches_checksum
from remote.worker import Run
from workers.common.errors import BadInput
from workers.evaluation.metrics import Metrics
from workers.training.distributed import Group
from workers.training.training_config import Scalar, TrainingConfig

FORMAT = 5
OLDER_FORMATS = (1, 2, 3, 4)
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError)

States = dict[str, Any]
"""States as torch and the generators give them, of types that loading with `weights_only` accepts."""


@dataclass
class TrainingProgress:
    """The position of a training. `epoch` is the current one, from 1; `step` of its steps are done."""

    order: Tensor  # state of the sampler's generator when this epoch began
    epoch: int = 1
    step: int = 0
    steps_done: int = 0  # over all epochs
    loss_sum: float = 0.0  # of this epoch so far, over its samples
    samples_seen: int = 0  # of this epoch so far
    metrics: Metrics = field(default_factory=dict)  # of the last validation; early stopping reads them


@dataclass(frozen=True)
class SavedState:
    """The content of a checkpoint."""

    config: dict[str, Scalar]  # the fields that must not change on resume
    progress: TrainingProgress
    model: dict[str, Tensor]
    optimizer: States
    random: list[States]  # of each process


def save(
    run: Run,
    config: TrainingConfig,
    progress: TrainingProgress,
    model: nn.Module,
    optimizer: Optimizer,
    group: Group,
    score: Sequence[float] | None = None,
) -> Path | None:
    """Write a checkpoint, named after the last epoch with completed steps.

    Every process of `group` must call this, because each has its own random states; the first one writes.

    Args:
        run: where to write.
        config: the settings of the training.
        progress: the position of the training.
        model: the model.
        optimizer: the optimizer.
        group: the processes that train together.
        score: how good the model is, compared in order; the best checkpoint is never pruned.

    Returns:
        The path, or None outside a run.
    """
    state = {
        "format": FORMAT,
        "config": config.fixed_on_resume(),
        "progress": vars(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": list(group.gather(random_states())),
    }
    name = progress.epoch if progress.step else progress.epoch - 1
    return run.save_checkpoint(name, lambda file: torch.save(state, file), score)


def resume(
    run: Run, config: TrainingConfig, model: nn.Module, optimizer: Optimizer, group: Group
) -> TrainingProgress | None:
    """Restore the newest checkpoint that loads, and print which ones do not.

    Returns:
        The position of the training, or None if there is no checkpoint.

    Raises:
        BadInput: the checkpoint was written with other settings, other data, or by an earlier version.
    """
    for path, saved in _readable(run):
        differences = config.differences(saved.config)
        if differences:
            raise BadInput(
                f"{path} was written by a run with other settings ({'; '.join(differences)});"
                " use the same settings, or an empty run directory"
            )
        model.load_state_dict(saved.model)
        optimizer.load_state_dict(saved.optimizer)
        if group.rank < len(saved.random):  # an additional process keeps its seed
            restore_random_states(saved.random[group.rank])
        progress = saved.progress
        print(f"resuming from {path.name}: epoch {progress.epoch}, {progress.step} of its steps done", flush=True)
        return progress
    return None


def _readable(run: Run) -> Iterator[tuple[Path, SavedState]]:
    """Yield the checkpoints that load, newest first."""
    paths = run.paths.checkpoints_newest_first() if run.paths else []
    for path in paths:
        try:
            yield path, read(path)
        except UNREADABLE as error:
            print(f"WARNING: {path.name} does not load ({error}); trying the one before it", flush=True)
    if paths:
        print("WARNING: no checkpoint loads; starting from the beginning", flush=True)


def read(path: Path) -> SavedState:
    """Load a checkpoint to the CPU.

    Raises:
        BadInput: it was written by an earlier version.
        UNREADABLE: its checksum does not match, or it is not a checkpoint.
    """
    if not matches_checksum(path):
        raise ValueError("its checksum does not match")
    state = torch.load(path, map_location="cpu", weights_only=True)
    found = state.get("format") if isinstance(state, dict) else None
    if found in OLDER_FORMATS:
        raise BadInput(
            f"{path} was written by an earlier version of the workers (format {found}, this version reads {FORMAT}), so"
            " its optimizer state does not fit; finish the run with the version that began it, or start a new run"
        )
    if found != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    return SavedState(
        config=state["config"],
        progress=TrainingProgress(**state["progress"]),
        model=state["model"],
        optimizer=state["optimizer"],
        random=state["random"],
    )


def random_states() -> States:
    """Return the states of the generators of Python, numpy, torch and each CUDA device."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: States) -> None:
    """Set all generators to what `random_states` returned."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
