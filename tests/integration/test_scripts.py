"""Five kinds of training script, unchanged: run from what `orch init` writes, killed, resumed, stopped and synced."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Orch
from tests.support import ROOT, SshdBox, wait_until

SCRIPTS = ROOT / "tests" / "scripts"
MOST_EDITS = 5  # lines of jobs.toml
TIMEOUT_S = 150.0


@dataclass(frozen=True)
class Script:
    """A repository in tests/scripts."""

    second: str  # the command of a second job
    metric: str  # that `status` shows
    checkpoints: str  # pattern in the working directory
    resumed: bytes  # what the script prints when it resumes


KINDS = {
    "argparse_lm": Script(
        second="python main.py --model GRU --epochs 1",
        metric="loss",
        checkpoints="model.pt",
        resumed=b"resumed ",
    ),
    "config_gpt": Script(
        second='sh -c "python data/char/prepare.py && python train.py config/train_char.py --max_iters=50"',
        metric="loss",
        checkpoints="out-char/ckpt.pt",
        resumed=b"Resuming training from out-char",
    ),
    "lightning": Script(
        second="python train.py --max_epochs 1",
        metric="train_loss",
        checkpoints="lightning_logs/*/checkpoints/*.ckpt",
        resumed=b"Restoring states from the checkpoint path",
    ),
    "hf_trainer": Script(
        second="python run_clm.py --output_dir out --max_steps 20 --save_steps 10 --logging_steps 5",
        metric="loss",
        checkpoints="out/checkpoint-*/trainer_state.json",
        resumed=b"",  # it prints nothing
    ),
    "torchrun": Script(
        second="torchrun --standalone --nproc_per_node=2 main.py --epochs 2",
        metric="Loss",
        checkpoints="checkpoint.pth.tar",
        resumed=b"=> loaded checkpoint",
    ),
}


@pytest.fixture
def stranger(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Orch:
    """Make a repository of a script, with the jobs.toml that `orch init` writes; host `local`, or `box` over SSH."""
    kind, where = request.param
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    project = tmp_path / "test"
    shutil.copytree(SCRIPTS / kind, project, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "init", "--quiet", project], check=True)
    edits: dict[str, str] = {}  # the start of a line of jobs.toml -> the new line
    if where == "local":
        orch = Orch(project, tmp_path, project / ".orch", "local", "")
    else:
        box: SshdBox = request.getfixturevalue("sshd_box")
        (home / ".ssh").mkdir(mode=0o700)
        shutil.copy(box.config, home / ".ssh" / "config")
        orch = Orch(project, tmp_path, box.home / "orch", "box", "", box)
        edits |= {
            "# [hosts.box]": "[hosts.box]",
            "# ssh = ": 'ssh = "box"',
            "# python = ": f'python = "{sys.executable}"\nsurvive_reboot = false',  # the user's crontab is left alone
        }
    orch.run("init")
    spec = project / "jobs.toml"
    lines = [*spec.read_text().splitlines(), "", "[jobs.second]", f"command = '{KINDS[kind].second}'"]
    for start, line in edits.items():
        numbers = [number for number, known in enumerate(lines) if known.startswith(start)]
        assert len(numbers) == 1, f"{len(numbers)} lines start with {start!r}:\n{spec.read_text()}"
        lines[numbers[0]] = line
    assert len(edits) + 2 <= MOST_EDITS
    spec.write_text("\n".join(lines) + "\n")
    return orch


def every_kind(test: Any) -> Any:
    cases = [(kind, where) for kind in KINDS for where in ("local", "ssh")]
    return pytest.mark.parametrize(
        ("stranger", "kind"),
        [(case, case[0]) for case in cases],
        indirect=["stranger"],
        ids=["-".join(case) for case in cases],
    )(test)


def shown(orch: Orch, job: str) -> dict[str, Any]:
    """Return what `orch status` says about a job."""
    time.sleep(1.0)  # it is asked until it says what the test waits for; the script needs the cores
    found: dict[str, Any] = next(run for run in orch.json("status")["runs"] if run["job"] == job)
    return found


def wait(condition: Callable[[], Any], what: str) -> None:
    wait_until(condition, TIMEOUT_S, what)


@every_kind
@pytest.mark.timeout(400)  # importing what the scripts import takes seconds, several times
def test_script_that_knows_nothing_of_orch(stranger: Orch, kind: str) -> None:
    script, orch = KINDS[kind], stranger
    on = (
        [] if orch.box is None else ["--on", "box", "--set", "rehearse=false"]
    )  # one rehearsal of each script is enough
    orch.run("launch", "train", "second", *on, timeout=200)
    run = orch.on_box("train")

    def reports() -> bool:
        seen = shown(orch, "train")
        return bool((seen["heartbeat"] or {}).get("eta_s")) and script.metric in (seen["metrics"] or {})

    wait(lambda: any(run.work.glob(script.checkpoints)), "a checkpoint")
    wait(reports, f"an ETA and {script.metric}")
    os.kill(orch.wait_for("train", "running")["pid"], signal.SIGKILL)
    wait(lambda: orch.state("train").get("attempt") == 2 or orch.state("train")["state"] == "failed", "an attempt")
    assert orch.state("train")["state"] != "failed", orch.state("train")
    wait(lambda: script.resumed in run.log.read_bytes().rpartition(b"attempt 2")[2], "the script to resume")
    wait(reports, "progress of the second attempt")
    orch.run("stop", "train")
    assert orch.state("train")["state"] == "stopped"
    orch.wait_for("second", "succeeded", timeout=TIMEOUT_S)
    orch.run("sync")
    for job in ("train", "second"):
        work = orch.on_box(job).work
        there = [path.relative_to(work) for path in sorted(work.glob(script.checkpoints))]
        assert there, job
        assert [(orch.mirror(job).work / path).read_bytes() for path in there] == [
            (work / path).read_bytes() for path in there
        ]
    results = [sorted(orch.on_box(job).work.glob(script.checkpoints))[0].read_bytes() for job in ("train", "second")]
    assert results[0] != results[1]
