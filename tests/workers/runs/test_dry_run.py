"""The rehearsal of both workers as real processes; each fault that once cost a night ends it."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from remote.contract.files import read_json, read_jsonl
from remote.contract.paths import RunPaths
from remote.contract.protocol import ENV_DATA_DIR, ENV_GOALS, ENV_REHEARSAL, ENV_RUN_DIR
from tests.support import ROOT
from tests.workers.runs.faulty_worker import FAULTS
from workers import worker1, worker2
from workers.dataset.videos import sample_path
from workers.model.transformer import ModelOutput, TokenTransformer
from workers.perception.batching import Batch
from workers.runs import dry_run
from workers.runs import options as worker_options
from workers.training import checkpoint
from workers.training.losses import Objective
from workers.training.trainer import Trainer

BATCH = 16
TRAIN, VALIDATION, TEST = 64, 8, 8  # of the 80 samples of `data`


def rehearse(program: list[str], data: Path, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    run.mkdir()
    environment = {
        **os.environ,
        ENV_REHEARSAL: "1",
        ENV_RUN_DIR: str(run),
        ENV_DATA_DIR: str(data),
        ENV_GOALS: '{"val_accuracy": ">= 0"}',  # met at once, but a rehearsal must not stop early
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "",
        "PYTHONPATH": str(ROOT),
    }
    argv = [sys.executable, *program, "--device", "cpu", *options]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def few(data: Path, tmp_path: Path) -> Path:
    """The data with all training samples damaged except those of the first batch: reading another one fails."""
    few = tmp_path / "few"
    shutil.copytree(data, few)
    for index in range(BATCH, TRAIN):
        sample_path(few, index).write_bytes(b"torn")
    return few


@pytest.mark.slow
@pytest.mark.parametrize(("worker", "options"), [("worker1", []), ("worker2", ["--weights", "random"])])
def test_a_rehearsal_writes_everything_but_the_summary(
    few: Path, tmp_path: Path, worker: str, options: list[str]
) -> None:
    paths = RunPaths(tmp_path / "run")
    ended = rehearse(["-m", f"workers.{worker}"], few, paths.root, "--epochs", "12", *options)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in paths.results.iterdir()) == ["rehearsal.json"]
    assert "stopping early" not in ended.stdout and "1 of 1 goals met" in ended.stdout
    assert f"rehearsal on cpu with {BATCH + VALIDATION + TEST} of 80 samples" in ended.stdout

    (line,) = read_jsonl(paths.metrics)
    assert line == read_json(paths.latest_metrics)
    assert line.keys() >= {"val_accuracy", "val_loss", "loss", "attention_ratio", "consistency", "weights", "goals"}
    assert line["step"] == dry_run.STEPS and line["samples"] == VALIDATION
    assert (read_json(paths.heartbeat) or {})["phase"] == "test"
    (saved,) = paths.checkpoints.glob("*.pt")
    state = checkpoint.read(saved)  # raises unless its checksum matches
    assert state.progress.steps_done == dry_run.STEPS and state.progress.step == 0
    assert {value["step"].item() for value in state.optimizer["state"].values()} == {float(dry_run.STEPS)}
    assert "resuming from " + saved.name in ended.stdout

    record = read_json(paths.forecast) or {}
    assert (record["samples"], record["samples_in_run"]) == (BATCH + VALIDATION + TEST, 80)
    assert (record["epochs"], record["steps_per_epoch"], record["checkpoints"]) == (12, TRAIN // BATCH, 3)
    assert record["checkpoint_bytes"] == saved.stat().st_size and record["device"] == "cpu"
    validations = record["checkpoints"] * record["seconds_per_validation"]
    epoch = record["steps_per_epoch"] * record["seconds_per_step"] + validations / record["epochs"]
    assert record["seconds_per_epoch"] == pytest.approx(epoch, rel=1e-9)
    total = record["seconds_setup"] + record["seconds_features"] + record["epochs"] * record["seconds_per_epoch"]
    assert record["seconds_total"] == pytest.approx(total, rel=1e-9)
    assert all(value > 0 and math.isfinite(value) for key, value in record.items() if key.startswith("seconds_"))
    assert 2**26 < record["peak_host_bytes"] < 2**35 and record["peak_gpu_bytes"] == 0  # 64 MiB to 32 GiB
    assert record["token_bytes_in_run"] > 80 * 8 * 4


# --- planted faults ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_ends_the_rehearsal_with_its_cause(data: Path, tmp_path: Path, name: str) -> None:
    ended = rehearse([str(Path(__file__).with_name("faulty_worker.py")), name], data, tmp_path / "run")
    fault = FAULTS[name]
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == fault.exit_code and fault.cause in last, ended.stdout + ended.stderr
    assert ("Traceback" in ended.stderr) != last.startswith("worker1: ")
    assert not (tmp_path / "run" / "results").exists()


@pytest.mark.slow
def test_missing_data_ends_the_rehearsal_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "data" / "output").mkdir(parents=True)
    (tmp_path / "data" / "output" / "augmented_traj_00000.npy").touch()
    ended = rehearse(["-m", "workers.worker2"], tmp_path / "data", tmp_path / "run", "--weights", "random")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "looked for output/augmented_traj_*.pt" in ended.stderr and "found none" in ended.stderr


# --- in this process ---------------------------------------------------------------------------------


@pytest.fixture
def rehearsing(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(ENV_REHEARSAL, "1")
    monkeypatch.setenv(ENV_DATA_DIR, str(data))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch, rehearsing: None, one_device: None, tmp_path: Path) -> None:
    """Use the meta device instead, on which no operation may mix two devices.

    It computes no values, so it gets its own cache, not the one that other tests use.
    """
    monkeypatch.setenv("ORCH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(worker_options, "choose_device", lambda name: torch.device("meta"))


@pytest.mark.parametrize(("worker", "options"), [(worker1, []), (worker2, ["--weights", "random"])])
def test_a_rehearsal_passes_on_an_accelerator(
    accelerator: None, worker: object, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main: Callable[[list[str]], int] = worker.main  # type: ignore[attr-defined]
    assert main(options) == 0
    assert "rehearsal on meta with 32 of 80 samples" in capsys.readouterr().out


def test_an_index_on_another_device_ends_the_rehearsal(
    accelerator: None, monkeypatch: pytest.MonkeyPatch, mixed_devices: type[Exception]
) -> None:
    def of_each_label(objective: object, output: ModelOutput, batch: Batch) -> Tensor:
        labels = torch.zeros(len(batch), dtype=torch.int64)  # left on the CPU
        return output.attention[-1][labels].mean() + output.logits.mean()

    monkeypatch.setattr(Objective, "__call__", of_each_label)
    with pytest.raises(mixed_devices, match=r"index.* on cpu, meta"):
        worker1.main([])


@pytest.mark.parametrize(
    ("owner", "restores", "lacking"),
    [
        (checkpoint, "restore_random_states", "random states"),
        (torch.optim.Adam, "load_state_dict", "optimizer"),
        (TokenTransformer, "load_state_dict", "model"),
    ],
)
def test_a_checkpoint_that_restores_too_little_ends_the_rehearsal(
    rehearsing: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    owner: object,
    restores: str,
    lacking: str,
) -> None:
    monkeypatch.setenv(ENV_RUN_DIR, str(tmp_path))
    monkeypatch.setattr(owner, restores, lambda *states: None)
    assert worker1.main(["--device", "cpu"]) == 1
    assert f"does not restore what was saved: {lacking}\n" in capsys.readouterr().err


def test_an_infinite_metric_ends_the_rehearsal(
    rehearsing: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dry_run, "baselines", lambda train, test: {"counting_red_frames": math.inf})
    assert worker1.main(["--device", "cpu"]) == 1
    assert capsys.readouterr().err == "worker1: after 4 training steps counting_red_frames is inf in the test\n"


def test_a_dataset_with_a_missing_file_is_refused(
    few: Path, rehearsing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sample_path(few, 79).unlink()
    assert worker1.main(["--device", "cpu", "--data", str(few)]) == 2
    assert "names 80 samples, found 79" in capsys.readouterr().err


def test_a_rehearsal_can_be_stopped(rehearsing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_RUN_DIR, str(tmp_path))

    def stop(trainer: Trainer, epoch: int, loss: float) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "validate", stop)
    assert worker1.main(["--device", "cpu"]) == 143
    assert not (tmp_path / "results").exists()


def test_a_run_does_not_resume_from_a_rehearsal(
    rehearsing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ENV_RUN_DIR, str(tmp_path))
    assert worker1.main(["--device", "cpu"]) == 0
    monkeypatch.delenv(ENV_REHEARSAL)
    assert worker1.main(["--device", "cpu"]) == 2
    assert "was written by a run with other settings (rehearsal was True, now False)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "epochs", "checkpoints"),
    [(["--epochs", "7"], 7, 2), (["--epochs", "3", "--validate-every", "1"], 3, 3), (["--epochs", "60"], 60, 5)],
)
def test_the_forecast_has_the_counts_of_the_run(
    rehearsing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], epochs: int, checkpoints: int
) -> None:
    monkeypatch.setenv(ENV_RUN_DIR, str(tmp_path))
    assert worker1.main(["--device", "cpu", "--limit", "20", "--batch-size", "6", *options]) == 0
    record = read_json(RunPaths(tmp_path).forecast) or {}
    assert (record["epochs"], record["checkpoints"]) == (epochs, checkpoints)
    assert (record["steps_per_epoch"], record["samples"], record["samples_in_run"]) == (4, 18, 36)
