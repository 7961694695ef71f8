"""Send data to hosts: `orch push`, and the `data.from` of jobs. An interrupted upload continues where it stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.box.client import Box
from orchestrator.code import dataset
from orchestrator.code.dataset import Dataset
from orchestrator.commands.project import Project
from orchestrator.commands.rehearse import ShowProgress
from orchestrator.errors import OrchError, Refused, SpecError
from orchestrator.spec.models import Data, Job
from orchestrator.text import duration, size_text
from remote.contract.uploads import DataBeginRequest, DataCommitRequest

FIRST_BATCH = 16 << 20  # bytes
BATCH_S = 30.0  # seconds that a batch should take: what is complete is not looked at again after an interruption
MAX_NOTES = 10  # about files that were not sent
MAX_LINKS = 1000  # in the working directory, if a part of the data is code


@dataclass(frozen=True)
class Pushed:
    """Data on a host. `sent` is False if it was there before. Sizes in bytes."""

    host: str
    path: str
    files: int
    bytes: int
    sent: bool
    skipped: tuple[tuple[str, str], ...]  # what was not sent, and why


def push(project: Project, source: Path, target: str, force: bool, show_progress: ShowProgress) -> Pushed:
    """Send a file or directory to a host.

    Args:
        project: The project that defines the host.
        source: The file or directory on this machine.
        target: HOST:PATH, or PATH if all jobs run on one host. A relative path is below the project's `data/` there; a
            path with `/` at its end is the directory that gets the source under its own name.
        force: Whether to replace other files that are there.
        show_progress: Called with what is being done.

    Raises:
        SpecError: There is no such host, or nothing to send.
        Refused: Other files are at the target.
        HostError: The host cannot be used.
    """
    host, path = _target(project, source, target)
    data = dataset.examine(source)
    box = project.retrying_box(host)
    asked = DataBeginRequest(path, data.listing, data.name)
    there = box.begin_data(asked)
    if there.state == "different" and not force:
        raise Refused(
            f"pushing {source} to {host}: {there.path} exists with other content",
            "--force replaces it; or choose another path",
        )
    if there.state != "same":
        _send(box, data, str(there.incoming), f"{source} to {host}", show_progress)
        box.commit_data(DataCommitRequest(path, data.listing, data.name, replace=force))
    return Pushed(host, there.path, len(data.entries), data.size, there.state != "same", data.skipped)


def _target(project: Project, source: Path, target: str) -> tuple[str, str]:
    host, colon, path = target.partition(":")
    if not colon and target in project.spec.hosts:
        raise SpecError(f"pushing {source} to {target!r}: this is a host", f"write {target}:PATH")
    if not colon:
        hosts = project.hosts_of_jobs()
        if len(hosts) != 1:
            hint = f"write {hosts[0] if hosts else 'HOST'}:{target}"
            raise SpecError(f"pushing to {target}: the jobs run on {len(hosts)} hosts", hint)
        host, path = hosts[0], target
    name = project.spec.host(host).name
    if not path or path.endswith("/"):
        path += os.path.basename(os.path.abspath(source))
    return name, path


def _send(box: Box, data: Dataset, incoming: str, what: str, show_progress: ShowProgress) -> None:
    """Upload the files in batches, and show the progress after each."""
    done, size = 0, data.size
    show_progress(f"sending {what}: {len(data.entries)} files, {size_text(size)}", False)
    first = time.monotonic()

    def show(sent: int) -> None:
        sent = min(done + sent, size)
        left = (size - sent) * (time.monotonic() - first) / (sent + 1)
        text = f"sending {what}: {size_text(sent)} of {size_text(size)}, about {duration(left)} left"
        show_progress(text, True)

    for batch in _batches(data.sizes):
        box.upload(data.directory, batch, incoming, show)
        done += sum(batch.values())
        show(0)


def _batches(sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Yield the files of each upload. Each has as many bytes as should take BATCH_S seconds."""
    names = sorted(sizes)
    limit, at = FIRST_BATCH, 0
    while at < len(names):
        batch: dict[str, int] = {}
        while at < len(names) and (not batch or sum(batch.values()) + sizes[names[at]] <= limit):
            batch[names[at]] = sizes[names[at]]
            at += 1
        began = time.monotonic()
        yield batch
        rate = sum(batch.values()) / max(0.1, time.monotonic() - began)
        limit = max(FIRST_BATCH, int(rate * BATCH_S))


# --- data.from ------------------------------------------------------------------------------------------


def place_data(
    project: Project, host: str, jobs: Sequence[Job], code: Sequence[str], show_progress: ShowProgress
) -> tuple[list[Job], list[str]]:
    """Send the data of `data.from` to a host that does not have it.

    Args:
        project: The project.
        host: The host in jobs.toml.
        jobs: The jobs.
        code: The files of the snapshot, which the links in the working directory must not replace.
        show_progress: Called with what is being done.

    Returns:
        The jobs with the place of their data on the box, and notes about what was not sent.

    Raises:
        SpecError: There is no such data.
        HostError: The host cannot be used.
    """
    placed: dict[str, tuple[Dataset, str, str]] = {}
    result = []
    for job in jobs:
        source = job.data.source if job.data else None
        if job.data is None or source is None:
            result.append(job)
            continue
        if source not in placed:
            placed[source] = _place(project, host, source, show_progress)
        data, content, path = placed[source]
        links = {**_links(source, path, data, code), **job.links} if job.cwd == "work" else job.links
        there = Data(path=f"data/{content}", pattern=job.data.pattern, at_least=job.data.at_least)
        result.append(replace(job, data=there, links=links))
    notes = [
        f"{source}/{name} was not sent: {why}" for source, (data, *_) in placed.items() for name, why in data.skipped
    ]
    more = len(notes) - MAX_NOTES
    return result, notes if more <= 0 else [*notes[:MAX_NOTES], f"{more} more files of the data were not sent"]


def _place(project: Project, host: str, source: str, show_progress: ShowProgress) -> tuple[Dataset, str, str]:
    """Return the data, the hash of its content, and its path on the box."""
    path = project.spec.directory / Path(source).expanduser()
    data = dataset.examine(path)
    if data.name:
        raise SpecError(f"data.from: {source!r} is a file", "name its directory; `data.pattern` chooses files in it")
    size = size_text(data.size)
    content = dataset.content_hash(
        data, lambda read: show_progress(f"reading {source}: {size_text(read)} of {size}", False)
    )
    box = project.retrying_box(host)
    asked = DataBeginRequest(content, data.listing, content=True)
    there = box.begin_data(asked)
    if there.state != "same":
        _send(box, data, str(there.incoming), f"{source} to {host}", show_progress)
        if dataset.content_hash(data) != content:
            raise OrchError(f"sending {source} to {host}: it changed meanwhile", "run the command again")
        box.commit_data(DataCommitRequest(content, data.listing, content=True, replace=True))
    return data, content, there.path


def _links(source: str, path: str, data: Dataset, code: Sequence[str]) -> dict[str, str]:
    """Return the links that lead from the place of the data in the project to its place on the box.

    If a part of that directory is code, each entry of it that is not gets a link of its own.
    """
    name = os.path.normpath(source)
    if os.path.isabs(name) or name.startswith("~") or name.split("/")[0] in ("..", "."):
        return {}
    below = {file[len(name) + 1 :].split("/")[0] for file in code if file.startswith(f"{name}/")}
    if not below:
        return {name: path}
    entries = sorted({entry.split("/")[0] for entry in data.entries} - below)
    return {f"{name}/{entry}": f"{path}/{entry}" for entry in entries[:MAX_LINKS]}
