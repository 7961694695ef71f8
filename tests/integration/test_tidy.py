"""`orch df`, `rm` and `prune` through the real command line, with real runs here and behind a real sshd."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from remote.contract.files import read_json, write_json
from tests.integration.conftest import Orch


@pytest.fixture(params=["local", "openssh", "fabric"])
def any_orch(request: pytest.FixtureRequest) -> Orch:
    if request.param == "local":
        here: Orch = request.getfixturevalue("local_orch")
        return here
    there: Orch = request.getfixturevalue("ssh_orch")
    there.host_table += f'client = "{request.param}"\n'
    return there


def run_once(orch: Orch, job: str = "train") -> str:
    """Run the job to its end and return the run id."""
    if job not in orch.jobs:
        orch.job(job, "metrics")
    orch.run("launch", job, "--wait", "--again")
    return orch.on_box(job).run_id


def copy(orch: Orch, run_id: str, job: str = "train") -> Path:
    return orch.project / "results" / job / run_id


def make_old(orch: Orch, run_id: str, job: str = "train") -> None:
    """Let the run have ended 100 days ago, by all that is on record."""
    run, then = orch.root / "test" / "runs" / job / run_id, time.time() - 100 * 86400
    state = {**(read_json(run / "state.json") or {}), "since": then}
    write_json(run / "state.json", state)
    lines = (run / "events.jsonl").read_text().splitlines()
    (run / "events.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    last = read_json_line(lines[-1])
    with (run / "events.jsonl").open("a") as events:
        events.write(json_line({**last, "since": then}) + "\n")
    known = orch.project / "results" / ".mirror" / job / f"{run_id}.json"
    record = read_json(known) or {}
    write_json(known, {**record, "state": state})
    for tree in (orch.root / "test" / "code").iterdir():
        os.utime(tree, (then, then))


def read_json_line(line: str) -> dict[str, object]:
    import json

    value: dict[str, object] = json.loads(line)
    return value


def json_line(value: dict[str, object]) -> str:
    import json

    return json.dumps(value)


def test_use_of_disks_is_shown(any_orch: Orch) -> None:
    orch = any_orch
    run_once(orch)
    orch.run("sync")
    (host,) = [each for each in orch.json("df")["hosts"] if each["host"] == orch.host]
    assert host["parts"]["runs"]["count"] == 1
    assert host["parts"]["snapshots"]["count"] == 1
    assert host["parts"]["runs"]["checkpoints"] > 0
    assert host["bytes"] == sum(part["bytes"] for part in host["parts"].values())
    said = orch.run("df").stdout
    assert "here: " in said and "with copies of 1 run;" in said


def test_host_that_is_off_does_not_hide_the_others(ssh_orch: Orch) -> None:
    ssh_orch.job("train")
    assert ssh_orch.box is not None
    ssh_orch.box.stop()
    done = ssh_orch.run("df", code=3)
    assert "gpu1" in done.stderr
    assert "here: " in done.stdout


def test_removed_run_is_forgotten(any_orch: Orch) -> None:
    orch = any_orch
    first = run_once(orch)
    second = run_once(orch)
    orch.run("sync")
    refused = orch.run("rm", first[-4:], code=4)
    assert "nothing was removed: it was not confirmed" in refused.stderr
    assert f"train/{first}" in refused.stdout
    assert "nothing was removed" not in orch.run("rm", first, "--dry-run").stderr
    assert orch.json("rm", first, "--yes")["removed"]
    assert orch.on_box("train").run_id == second
    assert os.listdir(orch.project / "results" / "train") in (["latest", second], [second, "latest"])
    assert [run["run_id"] for run in orch.json("runs")["runs"]] == [second]
    assert not list((orch.project / "results" / ".mirror" / "train").glob(f"{first}*"))
    assert "no run" in orch.run("rm", first, "--yes", code=2).stderr


def test_copy_that_was_removed_here_can_be_fetched_again(any_orch: Orch) -> None:
    orch = any_orch
    run_id = run_once(orch)
    orch.run("sync")
    orch.run("rm", "train", "--here", "--yes")
    assert not copy(orch, run_id).exists()
    assert "nothing new to copy" in orch.run("sync").stdout
    assert not copy(orch, run_id).exists()
    assert [run["state"] for run in orch.json("runs")["runs"]] == ["succeeded"]
    orch.run("sync", run_id)
    assert (copy(orch, run_id) / "checkpoints" / "epoch-0001.pt").exists()
    assert "nothing new to copy" in orch.run("sync").stdout


def test_run_that_was_removed_there_is_shown_from_its_copy(any_orch: Orch) -> None:
    orch = any_orch
    run_id = run_once(orch)
    orch.run("sync")
    orch.run("rm", "train", "--there", "--yes")
    assert not (orch.root / "test" / "runs" / "train" / run_id).exists()
    for command in ("status", "runs"):
        document = orch.json(command)
        assert [(run["run_id"], run["state"], run["is_missing"]) for run in document["runs"]] == [
            (run_id, "succeeded", False)
        ]
    assert not any("no longer" in note for note in orch.json("runs")["notes"])
    orch.run("sync")
    orch.run("rm", run_id, "--here", "--yes")  # now it is nowhere
    assert orch.json("runs")["runs"] == []


def test_run_without_a_copy_that_was_removed_there_is_not_missed(ssh_orch: Orch) -> None:
    run_once(ssh_orch)
    said = ssh_orch.run("rm", "train", "--there", "--yes").stderr
    assert "was not copied completely to this machine" in said
    assert ssh_orch.json("runs")["runs"] == []
    assert ssh_orch.run("sync").returncode == 0


def test_live_run_is_never_removed(any_orch: Orch) -> None:
    orch = any_orch
    orch.job("train", "go")
    orch.launch("train")
    for options in ([], ["--here"], ["--there"]):
        refused = orch.run("rm", "train", *options, "--yes", code=4)
        assert "has not ended" in refused.stderr and "orch stop" in refused.stderr
    orch.run("launch", "train", "--again")
    refused = orch.run("rm", "train", "--here", "--yes", code=4)
    assert re.search(r"not removed: train/(\S+), train/(\S+) have not ended", refused.stderr)
    assert re.search(r"to stop them: orch stop train/(\S+) train/(\S+)", refused.stderr)
    orch.open("go")
    orch.run("wait", "train/*")


def test_group_is_removed_by_a_pattern(local_orch: Orch) -> None:
    for job in ("train-a", "train-b", "other"):
        run_once(local_orch, job)
    local_orch.run("sync")
    local_orch.run("rm", "train-*", "--yes")
    assert {run["job"] for run in local_orch.json("runs")["runs"]} == {"other"}


def test_host_that_is_off_keeps_its_runs_and_their_copies(ssh_orch: Orch) -> None:
    run_id = run_once(ssh_orch)
    ssh_orch.run("sync")
    assert ssh_orch.box is not None
    ssh_orch.box.stop()
    ssh_orch.run("rm", "train", "--yes", code=3)
    assert copy(ssh_orch, run_id).exists()
    ssh_orch.run("rm", "train", "--here", "--yes")
    assert not copy(ssh_orch, run_id).exists()


# --- prune ------------------------------------------------------------------------------------------------


def test_old_runs_with_a_copy_are_pruned(any_orch: Orch) -> None:
    orch = any_orch
    first, second, third = (run_once(orch) for _ in range(3))
    orch.run("sync", first, second)
    for run_id in (first, second, third):
        make_old(orch, run_id)
    plan = orch.json("prune", "--dry-run")
    assert [item["name"] for item in plan["there"]] == [f"train/{first}", f"train/{second}"]  # the third is the newest
    refused = orch.run("prune", code=4)
    assert "on " in refused.stdout
    assert len(list(orch.root.glob("test/runs/train/2*"))) == 3
    orch.run("prune", "--yes", "--keep", "0")
    assert [path.name for path in orch.root.glob("test/runs/train/2*")] == [third]  # it has no copy
    orch.run("prune", "--yes", "--keep", "0", "--unsynced")
    assert list(orch.root.glob("test/runs/train/2*")) == []
    assert list(orch.root.glob("test/code/[0-9a-f]*")) == []  # no run needs the snapshot any more
    assert {run["run_id"] for run in orch.json("runs")["runs"]} == {first, second}
    run_once(orch)  # sends the code again


def test_best_runs_are_kept(local_orch: Orch) -> None:
    """By a goal of a large value the first run is the best, by one of a small value the second."""
    found = []
    for values in ("accuracy=0.97 loss=0.5", "accuracy=0.60 loss=0.2", "accuracy=0.50 loss=0.9"):
        goals = {"accuracy": ">= 0.5", "loss": "< 1"}
        local_orch.table("train", command=["echo", f"epoch=1 {values}"], goals=goals)
        found.append(run_once(local_orch))
    local_orch.run("sync", "train")
    for run_id in found:
        make_old(local_orch, run_id)
    accurate, small, neither = (f"train/{run_id}" for run_id in found)
    document = local_orch.json("prune", "--dry-run", "--keep", "0")
    kept = [each["name"] for each in document["kept"] if "the best" in each["reason"]]
    assert kept == [f"run {accurate}", f"run {small}"]
    assert [item["name"] for item in document["there"] if item["kind"] == "run"] == [neither]


def test_newest_run_is_kept_even_if_another_is_dated_in_the_future(local_orch: Orch) -> None:
    first, second = run_once(local_orch), run_once(local_orch)
    ahead = f"{int(first[:4]) + 1}{first[4:]}"  # as if a laptop whose clock is ahead had launched it
    runs, records = local_orch.root / "test" / "runs" / "train", local_orch.project / "results" / ".mirror" / "train"
    (runs / first).rename(runs / ahead)
    for record in records.glob(f"{first}*"):
        record.rename(record.with_name(record.name.replace(first, ahead)))
    local_orch.run("sync", "train/*")
    for run_id in (ahead, second):
        make_old(local_orch, run_id)
    for options in ([], ["--here"]):
        document = local_orch.json("prune", "--dry-run", *options)
        names = [each["run_id"] for each in document["here"]]
        names += [item["name"].partition("/")[2] for item in document["there"] if item["kind"] == "run"]
        assert names == [ahead]


def test_young_small_or_live_is_kept(local_orch: Orch) -> None:
    first = run_once(local_orch)
    run_once(local_orch)
    local_orch.job("live", "go")
    local_orch.launch("live")
    local_orch.run("sync", "train")
    assert local_orch.json("prune", "--dry-run")["there"] == []
    make_old(local_orch, first)
    local_orch.run("sync", first)
    assert [item["name"] for item in local_orch.json("prune", "--dry-run")["there"]] == [f"train/{first}"]
    assert local_orch.json("prune", "--dry-run", "--larger", "1GB")["there"] == []
    assert "nothing to remove" in local_orch.run("prune", "--older", "200d").stdout
    assert "--older" in local_orch.run("prune", "--older", "soon", code=2).stderr
    assert "--larger: 'big' is not a valid size" in local_orch.run("prune", "--larger", "big", code=2).stderr
    local_orch.open("go")
    local_orch.wait_for("live", "succeeded")


def test_copies_are_pruned_only_if_the_run_is_elsewhere(ssh_orch: Orch) -> None:
    first, second, third = (run_once(ssh_orch) for _ in range(3))
    ssh_orch.run("sync")
    for run_id in (first, second, third):
        make_old(ssh_orch, run_id)
    ssh_orch.run("rm", first, "--there", "--yes")
    document = ssh_orch.json("prune", "--here", "--dry-run")
    assert [each["run_id"] for each in document["here"]] == [second]
    assert [each["name"] for each in document["kept"]] == [f"copy train/{first}"]
    ssh_orch.run("prune", "--here", "--yes")
    assert [copy(ssh_orch, run_id).exists() for run_id in (first, second, third)] == [True, False, True]
    ssh_orch.run("prune", "--here", "--there", "--yes", "--keep", "0", "--unsynced")
    assert ssh_orch.json("runs")["runs"] == []


def test_launch_finds_its_code_after_a_prune(local_orch: Orch) -> None:
    run_id = run_once(local_orch)
    make_old(local_orch, run_id)
    shutil.rmtree(local_orch.root / "test" / "passed", ignore_errors=True)
    local_orch.run("prune", "--yes", "--keep", "0", "--unsynced")
    run_once(local_orch)
    local_orch.run("prune", "--yes", "--keep", "0", "--unsynced", "--older", "1s")
    assert len(list(local_orch.root.glob("test/code/[0-9a-f]*"))) > 0  # it was used moments ago
