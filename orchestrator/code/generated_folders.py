"""Tell folders that tools fill (environments, logs of experiments, runs of orch) from folders of code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from orchestrator.spec.models import MIRROR_MARKS, MIRROR_RECORDS

# In a Python environment. Its name proves nothing: `env` may be code.
ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")

_BY_NAME = {
    "node_modules": "packages of npm",
    "mlruns": "runs of MLflow",
    "lightning_logs": "logs of Lightning",
    ".orch": "runs of orch",
}
_WANDB_RUNS = re.compile(r"(?:offline-)?run-\d|latest-run|debug(?:-\w+)?\.log")
_HYDRA_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_MOST = 1000  # entries of a folder that are looked at


def why_generated(directory: Path, folder: str) -> str | None:
    """Return what fills a folder; None if it may be code, since its name alone is used for code too.

    Args:
        directory: The project.
        folder: A folder in it, such as `logs/wandb`.
    """
    path, name = directory / folder, folder.rpartition("/")[2]
    if any(os.path.lexists(path / mark) for mark in ENVIRONMENT_MARKS):
        return "a Python environment"
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name == "wandb" and any(_WANDB_RUNS.match(child) for child in _children(path)):
        return "runs of W&B"
    if name in ("outputs", "multirun") and any(_is_hydra_day(path / child) for child in _children(path)):
        return "runs of Hydra"
    if any(os.path.lexists(path / MIRROR_RECORDS / mark) for mark in MIRROR_MARKS):
        return "results of orch"
    if os.path.lexists(path / "reboot.lock") and any(
        os.path.isdir(path / child / "code" / ".incoming") for child in _children(path)
    ):
        return "runs of orch"
    return None


def _is_hydra_day(path: Path) -> bool:
    """Return whether a folder such as `outputs/2026-01-31` has a run of Hydra."""
    return _HYDRA_DAY.fullmatch(path.name) is not None and any(
        os.path.isdir(path / run / ".hydra") or os.path.isfile(path / run / "multirun.yaml") for run in _children(path)
    )


def _children(path: Path) -> Iterator[str]:
    try:
        with os.scandir(path) as entries:
            for _, entry in zip(range(_MOST), entries, strict=False):
                yield entry.name
    except OSError:
        return


def without_generated(directory: Path, names: Iterable[str], tracked: Set[str], found: dict[str, str]) -> Iterator[str]:
    """Yield `names` except the untracked files in folders that tools fill. What git tracks is never left out.

    Args:
        directory: The project.
        names: Files in it, relative.
        tracked: The files that git tracks.
        found: Gets each folder whose files are left out, with `/` at its end, and what fills it.
    """
    known: dict[str, str | None] = {"": None}

    def folder_with(folder: str) -> str | None:
        """Return the outermost generated folder that `folder` is or is in."""
        if folder not in known:
            outer = folder_with(folder.rpartition("/")[0])
            reason = None if outer else why_generated(directory, folder)
            if reason:
                found[f"{folder}/"] = reason
            known[folder] = outer or (folder if reason else None)
        return known[folder]

    for name in names:
        if name in tracked or not folder_with(name.rpartition("/")[0]):
            yield name
