"""The results of commands as versioned JSON documents, one a line: what `--json` prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.box.mirror import Mirrored, NotMirrored
from orchestrator.checks.check import Checked
from orchestrator.commands.launch import Launched
from orchestrator.commands.overview import Overview
from orchestrator.commands.shipping import Shipped
from orchestrator.commands.stop import Changed
from orchestrator.commands.watch import LogBytes
from orchestrator.errors import OrchError
from orchestrator.ui.renderer import Renderer, news
from orchestrator.ui.serialize import (
    check_to_json,
    error_to_json,
    host_to_json,
    launch_to_json,
    mirrored_to_json,
    not_mirrored_to_json,
    run_to_json,
    shipped_to_json,
)
from remote.contract.run_report import RunReport

SCHEMA = 1


class Documents(Renderer):
    """Documents on stdout, and nothing else there."""

    def __init__(self) -> None:
        super().__init__()
        self._has_result = False

    def launched(self, result: Launched, runs: Sequence[RunReport], waits: bool) -> None:
        self._document("launch", **launch_to_json(result), runs=_runs(runs))

    def checked(self, result: Launched) -> None:
        self._document("check", **launch_to_json(result))

    def examined(self, checks: Sequence[Checked]) -> None:
        self._document("doctor", checks=[check_to_json(checked) for checked in checks])

    def shipped(self, results: Sequence[Shipped]) -> None:
        self._document("sync", code=[shipped_to_json(item) for item in results])

    def ended(self, runs: Sequence[RunReport]) -> None:
        self._document("ended", runs=_runs(runs))

    def watch(self, overviews: Iterable[Overview]) -> Sequence[RunReport]:
        """A document for each change."""
        runs: Sequence[RunReport] = ()
        for seen, lines in news(overviews):
            runs = seen.runs
            if lines:
                self._status(seen)
        return runs

    def live(self, text: str) -> None:
        """Nothing: a program does not wait."""

    def _overview(self, overviews: Iterable[Overview]) -> Overview | None:
        *_, last = overviews
        self._status(last)
        return last

    def _changed(self, kind: str, change: Changed, runs: Sequence[RunReport]) -> None:
        if change.errors and not runs:
            return  # the error that ends the command says it all
        facts: dict[str, Any] = {"runs": _runs(runs), "errors": [error_to_json(error) for error in change.errors]}
        if kind == "stop":
            facts["had_ended"] = [list(pair) for pair in sorted(change.had_ended)]
        self._document(kind, **facts)

    def _copied(self, item: Mirrored) -> None:
        """Nothing yet: one document has all runs."""

    def _synced(self, copied: Sequence[Mirrored], failed: Sequence[NotMirrored], notes: Sequence[str]) -> None:
        runs = [{**run_to_json(item.report), **mirrored_to_json(item)} for item in copied]
        self._document("sync", runs=runs, errors=[not_mirrored_to_json(item) for item in failed], notes=list(notes))

    def _log(self, piece: LogBytes) -> None:
        text = piece.data.decode("utf-8", "replace")
        self._document("log", offset=piece.offset, bytes=len(piece.data), text=text)

    def _failed(self, error: OrchError) -> None:
        if not self._has_result:  # a result names the errors that it has met itself
            self._document("error", error=error_to_json(error))

    def _status(self, seen: Overview) -> None:
        self._document(
            "status", hosts=[host_to_json(host) for host in seen.hosts], runs=_runs(seen.runs), notes=list(seen.notes)
        )

    def _document(self, kind: str, **facts: Any) -> None:
        self.terminal.write(json.dumps({"schema": SCHEMA, "kind": kind, **self._masked(facts)}))
        self._has_result = True

    def _masked(self, value: Any) -> Any:
        """A value without secrets; its keys too, since a worker names its metrics."""
        if isinstance(value, str):
            return self.terminal.masked(value)
        if isinstance(value, Mapping):
            return {self.terminal.masked(key): self._masked(item) for key, item in value.items()}
        return [self._masked(item) for item in value] if isinstance(value, (list, tuple)) else value


def _runs(runs: Iterable[RunReport]) -> list[Mapping[str, Any]]:
    return [run_to_json(run) for run in runs]
