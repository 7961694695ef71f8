"""The table of variants: each trains, is a job, and differs from worker1 in the part that it is named for."""

from __future__ import annotations

import os
import signal
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from remote.contract.files import read_json, read_jsonl
from remote.contract.paths import RunPaths
from remote.contract.protocol import ENV_RUN_DIR
from tests.support import ROOT
from workers import train
from workers.runs.options import bf16, compiles, parser
from workers.runs.variants import VARIANTS, WORKER1, WORKER2


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
    options = ["--weights", "random"] if VARIANTS[name].pretrained else []
    assert train.main([name, "--data", str(data), "--epochs", "1", "--limit", "20", "--device", "cpu", *options]) == 0
    paths = RunPaths(tmp_path)
    summary, (line,) = read_json(paths.results / "summary.json") or {}, read_jsonl(paths.metrics)
    assert summary["worker"] == name and summary["test"]["samples"] == 8
    assert ("box_iou" in line) == ("frame_accuracy" in line) == VARIANTS[name].architecture.locate
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
        ("curriculum", {"order"}),
        ("linear", {"architecture"}),
        ("sparse", {"architecture"}),
        ("worker2", {"objective", "pretrained"}),
    ],
)
def test_a_variant_differs_in_the_part_it_is_named_for(name: str, parts: set[str]) -> None:
    differing = {
        item.name for item in fields(WORKER1) if getattr(VARIANTS[name], item.name) != getattr(WORKER1, item.name)
    }
    assert differing == parts | {"name", "purpose"}


def test_worker2_minimises_cross_entropy_alone() -> None:
    objective = WORKER2.objective
    assert (objective.attention, objective.persistent, objective.shows, objective.located) == (0, 0, 0, 0)


def test_defaults_are_those_of_the_field_notes() -> None:
    options = parser(WORKER1).parse_args([])
    assert (options.epochs, options.batch_size, options.validate_every) == (30, 16, 5)


def test_no_variant_is_shadowed_by_another_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["nothing"]) == 2
    assert "there is no variant 'nothing'; there is worker1, worker2, " in capsys.readouterr().err
    assert train.main(["--help"]) == 0
    assert all(name in capsys.readouterr().out for name in ["curriculum"])
    assert train.main([]) == 2


def test_what_auto_comes_to_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert (bf16("auto", cpu), bf16("bf16", cpu), bf16("float32", cpu)) == (False, True, False)
    assert (compiles("auto", cpu), compiles("on", cpu), compiles("off", cpu)) == (False, True, False)


def test_torchs_environment_is_left_as_it_was() -> None:
    assert "RANK" not in os.environ and not torch.distributed.is_initialized()
