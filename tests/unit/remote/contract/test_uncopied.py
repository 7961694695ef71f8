"""Which files of a run are never copied, at any depth."""

from __future__ import annotations

import pytest

from remote.contract.uncopied import why_not_copied


@pytest.mark.parametrize(
    "path",
    [
        "results/data/.git/config",
        "results/.GIT/config",
        "jobs.toml",
        "results/jobs.toml",
        "results/.orch/x",
        "results/.envrc",
        ".hg/hgrc",
        "results/.vscode/tasks.json",
        "results/.devcontainer/devcontainer.json",
        "results/job\u017f.toml",
        "results/jobs.toml. .",
        "results/.g\u200cit/config",
        "results/conftest.py",
        "results/.gitattributes",
        "results/bare/HEAD",
        "results/bare/head",
    ],
)
def test_files_that_can_run_programs_are_left_out_with_a_reason(path: str) -> None:
    assert "could run programs here" in (why_not_copied(path.split("/")) or "")


@pytest.mark.parametrize("path", ["supervisor.lock", "keeper.lock", ".tmp-0123", "checkpoints/.tmp-0123"])
def test_locks_and_temporary_files_of_the_run_are_skipped(path: str) -> None:
    assert why_not_copied(path.split("/")) == ""


@pytest.mark.parametrize(
    "path",
    [
        "results/x.lock",
        "results/x.lock/a",
        "results/.tmp-x/a",
        "results/.gitignore",
        "results/my.git.txt",
        "a/jobs.tomlx",
    ],
)
def test_worker_files_with_similar_names_are_copied(path: str) -> None:
    assert why_not_copied(path.split("/")) is None


@pytest.mark.parametrize("path", ["results/.tmp-partial/weights", "results/.tmp-incoming-x/a"])
def test_names_that_a_copy_uses_for_itself_are_left_out(path: str) -> None:
    assert why_not_copied(path.split("/")) == "a name that a copy uses for itself"
