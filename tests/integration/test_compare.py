"""`orch compare` and `orch best`: several runs of one job, from their host and while it is off."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass

import pytest

from tests.integration.conftest import Orch

# Logs two validations; the loss depends on the learning rate and the seed, and is the lowest in the first one.
TRAIN = """\
import os
from remote.worker import Run

run = Run.current()
loss = float(os.environ["LR"]) + float(os.environ["SEED"]) / 10
run.log_metrics(epoch=1, step=10, metrics={"val_loss": loss, "constant": 1.0})
run.log_metrics(epoch=2, step=20, metrics={"val_loss": loss + 1, "constant": 1.0})
"""
RUNS = (("1", "0"), ("1", "1"), ("5", "0"))  # LR, SEED


@dataclass(frozen=True)
class Trained:
    """A project with a run for each of RUNS; the ids are in the same order."""

    orch: Orch
    ids: list[str]


@pytest.fixture(params=["openssh", "fabric"])
def trained(request: pytest.FixtureRequest, ssh_orch: Orch) -> Trained:
    """Launch the runs one after the other, by each client."""
    ssh_orch.host_table += f'client = "{request.param}"\n'
    (ssh_orch.project / "train.py").write_text(TRAIN)
    ssh_orch.table("train", command=["python", "train.py"], env={"LR": "0", "SEED": "0"})
    ids = []
    for rate, seed in RUNS:
        done = ssh_orch.run("launch", "train", "--wait", "--set", f"env.LR={rate}", "--set", f"env.SEED={seed}")
        ids.append(done.stdout.split()[1])
    return Trained(ssh_orch, ids)


def test_only_what_differs_is_shown_and_seeds_are_summed_up(trained: Trained) -> None:
    orch = trained.orch
    found = orch.json("compare", "train/*")

    assert found["kind"] == "compare" and [name.split("/")[0] for name in found["names"]] == ["train"] * 3
    assert {row["name"]: row["values"] for row in found["settings"]} == {
        "env.LR": ["1", "1", "5"],
        "env.SEED": ["0", "1", "0"],
    }
    assert found["code"] == [] and found["same"] > 5
    assert [row["name"] for row in found["metrics"]] == ["val_loss"]
    assert found["metrics"][0]["values"] == pytest.approx([2.0, 2.1, 6.0])
    one, other = found["groups"]
    assert (one["name"], other["name"]) == ("LR=1", "LR=5")
    (loss,) = [row for row in one["statistics"] if row["metric"] == "val_loss"]
    assert (loss["n"], loss["mean"]) == (2, pytest.approx(2.05))
    assert loss["std"] == pytest.approx(statistics.stdev([2.0, 2.1]))

    text = orch.run("compare", *(run_id[-4:] for run_id in trained.ids[1:])).stdout
    assert "val_loss" in text and "env.LR" in text and "constant" not in text and "command" not in text


def test_best_run_is_found_by_its_history_also_while_the_host_is_off(trained: Trained) -> None:
    orch = trained.orch
    assert orch.box is not None

    best = orch.json("best", "val_loss")

    assert (best["direction"], best["why"], best["without"]) == ("min", "name", 0)
    assert [one["run_id"] for one in best["runs"]] == trained.ids
    first = best["runs"][0]
    assert (first["value"], first["newest"], first["epoch"], first["step"]) == (1.0, 2.0, 1, 10)
    assert all(one["from_history"] for one in best["runs"])
    selected = orch.run("best", "val_loss", "--json", "run_id,value,metrics.val_loss").stdout
    assert json.loads(selected)[0] == {"run_id": trained.ids[0], "value": 1.0, "metrics.val_loss": 2.0}
    orch.run("disconnect")
    orch.box.stop()
    assert orch.json("best", "val_loss", "--max", "--job", "train")["runs"][0]["run_id"] == trained.ids[2]
    assert [one["run_id"] for one in orch.json("best", "val_loss", *trained.ids[1:])["runs"]] == trained.ids[1:]
    assert len(orch.json("best", "val_loss", "train")["runs"]) == 3
    assert "no job, run or group 'trian'" in orch.json("best", "val_loss", "trian", code=2)["error"]["message"]
    text = orch.run("best", "val_loss")
    assert text.stdout.splitlines()[1].split()[1:3] == ["1", "epoch"] and "less is better" in text.stderr


def test_best_run_of_a_group_is_shown_with_its_settings(local_orch: Orch) -> None:
    (local_orch.project / "train.py").write_text(TRAIN)
    local_orch.table("train", command=["python", "train.py"], env={"LR": "0", "SEED": "0"})
    local_orch.run("launch", "train", "--sweep", "env.LR=5,1", "--name", "rates", "--wait")
    assert "and 1 more of rates: orch status rates" in local_orch.run("status").stderr
    assert "more of rates" not in local_orch.run("status", "rates").stderr
    shown = local_orch.run("cat", "train", "training.log").stderr
    assert shown.startswith("train ") and "one of 2 runs of train" in shown
    local_orch.run("launch", "train", "--wait")

    header, first, second = local_orch.run("best", "val_loss", "rates").stdout.splitlines()

    assert header.split()[-1] == "SETTINGS"
    assert [line.split()[-1] for line in (first, second)] == ["LR=1", "LR=5"]


def test_goal_decides_which_direction_is_better(local_orch: Orch) -> None:
    (local_orch.project / "train.py").write_text(TRAIN)
    env = {"LR": "0", "SEED": "0"}
    local_orch.table("train", command=["python", "train.py"], env=env, goals={"val_loss": ">= 1"})
    local_orch.run("launch", "train", "--wait")

    best = local_orch.json("best", "val_loss")

    assert (best["direction"], best["why"], best["runs"][0]["value"]) == ("max", "goal", 1.0)
    error = local_orch.json("best", "val_los", code=2)["error"]
    assert "val_loss" in error["hint"]
    assert "at least 2" in local_orch.json("compare", "train", code=2)["error"]["message"]


def test_what_a_box_says_about_settings_is_shown_in_part(local_orch: Orch) -> None:
    local_orch.job("train", "exit=0")
    for _ in range(3):
        local_orch.run("launch", "train", "--wait", "--again")
    runs = sorted(local_orch.on_box("train").root.parent.iterdir())
    paths = [run / "run.json" for run in runs if run.is_dir() and not run.is_symlink()]
    for number, path in enumerate(paths):
        record = json.loads(path.read_text())
        record["job"]["env"].update({f"V{key}": str(min(number, 1)) for key in range(1000)}, L="a" * 100_000)
        record["job"]["env"]["L"] += str(min(number, 1))
        path.write_text(json.dumps(record))

    shown = local_orch.run("compare", "train/*").stdout

    assert len(shown) < 20_000
    assert "and 961 more settings; all of them: --json" in shown
    assert "...: 2 runs" in shown and "...: 1 run\n" in shown


def test_job_without_a_run_has_no_best_run(local_orch: Orch) -> None:
    local_orch.job("train")
    refused = local_orch.run("best", "val_accuracy", "--job", "train", code=2)
    assert "train has no run yet" in refused.stderr and "orch launch train" in refused.stderr
    assert "this project has no runs here" in local_orch.run("best", "val_accuracy", code=2).stderr
