"""Facts about the box: each question has a limit and fails alone; jobs are looked up as their supervisor does."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.box.host_facts import read_facts
from orchestrator.spec.models import Job
from remote.agent import facts as box
from remote.agent.facts import Question, ask_command, facts
from remote.agent.job_lookup import command_facts, data_facts, job_facts
from remote.contract import protocol, states
from remote.contract.answers import Answer, GpuOwner
from remote.contract.launches import FactsRequest
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.records import write_record
from remote.contract.run_record import CodeRecord, DataRecord, HostRecord, JobRecord, RunRecord
from remote.contract.schema import to_json
from remote.host import run_state
from remote.host.process import identity
from tests.support import PROC, RECORDED, checked, wait_until

TREE = "a" * 64
needs_proc = pytest.mark.skipif(not PROC.is_dir(), reason="reads /proc")


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    return ProjectPaths(tmp_path / "orch", "test")


def record(**keys: Any) -> JobRecord:
    return checked(Job, **{"name": "train", "command": "python train.py", **keys}).record()


def snapshot(paths: ProjectPaths, **files: str) -> Path:
    code = paths.tree(TREE)
    for name, text in {"train.py": "", "package/work.py": "", "package/__main__.py": "", **files}.items():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(text)
    return code


# --- questions ------------------------------------------------------------------------------------------


def test_hanging_command_is_killed_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    script = f"sh -c 'echo $$ > {mark}; sleep 60' & sleep 60"
    started = time.monotonic()
    answer = ask_command(["sh", "-c", script], limit_s=0.5)
    assert answer == Answer(error="sh gave no answer within 0.5 s")
    assert time.monotonic() - started < 30
    child = int(mark.read_text())
    wait_until(lambda: not identity(child))


def test_endless_output_is_cut() -> None:
    answer = ask_command(["yes"])
    assert len(answer.out) == box.LIMIT_BYTES and answer.code != 0


def test_missing_command_is_reported() -> None:
    assert ask_command(["no-such-program"]) == Answer(error="no-such-program is not installed", absent=True)


def test_failing_or_hanging_question_is_reported() -> None:
    def fails() -> Answer:
        raise OSError("the disk is gone")

    assert Question(fails, 1.0).wait() == Answer(error="the disk is gone")

    def hangs() -> Answer:
        time.sleep(30)
        return Answer()

    hung = Question(hangs, 0.1)
    hung._until = time.monotonic()
    assert hung.wait() == Answer(error="no answer within 0.1 s")


def test_all_questions_are_answered_in_one_reply(paths: ProjectPaths) -> None:
    result = facts(paths, FactsRequest(sys.executable, tree=TREE, jobs=(record(),)))
    json.dumps(to_json(result))
    read = read_facts(result)
    assert read.python and read.system
    assert read.disk is not None and read.disk.writable and read.disk.free > 0
    assert read.job_python.executable == sys.executable and read.job_python.torch is None
    assert not read.jobs["train"].problem and not read.jobs["train"].has_code
    assert not paths.box.exists()  # facts change nothing on the box


def test_missing_python_does_not_hide_other_facts(paths: ProjectPaths) -> None:
    read = read_facts(facts(paths, FactsRequest("/no/such/python")))
    assert read.job_python.problem == "/no/such/python is not installed"
    assert read.disk is not None


# --- GPUs: a script replaces nvidia-smi and prints recorded output ----------------------------------------------


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "nvidia-smi"


def test_broken_driver_is_reported_with_its_own_message(paths: ProjectPaths, smi: Path) -> None:
    recorded = RECORDED / "gpus-no-driver.txt"
    smi.write_text(f"#!/bin/sh\ncat {recorded}\nexit 9\n")
    smi.chmod(0o755)
    gpus = read_facts(facts(paths, FactsRequest())).gpus
    assert gpus.problem.startswith("exit code 9: NVIDIA-SMI has failed because it couldn't communicate")


@needs_proc
def test_process_on_the_gpu_is_reported_with_its_run(paths: ProjectPaths, smi: Path) -> None:
    run = paths.run("train", "20260126T210312-7f3a")
    run.root.mkdir(parents=True)
    run.run.write_text("{}")
    orphan = subprocess.Popen(["sleep", "60"], env={**os.environ, protocol.ENV_RUN_DIR: str(run.root)})
    smi.write_text(f'#!/bin/sh\ncase "$1" in *apps*) echo "{orphan.pid}, GPU-1, 1400, sleep";; esac\n')
    smi.chmod(0o755)
    try:
        run_state.enter(run, protocol.Running(time.time(), 1, orphan.pid, identity(orphan.pid)))
        assert not read_facts(facts(paths, FactsRequest())).gpu_owners[orphan.pid].is_orphan
        run_state.enter(run, protocol.Running(time.time(), 1, 2**22 + 1, "1"))  # neither supervisor nor worker lives
        assert read_facts(facts(paths, FactsRequest())).gpu_owners[orphan.pid].is_orphan
        run_state.enter(run, protocol.Failed(time.time(), "exit", "x"))
        owner = read_facts(facts(paths, FactsRequest())).gpu_owners[orphan.pid]
        assert (owner.owner, owner.command, owner.run) == (getpass.getuser(), "sleep 60", "train 20260126T210312-7f3a")
        assert owner.is_orphan
        shutil.rmtree(run.root)
        assert read_facts(facts(paths, FactsRequest())).gpu_owners[orphan.pid].is_orphan
    finally:
        orphan.kill()
        orphan.wait()


def test_missing_process_has_no_owner() -> None:
    assert box.gpu_owner(2**22 + 1) == GpuOwner(2**22 + 1)


# --- commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "kind", "runs", "is_there"),
    [
        ("python train.py --epochs 3", "script", "train.py", True),
        ("python -u trian.py", "script", "trian.py", False),
        ("python -W ignore -m package.work", "module", "package.work", True),
        ("python3 -m package", "module", "package", True),
        ("python -m package.wrok", "module", "package.wrok", False),
        ("python -m torch.distributed.run train.py", "module", "torch.distributed.run", False),
        ("python -c pass", "", "", None),
    ],
)
def test_python_command_line_is_parsed(
    paths: ProjectPaths, command: str, kind: str, runs: str, is_there: bool | None
) -> None:
    found = command_facts("command", command.split(), snapshot(paths), {"PATH": os.environ["PATH"]}, sys.executable)
    assert (found.found, found.kind, found.runs) == (sys.executable, kind, runs)
    assert found.in_snapshot is is_there


def test_program_is_found_as_the_supervisor_finds_it(paths: ProjectPaths) -> None:
    code = snapshot(paths, **{"run.sh": "#!/bin/sh\n"})
    env = {"PATH": os.environ["PATH"]}
    assert command_facts("command", ["./run.sh"], code, env, sys.executable).found is None  # not executable
    (code / "run.sh").chmod(0o700)
    assert command_facts("command", ["./run.sh"], code, env, sys.executable).found == str(code / "run.sh")
    assert command_facts("command", ["no-such-program"], code, env, sys.executable).found is None


def test_program_and_script_are_found_behind_a_link(paths: ProjectPaths, tmp_path: Path) -> None:
    code, env, links = snapshot(paths), {"PATH": os.environ["PATH"]}, {"tools": tmp_path}
    program = tmp_path / "bin" / "train"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    assert command_facts("command", ["./tools/bin/train"], code, env, sys.executable, links).found == str(program)
    script = command_facts("command", ["python", "tools/bin/train"], code, env, sys.executable, links)
    assert script.in_snapshot
    assert command_facts("command", ["tools/bin/none"], code, env, sys.executable, links).found is None


def test_unset_variables_are_reported(paths: ProjectPaths) -> None:
    code = snapshot(paths)
    env = {"PATH": os.environ["PATH"], "EPOCHS": "3"}
    command = ["python", "train.py", "--epochs=$EPOCHS", "--out=${OUTPUT}"]
    assert command_facts("command", command, code, env, sys.executable).unset == ("OUTPUT",)
    shell = ["bash", "-c", "for i in 1 2; do echo $i; done"]
    assert command_facts("command", shell, code, env, sys.executable).unset == ()


# --- data -----------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    output = tmp_path / "data" / "output"
    output.mkdir(parents=True)
    for index in range(5):
        (output / f"augmented_traj_{index}.pt").write_bytes(b"PK" + bytes(100))
    (tmp_path / "data" / "metadata.json").write_text("{}")
    return tmp_path / "data"


def test_data_is_counted_up_to_the_limit_and_sampled(data: Path) -> None:
    found = data_facts(DataRecord(pattern="output/*.pt", at_least=4), str(data))
    assert (found.matches, found.instead) == (4, ())
    assert [(sample.size, sample.head[:2], sample.error) for sample in found.samples] == [(102, "PK", "")] * 3


def test_other_files_are_listed_if_data_is_missing(data: Path) -> None:
    found = data_facts(DataRecord(pattern="*.npy"), str(data))
    assert (found.matches, found.samples) == (0, ())
    assert found.instead == (("output/*.pt", 5), ("*.json", 1))


def test_unreadable_sample_is_reported(data: Path) -> None:
    for path in (data / "output").iterdir():
        path.unlink()
        path.symlink_to(data / "gone")
    found = data_facts(DataRecord(pattern="output/*.pt"), str(data))
    assert found.samples[0].error == "No such file or directory"


@pytest.mark.parametrize("directory", [None, "/no/such/directory"])
def test_missing_data_directory_is_reported(directory: str | None) -> None:
    found = data_facts(DataRecord(), directory)
    assert (found.exists, found.matches) == (False, 0)


# --- jobs -----------------------------------------------------------------------------------------------


def test_job_facts_match_what_the_supervisor_finds(paths: ProjectPaths, data: Path) -> None:
    snapshot(paths)
    job = record(
        command="python train.py --data $ORCH_DATA_DIR --key $TOKEN --try $ORCH_ATTEMPT",
        data={"path": str(data), "pattern": "output/*.pt", "at_least": 5},
        secrets=["TOKEN"],
    )
    found = job_facts(paths, job, TREE, sys.executable)
    assert found.has_code and found.live_run is None and found.prepared is None
    assert found.commands[0].unset == () and found.commands[0].in_snapshot
    assert found.data and found.data.matches == 5


def test_env_that_refers_to_nothing_is_reported(paths: ProjectPaths) -> None:
    found = job_facts(paths, record(command="python train.py", env={"A": "$NO_SUCH"}), TREE, sys.executable)
    assert found.env_error == "env.A uses $NO_SUCH, which is not set; for the text itself write $$NO_SUCH"
    later = record(command="python train.py", prepare="make", env={"A": "$ORCH_PREPARED_DIR/x"})
    assert job_facts(paths, later, None, sys.executable).env_error == ""  # the code has not been sent yet


def test_data_that_prepare_will_make_is_reported_as_missing(paths: ProjectPaths) -> None:
    snapshot(paths)
    job = record(prepare="python make.py --out $ORCH_PREPARED_DIR", data={"pattern": "*.pt"})
    found = job_facts(paths, job, TREE, sys.executable)
    assert found.prepared is False and found.data and found.data.exists is False
    prepare = found.commands[1]
    assert (prepare.of, prepare.runs, prepare.in_snapshot, prepare.unset) == ("prepare", "make.py", False, ())
    wrong = record(prepare={"command": "python make.py", "inputs": ["gone.py"]})
    assert "matches no file" in job_facts(paths, wrong, TREE, sys.executable).prepare_error


def test_live_run_of_the_same_job_is_reported(paths: ProjectPaths) -> None:
    run = RunPaths(paths.run("train", "20260126T210312-7f3a").root)
    run.root.mkdir(parents=True)
    run_state.enter(run, protocol.Queued(time.time(), states.A_SUPERVISOR))
    assert job_facts(paths, record(), None, sys.executable).live_run == "20260126T210312-7f3a"
    assert job_facts(paths, record(name="other"), None, sys.executable).live_run is None


# --- the forecast of a rehearsal --------------------------------------------------------------------------

KEY = "5" * 64


@pytest.fixture
def rehearsed(paths: ProjectPaths) -> RunPaths:
    """A rehearsal of `train` that succeeded, and what it measured."""
    run = paths.rehearsing().run("train", "20260126T210312-7f3a")
    run.results.mkdir(parents=True)
    job, host, code = JobRecord("train", rehearsal_key=KEY), HostRecord(), CodeRecord(TREE)
    write_record(run.run, RunRecord(run.run_id, paths.root.name, job, host, code))
    run.forecast.write_text(json.dumps({"peak_gpu_bytes": 7}))
    run_state.enter(run, protocol.Succeeded(1.0))
    return run


def measured(paths: ProjectPaths, **keys: Any) -> Any:
    told = facts(paths, FactsRequest(tree=TREE, jobs=(record(),), **keys)).jobs["train"]
    return told.value["forecast"]


def test_forecast_of_a_remembered_rehearsal_needs_its_key(paths: ProjectPaths, rehearsed: RunPaths) -> None:
    assert measured(paths, rehearsed={"train": KEY})["peak_gpu_bytes"] == 7
    assert measured(paths, rehearsed={"train": "6" * 64}) is None
    assert measured(paths) is None
    assert measured(paths, rehearsed={"other": KEY}) is None


def test_failed_or_unrecorded_rehearsal_has_no_forecast(paths: ProjectPaths, rehearsed: RunPaths) -> None:
    run_state.enter(rehearsed, protocol.Failed(1.0, "exit", "exit code 1", 1))
    assert measured(paths, rehearsed={"train": KEY}) is None
    run_state.enter(rehearsed, protocol.Succeeded(1.0))
    rehearsed.run.write_text("[]")
    assert measured(paths, rehearsed={"train": KEY}) is None
    rehearsed.run.write_text('{"job": 7}')
    assert measured(paths, rehearsed={"train": KEY}) is None


# --- environments -----------------------------------------------------------------------------------------


def test_python_of_an_environment_is_expected_before_it_is_built(paths: ProjectPaths) -> None:
    snapshot(paths, **{"requirements.txt": "numpy\n"})
    environment = {"file": "requirements.txt", "tool": "pip"}
    found = job_facts(paths, record(environment=environment), TREE, sys.executable)
    assert found.environment is not None
    assert (found.environment.tool, found.environment.built, found.environment.problem) == ("pip", False, "")
    (command,) = found.commands
    assert command.found is not None and command.found.startswith(str(paths.environments))
    assert (command.kind, command.runs, command.in_snapshot) == ("script", "train.py", True)


def test_environment_that_cannot_be_built_is_reported(paths: ProjectPaths) -> None:
    snapshot(paths)
    found = job_facts(paths, record(environment="requirements.txt"), TREE, sys.executable)
    assert found.environment is not None
    assert found.environment.problem == "requirements.txt is not in the code that was sent"
    assert found.commands[0].found == sys.executable
