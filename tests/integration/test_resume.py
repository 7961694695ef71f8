"""A program that knows nothing of orch is resumed from its checkpoints: after a kill, and by a new run."""

from __future__ import annotations

from pathlib import Path

from remote.contract.files import read_jsonl
from tests.integration.conftest import Orch

# Writes a checkpoint at each step. The first attempt is killed while it writes that of step 3.
TRAIN = """
import argparse, os, pathlib, signal
parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--resume_from_checkpoint")
options = parser.parse_args()
start = 0
if options.resume_from_checkpoint:
    start = int(pathlib.Path(options.resume_from_checkpoint, "state").read_text().split()[0])
print(f"starts at {start}, ORCH_RESUME={os.environ['ORCH_RESUME']}", flush=True)
for step in range(start + 1, options.steps + 1):
    out = pathlib.Path("out", f"checkpoint-{step}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "model").write_text("x" * 10000)
    if step == 3 and start == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    (out / "state").write_text(f"{step} " + "s" * 1000)
"""


def trainer(orch: Orch, code: str = TRAIN, name: str = "train", **keys: object) -> None:
    (orch.project / "train.py").write_text(code)
    resume = {"resume": "--resume_from_checkpoint $ORCH_RESUME", "checkpoints": "out/checkpoint-*"}
    orch.table(name, **{"command": ["python", "train.py"], "restarts": 3, **resume, **keys})


def test_run_resumes_after_a_kill_and_a_new_run_from_it(ssh_orch: Orch) -> None:
    trainer(ssh_orch)
    assert "succeeded" in ssh_orch.run("launch", "train", "--wait").stdout
    run = ssh_orch.on_box("train")
    newest = run.work / "out" / "checkpoint-2"  # that of step 3 has no state
    first, marker, second = run.log.read_text().splitlines()
    assert first == "starts at 0, ORCH_RESUME="
    assert marker.startswith("[orch] --- attempt 2, ") and marker.endswith(", after ended by SIGKILL ---")
    assert second == f"starts at 2, ORCH_RESUME={newest}"
    events = list(read_jsonl(run.events))
    assert [event.get("resumed_from") for event in events if event.get("state") == "starting"] == [
        None,
        "work/out/checkpoint-2",
    ]
    assert [event["resume"] for event in events if "resume" in event] == ["work/out/checkpoint-3: state is missing"]

    ssh_orch.run("launch", "train", "--resume-from", run.run_id, "--set", "command=python train.py --steps 7", "--wait")

    new = ssh_orch.on_box("train")
    assert new.root != run.root
    assert new.log.read_text() == f"starts at 5, ORCH_RESUME={run.work / 'out' / 'checkpoint-5'}\n"
    assert sorted(path.name for path in (new.work / "out").iterdir()) == ["checkpoint-6", "checkpoint-7"]


def test_checkpoint_that_does_not_load_is_skipped(local_orch: Orch) -> None:
    """The program cannot load its newest checkpoint, so the next attempt takes the one before."""
    code = TRAIN.replace(
        "start = 0\n",
        'start = 0\nif "checkpoint-2" in str(options.resume_from_checkpoint): raise ValueError("bad magic number")\n',
    )
    trainer(local_orch, code)
    local_orch.run("launch", "train", "--wait")
    run = local_orch.on_box("train")
    resumed = [event.get("resumed_from") for event in read_jsonl(run.events) if event.get("state") == "starting"]
    assert resumed == [None, "work/out/checkpoint-2", "work/out/checkpoint-1"]
    assert "starts at 1, " in run.log.read_text()
    assert local_orch.state("train")["state"] == "succeeded"


def test_checkpoint_is_used_again_after_an_attempt_that_trained(local_orch: Orch) -> None:
    """Each attempt loads its checkpoint and shows a step before it fails."""
    code = TRAIN.replace(
        "for step in range(start + 1",
        "print(f'step {start}/{options.steps} loss 0.5', flush=True)\n"
        "if start: raise RuntimeError(f'flaky {os.urandom(4).hex()}')\nfor step in range(start + 1",
    )
    trainer(local_orch, code, restarts=2)
    local_orch.run("launch", "train", "--wait", code=1)
    events = list(read_jsonl(local_orch.on_box("train").events))
    resumed = [event.get("resumed_from") for event in events if event.get("state") == "starting"]
    assert resumed == [None, "work/out/checkpoint-2", "work/out/checkpoint-2"]
    assert [event["has_trained"] for event in events if "attempt_ended" in event][1:] == [True, True]


def test_resume_from_a_run_that_cannot_be_used_is_refused(local_orch: Orch, tmp_path: Path) -> None:
    local_orch.host_table += f'[hosts.other]\ngpus = 0\nroot = "{tmp_path / "other"}"\nsurvive_reboot = false\n'
    trainer(local_orch, "print('no checkpoint')")
    trainer(local_orch, "print('no checkpoint')", name="plain", resume=False, checkpoints=[])
    local_orch.run("launch", "train", "--wait")

    def refused(*arguments: str, code: int = 2) -> str:
        return local_orch.run("launch", *arguments, code=code).stderr

    assert "no job or run" in refused("train", "--resume-from", "unknown")
    assert "plain has no run on local" in refused("train", "--resume-from", "plain")
    assert "the job has no 'resume' in jobs.toml" in refused("plain", "--resume-from", "train")
    elsewhere = refused("train", "--on", "other", "--resume-from", "train")
    assert "is on local, so it cannot be resumed from on other" in elsewhere and "--on local" in elsewhere
    nothing = refused("train", "--resume-from", "train", code=4)
    assert "has no complete checkpoint to resume from: looked for out/checkpoint-*" in nothing
    assert len(list((local_orch.root / "test" / "runs" / "train").iterdir())) == 1
