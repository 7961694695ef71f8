from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote.contract.files import write_json
from remote.contract.locks import try_lock
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import (
    AgentError,
    Failed,
    Queued,
    Restarting,
    Running,
    RunState,
    Starting,
    Stopped,
    Succeeded,
)
from remote.contract.run_record import DataRecord, HostRecord, JobRecord
from remote.contract.schema import to_json
from remote.contract.states import A_SUPERVISOR
from remote.host.slots import CPU, Grant
from remote.supervisor import requirements, trackers
from tests.support import RECORDED

JOB = JobRecord("worker1", env={"SEED": "1"}, goals={"loss": "< 1"})


@pytest.fixture
def other(paths: ProjectPaths) -> RunPaths:
    run = paths.run("worker1", "20260126T210312-7f3a")
    run.root.mkdir(parents=True)
    return run


# --- requirements -------------------------------------------------------------------------------------


def test_need_is_met_only_by_success(other: RunPaths) -> None:
    write_json(other.state, to_json(Succeeded(1.0)))
    assert requirements.has_succeeded(other)


@pytest.mark.parametrize(
    "state",
    [Queued(1.0, "x"), Starting(1.0, 1), Running(1.0, 1, 1), Restarting(1.0, 2, "exit", 2.0)],
    ids=lambda state: state.name,
)
def test_need_is_waited_for_while_it_is_supervised(other: RunPaths, state: RunState) -> None:
    write_json(other.state, to_json(state))
    holder = try_lock(other.supervisor_lock)
    assert holder is not None
    assert not requirements.has_succeeded(other)
    os.close(holder)
    with pytest.raises(
        AgentError, match="worker1, but its run 20260126T210312-7f3a no longer has a supervisor"
    ) as refusal:
        requirements.has_succeeded(other)
    assert refusal.value.code == "need_failed"


@pytest.mark.parametrize("state", [Failed(1.0, "oom", "out of memory"), Stopped(1.0, "asked", "by a")])
def test_failed_need_is_reported_with_the_reason(other: RunPaths, state: Failed | Stopped) -> None:
    write_json(other.state, to_json(state))
    with pytest.raises(AgentError, match=f"{state.name}: {state.detail}"):
        requirements.has_succeeded(other)


# --- devices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "devices"), [(0, ["cpu"]), (1, ["gpu0"]), (3, ["gpu0", "gpu1", "gpu2"]), ((1, 3), ["gpu1", "gpu3"])]
)
def test_declared_devices_are_used(gpus: Any, devices: list[str]) -> None:
    assert requirements.devices(HostRecord(gpus=gpus)) == devices


def test_undeclared_devices_are_asked_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    driver.write_text(f"#!/bin/sh\ncat {RECORDED}/gpus-a100-two.txt\n")
    driver.chmod(0o755)
    assert requirements.devices(HostRecord()) == ["gpu0", "gpu1"]
    driver.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(AgentError, match="gpus = 0") as refusal:
        requirements.devices(HostRecord())
    assert refusal.value.code == "no_gpu"


# --- environment --------------------------------------------------------------------------------------


def test_environment_names_the_run_and_protects_the_snapshot(
    paths: ProjectPaths, other: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    env = requirements.base_environment(paths, other, "/opt/venv/bin/python")
    assert env["ORCH_RUN_DIR"] == str(other.root)
    assert env["PATH"] == "/opt/venv/bin:/usr/bin:/bin"
    assert env["PYTHONUNBUFFERED"] == "1"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env["PYTHONPYCACHEPREFIX"] == str(paths.bytecode)
    assert env["HOME"] == os.environ["HOME"]
    assert requirements.base_environment(paths, other, "python3")["PATH"] == "/usr/bin:/bin"


def test_environment_has_variables_goals_and_data_of_the_job(paths: ProjectPaths) -> None:
    env = requirements.job_environment(paths, JOB, None, Path("/cwd"), {})
    assert env["SEED"] == "1"
    assert json.loads(env["ORCH_GOALS"]) == {"loss": "< 1"}
    assert "ORCH_DATA_DIR" not in env and "ORCH_PREPARED_DIR" not in env


def test_env_refers_to_the_box_and_to_what_orch_sets(paths: ProjectPaths) -> None:
    own = {"PATH": "/opt/bin:$PATH", "CACHE": "$ORCH_PREPARED_DIR/cache", "PRICE": "$$5"}
    job = replace(JOB, env=own, data=DataRecord("$SCRATCH/images"))
    base = {"PATH": "/bin", "SCRATCH": "/mnt/scratch"}
    env = requirements.job_environment(paths, replace(job, expand_env=True), Path("/made"), Path("/cwd"), base)
    assert (env["PATH"], env["CACHE"], env["PRICE"]) == ("/opt/bin:/bin", "/made/cache", "$5")
    assert env["ORCH_DATA_DIR"] == "/mnt/scratch/images"
    literal = requirements.job_environment(
        paths, job, Path("/made"), Path("/cwd"), base
    )  # as earlier versions launched it
    assert {name: literal[name] for name in own} == own


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"env": {"A": "$NO_SUCH/x"}}, "env.A uses $NO_SUCH, which is not set"),
        ({"env": {"URL": "db://me:$TOKEN@host"}, "secrets": ("TOKEN",)}, "env refers to the secret $TOKEN"),
        ({"data": DataRecord("$NO_SUCH/images")}, "data.path uses $NO_SUCH, which is not set"),
    ],
)
def test_reference_that_cannot_be_resolved_is_refused(paths: ProjectPaths, keys: dict[str, Any], message: str) -> None:
    job = replace(JOB, expand_env=True, **keys)
    with pytest.raises(AgentError, match=re.escape(message)) as refusal:
        requirements.job_environment(paths, job, None, Path("/cwd"), {"TOKEN": "x"})
    assert refusal.value.code == "bad_env"


@pytest.mark.parametrize(
    ("path", "prepared", "expected"),
    [
        (None, None, None),
        (None, "/made", "/made"),
        ("output", "/made", "/made/output"),
        ("data/v1", None, "{root}/data/v1"),
        ("/mnt/data", None, "/mnt/data"),
        ("/mnt/data", "/made", "/mnt/data"),
        ("~/data", None, "{home}/data"),
    ],
)
def test_data_directory_is_chosen(
    paths: ProjectPaths, path: str | None, prepared: str | None, expected: str | None
) -> None:
    job = replace(JOB, data=DataRecord(path) if path else None)
    env = requirements.job_environment(paths, job, Path(prepared) if prepared else None, Path("/cwd"), {})
    wanted = expected and expected.format(root=paths.root, home=os.environ["HOME"])
    assert env.get("ORCH_DATA_DIR") == wanted
    assert env.get("ORCH_PREPARED_DIR") == prepared


@pytest.mark.parametrize(("at_least", "enough"), [(0, True), (2, True), (3, False)])
def test_job_needs_the_number_of_data_files_that_it_asks_for(tmp_path: Path, at_least: int, enough: bool) -> None:
    (tmp_path / "output").mkdir()
    for name in ("output/a.pt", "output/b.pt", "c.pt", "output/d.npy"):
        (tmp_path / name).touch()
    job = replace(JOB, data=DataRecord(None, "output/*.pt", at_least))
    if enough:
        requirements.check_data(job, str(tmp_path))
        return
    with pytest.raises(AgentError, match=r"2 files match output/\*\.pt in .*; the job asks for at least 3") as refusal:
        requirements.check_data(job, str(tmp_path))
    assert refusal.value.code == "no_data"


def test_data_behind_links_is_found_and_other_files_are_named(tmp_path: Path) -> None:
    disk, data, empty = tmp_path / "disk", tmp_path / "data", tmp_path / "empty"
    (disk / "cats").mkdir(parents=True)
    empty.mkdir()
    (disk / "cats" / "1.png").touch()
    data.mkdir()
    (data / "train").symlink_to(disk)
    requirements.check_data(replace(JOB, data=DataRecord(None, "**/*.png", 1)), str(data))
    wanted = replace(JOB, data=DataRecord(None, "**/*.jpg", 1))
    with pytest.raises(AgentError, match=r"0 files match \*\*/\*\.jpg in .*; it contains 1 train/cats/\*\.png$"):
        requirements.check_data(wanted, str(data))
    with pytest.raises(AgentError, match="it contains no files$"):
        requirements.check_data(wanted, str(empty))


def test_missing_data_is_reported(tmp_path: Path) -> None:
    job = replace(JOB, data=DataRecord("output", "*.pt", 1))
    for directory in (None, str(tmp_path / "absent")):
        with pytest.raises(AgentError, match=r"0 files match \*\.pt"):
            requirements.check_data(job, directory)
    requirements.check_data(JOB, None)


def test_need_whose_supervisor_is_about_to_start_is_waited_for(other: RunPaths) -> None:
    """Supervisors of one launch start at the same time, so the one that waits may be first."""
    write_json(other.state, to_json(Queued(time.time(), A_SUPERVISOR)))
    assert not requirements.has_succeeded(other)
    write_json(other.state, to_json(Queued(time.time() - 60, A_SUPERVISOR)))
    with pytest.raises(AgentError, match="no longer has a supervisor"):
        requirements.has_succeeded(other)


def test_share_of_the_cpu_is_that_share_of_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    shares = {gpus: requirements.share_of_cpu(Grant([CPU], []), gpus) for gpus in (0.5, 1 / 3, 1 / 12, 1.0, 2.0)}
    assert [env["OMP_NUM_THREADS"] for env in shares.values()] == ["4", "2", "1", "8", "8"]
    assert requirements.share_of_cpu(Grant(["gpu0"], []), 0.5) == {}
    assert requirements.share_of_cpu(Grant([], []), 0.0) == {}


@pytest.mark.parametrize(
    ("job", "secrets", "wandb"),
    [
        (JobRecord("train", attempt_limit=300.0), {}, "disabled"),
        (JobRecord("train", attempt_limit=300.0, env={"WANDB_MODE": "online"}), {}, None),
        (JobRecord("train", attempt_limit=300.0), {"WANDB_MODE": "online"}, None),
        (JobRecord("train"), {}, None),
    ],
)
def test_trackers_are_off_in_a_rehearsal_unless_the_job_says_otherwise(
    job: JobRecord, secrets: dict[str, str], wandb: str | None
) -> None:
    assert trackers.switched_off(job, secrets).get("WANDB_MODE") == wandb
