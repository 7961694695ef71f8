"""The schemas of jobs.toml and of the documents: valid, and as strict as they can be."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.spec.jobs_schema import FOLDER, NAME, jobs_schema
from orchestrator.ui.document_schema import documents_schema
from tests.support import ROOT

FILES = [ROOT / "jobs.toml", *sorted((ROOT / "tests" / "contract").glob("v*/**/jobs.toml"))]
JOBS = Draft7Validator(jobs_schema())


def test_schemas_are_valid_schemas() -> None:
    Draft7Validator.check_schema(jobs_schema())
    Draft202012Validator.check_schema(documents_schema())


def test_unknown_schema_is_a_usage_error() -> None:
    said = CliRunner().invoke(app, ["schema", "hosts"])
    assert (said.exit_code, "one of: jobs, documents" in said.output) == (2, True)


# --- jobs.toml ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_jobs_toml_of_this_repository_is_valid(file: Path) -> None:
    JOBS.validate(tomllib.loads(file.read_text(encoding="utf-8")))


def examples() -> list[str]:
    """Return the parts of a jobs.toml in the documentation."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    found = [
        code for page in pages for code in re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    ]
    return [code for code in found if re.search(r"^\[(?:jobs|hosts|project|defaults)\b", code, re.M)]


@pytest.mark.parametrize("code", examples())
def test_documented_examples_are_valid(code: str) -> None:
    JOBS.validate({"project": {"name": "p"}, **tomllib.loads(code)})


@pytest.mark.parametrize(
    ("table", "wrong"),
    [
        ({}, "jobs.train.comand"),
        ({"restarts": "3"}, "jobs.train.restarts"),
        ({"restarts": -1}, "jobs.train.restarts"),
        ({"stop_signal": "SIGKILL"}, "jobs.train.stop_signal"),
        ({"env": {"A": True}}, "jobs.train.env.A"),
        ({"cwd": "home"}, "jobs.train.cwd"),
        ({"pty": 1}, "jobs.train.pty"),
        ({"expects": "a.pt"}, "jobs.train.expects"),
    ],
)
def test_wrong_value_is_found(table: dict[str, Any], wrong: str) -> None:
    job = {"command": "python train.py", **table} if table else {"comand": "x"}
    errors = list(JOBS.iter_errors({"project": {"name": "p"}, "jobs": {"train": job}}))
    (error,) = errors
    assert wrong.startswith(".".join(map(str, error.absolute_path)))


@pytest.mark.parametrize(
    "job",
    [
        {"command": ["python", "x.py"], "prepare": "make data", "environment": "uv.lock", "secrets": ["HF_TOKEN"]},
        {"prepare": False, "environment": False, "data": False, "deadline": False, "metrics": False, "resume": False},
        {"sweep": {"env.SEED": [0, 1], "gpus": [0, 1]}},
        {"sweep": {"env": {"SEED": [0, 1]}}},
        {"gpus": "1/2", "deadline": 3600, "stall_after": "1h30m", "checkpoints": "out/*.pt"},
        {"secrets": {"T": {"command": "pass show t"}}, "data": {"from": "data"}, "metrics": {"log": ["(?P<a>x)"]}},
    ],
)
def test_short_forms_are_valid(job: dict[str, Any]) -> None:
    JOBS.validate({"project": {"name": "p"}, "defaults": {"gpus": 1}, "jobs": {"train": job}})


def test_first_jobs_toml_names_the_schema_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("import torch\n")
    assert CliRunner().invoke(app, ["init"]).exit_code == 0
    text = (tmp_path / "jobs.toml").read_text(encoding="utf-8")
    assert text.startswith(f"#:schema {FOLDER}/{NAME}\n")
    assert json.loads((tmp_path / FOLDER / NAME).read_text(encoding="utf-8")) == jobs_schema()
    JOBS.validate(tomllib.loads(text))
