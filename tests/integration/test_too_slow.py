"""A host that became much too slow: commands that follow runs keep trying; single requests are not repeated."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.box import local
from orchestrator.box.retry import Waiting
from orchestrator.commands import overview, selection, watch
from orchestrator.commands.project import Project
from orchestrator.commands.watch import LogBytes, RunUpdate
from orchestrator.errors import HostTooSlow, OrchError
from remote.contract.run_report import RunReport
from tests.integration.conftest import Orch
from tests.support import command_of, descendants, wait_until


class SlowBox:
    """This machine; its agent sends single bytes slowly while `is_slow` exists. `asked` counts the requests."""

    def __init__(self, orch: Orch, folder: Path) -> None:
        self.is_slow, self._asked = folder / "is_slow", folder / "asked"
        python = folder / "python"
        python.write_text(
            f"#!/bin/sh\necho asked >> {self._asked}\n"
            f'test -e {self.is_slow} || exec {sys.executable} "$@"\nwhile sleep 0.05; do printf x || exit; done\n'
        )
        python.chmod(0o700)
        orch.host_table += f'python = "{python}"\n'

    def asked(self) -> int:
        return len(self._asked.read_text().splitlines())


@pytest.fixture
def box(local_orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlowBox:
    monkeypatch.setattr(local, "CALL_S", 1.0)
    return SlowBox(local_orch, tmp_path)


@pytest.fixture
def project(local_orch: Orch, box: SlowBox) -> Iterator[Project]:
    """Make a project with a run of `worker` that waits for the gate `end`."""
    local_orch.job("worker", "fill", "end")
    local_orch.launch("worker")
    wait_until(lambda: local_orch.on_box("worker").log.stat().st_size > 1_000_000, what="the log")
    project = Project.open(local_orch.project)
    yield project
    project.close()


def report_of(project: Project) -> RunReport:
    [run] = project.known.all()
    return project.mirror.report(run)


def stop_agent() -> None:
    """Stop the agent at the other end of our stream."""
    installed = os.fsencode(local.install_agent())
    # Other tests may have left children of this process, such as multiprocessing's resource tracker.
    [agent] = [pid for pid in descendants(os.getpid()) if installed in command_of(pid)]
    os.kill(agent, signal.SIGSTOP)


def test_wait_continues_when_a_slow_host_recovers(local_orch: Orch, box: SlowBox, project: Project) -> None:
    box.is_slow.touch()
    events = watch.wait(project, [report_of(project)])

    waiting = next(events)
    box.is_slow.unlink()
    local_orch.open("end")
    rest = list(events)

    assert isinstance(waiting, Waiting)
    assert isinstance(waiting.error, HostTooSlow)
    assert isinstance(rest[-1], RunUpdate)
    assert rest[-1].report.has_ended


def test_follow_continues_when_a_slow_host_recovers(
    local_orch: Orch, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "STREAM_SILENCE_S", 2.0)
    events = watch.follow(project, selection.target(project, "worker", None), 0, 0)
    seen = [next(events)]
    stop_agent()

    for event in events:
        seen.append(event)
        if isinstance(event, Waiting):
            local_orch.open("end")

    assert [type(event.error) for event in seen if isinstance(event, Waiting)] == [HostTooSlow]
    log = b"".join(event.data for event in seen if isinstance(event, LogBytes))
    assert log == local_orch.on_box("worker").log.read_bytes()


def test_tail_without_follow_asks_a_slow_host_once(
    local_orch: Orch, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "STREAM_SILENCE_S", 2.0)
    events = watch.follow(project, selection.target(project, "worker", None), 0, 0, once=True)
    next(events)
    stop_agent()

    with pytest.raises(HostTooSlow):
        assert not [event for event in events if isinstance(event, Waiting)]
    local_orch.open("end")


def test_watch_asks_a_slow_host_again(local_orch: Orch, box: SlowBox, project: Project) -> None:
    box.is_slow.touch()
    errors: list[OrchError | None] = []

    for seen in watch.overviews(lambda before: overview.ask_all(project, (), None, before=before)):
        errors += [host.error for host in seen.hosts]
        if errors:
            box.is_slow.unlink(missing_ok=True)
            local_orch.open("end")

    assert isinstance(errors[0], HostTooSlow)
    assert errors[-1] is None
