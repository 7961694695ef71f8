"""Which folders are left out as the work of tools, and what is said about the files before they are uploaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.checks.check import Check
from orchestrator.checks.code_checks import check_code
from orchestrator.code.code_survey import survey_directory, survey_snapshot
from orchestrator.code.snapshot import take
from tests.example_projects import LFS_POINTER, make_project

GENERATED = {
    ".venv": (".venv/pyvenv.cfg", ".venv/lib/x.py"),
    "tools/my-env": ("tools/my-env/conda-meta/history",),
    "web/node_modules": ("web/node_modules/x/index.js",),
    "wandb": ("wandb/run-20260101_120000-abc/files/x", "wandb/debug.log"),
    "logs/wandb": ("logs/wandb/offline-run-20260101_120000-abc/x",),
    "mlruns": ("mlruns/0/meta.yaml",),
    "lightning_logs": ("lightning_logs/version_0/metrics.csv",),
    "outputs": ("outputs/2026-01-31/12-00-00/.hydra/config.yaml", "outputs/2026-01-31/12-00-00/last.ckpt"),
    "multirun": ("multirun/2026-01-31/12-00-00/multirun.yaml",),
    "old-root": ("old-root/reboot.lock", "old-root/p/code/.incoming/x", "old-root/p/runs/train/log"),
    "sub/results": ("sub/results/.mirror/.hosts/x", "sub/results/train/model.pt"),
    "sub/.orch": ("sub/.orch/p/runs/train/log",),
}
LOOK_ALIKE = (
    "wandb/__init__.py",
    "outputs/model.pt",
    "outputs/2026-01-31/notes.txt",
    "env/cartpole.py",
    "sub/run-1/x.py",
)


@pytest.fixture(autouse=True)
def git_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def project(tmp_path: Path, names: tuple[str, ...] = (), with_git: bool = True) -> Path:
    """Make a project with a tracked train.py, and the untracked files `names`."""
    directory = make_project(tmp_path / "p", {"train.py": "print(1)\n"}, with_git)
    return make_project(directory, dict.fromkeys(names, "x\n"))


def sparse(directory: Path, name: str, size: int) -> None:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    with (directory / name).open("wb") as file:
        file.truncate(size)


def warnings(directory: Path, include: tuple[str, ...] = ()) -> list[Check]:
    return list(check_code(survey_directory(directory), include))


# --- folders that tools fill ----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_git", [True, False])
@pytest.mark.parametrize("folder", GENERATED)
def test_folder_that_a_tool_fills_is_left_out_and_named(folder: str, with_git: bool, tmp_path: Path) -> None:
    snapshot = take(project(tmp_path, GENERATED[folder], with_git))
    assert snapshot.files == ("train.py",)
    (left_out,) = snapshot.withheld
    assert left_out.path == f"{folder}/" and left_out.reason.startswith(("a Python", "runs", "results", "logs", "pack"))


@pytest.mark.parametrize("with_git", [True, False])
@pytest.mark.parametrize("name", LOOK_ALIKE)
def test_folder_of_the_same_name_with_code_is_uploaded(name: str, with_git: bool, tmp_path: Path) -> None:
    snapshot = take(project(tmp_path, (name,), with_git))
    if with_git or not name.startswith("wandb/"):  # without git, a wandb/ at the top never was
        assert (snapshot.files, snapshot.withheld) == (tuple(sorted(["train.py", name])), ())


def test_files_that_git_tracks_are_uploaded_from_such_a_folder(tmp_path: Path) -> None:
    directory = make_project(tmp_path / "p", {"lightning_logs/version_0/best.ckpt": "w", ".venv/pyvenv.cfg": ""}, True)
    make_project(directory, {"lightning_logs/version_1/last.ckpt": "w"})
    snapshot = take(directory)
    assert snapshot.files == (".venv/pyvenv.cfg", "lightning_logs/version_0/best.ckpt")
    assert [each.path for each in snapshot.withheld] == ["lightning_logs/"]


def test_include_uploads_files_of_such_a_folder(tmp_path: Path) -> None:
    directory = project(tmp_path, GENERATED["outputs"])
    snapshot = take(directory, include=["outputs/**/last.ckpt"])
    assert snapshot.files == ("outputs/2026-01-31/12-00-00/last.ckpt", "train.py")
    assert snapshot.withheld == ()


def test_excluded_folder_is_not_named(tmp_path: Path) -> None:
    assert take(project(tmp_path, GENERATED[".venv"]), exclude=[".venv/"]).withheld == ()


# --- warnings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_git", [True, False])
def test_usual_project_has_no_warning(with_git: bool, tmp_path: Path) -> None:
    directory = project(tmp_path, ("data/a.csv", "model.pt"), with_git)
    (directory / "link.csv").symlink_to("data/a.csv")
    (directory / "folder").symlink_to("data")
    sparse(directory, "data/small.bin", 40 * 10**6)
    assert warnings(directory) == []


def test_large_untracked_files_are_named_by_folder(tmp_path: Path) -> None:
    directory = project(tmp_path)
    for name, size in (("ckpt/a.pt", 300), ("ckpt/b.pt", 100), ("data/x.bin", 30), ("big.npy", 20), ("more/x", 10)):
        sparse(directory, name, size * 10**6)
    (found,) = warnings(directory)
    assert (found.name, found.status) == ("size", "warn")
    assert found.detail.startswith("460 MB in 5 files that git does not track")
    assert found.detail.endswith("the largest: ckpt/ (400 MB), data/ (30 MB), big.npy (20 MB)")
    assert "exclude" in found.hint


def test_large_tracked_files_are_named_only_if_they_are_very_large(tmp_path: Path) -> None:
    directory = tmp_path / "p"
    sparse(directory, "weights/a.bin", 150 * 10**6)
    assert len(warnings(directory)) == 1  # without git, nobody has said that it belongs to the code
    make_project(directory, {}, with_git=True)
    assert warnings(directory) == []
    sparse(directory, "weights/a.bin", 250 * 10**6)
    assert [check.detail.split(",")[0] for check in warnings(directory)] == ["250 MB in 1 files"]


def test_included_and_left_out_files_do_not_count(tmp_path: Path) -> None:
    directory = project(tmp_path, GENERATED[".venv"])
    sparse(directory, ".venv/lib/big.so", 900 * 10**6)
    sparse(directory, "weights/a.bin", 900 * 10**6)
    assert warnings(directory, ("weights/*.bin",)) == []
    assert survey_directory(directory).left_out == {".venv/": "a Python environment"}


def test_lfs_pointers_are_named(tmp_path: Path) -> None:
    directory = make_project(tmp_path / "p", {f"w{n}.bin": LFS_POINTER for n in range(5)}, with_git=True)
    (found,) = warnings(directory)
    assert (found.name, found.hint) == ("git lfs", "to fetch the files: git lfs pull")
    assert found.detail.endswith("w0.bin, w1.bin, w2.bin and 2 more")


def test_links_to_ignored_files_are_named(tmp_path: Path) -> None:
    directory = make_project(
        tmp_path / "p", {".gitignore": "cache/\n", "cache/a.bin": "x", "train.py": ""}, with_git=True
    )
    (directory / "weights.bin").symlink_to("cache/a.bin")
    (directory / "deep").mkdir()
    (directory / "deep" / "up").symlink_to("../train.py")
    (found,) = warnings(directory)
    assert found.name == "links" and found.detail.endswith(": weights.bin to cache/a.bin")
    assert [check.name for check in check_code(survey_snapshot(take(directory)))] == ["links"]
