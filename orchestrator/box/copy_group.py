"""Bring the copies of several runs up to date together: one listing, one transfer, one comparison for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.box.arrivals import BATCH_BYTES, Batch
from orchestrator.box.client import Box
from orchestrator.box.inventory import Inventory, Name
from orchestrator.box.run_copy import RunCopy
from orchestrator.errors import CopyFailed, OrchError

GROUP_RUNS = 100  # runs that are copied together: each has an open lock, and macOS allows 256 open files
GROUP_FILES = 20_000
LISTINGS = 2  # further ones in a sync, of runs from which the job deletes files during the transfer
Listed = tuple[Name, "Inventory | OrchError"]


def groups(found: Iterable[Listed]) -> Iterator[list[Listed]]:
    """Group runs that are copied together: few enough that the first ones are complete here soon.

    Raises:
        OrchError: No further run can be listed; raised after the last group.
    """
    group: list[Listed] = []
    files, size, error = 0, 0, None
    try:
        for name, listed in found:
            sizes = [] if isinstance(listed, OrchError) else listed.files.values()
            is_full = len(group) >= GROUP_RUNS or files + len(sizes) > GROUP_FILES or size + sum(sizes) > BATCH_BYTES
            if group and is_full:
                yield group
                group, files, size = [], 0, 0
            group.append((name, listed))
            files, size = files + len(sizes), size + sum(sizes)
    except OrchError as raised:
        error = raised
    if group:
        yield group
    if error is not None:
        raise error


def going(copies: Sequence[RunCopy]) -> Iterator[RunCopy]:
    """Yield the copies that have not failed."""
    yield from (copy for copy in copies if copy.error is None)


def transfer_until_complete(box: Box, incoming: Path, copies: Sequence[RunCopy], limit: int) -> None:
    """Copy what the runs lack. A run in which directories wait is listed again, and its other files are copied.

    Args:
        box: The box that has the runs.
        incoming: See `transfer`.
        copies: The runs, prepared.
        limit: The largest size of one run in bytes.
    """
    transfer(box, incoming, copies)
    for left in reversed(range(LISTINGS)):
        waiting = {copy.wanted.name: copy for copy in going(copies) if copy.waiting}
        if not waiting:
            return
        for copy, listed in _listed_again(box, dict(waiting)):
            reserved = sum(other.missing for other in going(list(waiting.values())) if other is not copy)
            with copy.failing():
                copy.prepare_again(listed, limit, reserved, is_last=left == 0)
        transfer(box, incoming, list(waiting.values()))


def _listed_again(box: Box, copies: dict[Name, RunCopy]) -> Iterator[tuple[RunCopy, Inventory]]:
    """Yield new listings of the copies. An error is set in the copies that it is about."""
    try:
        for name, found in box.inventories(list(copies)):
            copy = copies.pop(name)
            if isinstance(found, OrchError):
                copy.error = found
            else:
                yield copy, found
    except OrchError as error:
        for copy in copies.values():
            copy.error = error


def transfer(box: Box, incoming: Path, copies: Sequence[RunCopy]) -> None:
    """Copy the batches of all runs, and put them in place. An error of a run is set in its copy.

    Args:
        box: The box that has the runs.
        incoming: The folder in which all files arrive, at JOB/RUN_ID/NAME.
        copies: The runs, prepared.
    """
    for index in range(max((len(copy.batches) for copy in copies), default=0)):
        parts: dict[str, list[tuple[RunCopy, Batch]]] = {}
        for copy in going(copies):
            if index < len(copy.batches):
                source = copy.listed.path.removesuffix("/" + "/".join(copy.wanted.name))
                parts.setdefault(source, []).append((copy, copy.batches[index]))
        for source, some in parts.items():
            _pull(box, source, incoming, some)


def _pull(box: Box, source: str, incoming: Path, parts: Sequence[tuple[RunCopy, Batch]]) -> None:
    failed: Mapping[str, str] = {}
    for copy, batch in parts:
        if copy.seeds:
            copy.arrivals.seed(batch)
    found = [copy.arrivals.present(batch) for copy, batch in parts]
    try:
        box.pull(source, incoming, {_below(copy, name): size for copy, batch in parts for name, size in batch.items()})
    except CopyFailed as error:
        if not error.rest_copied and len(parts) > 1:  # find the run that it is about, and copy the others
            for part in parts:
                _pull(box, source, incoming, [part])
            return
        failed = error.failures
        if not error.rest_copied:
            parts[0][0].error = error
    except OrchError as error:
        for copy, _ in parts:
            copy.error = error
    for (copy, batch), before in zip(parts, found, strict=True):
        if copy.error is None:
            with copy.failing():
                if box.checks_copies:  # a file that was transferred has another inode
                    after = copy.arrivals.present(batch)
                    copy.verified |= {name for name in after if after[name] != before.get(name)}
                copy.place(batch, {name: failed[_below(copy, name)] for name in batch if _below(copy, name) in failed})


def verify_together(box: Box, incoming: Path, copies: Sequence[RunCopy]) -> None:
    """Compare what was not transferred now with the checksums of the box; transfer what differs again, once."""
    files = [(*copy.wanted.name, name) for copy in going(copies) for name in copy.unverified()]
    if not files:
        return
    try:
        checksums = box.checksums(files)
    except OrchError as error:
        for copy in going(copies):
            if copy.unverified():
                copy.error = error
        return
    differing = [copy for copy in going(copies) if copy.compare(checksums)]
    transfer(box, incoming, differing)
    for copy in going(differing):
        with copy.failing():
            copy.compare_again(checksums)


def _below(copy: RunCopy, name: str) -> str:
    return "/".join((*copy.wanted.name, name))


def delete_together(box: Box, copies: Sequence[RunCopy]) -> None:
    """Delete what the jobs of the runs deleted. Without such files, the box is not asked."""
    waiting = {copy.wanted.name: copy for copy in going(copies) if copy.has_deletions()}
    try:
        for name, now in box.inventories(list(waiting)):
            copy = waiting.pop(name)
            with copy.failing():
                if isinstance(now, OrchError):
                    raise now
                copy.delete(now)
    except OrchError as error:
        for copy in waiting.values():
            copy.error = error
