"""`orch ls`, `orch cat` and `orch open`: the files of a run, in its copy here or on its host."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from orchestrator.commands.looking import SeenRun, find_run, look, look_for
from orchestrator.commands.show import sizes_of
from orchestrator.errors import LaptopError, Refused, SpecError
from remote.contract.files import open_to_read
from remote.contract.paths import OUTPUT_FOLDERS

if TYPE_CHECKING:
    from orchestrator.box.known_runs import KnownRun
    from orchestrator.commands.project import OpenedProject

CHUNK = 1 << 20
WORK = OUTPUT_FOLDERS[0]


@dataclass(frozen=True)
class Entry:
    """A file of a run, or a directory with the number of files below it. The path of a directory ends in `/`.

    `is_here` says whether the copy has it, or has all of it, as the host lists it.
    """

    path: str
    files: int
    bytes: int
    is_here: bool


@dataclass(frozen=True)
class DirectoryListing:
    """The entries of one directory of a run. `directory` is relative to the run; "" for the run itself."""

    seen: SeenRun
    directory: str
    entries: tuple[Entry, ...]


def _run(project: OpenedProject, name: str) -> KnownRun:
    """Return the run that a name means, and tell the user which one of several it is."""
    run = find_run(project, name)
    count = sum(other.job == name for other in project.known.all())
    if count > 1:
        project.report_retry(f"{run.job} {run.run_id}, one of {count} runs of {run.job}")
    return run


def list_files(project: OpenedProject, name: str, directory: str = "", is_recursive: bool = False) -> DirectoryListing:
    """Return what is in a directory of a run: by its complete copy, or as its host lists it, if it answers.

    Args:
        project: The project that has the run.
        name: The run.
        directory: A path in the run directory, or in its `work/`.
        is_recursive: List all files below the directory, instead of its entries.

    Raises:
        SpecError: The name means no run, or several; or there is no such directory.
        HostError: It means no run that is known here, and a host that may have it cannot be asked.
    """
    (seen,) = look(project, [_run(project, name)])
    here = sizes_of(seen.copy.root)
    sizes = here | dict(seen.files or {})
    place = _directory_in(sizes, directory)
    if place is None:
        raise _nothing_at(seen.known, directory, sizes)
    below = [path for path in sizes if path.startswith(place)]
    found: dict[str, list[str]] = {}
    for path in sorted(below):
        head, slash, _ = path[len(place) :].partition("/")
        found.setdefault(path if is_recursive else place + head + slash, []).append(path)
    entries = tuple(
        Entry(
            entry,
            len(paths),
            sum(sizes[path] for path in paths),
            all(here.get(path) == sizes[path] for path in paths),
        )
        for entry, paths in found.items()
    )
    return DirectoryListing(seen, place, entries)


def _directory_in(sizes: dict[str, int], directory: str) -> str | None:
    """Return the directory as a prefix of paths; None if no file is below it."""
    prefix = str(PurePosixPath(directory))
    if prefix == ".":
        return ""
    for place in (f"{prefix}/", f"{WORK}/{prefix}/"):
        if any(path.startswith(place) for path in sizes):
            return place
    return None


def _nothing_at(run: KnownRun, path: str, sizes: dict[str, int]) -> SpecError:
    near = get_close_matches(path, sizes, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return SpecError(f"{run.job} {run.run_id} has no {path!r}", f"{hint}to list its files: orch ls {run.run_id}")


@dataclass(frozen=True)
class RunFile:
    """A file in the copy of a run. The error of `seen` says why it may be older than on the host."""

    seen: SeenRun
    path: str  # relative to the run
    place: Path
    size: int  # in bytes

    def pieces(self) -> Iterator[bytes]:
        """Yield the content. Raise LaptopError if it cannot be read."""
        try:
            with open_to_read(self.place) as file:
                yield from iter(lambda: file.read(CHUNK), b"")
        except OSError as error:
            raise LaptopError(f"reading {self.place}: {error.strerror}") from None


def find_file(project: OpenedProject, name: str, path: str, limit: int) -> RunFile:
    """Return a file of a run. If the copy of the run is not complete, the file is fetched from the host first.

    Args:
        project: The project that has the run.
        name: The run.
        path: A path in the run directory, or in its `work/`.
        limit: The largest size of a file to fetch, in bytes.

    Raises:
        SpecError: The name means no run, or several; or it has no such file.
        Refused: The file is too large to be fetched.
        HostError: The file is not here, and its host cannot be used.
    """
    run = _run(project, name)
    clean = str(PurePosixPath(path))
    names = (clean, f"{WORK}/{clean}")
    (seen,) = look_for(project, [run], lambda found: found in names, limit)
    here = sizes_of(seen.copy.root)
    for each in names:
        if each in here and _is_inside(seen.copy.root, each):
            return RunFile(seen, each, seen.copy.root / each, here[each])
    if isinstance(seen.error, Refused):
        only = shlex.quote(f"/{clean}")
        raise Refused(seen.error.message, f"raise --limit, or download it: orch sync {run.run_id} --only {only}")
    if seen.error is not None:
        raise seen.error
    raise _nothing_at(run, path, here | dict(seen.files or {}))


def _is_inside(root: Path, path: str) -> bool:
    return (root / path).resolve().is_relative_to(root.resolve())


@dataclass(frozen=True)
class Opened:
    """The directory of a copy. `is_shown` says whether a file manager was started for it."""

    run: KnownRun
    directory: Path
    is_shown: bool


def open_copy(project: OpenedProject, name: str) -> Opened:
    """Show the copy of a run in the file manager, if there is a display.

    Raises:
        SpecError: The name means no run, or several; or the run has no copy here.
        HostError: It means no run that is known here, and a host that may have it cannot be asked.
    """
    run = _run(project, name)
    directory = project.mirror.run(*run.key).root
    if not directory.is_dir():
        raise SpecError(f"{run.job} {run.run_id} has no copy here", f"to download it: orch sync {run.run_id}")
    has_display = sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if not has_display:
        return Opened(run, directory, False)
    import typer

    return Opened(run, directory, typer.launch(str(directory)) == 0)
