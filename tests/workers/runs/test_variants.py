"""The table of variants: each trains, is a job, and differs from worker1 only in its own part."""

from __future__ import annotations

import os
import signal
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from remote.contract.files import read_json, read_jsonl
from remote.contract.paths import RunPaths
from remote.contract.protocol import ENV_RUN_DIR
from tests.support import ROOT
from workers import train
from workers.model.transformer import Architecture
from workers.runs.options import parse, uses_bf16, uses_compile
from workers.runs.variants import VARIANTS, WORKER1, WORKER2
from workers.training.losses import Objective


@pytest.fixture
def sigterm() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_to_the_end(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sigterm: None
) -> None:
    monkeypatch.setenv(ENV_RUN_DIR, str(tmp_path))
    options = ["--weights", "random"] if VARIANTS[name].config.pretrained else []
    assert train.main([name, "--data", str(data), "--epochs", "1", "--limit", "20", "--device", "cpu", *options]) == 0
    paths = RunPaths(tmp_path)
    summary, (line,) = read_json(paths.results / "summary.json") or {}, read_jsonl(paths.metrics)
    assert summary["worker"] == name and summary["test"]["samples"] == 8
    assert ("box_iou" in line) == ("frame_accuracy" in line) == VARIANTS[name].config.architecture.locate
    assert len(list((paths.results / "heatmaps").glob("*.png"))) == len(
        list((paths.results / "heatmaps").glob("*.gif"))
    )


def test_every_variant_is_a_job() -> None:
    jobs = tomllib.loads((ROOT / "jobs.toml").read_text())["jobs"]
    assert jobs.keys() == VARIANTS.keys()
    for name, job in jobs.items():
        module = f"workers.{name}" if name in ("worker1", "worker2") else f"workers.train {name}"
        assert job["command"].startswith(f"python -m {module} --data $ORCH_DATA_DIR --epochs $EPOCHS")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tracked", {"tracked"}),
        ("multitask", {"architecture", "objective"}),
        ("curriculum", {"sampler"}),
        ("linear", {"architecture"}),
        ("sparse", {"architecture"}),
        ("worker2", {"objective", "pretrained", "weights"}),
    ],
)
def test_a_variant_differs_only_in_its_own_part(name: str, parts: set[str]) -> None:
    ours, worker1 = vars(VARIANTS[name].config), vars(WORKER1.config)
    assert {field for field in ours if ours[field] != worker1[field]} == parts | {"variant"}


def test_worker2_minimises_cross_entropy_alone() -> None:
    objective = WORKER2.config.objective
    assert (objective.attention, objective.persistent, objective.shows, objective.located) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", VARIANTS)
def test_without_options_the_config_is_that_of_the_variant(name: str) -> None:
    config = parse(VARIANTS[name], ["--data", "/data", "--device", "cpu"])
    assert config == replace(VARIANTS[name].config, data=Path("/data"))
    assert (config.epochs, config.batch_size, config.validate_every) == (30, 16, 5)


def test_options_replace_fields_of_the_config() -> None:
    numbers = "--epochs 3 --batch-size 8 --validate-every 2 --log-every 7 --learning-rate 0.01 --seed 5 --threads 2"
    names = "--optimizer adamw --weight-decay 0.1 --schedule constant --precision bf16 --limit 20 --device cpu"
    losses = "--dropout 0.2 --attention-weight 2 --attention-target 3 --attention-layers last --data D"
    config = parse(VARIANTS["multitask"], f"{numbers} {names} {losses}".split())
    assert (config.epochs, config.batch_size, config.validate_every, config.log_every) == (3, 8, 2, 7)
    assert (config.learning_rate, config.seed, config.threads, config.limit) == (0.01, 5, 2, 20)
    assert (config.optimizer, config.weight_decay, config.schedule, config.bf16) == ("adamw", 0.1, "constant", True)
    assert config.architecture == Architecture(dropout=0.2, locate=True)
    assert config.objective == Objective(
        attention=2.0, persistent=0.5, shows=1.0, located=1.0, target=3.0, layers="last"
    )


def test_an_unknown_variant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["nothing"]) == 2
    assert "unknown variant 'nothing'; choose one of worker1, worker2, " in capsys.readouterr().err
    assert train.main(["--help"]) == 0
    assert all(name in capsys.readouterr().out for name in ["curriculum"])
    assert train.main([]) == 2


def test_auto_means_float32_without_compiler_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert (uses_bf16("auto", cpu), uses_bf16("bf16", cpu), uses_bf16("float32", cpu)) == (False, True, False)
    assert (uses_compile("auto", cpu), uses_compile("on", cpu), uses_compile("off", cpu)) == (False, True, False)


def test_no_process_group_is_left() -> None:
    assert "RANK" not in os.environ and not torch.distributed.is_initialized()
