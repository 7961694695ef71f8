"""`orch init`: write a jobs.toml to start from."""

from __future__ import annotations

import os
import re
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.spec.models import FILE_NAME

TEMPLATE = """\
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
command = "python train.py"  # runs in its own copy of this directory; what it adds there is downloaded
# expects = ["model.pt"]  # the run succeeds only if it wrote these files
# rehearse = false  # by default orch first tests the command for about a minute, with ORCH_REHEARSAL=1

# [jobs.train.goals]
# val_accuracy = ">= 75 %"
"""
IGNORED = (".orch/", "results/")  # directories that runs write to


def write_template(directory: Path) -> Path:
    """Write a jobs.toml into `directory`, add IGNORED to .gitignore in a git repository, and return the file's path.

    Raises:
        SpecError: The directory already has a jobs.toml, or no longer exists.
    """
    try:
        directory = Path(os.path.abspath(directory))
    except FileNotFoundError:
        raise SpecError("the current directory no longer exists", "go to the directory of your project") from None
    path = directory / FILE_NAME
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", directory.resolve().name).strip("-_")[:64] or "project"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.format(name=name))
    except FileExistsError:
        raise SpecError(f"writing {FILE_NAME}: {directory} already has one", "edit it, or remove it first") from None
    if any((parent / ".git").exists() for parent in (directory, *directory.parents)):
        _add_ignored(directory / ".gitignore")
    return path


def _add_ignored(file: Path) -> None:
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    missing = [line for line in IGNORED if line not in text.splitlines()]
    if missing:
        separator = "" if text.endswith("\n") or not text else "\n"
        file.write_text(text + separator + "\n".join(missing) + "\n", encoding="utf-8")
