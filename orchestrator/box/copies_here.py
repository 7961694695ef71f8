"""The copies of runs on this machine: their sizes, and how one is removed."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.box.arrivals import CHOSEN, INCOMING
from orchestrator.errors import LaptopError
from orchestrator.spec.models import MIRROR_RECORDS
from remote.contract.files import temp_beside

if TYPE_CHECKING:
    from orchestrator.box.known_runs import KnownRun
    from orchestrator.box.mirror import Mirror


def size_of(*tops: Path) -> int:
    """Return the bytes on the disk below directories. A file with several hard links is counted once."""
    size, seen = 0, set()
    waiting = [str(top) for top in tops]
    while waiting:
        path = waiting.pop()
        try:
            found = os.lstat(path)
            if os.path.isdir(path) and not os.path.islink(path):
                waiting += [entry.path for entry in os.scandir(path)]
        except OSError:
            continue
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            size += found.st_blocks * 512
    return size


def places_here(mirror: Mirror, run: KnownRun) -> list[Path]:
    """Return the directories of this machine that hold the copy of a run, or a part of it that waits."""
    records = mirror.directory / MIRROR_RECORDS
    places = [mirror.run(*run.key).root, *(records / name / run.job / run.run_id for name in (INCOMING, CHOSEN))]
    return [place for place in places if place.is_dir() and not place.is_symlink()]


def has_content(mirror: Mirror, run: KnownRun) -> bool:
    """Return whether anything of a run was copied to this machine. A launch writes run.json alone."""
    paths = mirror.run(*run.key)
    return any(path not in (paths.run, paths.root) for place in places_here(mirror, run) for path in place.glob("*"))


def remove_copy(mirror: Mirror, run: KnownRun) -> None:
    """Remove the copy of a run from this machine: renamed first, so that no half of it remains.

    Raises:
        LaptopError: It cannot be removed.
    """
    job = mirror.run(*run.key).root.parent
    if job.is_symlink():
        raise LaptopError(f"{job} is a link, which may lead anywhere", "remove the copy by hand")
    try:
        for place in places_here(mirror, run):
            aside = temp_beside(place)
            place.rename(aside)
            shutil.rmtree(aside)
    except OSError as error:
        raise LaptopError.of(error) from None
    latest = job / "latest"
    with suppress(OSError):
        if latest.is_symlink() and os.readlink(latest) == run.run_id:
            latest.unlink()
