"""Two processes under torchrun, on the CPU with gloo, compared with one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from remote.contract.files import read_json, read_jsonl
from remote.contract.paths import RunPaths
from remote.contract.protocol import ENV_DATA_DIR, ENV_GOALS, ENV_RUN_DIR
from tests.support import ROOT
from workers.training import checkpoint
from workers.training.distributed import Group

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# 21 samples in batches of 5: in the last step of each epoch one of the two processes has no sample. No dropout, because
# each process draws its own.
OPTIONS = ["--limit", "21", "--batch-size", "5", "--dropout", "0", "--validate-every", "2", "--device", "cpu"]
TOLERANCE = 1e-3  # relative: float32 sums in another order, over 20 steps


def start(data: Path, run: Path, *before: str, epochs: int = 4, options: list[str] = OPTIONS) -> Any:
    run.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        ENV_RUN_DIR: str(run),
        ENV_DATA_DIR: str(data),
        ENV_GOALS: '{"val_accuracy": "> 1"}',
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "",
    }
    argv = [sys.executable, *before, "-m", "workers.train", "worker1", "--epochs", str(epochs), *options]
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: Any) -> str:
    try:
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return str(out)


def test_a_single_process_does_nothing() -> None:
    group, value = Group(), torch.tensor([1.0, 2.0])
    assert group.sum(value) is value and group.any(True) and not group.any(False)
    assert group.gather("mine") == ["mine"]
    assert group.share(torch.arange(5))[0].tolist() == [0, 1, 2, 3, 4]


def test_shares_hold_each_sample_once_and_an_empty_share_counts_nothing() -> None:
    for count in range(1, 12):
        for size in range(1, 5):
            shares = [Group(rank, size).share(torch.arange(count)) for rank in range(size)]
            counted = [index for indices, weight in shares for index in indices.tolist() if weight]
            assert sorted(counted) == list(range(count))
            assert all(len(indices) for indices, _ in shares)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(data: Path, tmp_path: Path) -> None:
    two, one = start(data, tmp_path / "two", *TORCHRUN), start(data, tmp_path / "one")
    said = finished(two)
    finished(one)
    assert said.count("verdict:") == 1 and said.count("epoch 4/4:") == 1  # the first process alone speaks
    runs = [RunPaths(tmp_path / name) for name in ("one", "two")]
    for one_line, two_line in zip(*(list(read_jsonl(run.metrics)) for run in runs), strict=True):
        assert (one_line["epoch"], one_line["step"]) == (two_line["epoch"], two_line["step"])
        for key, value in one_line.items():
            if isinstance(value, (int, float)) and key != "time":
                assert two_line[key] == pytest.approx(value, rel=TOLERANCE), key
    summaries: list[dict[str, Any]] = [read_json(run.results / "summary.json") or {} for run in runs]
    assert summaries[1]["test"] == pytest.approx(summaries[0]["test"], rel=TOLERANCE)
    assert summaries[1]["test"]["samples"] == 8
    weights = [checkpoint.read(run.checkpoint(4)).model for run in runs]
    for name, value in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], value, rtol=TOLERANCE, atol=1e-3
        )  # Adam moves what has no gradient by noise


@pytest.mark.slow
def test_sigterm_stops_both_at_the_same_step_and_both_resume(data: Path, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    endless = [*OPTIONS[:-4], "--validate-every", "1000", "--device", "cpu"]
    process = start(data, paths.root, *TORCHRUN, epochs=1000, options=endless)
    end = time.monotonic() + 60
    while ((read_json(paths.heartbeat) or {}).get("epoch") or 0) < 2:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    saved = max(paths.checkpoints.glob("epoch-*.pt"))
    state = checkpoint.read(saved)
    assert len(state.random) == 2
    epochs = state.progress.epoch + 1
    said = finished(start(data, paths.root, *TORCHRUN, epochs=epochs, options=endless))
    assert f"resuming from {saved.name}" in said
    assert json.loads((paths.results / "summary.json").read_text())["epochs_done"] == epochs
