from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from workers.common.errors import BadInput
from workers.model.transformer import Architecture
from workers.training.losses import Objective
from workers.training.training_config import MAY_CHANGE_ON_RESUME, TrainingConfig

TRAINER_IMPORTS = [
    "common.errors",
    "evaluation.metrics",
    "model.attention",
    "model.transformer",
    "perception.batching",
    "perception.boxes",
    "training.checkpoint",
    "training.distributed",
    "training.loader",
    "training.losses",
    "training.optimizer",
    "training.sampler",
    "training.trainer",
    "training.training_config",
]
PRINT_IMPORTS = """
import sys, workers.training.trainer
names = [name for name, module in sys.modules.items() if name.startswith("workers.") and module.__file__]
print(*sorted(name for name in names if not sys.modules[name].__file__.endswith("__init__.py")))
"""


def test_the_trainer_imports_only_what_it_needs() -> None:
    """To read the trainer one needs these modules, and not how data, detections or features are made."""
    printed = subprocess.run(
        [sys.executable, "-c", PRINT_IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert printed.stdout.split() == [f"workers.{name}" for name in TRAINER_IMPORTS]


def test_fields_that_must_not_change_on_resume_are_flat_and_plain() -> None:
    fixed = TrainingConfig(data=Path("/data"), objective=Objective(attention=2.0)).fixed_on_resume()
    assert fixed["objective.attention"] == 2.0 and fixed["architecture.width"] == 64 and fixed["seed"] == 0
    assert all(isinstance(value, (str, int, float, bool, type(None))) for value in fixed.values())
    names = {item.name for item in fields(TrainingConfig)}
    assert {name.partition(".")[0] for name in fixed} == names - set(MAY_CHANGE_ON_RESUME)
    assert set(MAY_CHANGE_ON_RESUME) < names


def test_each_field_that_differs_is_named_with_both_values() -> None:
    saved = TrainingConfig().fixed_on_resume()
    now = replace(
        TrainingConfig(epochs=99, threads=4, device="cuda"),  # these may change
        seed=1,
        dataset="new",
        architecture=Architecture(layers=4),
    )
    assert now.differences(saved) == [
        "architecture.layers was 3, now 4",
        "dataset was '', now 'new'",
        "seed was 0, now 1",
    ]
    del saved["optimizer"]
    assert "optimizer was None, now 'adam'" in now.differences(saved)


@pytest.mark.parametrize("name", ["sampler", "optimizer", "schedule"])
def test_an_unknown_name_is_refused(name: str) -> None:
    wrong: dict[str, Any] = {name: "other"}
    with pytest.raises(BadInput, match=f"unknown {name} 'other'; choose one of "):
        TrainingConfig(**wrong)
