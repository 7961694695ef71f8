"""The Python API, on a real box, and its documented example."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from orchestrator import Project
from orchestrator.errors import OrchError, SpecError
from tests.integration.conftest import Orch
from tests.support import ROOT


def test_launch_wait_and_metrics_as_plain_objects(orch: Orch) -> None:
    orch.job("train", "metrics", goals={"val_accuracy": ">= 0.9", "consistency": ">= 0.9", "other": ">= 1"})

    with Project.open(orch.project) as project:
        (run,) = project.launch("train")
        assert (run.job, run.host, run.has_ended) == ("train", orch.host, False)

        (ended,) = project.wait([run], timeout=30)

        assert (ended.run_id, ended.state, ended.has_succeeded) == (run.run_id, "succeeded", True)
        assert ended.metrics == {"val_accuracy": 0.97, "consistency": 0.44}
        assert ended.goals == {"val_accuracy >= 0.9": True, "consistency >= 0.9": False, "other >= 1": None}
        assert project.log(ended) == "train: metrics\n"
        assert [record["val_accuracy"] for record in project.metrics(ended)] == [0.97]
        assert project.sync([ended]) == [ended.directory]
        assert (ended.directory / "training.log").read_text() == "train: metrics\n"
        assert project.runs("train") == [ended]


def test_settings_reach_the_job(local_orch: Orch) -> None:
    local_orch.table("train", command="bash -c 'echo $LR $FLAG'", env={"LR": "1", "FLAG": ""})
    with Project.open(local_orch.project) as project:
        runs = project.launch("train", settings={"env.LR": 1e-3, "env.FLAG": True})
        project.wait(runs, timeout=30)
        assert project.log(runs[0]) == "0.001 true\n"


def test_name_of_several_runs_is_refused_where_one_is_needed(local_orch: Orch) -> None:
    local_orch.job("train", "metrics", "never")
    with Project.open(local_orch.project) as project:
        runs = [*project.launch("train"), *project.launch("train", again=True)]
        names = [run.name for run in runs]
        for ask in (project.metrics, project.log):
            for name in ("train", "tr*"):
                with pytest.raises(SpecError) as refused:
                    ask(name)
                assert refused.value.message == f"{name!r} means 2 runs: {', '.join(names)}"
                assert refused.value.hint == f"name one of them: {names[-1]}"
        project.stop(runs)
        project.wait(runs, timeout=30)


def test_metrics_are_read_without_a_download_of_checkpoints(orch: Orch) -> None:
    orch.job("train", "metrics")
    with Project.open(orch.project) as project:
        (run,) = project.wait(project.launch("train"), timeout=30)
        for _ in range(2):
            assert [record["val_accuracy"] for record in project.metrics("train")] == [0.97]
        assert orch.on_box("train").checkpoints.is_dir()
        assert not (run.directory / "checkpoints").exists()


def test_sync_of_a_job_downloads_its_newest_run(local_orch: Orch) -> None:
    local_orch.job("train", "metrics")
    with Project.open(local_orch.project) as project:
        old, new = (project.wait(project.launch("train", again=True), timeout=30)[0] for _ in range(2))
        assert project.sync([]) == []
        assert project.sync(["train"]) == [new.directory]
        assert project.sync(["train/*"]) == [old.directory, new.directory]


def test_wait_that_takes_too_long_returns_the_runs_as_they_are(local_orch: Orch) -> None:
    local_orch.job("train", "gate")
    with Project.open(local_orch.project) as project:
        (run,) = project.wait(project.launch("train"), timeout=0.1)
        assert not run.has_ended
        project.stop([run])
        assert project.wait([run], timeout=30)[0].state == "stopped"


def test_mistakes_are_errors_with_a_hint(local_orch: Orch) -> None:
    local_orch.job("train", "gate")
    with Project.open(local_orch.project) as project, pytest.raises(OrchError) as found:
        project.launch("trian")
    assert (found.value.code, found.value.hint) == ("spec", "did you mean 'train'?")


def test_documented_example_runs(local_orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    local_orch.table("train", command="python train.py", env={"LR": "1", "SEED": "0"}, goals={"loss": "<= 0.5"})
    (local_orch.project / "train.py").write_text(
        "import os\nfor epoch in (1, 2):\n    print(f\"epoch={epoch} loss={float(os.environ['LR']) / epoch}\")\n"
    )
    monkeypatch.chdir(local_orch.project)

    said: list[str] = []
    exec(compile(example, "example", "exec"), {"print": lambda *words: said.append(" ".join(map(str, words)))})

    assert said, "the example prints what it found"
    assert Path.cwd() == local_orch.project
    assert "LR" not in os.environ
