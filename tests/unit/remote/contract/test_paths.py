from __future__ import annotations

from pathlib import Path

import pytest

from remote.contract.paths import NAME, RUN_ID, TREE_HASH, ProjectPaths, RunPaths

FIRST, SECOND, THIRD = "20260126T210312-7f3a", "20260126T210313-0000", "20260127T000000-00ff"


@pytest.fixture
def project(tmp_path: Path) -> ProjectPaths:
    return ProjectPaths(tmp_path / "box", "persistence")


def add(project: ProjectPaths, job: str, *run_ids: str) -> None:
    for run_id in run_ids:
        project.run(job, run_id).root.mkdir(parents=True)


def names(project: ProjectPaths) -> list[tuple[str, str]]:
    return [(run.job, run.run_id) for run in project.all_runs()]


def test_runs_of_a_job_are_listed_oldest_first(project: ProjectPaths) -> None:
    add(project, "worker2", SECOND, FIRST)
    add(project, "worker1", THIRD, FIRST, SECOND)
    assert names(project) == [
        ("worker1", FIRST),
        ("worker1", SECOND),
        ("worker1", THIRD),
        ("worker2", FIRST),
        ("worker2", SECOND),
    ]


def test_project_without_runs_lists_none(project: ProjectPaths) -> None:
    assert names(project) == []
    project.runs.mkdir(parents=True)
    assert names(project) == []


@pytest.mark.parametrize(
    "name",
    ["latest", ".tmp-20260126T210312-7f3a", "20260126T210312-7F3A", "20260126T210312-7f3", FIRST + "0", FIRST + "\n"],
)
def test_names_that_are_not_run_ids_are_skipped(project: ProjectPaths, name: str) -> None:
    add(project, "worker1", FIRST)
    (project.runs / "worker1" / name).mkdir()
    assert names(project) == [("worker1", FIRST)]


@pytest.mark.parametrize("name", ["worker1.bak", "copy of worker1", ".tmp-worker1"])
def test_directories_with_invalid_job_names_are_skipped(project: ProjectPaths, name: str) -> None:
    add(project, "worker1", FIRST)
    add(project, name, FIRST)
    assert names(project) == [("worker1", FIRST)]


def test_links_and_files_are_skipped(project: ProjectPaths, tmp_path: Path) -> None:
    add(project, "worker1", FIRST)
    (tmp_path / "elsewhere" / SECOND).mkdir(parents=True)
    (project.runs / "worker1" / SECOND).symlink_to(tmp_path / "elsewhere" / SECOND)
    (project.runs / "worker2").symlink_to(tmp_path / "elsewhere")
    (project.runs / "worker1" / THIRD).touch()
    (project.runs / "notes").touch()
    assert names(project) == [("worker1", FIRST)]


def test_paths_give_project_job_and_id_of_a_run(project: ProjectPaths) -> None:
    run = project.run("worker1", FIRST)
    assert (run.job, run.run_id) == ("worker1", FIRST)
    back = ProjectPaths.of_run(run)
    assert (back.box, back.root, back.slots) == (project.box, project.root, project.slots)
    assert ProjectPaths.of_run(RunPaths(Path(str(run.root)))).run("worker1", FIRST).root == run.root


def test_slots_belong_to_the_box_and_the_rest_to_the_project(project: ProjectPaths) -> None:
    other = ProjectPaths(project.box, "other")
    assert other.slots == project.slots
    own = [project.root, project.code, project.runs, project.prepared, project.bytecode, project.launch_lock()]
    own += [project.environments]
    assert all(project.root in path.parents or path == project.root for path in own)
    assert project.root not in project.slots.parents


def test_file_names_of_a_run_are_unique(project: ProjectPaths) -> None:
    run = project.run("worker1", FIRST)
    files = run.named()
    assert run.state in files
    assert len(set(files)) == len(files)
    deeper = {run.best_checkpoint: run.checkpoints, run.stacks: run.diagnostics}
    assert {path: path.parent for path in files} == {**dict.fromkeys(files, run.root), **deeper}


def test_checkpoints_sort_by_epoch_and_have_a_checksum_beside_them() -> None:
    run = RunPaths(Path("run"))
    names = [run.checkpoint(epoch).name for epoch in (1, 9, 10, 99, 100, 9999)]
    assert names == sorted(names)
    assert run.checksum(run.checkpoint(5)) == run.checkpoints / "epoch-0005.pt.sha256"


@pytest.mark.parametrize("name", ["", "-x", "_x", ".", "..", "a/b", "../a", "a b", "a.b", "a\n", "é", "a" * 65])
def test_unsafe_names_are_invalid(name: str) -> None:
    assert not NAME.fullmatch(name)


def test_valid_names_match() -> None:
    assert all(NAME.fullmatch(name) for name in ("a", "worker1", "9-lives_2", "a" * 64))
    assert RUN_ID.fullmatch(FIRST)
    assert not RUN_ID.fullmatch("../" + FIRST)
    assert TREE_HASH.fullmatch("0f" * 32)
    assert not any(
        TREE_HASH.fullmatch(text) for text in ("", "0F" * 32, "0f" * 31, "0f" * 32 + "\n", "../" + "0f" * 32)
    )
