"""A failure that names a file which exists here but was not sent says so."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.code.not_sent import MAX_NAMES, explain
from orchestrator.spec.load import load
from orchestrator.spec.models import Spec

RUN = "/home/ann/orch/p/runs/train/20260126T210312-7f3a/work"
TREE = f"/home/ann/orch/p/code/{'a' * 64}"


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    project = tmp_path / "project"
    for name in ("data/train.bin", "tools/helper.py", "sent.py", "sent dir/a", "out/only.bin", ".env", "old/b.txt"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/big.bin").write_text("x")
    (project / "disk").symlink_to(tmp_path / "disk")
    (project / "results/train").mkdir(parents=True)
    (project / "results/train/model.pt").write_text("x")
    (project / "jobs.toml").write_text(
        '[project]\nname = "p"\nexclude = ["old"]\n[jobs.train]\ncommand = ["python", "sent.py"]\n'
    )
    (project / ".gitignore").write_text("data/\ntools/\nout/*.bin\n")
    git(tmp_path, "init", "-q", str(project))
    git(project, "add", "sent.py")
    return load(project / "jobs.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FileNotFoundError: [Errno 2] No such file or directory: 'data/train.bin'", "data/train.bin|is git-ignored"),
        (f"FileNotFoundError: [Errno 2] No such file or directory: '{RUN}/data/train.bin'", "data/train.bin|ignored"),
        (f"can't open file '{TREE}/tools/helper.py': [Errno 2] No such file", "tools/helper.py|is git-ignored"),
        ("cat: data/train.bin: No such file or directory", "data/train.bin|is git-ignored"),
        ("ls: cannot access 'data': No such file or directory", "data|is git-ignored"),
        ("ValueError: ./data/train.bin does not exist.", "data/train.bin|is git-ignored"),
        ("ModuleNotFoundError: No module named 'tools.helper'", "tools/helper.py|is git-ignored"),
        ("ModuleNotFoundError: No module named 'tools'", "tools|is git-ignored"),
        ("python: Error while finding module: No module named tools.helper", "tools/helper.py|is git-ignored"),
        ("open disk/big.bin: no such file or directory", "disk/big.bin|is behind a link to the absolute path"),
        ("No such file or directory: 'out'", "out|is git-ignored"),
        ("No such file or directory: 'old/b.txt'", "old/b.txt|is left out by [project] exclude"),
        ("No such file or directory: '.env'", ".env|looks like a secret"),
        ("No such file or directory: 'results/train/model.pt'", "model.pt|is in a directory that runs write"),
    ],
)
def test_file_that_was_not_sent_is_explained(spec: Spec, text: str, said: str) -> None:
    name, why = said.split("|")
    found = explain(spec, f"exit code 1: {text} (attempt 1 of 1)")
    assert found.split(" exists here but ")[0].endswith(name)
    assert why in found and "so it was not sent" in found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No such file or directory: 'sent.py'",  # it was sent
        "No such file or directory: 'sent dir/a'",  # not tracked, but not ignored either
        "No such file or directory: 'nowhere.bin'",
        "No such file or directory: '/etc/hostname'",
        "No such file or directory: '../disk/big.bin'",
        "No such file or directory: '\0'",
        "ModuleNotFoundError: No module named 'numpy'",
        "KeyError: 'data/train.bin'",  # not about a missing file
    ],
)
def test_nothing_is_said_about_other_failures(spec: Spec, text: str) -> None:
    assert explain(spec, text) == ""


def test_file_that_include_names_was_sent(spec: Spec) -> None:
    path = spec.directory / "jobs.toml"
    path.write_text(path.read_text().replace("exclude", 'include = ["data/*.bin"]\nexclude'))
    assert explain(load(path), "No such file or directory: 'data/train.bin'") == ""


def test_without_git_only_what_is_never_code_is_explained(spec: Spec) -> None:
    (spec.directory / ".git").rename(spec.directory / "not-git")
    (spec.directory / "wandb").mkdir()
    (spec.directory / "wandb/run.json").write_text("{}")
    assert explain(spec, "No such file: 'data/train.bin'") == ""
    assert "wandb/run.json exists here but is never sent" in explain(spec, "No such file: 'wandb/run.json'")


def test_long_text_is_searched_within_limits(spec: Spec) -> None:
    many = "\n".join(f"No such file or directory: 'x{number}' " + "y" * 3000 for number in range(3000))
    assert explain(spec, many) == ""
    assert "data/train.bin" in explain(spec, f"{many}\nNo such file or directory: 'data/train.bin'")
    names = " ".join(f"sent.py/../n{number}" for number in range(MAX_NAMES * 10))
    assert explain(spec, f"not found: {names}") == ""


def test_repository_that_git_refuses_explains_nothing(spec: Spec) -> None:
    (spec.directory / ".git/config").write_text("[broken")
    assert explain(spec, "No such file or directory: 'data/train.bin'") == ""
