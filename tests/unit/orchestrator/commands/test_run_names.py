"""Which runs a name on the command line means, and how run ids are shortened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.box.known_runs import KnownRun
from orchestrator.commands.project import OpenedProject
from orchestrator.commands.run_names import named_runs, one_run, short_ids
from orchestrator.commands.sweep import LaunchGroup, Wishes
from orchestrator.errors import SpecError
from remote.contract.protocol import Failed, Running, Succeeded

SPEC = """
[project]
name = "test"
[hosts.other]
ssh = "user@other"
root = "~/orch"
[hosts.third]
ssh = "user@third"
root = "~/orch"
[jobs.train]
command = "true"
[jobs.trace]
command = "true"
"""
OLD, FAILED, LIVE, LIVE_TOO, OTHER = (
    "20260101T100000-2ab4",
    "20260101T110000-0007",
    "20260101T120000-0008",
    "20260101T130000-1ab4",
    "20260101T130001-00ff",
)


@pytest.fixture
def project(tmp_path: Path) -> OpenedProject:
    (tmp_path / "jobs.toml").write_text(SPEC)
    project = OpenedProject.open(tmp_path)
    address = project.address("local")
    runs = [
        KnownRun("train", OLD, "local", address, state=Succeeded(1.0)),
        KnownRun("train", FAILED, "local", address, state=Failed(1.0, "exit", ""), group="lr-sweep"),
        KnownRun("train", LIVE, "local", address, state=Running(1.0, 1, 1), group="lr-sweep"),
        KnownRun("train", LIVE_TOO, "local", address, state=Running(1.0, 1, 1)),
        KnownRun("trace", OTHER, "local", address, state=Succeeded(1.0)),
    ]
    for run in runs:
        project.known.save(run)
    return project


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("train", [LIVE, LIVE_TOO]),
        ("trace", [OTHER]),
        (OLD, [OLD]),
        (f"train/{OLD}", [OLD]),
        ("2ab4", [OLD]),
        ("0-2ab4", [OLD]),
        ("007", [FAILED]),
        ("train/0007", [FAILED]),
        ("lr-sweep", [FAILED, LIVE]),
        ("lr-*", [FAILED, LIVE]),
        ("tr*", [OTHER, OLD, FAILED, LIVE, LIVE_TOO]),
        ("train/20260101T1[12]*", [FAILED, LIVE]),
    ],
)
def test_name_means_runs(project: OpenedProject, name: str, ids: list[str]) -> None:
    assert [run.run_id for run in named_runs(project, [name])] == ids


def test_job_without_an_unfinished_run_means_its_newest(project: OpenedProject) -> None:
    for run_id in (LIVE, LIVE_TOO):
        run = project.known.get("train", run_id)
        assert run
        project.known.save(replace(run, state=Succeeded(2.0)))
    assert [run.run_id for run in named_runs(project, ["train"])] == [LIVE_TOO]


def test_run_that_several_names_mean_is_returned_once(project: OpenedProject) -> None:
    assert [run.run_id for run in named_runs(project, ["0008", "lr-sweep", LIVE])] == [LIVE, FAILED]


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("ab4", f"2 runs end with 'ab4': train/{OLD}, train/{LIVE_TOO}", "give more characters of the run id"),
        ("trainn", "no job, run or group 'trainn'", "did you mean 'train'?"),
        ("lr-swep", "no job, run or group 'lr-swep'", "did you mean 'lr-sweep'?"),
        ("20260101T100000-ffff", "no run '20260101T100000-ffff'", "to list the runs: orch runs"),
        ("nothing*", "no run matches 'nothing*'", "to list all runs: orch runs"),
        ("trace/2ab4", "no job, run or group 'trace/2ab4'", "did you mean 'trace'?"),
    ],
)
def test_name_of_no_single_run_is_refused(project: OpenedProject, name: str, message: str, hint: str) -> None:
    with pytest.raises(SpecError) as found:
        named_runs(project, [name])
    assert (found.value.message, found.value.hint) == (message, hint)


def test_job_that_was_taken_out_of_the_file_is_suggested(project: OpenedProject) -> None:
    project.known.save(KnownRun("crash", OLD, "local", project.address("local"), state=Succeeded(1.0)))
    with pytest.raises(SpecError) as found:
        named_runs(project, ["crsh"])
    assert found.value.hint == "did you mean 'crash'?"


def test_job_that_has_never_run_is_said_to_have_no_run(tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text(SPEC)
    with pytest.raises(SpecError, match="train has no run yet"):
        named_runs(OpenedProject.open(tmp_path), ["train"])


def save(project: OpenedProject, run_id: str, host: str, group: str, launched_here: bool = False) -> None:
    address = project.address(host)
    project.known.save(KnownRun("trace", run_id, host, address, launched_here=launched_here, group=group))


NEW, NEWER, NEWEST = "20260102T100000-0a01", "20260102T100000-0a02", "20260102T100000-0a03"


@pytest.mark.parametrize("name", ["2ab4", "0-2ab4", OLD])
def test_group_of_another_host_does_not_take_over_the_id_of_a_run(project: OpenedProject, name: str) -> None:
    save(project, NEW, "other", name)
    assert [run.run_id for run in named_runs(project, [name])] == [OLD]


@pytest.mark.parametrize("name", ["mine", "min*"])
def test_run_of_another_host_does_not_join_a_group_that_was_launched_here(project: OpenedProject, name: str) -> None:
    save(project, NEW, "third", "mine", launched_here=True)
    save(project, NEWER, "third", "mine")
    save(project, NEWEST, "other", "mine")
    assert [run.run_id for run in named_runs(project, [name])] == [NEW, NEWER]


def test_group_that_was_launched_here_may_have_several_hosts(project: OpenedProject) -> None:
    save(project, NEW, "third", "mine", launched_here=True)
    save(project, NEWER, "other", "mine", launched_here=True)
    assert [run.run_id for run in named_runs(project, ["mine"])] == [NEW, NEWER]


def test_group_that_several_hosts_report_is_refused(project: OpenedProject) -> None:
    save(project, NEW, "third", "theirs")
    save(project, NEWER, "other", "theirs")
    with pytest.raises(SpecError, match="several hosts report a group of this name"):
        named_runs(project, ["theirs"])
    with pytest.raises(SpecError, match="no run matches"):
        named_runs(project, ["their*"])
    assert [run.run_id for run in named_runs(project, ["theirs"], on="other")] == [NEWER]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("train", "is a job"),
        ("other", "is a host"),
        ("2ab4", "could be the end of a run id"),
        ("bad", "could be the end of a run id"),
        ("37-2ab4", "could be the end of a run id"),
        (OLD, "could be the end of a run id"),
    ],
)
def test_name_of_a_group_that_means_something_else_is_refused(project: OpenedProject, name: str, why: str) -> None:
    with pytest.raises(SpecError, match=f"--name: {name} {why}"):
        Wishes(group=name).group_of(project.spec, [])


@pytest.mark.parametrize("name", ["ab", "lr-sweep", "night", "decade", "train-20261129-1a2b"])
def test_other_names_of_groups_are_accepted(project: OpenedProject, name: str) -> None:
    assert Wishes(group=name).group_of(project.spec, []) == LaunchGroup(name)


def test_name_of_several_runs_is_refused_where_one_is_needed(project: OpenedProject) -> None:
    for name, last in (("train", LIVE_TOO), ("lr-sweep", LIVE)):
        with pytest.raises(SpecError, match=f"'{name}' means 2 runs: train/") as found:
            one_run(project, name)
        assert found.value.hint == f"name one of them: train/{last}"
    with pytest.raises(SpecError, match="'tr\\*' means 5 runs"):
        one_run(project, "tr*", newest=True)
    assert one_run(project, "nope") is None


def test_newest_run_is_the_one_that_its_host_launched_last(project: OpenedProject) -> None:
    found = one_run(project, "train", newest=True)
    assert found and found.run_id == LIVE_TOO
    ahead = project.known.get("train", LIVE_TOO)  # launched from a laptop whose clock was ahead
    assert ahead
    project.known.save(replace(ahead, report={"created": 100.0}))
    found = one_run(project, "train", newest=True)
    assert found and found.run_id == LIVE


def test_unknown_host_is_refused(project: OpenedProject) -> None:
    for ask in (lambda: named_runs(project, ["train"], "nope"), lambda: one_run(project, "train", "nope")):
        with pytest.raises(SpecError, match="no host 'nope'"):
            ask()


def test_short_ids_have_the_four_digits_or_as_many_as_are_needed() -> None:
    runs = [("a", OLD), ("a", LIVE), ("b", "20260101T100007-2ab4"), ("b", OTHER), ("c", OTHER)]
    assert short_ids(runs) == {
        ("a", OLD): "0-2ab4",
        ("a", LIVE): "0008",
        ("b", "20260101T100007-2ab4"): "7-2ab4",
        ("b", OTHER): OTHER,
        ("c", OTHER): OTHER,
    }
