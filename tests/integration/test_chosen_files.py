"""`orch sync --only` and `--exclude`: some files of a run. And runs whose copy was deleted on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.integration.conftest import Orch

WRITES = """\
import os
for name in ("results/table.csv", "out/model.pt", "out/parts/a.bin", "notes.txt"):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    open(name, "w").write(name)
"""


@pytest.fixture(params=["openssh", "fabric"])
def ended(request: pytest.FixtureRequest, ssh_orch: Orch) -> Orch:
    """Return a project with one run that has ended, by each client."""
    ssh_orch.host_table += f'client = "{request.param}"\n'
    (ssh_orch.project / "train.py").write_text(WRITES)
    ssh_orch.table("train", command=["python", "train.py"])
    ssh_orch.run("launch", "train", "--wait")
    return ssh_orch


def files_here(orch: Orch) -> set[str]:
    work = orch.mirror("train").work
    return {str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()}


def test_chosen_files_are_copied_and_the_next_sync_completes_the_run(ended: Orch) -> None:
    (part,) = ended.json("sync", "train", "--only", "out/**", "--exclude", "work/out/parts")["runs"]

    assert (part["files"], part["whole"], part["part"], part["verified"]) == (1, False, True, False)
    assert files_here(ended) == {"out/model.pt"}
    assert not (ended.project / "results/.mirror/.chosen").exists()
    (whole,) = ended.json("sync")["runs"]
    assert (whole["whole"], whole["part"], whole["deleted"]) == (True, False, 0)
    assert files_here(ended) == {"results/table.csv", "out/model.pt", "out/parts/a.bin", "notes.txt"}
    ended.json("sync", "train", "--only", "*.txt")
    assert "only what was chosen; the copy is complete" in ended.run("sync", "train", "--only", "*.csv").stdout
    assert "no file matches --only and --exclude" in ended.run("sync", "train", "--only", "nomatch*").stderr
    assert ended.json("sync")["runs"] == []  # it is still complete


def test_run_that_was_deleted_here_is_fetched_again(ended: Orch) -> None:
    ended.run("sync")
    before, copy = files_here(ended), Path(ended.mirror("train").root.resolve())
    shutil.rmtree(copy)

    (part,) = ended.json("sync", copy.name, "--only", "*.csv")["runs"]

    assert part["files"] == 1 and files_here(ended) == {"results/table.csv"}
    (whole,) = ended.json("sync")["runs"]
    assert whole["whole"] and whole["verified"] and files_here(ended) == before
    shutil.rmtree(copy)
    (again,) = ended.json("sync", copy.name)["runs"]
    assert again["whole"] and files_here(ended) == before


def test_code_cannot_be_chosen_by_file(local_orch: Orch) -> None:
    local_orch.job("train")
    assert "--code does not copy" in local_orch.json("sync", "--code", "--only", "x", code=2)["error"]["message"]


def test_malformed_pattern_is_a_usage_error(local_orch: Orch) -> None:
    local_orch.job("train")
    error = local_orch.json("sync", "--only", "!", code=2)["error"]
    assert error["message"].startswith("--only '!': ")
