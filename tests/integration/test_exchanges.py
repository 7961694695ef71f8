"""How many exchanges with a box each command takes: each costs a round trip and the start of an agent."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.box.local import LocalTransport
from orchestrator.box.mirror import Mirrored
from orchestrator.box.transport import Frame
from orchestrator.commands import launch, overview, selection, stop, sync, watch
from orchestrator.commands.project import Project
from remote.contract.requests import Request
from remote.contract.states import has_settled

JOBS = """
[project]
name = "counted"

[defaults]
rehearse = false
stop_grace = "1s"

[jobs.short]
command = ["true"]

[jobs.long]
command = ["sleep", "300"]

[jobs.other]
command = ["sleep", "300"]
"""


class CountingTransport(LocalTransport):
    """The transport to this machine; `exchanges` lists what it was used for."""

    def __init__(self) -> None:
        super().__init__("local", sys.executable)
        self.exchanges: list[str] = []

    def call(self, request: Request) -> Any:
        self.exchanges.append(request.op)
        return super().call(request)

    def stream(self, request: Request) -> Iterator[Frame]:
        self.exchanges.append(request.op)
        yield from super().stream(request)

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        self.exchanges.append("push")
        super().push(source, files, target, link_to)

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        self.exchanges.append("pull")
        super().pull(source, target, files)

    def take(self) -> list[str]:
        """Return the exchanges since the last call."""
        taken, self.exchanges = self.exchanges, []
        return taken


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CountingTransport:
    """Return the transport that every project of the test uses, with a home directory of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    counting = CountingTransport()
    monkeypatch.setattr(Project, "_local_transport", lambda project, host: counting)
    return counting


@pytest.fixture
def project(transport: CountingTransport, tmp_path: Path) -> Iterator[Project]:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "jobs.toml").write_text(JOBS)
    opened = Project.open(folder)
    yield opened
    unfinished = [run for run in opened.known.all() if not run.has_ended]
    stopped = stop.stop(opened, [selection.target(opened, run.run_id) for run in unfinished]) if unfinished else None
    list(watch.wait(opened, stopped.runs if stopped else ()))
    opened.close()


def start(project: Project, job: str) -> None:
    launched = launch.launch(project, [job], None, (), lambda text, is_long: None, lambda question: True)
    assert [run.job for run in launched.runs] == [job]
    assert has_settled(launched.runs[0].state, float(launched.runs[0].now or 0.0))


def run_to_its_end(project: Project, job: str) -> None:
    start(project, job)
    list(watch.wait(project, [project.mirror.report(run) for run in project.known.all() if run.job == job]))


def test_launch_of_unchanged_code_takes_two_exchanges(project: Project, transport: CountingTransport) -> None:
    start(project, "long")
    assert transport.take() == ["facts", "code_begin", "push", "code_commit", "facts", "launch"]
    start(project, "other")
    assert transport.take() == ["facts", "launch"]


def test_status_takes_one_exchange_for_all_runs(project: Project, transport: CountingTransport) -> None:
    start(project, "long")
    start(project, "other")
    transport.take()
    *_, last = overview.ask_all(project, (), None)
    assert len(last.runs) == 2
    assert transport.take() == ["status"]


def test_tail_starts_with_one_exchange(project: Project, transport: CountingTransport) -> None:
    start(project, "long")
    transport.take()
    list(watch.follow(project, selection.target(project, "long"), lines=20, offset=None, once=True))
    assert transport.take() == ["follow"]


def test_sync_of_nothing_new_takes_one_exchange(project: Project, transport: CountingTransport) -> None:
    run_to_its_end(project, "short")
    assert [type(item) for item in sync.sync(project, [], None)] == [Mirrored]
    transport.take()
    assert list(sync.sync(project, [], None)) == []
    assert transport.take() == ["status"]
