"""Sweeps: the runs of a launch, one for each combination of values, on the command line and in jobs.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.load import load
from orchestrator.spec.models import Spec
from orchestrator.spec.sweeps import MAX_RUNS, parse_sweep, variants

JOB = """\
[project]
name = "test"
[jobs.train]
command = "python t.py"
env.LR = "0.1"
[jobs.data]
command = "python d.py"
"""
SWEEP = '[jobs.train.sweep]\n"env.SEED" = [0, 1, 2]\n"env.LR" = ["1e-3", "3e-4"]\n'


def spec(folder: Path, more: str = "") -> Spec:
    path = folder / "jobs.toml"
    path.write_text(JOB + more)
    return load(path)


def values(found: Spec, *sweeps: str, sets: tuple[str, ...] = (), jobs: tuple[str, ...] = ("train",)) -> list[Any]:
    return [run.values for run in variants(found, jobs, sets, sweeps)]


def test_job_without_a_sweep_is_one_run_without_values(tmp_path: Path) -> None:
    (run,) = variants(spec(tmp_path), ["train"], ["env.LR=0.5"], ())
    assert (run.values, run.job.env) == ({}, {"LR": "0.5"})


def test_each_combination_is_a_run_named_by_its_values(tmp_path: Path) -> None:
    found = variants(spec(tmp_path), ["train"], (), ["env.SEED=0,1,2", "env.LR=1e-3,3e-4"])
    pairs = [(seed, rate) for seed in ("0", "1", "2") for rate in ("1e-3", "3e-4")]
    assert [run.values for run in found] == [{"env.SEED": seed, "env.LR": rate} for seed, rate in pairs]
    assert [run.job.env for run in found] == [{"LR": rate, "SEED": seed} for seed, rate in pairs]
    assert len({run.job.record().env["SEED"] for run in found}) == 3


def test_sweep_of_jobs_toml_is_launched_and_changed_by_options(tmp_path: Path) -> None:
    found = spec(tmp_path, SWEEP)
    assert len(values(found)) == 6
    assert values(found, sets=("env.SEED=7",)) == [{"env.LR": "1e-3"}, {"env.LR": "3e-4"}]
    assert values(found, "env.SEED=5", sets=("env.LR=1",)) == [{"env.SEED": "5"}]
    assert values(found, jobs=("data",)) == [{}]


def test_keys_of_the_table_need_no_quotes(tmp_path: Path) -> None:
    found = spec(tmp_path, "[jobs.train.sweep]\nenv.SEED = [0, 1]\nenv.LR = [0.5]\ndeadline = ['1h']\n")
    assert values(found)[1] == {"env.SEED": "1", "env.LR": "0.5", "deadline": "1h"}


def test_sweep_on_the_command_line_is_of_all_jobs(tmp_path: Path) -> None:
    found = variants(spec(tmp_path), ["train", "data"], (), ["env.SEED=0,1"])
    assert [(run.job.name, run.values["env.SEED"]) for run in found] == [
        ("train", "0"),
        ("train", "1"),
        ("data", "0"),
        ("data", "1"),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("env.A=1e-3,3e-4", ("1e-3", "3e-4")),
        ('env.A="a,b",c', ("a,b", "c")),
        ("env.A=[1, 2]", (1, 2)),
        ("gpus=0.5, 1", (0.5, 1)),
        ("restarts=1,2", (1, 2)),
        ('command="python t.py --x 1, 2","python u.py"', ("python t.py --x 1, 2", "python u.py")),
        ("env.A=a=b,c", ("a=b", "c")),
    ],
)
def test_values_are_separated_by_commas_or_a_list(text: str, wanted: tuple[Any, ...]) -> None:
    assert parse_sweep(text)[1] == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("env.A", "is not KEY=VALUE,VALUE"),
        ("=1,2", "is not KEY=VALUE,VALUE"),
        ("env.A=", "expected a list of values"),
        ("env.A=[]", "expected a list of values"),
        ("env.A=1,,2", "one of the values is empty"),
        ("env.A=1,2,1", "'1' is listed twice"),
        ('env.A=[1,"1"]', "env.A: 1 and '1' mean the same value"),
        ("deadline=1h,60m", "deadline: '1h' and '60m' mean the same value"),
        ('env.A="a,b', "cannot read the values"),
        ("env.A=[1, 2", "cannot read the values"),
        ("host=a,b", "the same for all runs"),
        ("needs=a,b", "the same for all runs"),
        ("secrets.TOKEN=a,b", "the same for all runs"),
        ("deadlin=1h,2h", "unknown key 'deadlin'"),
        ("deadline=1h,soon", "'soon' is not a valid duration"),
    ],
)
def test_wrong_sweep_is_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        values(spec(tmp_path), text)
    assert said in refused.value.message and refused.value.message.startswith("--sweep")
    assert refused.value.hint


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("env.SEED = 3", "env.SEED: expected a list of values, got 3"),
        ("env.SEED = []", "env.SEED: expected a list of values"),
        ("env.SEED = [1, 1]", "1 is listed twice"),
        ("deadlin = ['1h']", "[jobs.train.sweep] unknown key 'deadlin'"),
        ("deadline = ['soon']", "[jobs.train.sweep] deadline: 'soon' is not a valid duration"),
        ("needs = ['data']", "the same for all runs"),
        ("env.SEED = [[1]]", "[jobs.train.sweep] env.SEED: expected text or a number"),
    ],
)
def test_wrong_table_is_an_error_of_jobs_toml(tmp_path: Path, table: str, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        spec(tmp_path, f"[jobs.train.sweep]\n{table}\n")
    assert said in refused.value.message and refused.value.message.startswith("jobs.toml: [jobs.train")


def test_setting_is_given_once(tmp_path: Path) -> None:
    for sweeps, sets in ((("env.A=1,2", "env.A=3"), ()), (("env.A=1,2",), ("env.A=3",))):
        with pytest.raises(SpecError, match=r"env\.A"):
            values(spec(tmp_path), *sweeps, sets=sets)


def test_number_of_runs_is_limited(tmp_path: Path) -> None:
    many = ",".join(map(str, range(MAX_RUNS)))
    assert len(values(spec(tmp_path), f"env.A={many}")) == MAX_RUNS
    with pytest.raises(SpecError, match=f"this launches {2 * MAX_RUNS} runs of train; at most {MAX_RUNS} are allowed"):
        values(spec(tmp_path), f"env.A={many}", "env.B=1,2")
