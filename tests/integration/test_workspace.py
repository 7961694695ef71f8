"""A run works in a directory of its own: scripts that know nothing of orch write next to their code, without harm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from remote.contract.paths import ProjectPaths
from remote.contract.protocol import AgentError
from remote.supervisor import workspace
from tests.integration.conftest import Orch
from tests.support import wait_until

SAVE = 'import sys; open("model.pt", "w").write(sys.argv[1]); print("saved", open("model.pt").read(), flush=True)'
RESUME = """\
import json, os
done = json.load(open("out/ck.json"))["epoch"] if os.path.exists("out/ck.json") else 0
print("start from epoch", done, flush=True)
os.makedirs("out", exist_ok=True)
for epoch in range(done + 1, 3):
    json.dump({"epoch": epoch}, open("out/ck.json", "w"))
"""
REFUSE = """\
import os, sys
if os.path.isdir("out") and os.listdir("out"):
    sys.exit("out is not empty")
os.makedirs("out", exist_ok=True)
open("out/result.txt", "w").write("ok")
"""


@pytest.fixture
def plain(local_orch: Orch) -> Orch:
    """Make a project that knows nothing of orch."""
    shutil.rmtree(local_orch.project / "remote")
    return local_orch


def script(orch: Orch, name: str, text: str) -> None:
    path = orch.project / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def log(orch: Orch, job: str) -> str:
    return orch.on_box(job).log.read_text()


def launch(orch: Orch, *jobs: str, code: int = 0) -> str:
    done = orch.run("launch", *jobs, "--wait", code=code)
    return done.stdout + done.stderr


# --- neighbours, rehearsals, restarts ---------------------------------------------------------------------


def test_parallel_jobs_do_not_overwrite_each_other(orch: Orch) -> None:
    script(orch, "save.py", SAVE)
    for name in ("gru", "lstm"):
        orch.table(name, command=["python", "save.py", name], expects=["model.pt"])
    launch(orch, "gru", "lstm")
    orch.run("sync")
    for name in ("gru", "lstm"):
        assert (orch.on_box(name).work / "model.pt").read_text() == name
        assert (orch.mirror(name).work / "model.pt").read_text() == name


def test_rehearsal_leaves_nothing_that_a_run_could_resume_from(plain: Orch) -> None:
    plain.defaults = ""
    script(plain, "train.py", RESUME)
    plain.table("train", command=["python", "train.py"])
    for _ in range(2):
        launch(plain, "train")
        assert log(plain, "train") == "start from epoch 0\n"
    (rehearsal,) = ProjectPaths(plain.root, "test").rehearsing().all_runs()
    assert not rehearsal.work.exists()


def test_script_that_refuses_old_output_succeeds_after_its_rehearsal(plain: Orch) -> None:
    plain.defaults = ""
    script(plain, "train.py", REFUSE)
    plain.table("train", command=["python", "train.py"], expects=["out/result.txt"])
    launch(plain, "train")
    launch(plain, "train")


def test_attempts_and_a_restart_share_the_working_directory(plain: Orch) -> None:
    script(
        plain,
        "train.py",
        'import os, sys\nnumber = len(open("seen").read()) if os.path.exists("seen") else 0\n'
        'open("seen", "a").write("x")\nprint("found", number, flush=True)\nsys.exit(number < 2)\n',
    )
    plain.table("train", command=["python", "train.py"], restarts=1)
    launch(plain, "train", code=1)
    plain.run("restart", "train")
    plain.wait_for("train", "succeeded")
    said = [line for line in log(plain, "train").split("\n") if not line.startswith("[orch] ")]
    assert said[:3] == ["found 0", "found 1", "found 2"]


# --- what belongs to the code -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["echo 2 >> history.csv", "sed -i s/1/2/ history.csv", "rm history.csv"])
def test_job_that_changes_a_tracked_file_can_be_launched_again(plain: Orch, command: str) -> None:
    script(plain, "history.csv", "1\n")
    plain.table("change", command=["sh", "-c", f"cat history.csv; {command}"])
    for _ in range(2):
        launch(plain, "change")
        assert log(plain, "change") == "1\n"


def test_job_that_writes_in_place_leaves_runs_of_other_code_alone(orch: Orch) -> None:
    script(orch, "config.txt", "first\n")
    orch.job("watch", "gate", "value")
    orch.launch("watch")
    wait_until(lambda: orch.has_started("watch"))
    script(orch, "other.txt", "a new snapshot, linked to the first\n")
    code = 'import os; os.chmod("value.py", 0o600); open("value.py", "w").write("VALUE = 7")'
    orch.table("change", command=["python", "-c", code])
    launch(orch, "change")
    orch.open("gate")
    orch.wait_for("watch", "succeeded")
    assert "value is old" in log(orch, "watch")


def test_altered_snapshot_is_repaired_by_the_next_launch(orch: Orch) -> None:
    script(orch, "package/module.py", "NAME = 'right'\n")
    orch.table("show", command=["python", "-c", "from package.module import NAME; print(NAME)"])
    launch(orch, "show")
    tree = ProjectPaths(orch.root, "test").tree(json.loads(orch.on_box("show").run.read_text())["code"]["tree"])
    for spoil in (_change, _delete, _replace_by_a_directory):
        spoil(tree)
        launch(orch, "show")
        assert log(orch, "show") == "right\n"


def _change(tree: Path) -> None:
    (tree / "package/module.py").chmod(0o600)
    (tree / "package/module.py").write_text("NAME = 'wrong'\n")


def _delete(tree: Path) -> None:
    shutil.rmtree(tree / "package")


def _replace_by_a_directory(tree: Path) -> None:
    (tree / "package/module.py").unlink()
    (tree / "package/module.py/deep").mkdir(parents=True)


def test_files_that_were_added_to_a_snapshot_reach_no_run(plain: Orch) -> None:
    plain.table("list", command=["sh", "-c", "ls"])
    launch(plain, "list")
    before = log(plain, "list")
    tree = ProjectPaths(plain.root, "test").tree(json.loads(plain.on_box("list").run.read_text())["code"]["tree"])
    (tree / "left.pt").write_text("by an earlier version")
    launch(plain, "list")
    assert log(plain, "list") == before


def test_job_can_ask_to_work_in_the_snapshot(plain: Orch) -> None:
    plain.table("here", command=["sh", "-c", "pwd; echo $ORCH_CODE_DIR"], cwd="code")
    plain.table("there", command=["sh", "-c", "pwd; printenv ORCH_CODE_DIR"])
    launch(plain, "here", "there")
    cwd, code = log(plain, "there").split()
    assert cwd == str(plain.on_box("there").work)
    assert log(plain, "here").split()[0] == code == str(ProjectPaths(plain.root, "test").tree(Path(code).name))
    assert not plain.on_box("here").work.exists()


def test_rehearsal_in_the_snapshot_that_changes_it_does_not_prevent_the_launch(plain: Orch) -> None:
    plain.table("here", command=["sh", "-c", "cat value.py; echo >> value.py"], cwd="code", rehearse=True)
    launch(plain, "here")
    assert log(plain, "here") == "VALUE = 'old'\n"


# --- prepare ----------------------------------------------------------------------------------------------


def test_what_a_prepare_writes_beside_itself_is_in_every_run(plain: Orch) -> None:
    script(plain, "data/make.py", 'open("data/train.bin", "w").write("tokens"); print("prepared")')
    for name in ("one", "two"):
        plain.table(name, command=["sh", "-c", "cat data/train.bin; echo; echo x >> data/train.bin"])
        plain.jobs[name] += 'prepare = "python data/make.py"\n'
    plain.table("last", command=["true"])  # writes jobs.toml
    launch(plain, "one")
    launch(plain, "two")
    assert log(plain, "one") == "prepared\ntokens\n"
    assert log(plain, "two") == "tokens\n"


def test_failed_prepare_leaves_nothing_for_the_next_one(plain: Orch) -> None:
    allowed = plain.gates / "allowed"
    text = (
        "import os, sys\nif os.path.exists('half.bin'):\n    sys.exit(print('done before'))\n"
        f"open('half.bin', 'w').write('half')\nif not os.path.exists({str(allowed)!r}):\n    sys.exit(1)\n"
        "open('half.bin', 'w').write('whole')\n"
    )
    script(plain, "make.py", text)
    plain.table("train", command=["sh", "-c", "cat half.bin"], prepare=["python", "make.py"])
    launch(plain, "train", code=1)
    allowed.touch()
    launch(plain, "train")
    assert log(plain, "train") == "whole"


# --- what a job finds -------------------------------------------------------------------------------------


def test_every_job_can_import_the_worker_api(orch: Orch) -> None:
    shutil.rmtree(orch.project / "remote")
    script(orch, "train.py", "from remote.worker import Run\nRun.current().beat('train', epoch=1, epochs=2)\n")
    orch.table("train", command=["python", "train.py"])
    launch(orch, "train")
    (run,) = orch.json("status")["runs"]
    assert run["heartbeat"]["epochs"] == 2


@pytest.mark.parametrize("layout", ["", "src"])
def test_packages_of_the_code_win_over_installed_ones(plain: Orch, tmp_path: Path, layout: str) -> None:
    installed = tmp_path / "site" / "model"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("print('the installed one')\n")
    script(plain, f"{layout}/model/__init__.py".lstrip("/"), "print('ours')\n")
    script(plain, "scripts/train.py", "import model\n")
    plain.table("train", command=["python", "scripts/train.py"], env={"PYTHONPATH": str(installed.parent)})
    launch(plain, "train")
    assert log(plain, "train") == "ours\n"


def test_job_finds_the_run_that_it_needs(plain: Orch) -> None:
    plain.table("pre-train", command=["sh", "-c", "echo weights > model.pt"])
    plain.table(
        "tune", command=["sh", "-c", 'cd "$(printenv ORCH_NEEDS_PRE_TRAIN)" && cat work/model.pt'], needs=["pre-train"]
    )
    launch(plain, "pre-train", "tune")
    assert log(plain, "tune") == "weights\n"


def test_links_lead_from_the_working_directory_to_the_box(plain: Orch, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big/a.bin").write_text("data")
    plain.table("read", command=["sh", "-c", "cat inputs/big/a.bin"], links={"inputs/big": str(tmp_path / "big")})
    launch(plain, "read")
    assert log(plain, "read") == "data"
    plain.run("sync")
    assert not (plain.mirror("read").work / "inputs").exists()


def test_variables_in_targets_of_links_are_replaced(plain: Orch, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big/a.bin").write_text("data")
    env = {"TOP": str(tmp_path), "DATA": "$TOP/big", "OTHER": "$ORCH_DATA_DIR"}
    plain.table("read", command=["cat", "inputs/a.bin"], env=env, links={"inputs": "${DATA}"}, data={"path": "."})
    launch(plain, "read")
    assert log(plain, "read") == "data"
    plain.table("read", command=["true"], links={"inputs": "$NOT_SET/x"})
    assert "links.inputs uses $NOT_SET, which is not set" in launch(plain, "read", code=1)
    assert plain.state("read")["reason"] == "bad_env"


@pytest.mark.parametrize(
    ("name", "said"), [("gone", "is not on the box"), ("value.py", "is already a part of the code")]
)
def test_link_that_cannot_be_made_fails_the_run(plain: Orch, tmp_path: Path, name: str, said: str) -> None:
    target = tmp_path / "absent" if name == "gone" else tmp_path
    plain.table("read", command=["true"], links={name: str(target)})
    assert said in launch(plain, "read", code=1)
    assert plain.state("read")["reason"] == "bad_link"
    assert not list(plain.on_box("read").root.glob(".*work"))


def test_link_below_a_link_is_not_made_where_that_leads(tmp_path: Path) -> None:
    for name in ("work", "shared"):
        (tmp_path / name).mkdir()
    with pytest.raises(AgentError, match="'a/b' is below a, which is a link"):
        workspace._make_links(tmp_path / "work", {"a": str(tmp_path / "shared"), "a/b": str(tmp_path)})
    assert list((tmp_path / "shared").iterdir()) == []


def test_data_of_a_job_may_be_a_part_of_its_code(plain: Orch) -> None:
    script(plain, "data/a.txt", "a")
    plain.table(
        "read", command=["sh", "-c", 'ls "$(printenv ORCH_DATA_DIR)"'], data={"path": "data", "pattern": "*.txt"}
    )
    launch(plain, "read")
    assert log(plain, "read") == "a.txt\n"


# --- outputs ----------------------------------------------------------------------------------------------

MAKE = """\
import os
def write(path, text="x"):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    open(path, "w").write(text)
for path in ("out/model.pt", "out/logs/a.csv", "supervisor.lock", "out/.tmp-orch-x", ".cache/hf/blob", "notes.txt"):
    write(path)
write("env/pyvenv.cfg"); write("env/lib/big.so"); write("pkg/__pycache__/a.pyc")
write("value.py", "VALUE = 'changed'\\n")
"""


def copied(orch: Orch, job: str) -> set[str]:
    root = orch.mirror(job).work
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (None, {"out/model.pt", "out/logs/a.csv", "supervisor.lock", "out/.tmp-orch-x", "notes.txt", "value.py"}),
        (["out"], {"out/model.pt", "out/logs/a.csv", "out/.tmp-orch-x"}),
        (["**/*.csv", "*.txt"], {"out/logs/a.csv", "notes.txt"}),
        (["out/**/*.csv"], {"out/logs/a.csv"}),
    ],
)
def test_sync_copies_what_the_job_added_or_changed(orch: Orch, outputs: Any, expected: set[str]) -> None:
    script(orch, "make.py", MAKE)
    orch.table("make", command=["python", "make.py"], **({"outputs": outputs} if outputs else {}))
    launch(orch, "make")
    document = orch.json("sync")
    assert copied(orch, "make") == expected
    (run,) = document["runs"]
    assert run["whole"]
    assert run["reasons"] == {"work/.cache": "a cache", "work/env": "installed packages"}
    summary = json.loads((orch.mirror("make").root / "outputs.json").read_text())
    assert summary["files"] == len(expected) and summary["bytes"] >= len(expected)
    assert len(summary["largest"]) == min(3, len(expected))


def test_expected_file_that_was_in_the_code_does_not_count(plain: Orch) -> None:
    script(plain, "model.pt", "committed")
    plain.table("train", command=["true"], expects=["model.pt"])
    assert "model.pt" in launch(plain, "train", code=1)
    assert plain.state("train")["reason"] == "missing_output"
    plain.table("train", command=["sh", "-c", "echo trained > model.pt"], expects=["model.pt"])
    launch(plain, "train")
