"""Checkpoints from which a run goes on as if it had never stopped: bit for bit on the CPU.

A checkpoint stands between two steps. It holds the model, the optimizer, every random number generator, the epoch
that is under way and how many of its steps are done, and the state of the data order as it was when that epoch began:
the order is drawn again from it and the steps done are passed over.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from remote.worker import Run, is_proven
from workers.common.errors import BadInput
from workers.training.distributed import Group

FORMAT = 4
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError)


@dataclass
class TrainingProgress:
    """Where training stands. `epoch` counts from 1 and is the one under way; `step` of its steps are done."""

    order: Tensor  # state of the data order's generator when this epoch began
    epoch: int = 1
    step: int = 0
    steps_done: int = 0  # over all epochs
    loss_sum: float = 0.0  # of this epoch so far, over its samples
    samples_seen: int = 0  # of this epoch so far
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last validation; early stopping is judged on them


def save(
    run: Run,
    progress: TrainingProgress,
    model: nn.Module,
    optimizer: Optimizer,
    identity: Mapping[str, Any],
    group: Group | None = None,
    score: Sequence[float] | None = None,
) -> Path | None:
    """Write the checkpoint whole, named by the last epoch that has steps in it; None outside a run.

    Every process of `group` has to call it: each has random states of its own, and the first one writes.
    """
    state = {
        "format": FORMAT,
        "identity": dict(identity),
        "progress": vars(progress),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": list((group or Group()).gather(random_states())),
    }
    name = progress.epoch if progress.step else progress.epoch - 1
    return run.save_checkpoint(name, lambda file: torch.save(state, file), score)


def resume(
    run: Run, model: nn.Module, optimizer: Optimizer, identity: Mapping[str, Any], group: Group | None = None
) -> TrainingProgress | None:
    """Restore the newest checkpoint that loads, saying which do not; None where there is none.

    Raises BadInput where the checkpoint is of another run: other data, model, seed or options.
    """
    for path, state in _readable(run):
        differing = [key for key, value in identity.items() if state["identity"].get(key) != value]
        if differing:
            pairs = ", ".join(f"{key} {state['identity'].get(key)!r}, now {identity[key]!r}" for key in differing)
            raise BadInput(f"{path} is of another run ({pairs}); use the same options or an empty run directory")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rank = (group or Group()).rank
        if rank < len(state["random"]):  # a process that was not there then keeps what it was seeded with
            restore_random_states(state["random"][rank])
        progress = TrainingProgress(**state["progress"])
        print(f"resuming from {path.name}: epoch {progress.epoch}, {progress.step} of its steps done", flush=True)
        return progress
    return None


def _readable(run: Run) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The checkpoints that load, newest first."""
    paths = run.paths.checkpoints_newest_first() if run.paths else []
    for path in paths:
        try:
            yield path, read(path)
        except UNREADABLE as error:
            print(f"WARNING: {path.name} does not load ({error}); trying the one before it", flush=True)
    if paths:
        print("WARNING: no checkpoint loads; starting from the beginning", flush=True)


def read(path: Path) -> dict[str, Any]:
    """The checkpoint, on the CPU; raises one of UNREADABLE where its checksum does not hold or it is no checkpoint."""
    if not is_proven(path):
        raise ValueError("its checksum does not hold")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    TrainingProgress(**state["progress"])
    return state


def random_states() -> dict[str, Any]:
    """Python's, numpy's, torch's and each CUDA device's, of types that `weights_only` loading accepts."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
