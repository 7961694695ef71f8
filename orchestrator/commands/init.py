"""`orch init`: a jobs.toml to begin with."""

from __future__ import annotations

import os
import re
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.spec.models import FILE_NAME

STARTER = """\
# What to run, and where. All settings: docs/jobs-toml.md of orch.

[project]
name = "{name}"

[hosts.local]
gpus = 0  # run on the CPU; remove this line to use the GPUs of this machine

# [hosts.box]
# ssh = "user@address, or an alias of ~/.ssh/config"
# python = "/path/on/the/box/to/python"
# gpus = 1

[jobs.train]
command = "python train.py"  # runs in a snapshot of this directory
expects = ["training.log"]  # the run succeeds only if these files exist at its end

# [jobs.train.goals]
# val_accuracy = ">= 75 %"
"""
IGNORED = (".orch/", "results/")  # what runs make here


def write(directory: Path) -> Path:
    """Write jobs.toml, and keep git from what runs make. Raises SpecError where there is one."""
    try:
        directory = Path(os.path.abspath(directory))
    except FileNotFoundError:
        raise SpecError("the current directory no longer exists", "go to the directory of your project") from None
    path = directory / FILE_NAME
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", directory.resolve().name).strip("-_")[:64] or "project"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(STARTER.format(name=name))
    except FileExistsError:
        raise SpecError(f"writing {FILE_NAME}: {directory} already has one", "edit it, or remove it first") from None
    if (directory / ".git").exists():
        _ignore(directory / ".gitignore")
    return path


def _ignore(file: Path) -> None:
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    missing = [line for line in IGNORED if line not in text.splitlines()]
    if missing:
        separator = "" if text.endswith("\n") or not text else "\n"
        file.write_text(text + separator + "\n".join(missing) + "\n", encoding="utf-8")
