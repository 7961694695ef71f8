"""Variables of `--set` that nothing mentions are noticed, with the name that is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.checks.code_checks import check_variables
from orchestrator.code.mentioned_names import MAX_FILE, find_mentions
from orchestrator.code.snapshot import take
from orchestrator.spec.load import load
from orchestrator.spec.overrides import unmentioned_variables

JOBS_TOML = """\
[project]
name = "p"
[jobs.train]
command = ["python", "train.py", "--rate", "$RATE"]
env = { EPOCHS = "3", OUT = "$FOLDER/out" }
"""
CODE = "import os\nseed = int(os.environ.get('SEED', 0))\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "jobs.toml").write_text(JOBS_TOML)
    (tmp_path / "train.py").write_text(CODE)
    return tmp_path


def unmentioned(project: Path, *names: str) -> list[str]:
    overrides = [f"env.{name}=1" for name in names]
    return unmentioned_variables(load(project / "jobs.toml"), ["train"], overrides)


def hints(project: Path, *names: str) -> list[str]:
    mentions = find_mentions(take(project), names)
    return [f"{check.detail}; {check.hint}" for check in check_variables(names, mentions, ["EPOCHS"])]


def test_variables_of_jobs_toml_and_of_libraries_are_known(project: Path) -> None:
    names = ["EPOCHS", "RATE", "FOLDER", "WANDB_MODE", "CUDA_VISIBLE_DEVICES", "SEEED"]
    assert unmentioned(project, *names) == ["SEEED"]
    assert unmentioned_variables(load(project / "jobs.toml"), ["train"], ["deadline=2h"]) == []


def test_variable_that_the_code_reads_is_known(project: Path) -> None:
    assert hints(project, "SEED") == []


def test_mistyped_variable_gets_the_name_that_the_code_reads(project: Path) -> None:
    (said,) = hints(project, "SEEED")
    assert said == ("--set env.SEEED: nothing in jobs.toml and in the code mentions SEEED; did you mean env.SEED?")


def test_mistyped_variable_gets_the_name_in_jobs_toml(project: Path) -> None:
    assert "did you mean env.EPOCHS?" in hints(project, "EPOCH")[0]


def test_part_of_a_longer_name_is_no_mention(project: Path) -> None:
    (project / "train.py").write_text("os.environ['SEED_OF_ALL']")
    assert len(hints(project, "SEED")) == 1


def test_only_text_is_searched(project: Path) -> None:
    (project / "model.bin").write_bytes(b"\0SEEED")
    (project / "data.csv").write_bytes(b"SEEED," * (MAX_FILE // 6 + 1))
    assert len(hints(project, "SEEED")) == 1
