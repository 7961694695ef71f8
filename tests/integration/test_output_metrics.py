"""Progress and metrics of programs that know nothing of orch: real supervisor, shim and worker."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remote.contract.files import read_json, read_jsonl
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Ended
from remote.host.run_state import read_state
from tests.integration.conftest import Orch
from tests.remote_runs import new_run
from tests.support import RECORDED, wait_until

Supervise = Callable[[RunPaths], "subprocess.Popen[bytes]"]
OUTPUT = RECORDED / "output"


@pytest.fixture
def finished(paths: ProjectPaths, supervise: Supervise) -> Callable[..., RunPaths]:
    """Return a run of a program, taken to its end."""

    def to_the_end(code: str, **job: Any) -> RunPaths:
        run = new_run(paths, code, **{"command": ["./train.py"], "metrics": {}, **job})
        supervise(run)
        wait_until(lambda: isinstance(read_state(run), Ended), 60, "the end of the run")
        return run

    return to_the_end


def seen(run: RunPaths) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the position in the heartbeat and the latest metrics, without what is not known."""
    heartbeat, latest = read_json(run.heartbeat) or {}, read_json(run.latest_metrics) or {}
    at = {key: heartbeat.get(key) for key in ("epoch", "epochs", "step", "steps")}
    known = ("schema", "time", "epoch", "step", "goals", "source")
    return (
        {key: value for key, value in at.items() if value is not None},
        {key: value for key, value in latest.items() if key not in known},
    )


LINES = {
    "epoch 3/10": ("epoch 3/10", {"epoch": 3, "epochs": 10}, {}),
    "tutorial": (
        "Epoch [3/10], Step [100/600], Loss: 0.2310",
        {"epoch": 3, "epochs": 10, "step": 100, "steps": 600},
        {"Loss": 0.231},
    ),
    "language model": (
        "| epoch   2 |    40/   84 batches | lr 20.00 | ms/batch 12.34 | loss  5.20 | ppl   181.27",
        {"epoch": 2, "step": 40, "steps": 84},
        {"lr": 20.0, "loss": 5.2, "ppl": 181.27},
    ),
    "iterations": ("iter 250: loss 2.1000, time 10.51ms, mfu 3.20%", {"step": 250}, {"loss": 2.1}),
    "validation": ("step 4000 val_loss 1.5", {"step": 4000}, {"val_loss": 1.5}),
    "key=value": ("epoch=3 loss=0.5 acc=97.5%", {"epoch": 3}, {"loss": 0.5, "acc": 0.975}),
    "key: value": ("val_acc: 0.95", {}, {"val_acc": 0.95}),
    "trainer's dict": (
        "{'eval_loss': 0.5, 'eval_runtime': 0.01, 'epoch': 1.0}",
        {"epoch": 1},
        {"eval_loss": 0.5, "eval_runtime": 0.01},
    ),
    "JSON": ('{"epoch": 3, "step": 120, "val_loss": 0.31}', {"epoch": 3, "step": 120}, {"val_loss": 0.31}),
    "Keras 2": (
        "\\r 44/100 [====>.....] - ETA: 3s - loss: 0.6\\r 45/100 [=====>....] - ETA: 3s - loss: 0.5 - accuracy: 0.8",
        {"step": 45, "steps": 100},
        {"loss": 0.5, "accuracy": 0.8},
    ),
    "Keras 3": (
        "\\r\\x1b[1m45/100\\x1b[0m \\x1b[32m━━━━\\x1b[0m\\x1b[37m━━━\\x1b[0m \\x1b[1m3s\\x1b[0m 10ms/step - loss: 0.5",
        {"step": 45, "steps": 100},
        {"loss": 0.5},
    ),
    "ImageNet": (
        "Epoch: [0][  10/5005]\\tTime  0.5 ( 0.6)\\tLoss 6.9e+00 (6.9e+00)\\tAcc@1   0.00 (  0.10)",
        {"epoch": 1, "step": 10, "steps": 5005},
        {"Loss": 6.9, "Acc@1": 0.0},
    ),
}


@pytest.mark.parametrize("form", LINES)
def test_form_in_the_log_gives_progress_and_metrics(form: str, finished: Callable[..., RunPaths]) -> None:
    line, position, metrics = LINES[form]
    run = finished(f'print("""{line}""")')
    assert seen(run) == (position, metrics)


RECORDINGS = {
    "hf-trainer.log": ({"step": 20, "steps": 20}, {"eval_loss": 2.434, "train_loss": 2.437, "loss": 2.435}),
    "lightning-tqdm.log": ({"epoch": 3, "step": 8, "steps": 8}, {"train_loss": 0.000274, "val_loss": 0.000123}),
    "tqdm-plain.log": ({"step": 40, "steps": 40}, {}),
    "tqdm-postfix.log": ({"step": 30, "steps": 30}, {"loss": 0.0667, "acc": 0.967}),
    "tqdm-epochs.log": ({"epoch": 3, "epochs": 3, "step": 20, "steps": 20}, {"val_acc": 0.75, "val_loss": 0.5}),
    "tqdm-nested.log": ({"epoch": 3, "epochs": 3, "step": 15, "steps": 15}, {}),
    "tqdm-nested_plain.log": ({"step": 3, "steps": 3}, {}),
    "tqdm-nototal.log": ({"step": 30}, {}),
    "tqdm-download.log": ({}, {}),
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_output_gives_progress_and_metrics(name: str, finished: Callable[..., RunPaths]) -> None:
    position, metrics = RECORDINGS[name]
    run = finished(f"import sys; sys.stdout.buffer.write(open({str(OUTPUT / name)!r}, 'rb').read())")
    found, latest = seen(run)
    assert found == position
    assert {key: latest.get(key) for key in metrics} == metrics
    assert bool(latest) == bool(metrics)


def test_pattern_of_the_job_replaces_the_known_forms(finished: Callable[..., RunPaths]) -> None:
    pattern = r"^>> (?P<step>\d+) of (?P<steps>\d+): score (?P<score>[\d.]+ ?%?)"
    run = finished(r"print('loss=3.0\n>> 5 of 20: score 71.5 %\nloss=2.0')", metrics={"log": [pattern]})
    assert seen(run) == ({"step": 5, "steps": 20}, {"score": 0.715})


def test_pattern_that_backtracks_is_given_up_and_the_run_goes_on(finished: Callable[..., RunPaths]) -> None:
    code = "for n in range(8): print('a' * 60 + '!')\nprint('loss=0.5')"
    run = finished(code, metrics={"log": ["(a+)+$", r"loss=(?P<loss>\S+)"]})
    assert (read_json(run.state) or {})["state"] == "succeeded"
    assert seen(run)[1] == {"loss": 0.5}
    [note] = [event["metrics"] for event in read_jsonl(run.events) if "metrics" in event]
    assert note == "the pattern '(a+)+$' is not used any more: 3 lines took more than 0.05 s"


def test_files_of_the_run_are_read(finished: Callable[..., RunPaths]) -> None:
    code = """
        import os, shutil
        os.makedirs("out", exist_ok=True)
        with open("out/log.csv", "w") as file:
            file.write("epoch,train_loss,val_loss,time\\n1,0.9,,12:00\\n1,,0.8,12:01\\n")
        with open(os.environ["ORCH_RUN_DIR"] + "/results/log.jsonl", "w") as file:
            file.write('{"step": 7, "reward": 3.5, "note": "x"}\\n{"step": 8')
        shutil.copyfile(EVENTS, "out/events.out.tfevents.1.box")
    """
    code = code.replace("EVENTS", repr(str(OUTPUT / "events.out.tfevents.recorded")))
    run = finished(code, metrics={"files": ["out/*.csv", "results/*.jsonl", "out/events.out.tfevents.*"]})
    latest = seen(run)[1]
    assert latest == {"train_loss": 0.9, "val_loss": 0.8, "reward": 3.5, "loss/train": pytest.approx(0.4), "acc": 1.0}
    lines = list(read_jsonl(run.metrics))
    assert [line["step"] for line in lines if "acc" in line] == [0, 1, 2, 3, 4]
    assert [(line["epoch"], line["train_loss"], line["val_loss"]) for line in lines if "val_loss" in line] == [
        (1, 0.9, 0.8)
    ]


def test_metrics_file_of_lightning_is_found(finished: Callable[..., RunPaths]) -> None:
    code = f"""
        import os, shutil
        os.makedirs("lightning_logs/version_0")
        shutil.copyfile({str(OUTPUT / "lightning-metrics.csv")!r}, "lightning_logs/version_0/metrics.csv")
    """
    position, latest = seen(finished(code))
    assert position == {"epoch": 3, "step": 23}
    assert set(latest) == {"train_loss", "val_loss"}


def test_file_of_an_earlier_run_is_not_read(paths: ProjectPaths, finished: Callable[..., RunPaths]) -> None:

    old = paths.tree("0" * 64) / "log.csv"
    old.parent.mkdir(parents=True)
    old.write_text("step,loss\n1,0.5\n")
    os.utime(old, (1e9, 1e9))
    run = finished("print('nothing to see')", cwd="code", metrics={"files": ["log.csv"]})
    assert seen(run) == ({}, {})


def test_workers_own_files_are_never_changed(finished: Callable[..., RunPaths]) -> None:
    code = """
        import json, os, time
        root = os.environ["ORCH_RUN_DIR"]
        for name, value in (
            ("heartbeat.json", {"phase": "own", "epoch": 7, "epochs": 9}),
            ("metrics.jsonl", {"epoch": 7, "step": 1, "loss": 9.0}),
            ("latest_metrics.json", {"epoch": 7, "step": 1, "loss": 9.0}),
        ):
            with open(root + "/" + name, "w") as file:
                file.write(json.dumps(value) + "\\n")
        for epoch in range(1, 4):
            print(f"epoch {epoch}/3 loss={1 / epoch}", flush=True)
            time.sleep(0.6)
    """
    run = finished(code)
    assert (read_json(run.heartbeat) or {})["phase"] == "own"
    assert list(read_jsonl(run.metrics)) == [{"epoch": 7, "step": 1, "loss": 9.0}]
    assert read_json(run.latest_metrics) == {"epoch": 7, "step": 1, "loss": 9.0}


def test_output_is_not_read_if_the_job_says_so(finished: Callable[..., RunPaths]) -> None:
    run = finished("print('epoch 3/10 loss=0.5')", metrics=None)
    assert not run.heartbeat.exists() and not run.metrics.exists()


def test_flood_of_redrawn_bars_is_read_to_its_end(finished: Callable[..., RunPaths]) -> None:
    code = r"""
        import sys
        for step in range(1, 200_001):
            sys.stdout.write(f"\r{step * 100 // 200_000:3d}%|{'#' * 60:60}| {step}/200000 [00:10<00:12, 4.5it/s]")
        sys.stdout.write("\nval_loss: 0.25\n")
    """
    run = finished(code)
    assert seen(run) == ({"step": 200_000, "steps": 200_000}, {"val_loss": 0.25})


def test_new_supervisor_goes_on_where_the_killed_one_stopped(stage: Any, tmp_path: Path) -> None:
    begin = "import time\nfor n in range(1, 4): print(f'epoch {n}/3 val_loss={n}.5', flush=True); time.sleep(1.5)"
    run = stage.begin(begin, metrics={})
    stage.go.touch()
    wait_until(run.metrics.exists, what="the first metrics")
    stage.kill("supervisor")
    stage.wait_until_nothing_is_left()
    lines = list(read_jsonl(run.metrics))
    assert [(line["epoch"], line["val_loss"]) for line in lines] == [(1, 1.5), (2, 2.5), (3, 3.5)]
    assert seen(run) == ({"epoch": 3, "epochs": 3}, {"val_loss": 3.5})


# --- what a user sees ---------------------------------------------------------------------------------------


def test_status_shows_progress_metric_and_goal_of_a_plain_script(local_orch: Orch) -> None:
    code = "print('epoch 3/10 step 40/84 loss=5.2 val_acc=91%', flush=True); import time; time.sleep(600)"
    local_orch.table("plain", command=["python", "-c", code, "--epochs", "10"], goals={"val_acc": ">= 90 %"})
    local_orch.launch("plain")
    wait_until(lambda: "val_acc" in local_orch.run("status").stdout, 60, "the metric in status")
    shown = local_orch.run("status").stdout
    assert "epoch 3/10 step 40/84 · val_acc 0.91" in shown and "1/1" in shown
    [run] = local_orch.json("status")["runs"]
    assert (run["heartbeat"]["epoch"], run["heartbeat"]["steps"], run["metrics"]["loss"]) == (3, 84, 5.2)
    local_orch.run("stop", "plain")


def test_goal_that_was_never_reported_is_part_of_the_verdict(local_orch: Orch) -> None:
    goals = {"val_acc": ">= 0.9", "loss": "< 1"}
    local_orch.table("quiet", command=["python", "-c", "print('loss=0.5')"], goals=goals)
    ended = local_orch.run("launch", "quiet", "--wait").stdout
    assert "1 of 2 goals met" in ended
    assert "val_acc never reported, goal >= 0.9: not judged" in ended
    assert "goal not judged: val_acc never reported" in local_orch.run("status").stdout
    [run] = local_orch.json("status")["runs"]
    assert run["state"] == "succeeded"
    assert [(each["metric"], each["holds"], each["reason"]) for each in run["verdict"]] == [
        ("val_acc", None, "its metric was never reported"),
        ("loss", True, ""),
    ]


def test_run_without_any_metric_says_so_of_its_goals(local_orch: Orch) -> None:
    local_orch.table("mute", command=["python", "-c", "pass"], goals={"val_acc": ">= 0.9"})
    ended = local_orch.run("launch", "mute", "--wait").stdout
    assert "0 of 1 goals met" in ended and "val_acc never reported, goal >= 0.9: not judged" in ended
