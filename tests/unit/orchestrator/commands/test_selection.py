"""Which runs the names of a command mean when their hosts can be asked: of this machine, as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.box.known_runs import KnownRun
from orchestrator.commands.project import OpenedProject
from orchestrator.commands.selection import target, targets
from orchestrator.commands.stop import _restartable
from orchestrator.errors import SpecError
from remote.contract.locks import try_lock
from remote.contract.paths import ProjectPaths
from remote.contract.protocol import Running, RunState, Stopped, Succeeded
from remote.host.run_state import enter
from tests.remote_runs import new_run

SPEC = '[project]\nname = "test"\n[jobs.worker1]\ncommand = "true"\n[jobs.other]\ncommand = "true"\n'
OLD, FIRST, SECOND = "20260101T100000-2ab4", "20260101T110000-0007", "20260101T120000-0008"
RUNNING = Running(1.0, 1, 2**22 + 1, "1")


@pytest.fixture
def project(tmp_path: Path) -> OpenedProject:
    (tmp_path / "jobs.toml").write_text(SPEC)
    return OpenedProject.open(tmp_path)


def add(project: OpenedProject, run_id: str, then: RunState, now: RunState | None = None, group: str = "") -> None:
    """Make a run that was last known to be in state `then`, and is in `now`; live if that is no end."""
    paths = ProjectPaths(Path(project.spec.host("local").root), "test")
    run = new_run(paths, run_id=run_id)
    enter(run, now or then)
    if not isinstance(now or then, (Stopped, Succeeded)):
        assert try_lock(run.supervisor_lock) is not None
    address = project.address("local")
    project.known.save(KnownRun("worker1", run_id, "local", address, launched_here=True, state=then, group=group))


def ids(project: OpenedProject, *names: str) -> list[str | None]:
    return [found.run_id for found in targets(project, names)]


def test_job_with_one_unfinished_run_leaves_the_choice_to_its_host(project: OpenedProject) -> None:
    add(project, OLD, Succeeded(1.0))
    add(project, FIRST, RUNNING)
    assert ids(project, "worker1") == [None]
    assert target(project, "worker1").run_id is None


def test_job_means_all_its_unfinished_runs(project: OpenedProject) -> None:
    add(project, OLD, Succeeded(1.0))
    add(project, FIRST, RUNNING)
    add(project, SECOND, RUNNING)
    assert ids(project, "worker1") == [FIRST, SECOND]
    with pytest.raises(SpecError) as refused:
        target(project, "worker1")
    assert refused.value.message == f"'worker1' means 2 runs: worker1/{FIRST}, worker1/{SECOND}"
    assert refused.value.hint == f"name one of them: worker1/{SECOND}"


def test_run_that_has_ended_since_is_not_meant(project: OpenedProject) -> None:
    add(project, FIRST, RUNNING, Stopped(2.0, "asked", "by a@b"))
    add(project, SECOND, RUNNING)
    assert ids(project, "worker1") == [None]


def test_group_pattern_and_end_of_an_id_mean_exact_runs(project: OpenedProject) -> None:
    add(project, OLD, Succeeded(1.0), group="seeds")
    add(project, FIRST, RUNNING, group="seeds")
    assert ids(project, "seeds") == ids(project, "se*") == [OLD, FIRST]
    assert ids(project, "2ab4", OLD, "worker1/2ab4") == [OLD]
    assert [each.is_one_of_several for each in targets(project, ["seeds"])] == [True, True]
    assert [each.is_one_of_several for each in targets(project, ["2ab4"])] == [False]


def test_run_of_an_interrupted_launch_is_not_one_of_its_group(project: OpenedProject) -> None:
    add(project, OLD, Succeeded(1.0), group="seeds")
    never_started = KnownRun("worker1", FIRST, "local", project.address("local"), confirmed=False, group="seeds")
    project.known.save(never_started)
    assert ids(project, "seeds") == [OLD]


def test_restart_of_a_group_leaves_out_what_needs_none(project: OpenedProject) -> None:
    stopped = Stopped(2.0, "asked", "by a@b")
    add(project, OLD, RUNNING, Succeeded(1.0), group="seeds")
    add(project, FIRST, stopped, group="seeds")
    add(project, SECOND, RUNNING, group="seeds")
    gone = KnownRun("worker1", "20260101T130000-0009", "local", project.address("local"), state=stopped, group="seeds")
    project.known.save(gone)

    kept, notes = _restartable(project, targets(project, ["seeds"]))

    assert [each.run_id for each in kept] == [FIRST]
    assert notes == ("not restarted: 1 succeeded, 1 not finished, 1 no longer on the host",)


def test_sync_takes_the_whole_job(project: OpenedProject) -> None:
    add(project, FIRST, RUNNING)
    add(project, SECOND, RUNNING)
    assert [found.name for found in targets(project, ["worker1"], whole_jobs=True)] == [("worker1", None)]


def test_unknown_name_is_an_error_with_the_nearest(project: OpenedProject) -> None:
    with pytest.raises(SpecError) as refused:
        targets(project, ["worker"])
    assert "did you mean 'worker1'?" in refused.value.hint
