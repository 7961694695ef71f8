"""The entry points as the supervisor starts them: real processes, a run directory, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from remote.contract.files import read_json, read_jsonl
from remote.contract.paths import RunPaths
from remote.contract.protocol import ENV_DATA_DIR, ENV_GOALS, ENV_RUN_DIR
from tests.support import ROOT
from workers import worker1, worker2
from workers.common.errors import BadInput
from workers.runs.options import choose_device
from workers.training import checkpoint

GOALS = {"val_accuracy": ">= 0.75", "attention_ratio": ">= 1.5", "consistency": ">= 70 %"}
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Any:
    """Start a worker in the run directory tmp_path/NAME. It is killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(worker: str, *options: str, name: str = "run", goals: dict[str, str] = GOALS) -> subprocess.Popen[str]:
        (tmp_path / name).mkdir(exist_ok=True)
        environment = {
            **os.environ,
            ENV_RUN_DIR: str(tmp_path / name),
            ENV_GOALS: json.dumps(goals),
            ENV_DATA_DIR: str(data),
            "PYTHONWARNINGS": "",
        }
        argv = [sys.executable, "-m", f"workers.{worker}", "--device", "cpu", "--threads", "1", *options]
        pipe = subprocess.PIPE
        process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.slow
def test_both_workers_write_everything_a_run_needs(start: Start, tmp_path: Path) -> None:
    state = tmp_path / "weights.pt"
    torch.save(resnet18(weights=None).state_dict(), state)
    processes = {
        "worker1": start("worker1", "--epochs", "2", "--limit", "32", name="worker1"),
        "worker2": start("worker2", "--epochs", "2", "--limit", "32", "--weights", str(state), name="worker2"),
    }
    for name, process in processes.items():
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        paths = RunPaths(tmp_path / name)
        latest, summary, beat = (
            read_json(path) or {} for path in (paths.latest_metrics, paths.results / "summary.json", paths.heartbeat)
        )
        assert latest.keys() >= {"val_accuracy", "attention_ratio", "consistency", "loss", "epoch", "goals"}
        assert latest["goals"].keys() == GOALS.keys() and latest["epoch"] == 2
        assert [record["epoch"] for record in read_jsonl(paths.metrics)] == [2]
        assert checkpoint.read(paths.checkpoint(2)).config["variant"] == name
        assert beat["phase"] == "test" and beat["epochs"] == 2
        assert summary["worker"] == name and summary["test"]["samples"] == 8
        assert summary["weights"] == latest["weights"] and "pre-trained weights: " + summary["weights"] in out
        assert summary["weights"].startswith("file weights.pt" if name == "worker2" else "none")
        assert all(f"goal: {metric} " in out for metric in GOALS) and "verdict: " in out
        assert summary["faithfulness"].keys() >= {"last_layer", "rollout", "random", "without_transient"}
        assert all(len(path.read_bytes()) for path in (paths.results / "heatmaps").glob("*.png"))


@pytest.mark.slow
def test_sigterm_exits_with_143_and_the_run_resumes(start: Start, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    process = start("worker1", "--epochs", "1000", "--validate-every", "1000", "--limit", "48")
    wait_for(lambda: ((read_json(paths.heartbeat) or {}).get("epoch") or 0) >= 2, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143 and err.startswith("worker1: stopped") and "Traceback" not in err
    saved = max(paths.checkpoints.glob("epoch-*.pt"))
    progress = checkpoint.read(saved).progress
    assert progress.epoch >= 2 and progress.steps_done == 3 * (progress.epoch - 1) + progress.step

    last = str(progress.epoch + 1)
    # Validated only at the end: otherwise the goals may be met, and end it, before the last epoch.
    process = start("worker1", "--epochs", last, "--validate-every", last, "--limit", "48")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert f"resuming from {saved.name}: epoch {progress.epoch}, {progress.step} of its steps done" in out
    assert (read_json(paths.results / "summary.json") or {})["epochs_done"] == progress.epoch + 1
    assert (read_json(paths.latest_metrics) or {})["step"] == 3 * (progress.epoch + 1)


@pytest.mark.parametrize(
    ("options", "goals", "message"),
    [
        (["--data", "/nowhere"], "{}", "looked for output/augmented_traj_*.pt in /nowhere and found none"),
        (["--attention-target", "-1"], "{}", "the target ratio is -1.0, but must be above 0"),
        (["--attention-weight", "nan"], "{}", "the weight of the attention loss is nan"),
        (["--dropout", "1"], "{}", "the dropout is 1.0, but must be at least 0 and below 1"),
        ([], '{"val_accuracy": "good"}', "cannot read the goals in ORCH_GOALS: 'good' is not a valid goal"),
        ([], "{", "cannot read the goals in ORCH_GOALS"),
        ([], "[1]", "cannot read the goals in ORCH_GOALS"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    goals: str,
    message: str,
) -> None:
    monkeypatch.setenv(ENV_DATA_DIR, str(data))
    monkeypatch.setenv(ENV_GOALS, goals)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert worker1.main(options) == 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    err = capsys.readouterr().err
    assert message in err and err.startswith("worker1: ") and err.count("\n") == 1


@pytest.mark.parametrize("options", [["--epochs", "0"], ["--batch-size", "x"], ["--device", "tpu"], ["--epoch-s", "1"]])
def test_bad_options_have_exit_code_2(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        worker2.main(options)
    assert ended.value.code == 2 and options[0] in capsys.readouterr().err


def test_a_missing_data_option_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(ENV_DATA_DIR, raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert worker2.main(["--weights", "random"]) == 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert "no dataset given: use --data DIR or set ORCH_DATA_DIR" in capsys.readouterr().err


def test_a_missing_gpu_is_never_replaced_by_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="sees no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("cuda").type == "cuda"
    assert choose_device("cpu").type == "cpu"
