"""The command that `orch show` prints to start a run with the settings of an earlier one."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.box.known_runs import KnownRun
from orchestrator.commands.project import OpenedProject
from orchestrator.commands.run_settings import command_again, override_text
from orchestrator.spec.overrides import parse_override
from orchestrator.spec.sweeps import variants
from remote.contract.run_record import CodeRecord, JobRecord, RunRecord

HEAD = '[project]\nname = "test"\n'
JOB = '[jobs.train]\ncommand = "python train.py"\n'
SWEEP = '[jobs.train.sweep]\n"env.SEED" = [0, 1, 2]\n'
RUN_ID = "20260101T100000-2ab4"


def project_with(folder: Path, text: str) -> OpenedProject:
    folder.mkdir(exist_ok=True)
    (folder / "jobs.toml").write_text(HEAD + text)
    return OpenedProject.open(folder)


def again(project: OpenedProject, job: JobRecord) -> tuple[list[str], tuple[str, ...]]:
    """Return the values of `--set` of the command, and the settings that it does not restore."""
    run = KnownRun("train", RUN_ID, "local", project.address("local"))
    record = RunRecord(RUN_ID, "test", job, project.spec.host("local").record(), CodeRecord("0" * 64))
    command, changed = command_again(project, run, record)
    words = shlex.split(command)
    assert words[:3] == ["orch", "launch", "train"] and set(words[3::2]) <= {"--set"}
    return words[4::2], changed


def launched(project: OpenedProject, *overrides: str) -> JobRecord:
    """Return the record of the one run that a launch with `--set` starts."""
    (run,) = variants(project.spec, ["train"], overrides, ())
    return project.spec.notify.added_to(run.job.record())


@pytest.mark.parametrize("seed", ["0", "2"])
def test_swept_setting_is_given_even_if_the_job_has_the_same_value(tmp_path: Path, seed: str) -> None:
    project = project_with(tmp_path, JOB + 'env = { SEED = "0" }\n' + SWEEP)
    before = launched(project, f"env.SEED={seed}")
    texts, changed = again(project, before)
    assert (texts, changed) == ([f"env.SEED={seed}"], ())
    assert launched(project, *texts) == before


def test_sweep_of_a_setting_that_the_run_did_not_have_is_left_out(tmp_path: Path) -> None:
    before = launched(project_with(tmp_path / "before", JOB))
    project = project_with(tmp_path / "now", JOB + SWEEP)
    texts, changed = again(project, before)
    assert (texts, changed) == (["sweep={}"], ())
    assert launched(project, *texts) == before


@pytest.mark.parametrize(
    "value",
    ["a\nb", "\x7f", "\x00\x1b[2J", '"quoted"', "'quoted'", "5", "true", "é\u202e", "\U0001f600 \U000e0041", " a ", ""],
)
def test_value_of_any_text_is_read_back(value: str) -> None:
    for key, whole in (("env.NAME", value), ("command", ["python", value])):
        text = override_text(key, whole)
        assert text is not None and text.isprintable()
        assert parse_override(text) == (key, whole)


@pytest.mark.parametrize("value", ["\ud800", {"a": 1}, None])
def test_value_that_toml_cannot_express_has_no_text(value: Any) -> None:
    assert override_text("expects", value) is None


def test_setting_that_cannot_be_expressed_drops_only_itself(tmp_path: Path) -> None:
    project = project_with(tmp_path, JOB)
    before = launched(project, "deadline=1h", "env.SEED=7")
    before = replace(before, stop_signal="SIGOLD", expects=("\ud800",))
    texts, changed = again(project, before)
    assert (texts, changed) == (["env.SEED=7", "deadline=3600.0"], ("expects", "stop_signal"))


def test_settings_that_are_only_valid_together_are_all_given(tmp_path: Path) -> None:
    project = project_with(tmp_path, JOB)
    before = launched(project, "resume=--resume $ORCH_RESUME", "checkpoints=out/*")
    for record, lost in ((before, ()), (replace(before, stop_signal="SIGOLD"), ("stop_signal",))):
        texts, changed = again(project, record)
        assert changed == lost
        assert replace(launched(project, *texts), stop_signal=record.stop_signal) == record


def test_setting_of_jobs_toml_that_the_run_did_not_have_is_cancelled(tmp_path: Path) -> None:
    before = launched(project_with(tmp_path / "before", JOB))
    resumable = 'deadline = "1h"\nresume = "--resume $ORCH_RESUME"\ncheckpoints = "out/*"\n'
    project = project_with(tmp_path / "now", JOB + resumable)
    texts, changed = again(project, before)
    assert changed == () and launched(project, *texts) == before


def test_command_of_notify_counts_as_changed_only_if_it_has(tmp_path: Path) -> None:
    notify = '[notify]\non_end = "notify-me"\n'
    project = project_with(tmp_path / "before", JOB + notify)
    before = launched(project)
    assert again(project, before) == ([], ())
    assert again(project_with(tmp_path / "now", JOB), before) == ([], ("on_end",))
