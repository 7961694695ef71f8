"""The output of `--json`: the results of commands as versioned JSON documents, one per line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.ui.renderer import Renderer, changes
from orchestrator.ui.serialize import (
    RunObject,
    check_to_json,
    error_to_json,
    host_to_json,
    launch_to_json,
    mirrored_to_json,
    not_mirrored_to_json,
    pushed_to_json,
    run_to_json,
    shipped_to_json,
)

if TYPE_CHECKING:
    from orchestrator.box.mirror import Mirrored, NotMirrored
    from orchestrator.checks.check import Checked
    from orchestrator.commands.launch import Launched
    from orchestrator.commands.overview import Overview
    from orchestrator.commands.push import Pushed
    from orchestrator.commands.shipping import Shipped
    from orchestrator.commands.stop import Changed
    from orchestrator.commands.watch import LogBytes
    from orchestrator.errors import OrchError
    from remote.contract.run_report import RunReport

SCHEMA = 1


class Documents(Renderer):
    """Prints JSON documents, and nothing else, on stdout."""

    def __init__(self) -> None:
        super().__init__()
        self._has_result = False

    def launched(self, result: Launched, runs: Sequence[RunReport], waits: bool) -> None:
        """Print one document of kind `launch`."""
        self._document("launch", **launch_to_json(result), runs=_runs(runs))

    def warned(self, warnings: Sequence[Checked]) -> None:
        """Do nothing: the document has the warnings."""

    def checked(self, result: Launched) -> None:
        """Print one document of kind `check`."""
        self._document("check", **launch_to_json(result))

    def examined(self, checks: Sequence[Checked]) -> None:
        """Print one document of kind `doctor`."""
        self._document("doctor", checks=[check_to_json(checked) for checked in checks])

    def shipped(self, results: Sequence[Shipped]) -> None:
        """Print one document of kind `sync`, whose `code` lists the hosts."""
        self._document("sync", code=[shipped_to_json(item) for item in results])

    def pushed(self, result: Pushed) -> None:
        """Print the document of `orch push`."""
        self._document("push", **pushed_to_json(result))

    def ended(self, runs: Sequence[RunReport]) -> None:
        """Print one document of kind `ended`."""
        self._document("ended", runs=_runs(runs))

    def watch(self, overviews: Iterable[Overview]) -> Sequence[RunReport]:
        """Print one document of kind `status` for each change."""
        runs: Sequence[RunReport] = ()
        for overview, lines in changes(overviews):
            runs = overview.runs
            if lines:
                self._status(overview)
        return runs

    def live(self, text: str, is_long: bool = False) -> None:
        """Do nothing: progress is only for a person who waits."""

    def _overview(self, overviews: Iterable[Overview]) -> Overview | None:
        *_, last = overviews
        self._status(last)
        return last

    def _changed(self, kind: str, change: Changed, runs: Sequence[RunReport]) -> None:
        if change.errors and not runs:
            return  # the error that ends the command is printed instead
        had_ended = {"had_ended": [list(pair) for pair in sorted(change.had_ended)]} if kind == "stop" else {}
        errors = [error_to_json(error) for error in change.errors]
        self._document(kind, runs=_runs(runs), errors=errors, **had_ended)

    def _copied(self, item: Mirrored) -> None:
        """Do nothing: `_synced` prints one document with all runs."""

    def _synced(self, copied: Sequence[Mirrored], failed: Sequence[NotMirrored], notes: Sequence[str]) -> None:
        runs = [{**run_to_json(item.report), **mirrored_to_json(item)} for item in copied]
        self._document("sync", runs=runs, errors=[not_mirrored_to_json(item) for item in failed], notes=list(notes))

    def _log(self, piece: LogBytes) -> None:
        text = piece.data.decode("utf-8", "replace")
        self._document("log", offset=piece.offset, bytes=len(piece.data), text=text)

    def _failed(self, error: OrchError) -> None:
        if not self._has_result:  # a result includes its errors
            self._document("error", error=error_to_json(error))

    def _status(self, overview: Overview) -> None:
        hosts = [host_to_json(host) for host in overview.hosts]
        self._document("status", hosts=hosts, runs=_runs(overview.runs), notes=list(overview.notes))

    def _document(self, kind: str, **facts: Any) -> None:
        self.terminal.write(json.dumps({"schema": SCHEMA, "kind": kind, **self._masked(facts)}))
        self._has_result = True

    def _masked(self, value: Any) -> Any:
        """Return a JSON value with secrets masked, even in its keys, because a worker chooses the names of metrics.

        A number that is not finite, which JSON cannot express, becomes null.
        """
        if isinstance(value, str):
            return self.terminal.masked(value)
        if isinstance(value, Mapping):
            return {self.terminal.masked(key): self._masked(item) for key, item in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return [self._masked(item) for item in value] if isinstance(value, (list, tuple)) else value


def _runs(runs: Iterable[RunReport]) -> list[RunObject]:
    return [run_to_json(run) for run in runs]
