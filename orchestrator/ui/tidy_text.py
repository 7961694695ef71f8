"""What is stored, what would be removed and what was removed: as text, and as the content of documents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestrator.text import clean, counted, duration, shortened, size_text
from orchestrator.ui.serialize import error_to_json
from remote.contract.removals import KINDS, RUN, StoredItem

if TYPE_CHECKING:
    from orchestrator.commands.df import Disks, HostDisk
    from orchestrator.commands.rm import Copy, Plan, Removed
    from orchestrator.errors import OrchError
    from orchestrator.ui.terminal import Terminal
    from orchestrator.ui.tidy_objects import DisksObject, HostDiskObject, PartObject, RemovalObject

PLURALS = {"prepared": "prepared data"}
MAX_LISTED = 30  # items that are listed one by one
MAX_KEPT = 10  # the same of what stays
MAX_REASON = 200  # characters


def plural(kind: str) -> str:
    """Return the name of several items of a kind."""
    return PLURALS.get(kind, f"{kind}s")


class DisksView:
    """The result of `orch df`."""

    kind = "df"

    def __init__(self, disks: Disks) -> None:
        self._disks = disks

    def write(self, terminal: Terminal) -> None:
        """Write a table for each host, and a line for this machine."""
        for host in self._disks.hosts:
            if host.stored is None:
                continue
            stored = host.stored
            more = "" if stored.is_complete else ", not all counted: there are too many files"
            used, free, disk = map(size_text, (stored.total, stored.free, stored.disk))
            terminal.say(f"{host.host}: {used} of this project, {free} of {disk} free{more}")
            for label, size, count, remark in _rows(host):
                terminal.say(f"  {label:14} {size_text(size):>9}{f'  {count}' if count else ''}{remark}")
        copies = counted(self._disks.copies, "run")
        here, free = size_text(self._disks.here), size_text(self._disks.free)
        terminal.say(f"here: {here} in results/, with copies of {copies}; {free} free")

    def facts(self) -> DisksObject:
        """Return the document: everything in bytes."""
        return {
            "hosts": [_host_facts(host) for host in self._disks.hosts],
            "here": {"bytes": self._disks.here, "copies": self._disks.copies, "free": self._disks.free},
        }


def _rows(host: HostDisk) -> Iterable[tuple[str, int, int, str]]:
    assert host.stored is not None
    for kind in KINDS:
        items = [item for item in host.stored.items if item.kind == kind]
        size = sum(item.counted for item in items)
        checkpoints = sum(item.checkpoints for item in items)
        yield plural(kind), size, len(items), f"  (checkpoints {size_text(checkpoints)})" if checkpoints else ""
    for name in ("data", "agent", "other"):
        yield name, host.stored.other.get(name, 0), 0, ""


def _host_facts(host: HostDisk) -> HostDiskObject:
    if host.stored is None:
        return {"host": host.host, "error": error_to_json(host.error) if host.error else None}
    stored = host.stored
    parts: dict[str, PartObject] = {
        label.replace(" ", "_"): {"bytes": size, "count": count} for label, size, count, _ in _rows(host)
    }
    parts["runs"]["checkpoints"] = sum(item.checkpoints for item in stored.items if item.kind == RUN)
    return {
        "host": host.host,
        "error": None,
        "bytes": stored.total,
        "free": stored.free,
        "disk": stored.disk,
        "complete": stored.is_complete,
        "parts": parts,
    }


class RemovalPlanView:
    """What `orch rm` or `orch prune` is about to remove."""

    def __init__(self, kind: str, plan: Plan) -> None:
        self.kind, self._plan = kind, plan

    def write(self, terminal: Terminal) -> None:
        """Write each item with its size and age, and what stays."""
        for (host, _), items in self._plan.there.items():
            _write_items(terminal, host, items)
        if self._plan.here:
            _write_copies(terminal, self._plan.here)
        for name, why in self._plan.kept[:MAX_KEPT]:
            terminal.note(f"kept: {shortened(name, MAX_REASON)}: {shortened(why, MAX_REASON)}")
        if len(self._plan.kept) > MAX_KEPT:
            terminal.note(f"kept: {len(self._plan.kept) - MAX_KEPT} more")
        for note in self._plan.notes:
            terminal.note(note)
        if self._plan.is_empty:
            terminal.say("nothing to remove")

    def facts(self) -> RemovalObject:
        """Return the document."""
        there = [(host, item) for (host, _), items in self._plan.there.items() for item in items]
        return _facts(False, there, self._plan.here, self._plan, self._plan.errors)


class RemovedView:
    """What `orch rm` or `orch prune` has removed."""

    def __init__(self, kind: str, removed: Removed) -> None:
        self.kind, self._removed = kind, removed

    def write(self, terminal: Terminal) -> None:
        """Write how much was removed."""
        there, here = self._removed.there, self._removed.here
        for host in dict.fromkeys(host for host, _ in there):
            items = [item for at, item in there if at == host]
            terminal.say(f"removed from {host}: {summary(items)}, {size_text(sum(item.bytes for item in items))}")
        if here:
            size = size_text(sum(copy.bytes for copy in here))
            terminal.say(f"removed here: {counted(len(here), 'copy')}, {size}")

    def facts(self) -> RemovalObject:
        """Return the document."""
        removed = self._removed
        return _facts(True, removed.there, removed.here, removed.plan, removed.errors)


def question(plan: Plan) -> str:
    """Return the question before a removal."""
    items = [item for items in plan.there.values() for item in items]
    parts = [summary(items)] if items else []
    parts += [f"{counted(len(plan.here), 'copy')} here"] if plan.here else []
    return f"Remove {' and '.join(parts)}, {size_text(plan.bytes)}?"


def summary(items: Iterable[StoredItem]) -> str:
    """Return how many items of each kind there are: `3 runs, 1 snapshot`."""
    counts = {kind: sum(item.kind == kind for item in items) for kind in KINDS}
    return ", ".join(f"{count} {kind if count == 1 else plural(kind)}" for kind, count in counts.items() if count)


def _write_items(terminal: Terminal, host: str, items: tuple[StoredItem, ...]) -> None:
    if not items:
        return
    size = size_text(sum(item.bytes for item in items))
    terminal.say(f"on {host}: {summary(items)}, {size}")
    for item in sorted(items, key=lambda item: -item.bytes)[:MAX_LISTED]:
        name = item.name if "/" in item.name else item.name[:12]
        terminal.say(f"  {size_text(item.bytes):>9}  {item.kind:11} {clean(name)}  unused for {duration(item.age_s)}")
    if len(items) > MAX_LISTED:
        terminal.say(f"  and {len(items) - MAX_LISTED} more")


def _write_copies(terminal: Terminal, copies: tuple[Copy, ...]) -> None:
    count = counted(len(copies), "copy")
    terminal.say(f"here: {count}, {size_text(sum(copy.bytes for copy in copies))}")
    for copy in sorted(copies, key=lambda copy: -copy.bytes)[:MAX_LISTED]:
        terminal.say(f"  {size_text(copy.bytes):>9}  copy        {copy.run.job}/{copy.run.run_id}")
    if len(copies) > MAX_LISTED:
        terminal.say(f"  and {len(copies) - MAX_LISTED} more")


def _facts(
    is_removed: bool,
    there: Iterable[tuple[str, StoredItem]],
    here: Iterable[Copy],
    plan: Plan,
    errors: Iterable[OrchError],
) -> RemovalObject:
    return {
        "removed": is_removed,
        "there": [
            {"host": host, "kind": item.kind, "name": item.name, "bytes": item.bytes, "age_s": item.age_s}
            for host, item in there
        ],
        "here": [{"job": copy.run.job, "run_id": copy.run.run_id, "bytes": copy.bytes} for copy in here],
        "kept": [{"name": name, "reason": why} for name, why in plan.kept],
        "errors": [error_to_json(error) for error in errors],
    }
