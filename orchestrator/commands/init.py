"""`orch init`: look at a repository, and write a jobs.toml to start from."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checks.check import CODE, Checked
from orchestrator.checks.code_checks import check_code
from orchestrator.code import git
from orchestrator.code.code_survey import survey_directory
from orchestrator.code.repository_scan import scan
from orchestrator.commands.first_command import FirstCommand, choose
from orchestrator.commands.first_settings import project_python
from orchestrator.commands.first_spec import first_spec
from orchestrator.errors import SpecError
from orchestrator.spec.models import FILE_NAME

IGNORED = (".orch/", "results/")  # directories that runs write to


@dataclass(frozen=True)
class Initialised:
    """What `orch init` wrote.

    Attributes:
        path: The jobs.toml.
        command: The command of its job, and what is not certain about it.
        ignored: The lines that were added to .gitignore.
        left_out: The folders that tools fill, which orch does not upload, each with what fills it.
        warnings: What is wrong with the files that orch would upload.
    """

    path: Path
    command: FirstCommand
    ignored: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    warnings: tuple[Checked, ...] = ()


def write_spec(directory: Path) -> Initialised:
    """Write a jobs.toml into `directory`, and add IGNORED to .gitignore in a git repository.

    Raises:
        SpecError: The directory already has a jobs.toml, or no longer exists.
    """
    try:
        directory = Path(os.path.abspath(directory))
    except FileNotFoundError:
        raise SpecError("the current directory no longer exists", "go to the directory of your project") from None
    path = directory / FILE_NAME
    if os.path.lexists(path):
        raise SpecError(f"writing {FILE_NAME}: {directory} already has one", "edit it, or remove it first")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", directory.resolve().name).strip("-_")[:64] or "project"
    found, is_gpu_here = scan(directory), has_gpu()
    command = choose(found, is_gpu_here, has_torchrun(directory))
    text = first_spec(found, command, name, is_gpu_here)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise SpecError(f"writing {FILE_NAME}: {directory} already has one", "edit it, or remove it first") from None
    ignored, survey = _ignore(directory), survey_directory(directory)
    warnings = tuple(Checked(CODE, check) for check in check_code(survey))
    return Initialised(path, command, ignored, tuple((survey.left_out or {}).items()), warnings)


def has_gpu() -> bool:
    """Return whether this machine has the driver of an NVIDIA GPU."""
    return shutil.which("nvidia-smi") is not None


def has_torchrun(directory: Path) -> bool:
    """Return whether jobs of the project on this machine find the program torchrun."""
    python = directory / (project_python(directory) or sys.executable)
    return shutil.which("torchrun", path=f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}") is not None


def _ignore(directory: Path) -> tuple[str, ...]:
    """Add those of IGNORED to .gitignore that git does not ignore yet, and return them. Do nothing without git."""
    if not any((parent / ".git").exists() for parent in (directory, *directory.parents)):
        return ()
    file = directory / ".gitignore"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    missing = tuple(line for line in IGNORED if line not in text.splitlines() and not _is_ignored(directory, line))
    if missing:
        separator = "" if text.endswith("\n") or not text else "\n"
        file.write_text(text + separator + "\n".join(missing) + "\n", encoding="utf-8")
    return missing


def _is_ignored(directory: Path, name: str) -> bool:
    try:
        with git.opened(directory) as listing:
            return listing is not None and listing.repository.ask("check-ignore", "-q", name)
    except SpecError:
        return False
