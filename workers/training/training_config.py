"""The configuration of a training: one dataclass, from the command line to the checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from workers.common.errors import BadInput
from workers.model.transformer import Architecture
from workers.training.losses import Objective
from workers.training.optimizer import OPTIMIZERS, SCHEDULES
from workers.training.sampler import SAMPLERS

Scalar = str | int | float | bool | None

# What a resumed run may change. Every other field must be as in the checkpoint.
MAY_CHANGE_ON_RESUME = ("data", "device", "threads", "compile", "epochs", "validate_every", "log_every")


def _check(field: str, name: str, choices: Collection[str]) -> None:
    if name not in choices:
        raise BadInput(f"unknown {field} {name!r}; choose one of {', '.join(choices)}")


@dataclass(frozen=True)
class TrainingConfig:
    """All settings of a training. A variant is a set of defaults; options on the command line replace fields."""

    variant: str = "worker1"  # the name of the variant
    architecture: Architecture = Architecture()
    objective: Objective = Objective()

    # The data, and what a token of it is.
    data: Path | None = None  # the directory of the dataset
    dataset: str = ""  # which dataset that is, from its dataset.json
    limit: int | None = None  # use only the first samples of each split
    pretrained: bool = False  # a token has frozen ResNet-18 features before its geometry
    weights: str = "none"  # of the ResNet-18; once they are loaded, what they are
    tracked: bool = False  # a token is a tracked object instead of a detection

    # How the model is trained.
    epochs: int = 30
    batch_size: int = 16  # of all processes together
    sampler: str = "shuffled"  # one of sampler.SAMPLERS
    optimizer: str = "adam"  # one of optimizer.OPTIMIZERS
    learning_rate: float = 1e-3  # its peak
    weight_decay: float = 0.0
    schedule: str = "cosine"  # of the learning rate; one of optimizer.SCHEDULES
    seed: int = 0
    bf16: bool = False  # matrix products in bfloat16; weights, losses and attention stay float32
    rehearsal: bool = False  # a run must not resume from the checkpoints of a rehearsal

    # How it runs.
    validate_every: int = 5  # epochs; the last epoch is always validated
    log_every: int = 50  # steps between two progress lines; the last step of an epoch always has one
    device: str = "cpu"
    threads: int | None = None  # of the CPU; if missing, 1 for training
    compile: bool = False  # torch.compile the model

    def __post_init__(self) -> None:
        _check("sampler", self.sampler, SAMPLERS)
        _check("optimizer", self.optimizer, OPTIMIZERS)
        _check("schedule", self.schedule, SCHEDULES)

    def fixed_on_resume(self) -> dict[str, Scalar]:
        """Return the fields that must not change on resume. Those of parts are named like `objective.attention`."""
        fixed: dict[str, Scalar] = {}
        for name, value in asdict(self).items():
            if isinstance(value, dict):
                fixed.update({f"{name}.{part}": scalar for part, scalar in value.items()})
            elif name not in MAY_CHANGE_ON_RESUME:
                fixed[name] = value
        return fixed

    def differences(self, saved: Mapping[str, Scalar]) -> list[str]:
        """Return one phrase for each field that is not as in `saved`, the `fixed_on_resume()` of a checkpoint."""
        now = self.fixed_on_resume()
        return [
            f"{name} was {saved.get(name)!r}, now {now.get(name)!r}"
            for name in sorted({*now, *saved})
            if now.get(name) != saved.get(name)
        ]
