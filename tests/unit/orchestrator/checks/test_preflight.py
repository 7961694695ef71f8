"""Checks from facts: the message, figures and hint of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.box import probe
from orchestrator.box.host_facts import BoxFacts, Clock
from orchestrator.box.probe import Gpus, RsyncProgram
from orchestrator.checks.check import Check
from orchestrator.checks.gpu import check_job_torch, check_use
from orchestrator.checks.preflight import check_host, check_job
from orchestrator.commands.doctor import NO_REBOOT, check_reboot
from orchestrator.spec.models import Host, Job
from remote.contract.answers import Answer, Disk, GpuOwner, JobPython
from remote.contract.job_facts import CommandFacts, DataFacts, DataSample, EnvironmentFacts, JobFacts, TorchFacts
from remote.contract.meminfo import Memory
from remote.contract.reboot_method import RebootMethod
from tests.support import RECORDED, checked

GIB = 1 << 30
OURS = RsyncProgram("GNU", "3.2.7")
BOX = checked(Host, name="box", ssh="ubuntu@192.0.2.1", launcher="tmux", gpus=1)
HERE = checked(Host, name="local")


def gpus(name: str, code: int = 0) -> Gpus:
    return probe.parse_gpus(Answer(out=(RECORDED / f"{name}.txt").read_text(), code=code))


GOOD = BoxFacts(
    system="Linux box",
    gpus=gpus("gpus-h100"),
    disk=Disk(path="/home/ubuntu", free=80 * GIB, total=100 * GIB, inodes_free=6_000_000, inodes_total=6_500_000),
    memory=Memory(16 * GIB, 14 * GIB),
    rsync=OURS,
    tmux="3.2a",
    job_python=JobPython(version="3.10.12", executable="/opt/pytorch/bin/python"),
    clock=Clock(0.2, 0.05),
)
HELD = replace(
    GOOD,
    gpus=gpus("gpus-t4-held"),
    gpu_processes=probe.parse_gpu_processes(Answer(out=(RECORDED / "gpu-apps-t4-held.txt").read_text(), code=0)),
)


def host_checks(facts: BoxFacts, host: Host = BOX, wanted: float | None = 1.0, **options: Any) -> list[Check]:
    return check_host(facts, host, wanted, **{"rsync_here": OURS, **options})


def the(name: str, checks: list[Check]) -> Check:
    found = [check for check in checks if check.name == name]
    assert len(found) == 1, checks
    return found[0]


def bad(checks: list[Check]) -> list[tuple[str, str]]:
    return [(check.name, check.status) for check in checks if check.status != "ok"]


# --- the box --------------------------------------------------------------------------------------------


def test_healthy_box_passes_and_reports_what_was_found() -> None:
    checks = host_checks(GOOD)
    assert bad(checks) == []
    assert {check.name for check in checks} == {
        "python",
        "disk",
        "inodes",
        "memory",
        "gpu",
        "gpu memory",
        "launcher",
        "rsync",
        "clock",
    }
    assert the("gpu", checks).detail == "0: NVIDIA H100 80GB HBM3, driver 550.54.15"
    assert the("gpu memory", checks).detail == "GPU 0: 79.2 GiB free of 79.6 GiB"


def test_every_check_that_is_not_ok_has_a_hint() -> None:
    disk = Disk(path="/", free=GIB // 2, total=GIB, inodes_free=10, inodes_total=100)
    broken = BoxFacts(disk=disk, memory=Memory(GIB, GIB // 4), clock=Clock(90, 0.1), job_python=JobPython(problem="x"))
    checks = check_host(broken, BOX, 1.0)
    assert [name for name, _ in bad(checks)] == [
        "python",
        "disk",
        "inodes",
        "memory",
        "gpu",
        "launcher",
        "rsync",
        "clock",
    ]
    assert all(check.hint for check in checks if check.status != "ok")


def test_disk_needs_a_gibibyte_or_the_forecast() -> None:
    room = GOOD.disk
    assert room is not None
    small = replace(GOOD, disk=replace(room, free=900 << 20))
    assert the("disk", host_checks(small)).status == "fail"
    forecast = the("disk", host_checks(GOOD, forecast_bytes=90 * GIB))
    assert forecast.status == "fail"
    assert forecast.detail == "85.9 GB free of 107.4 GB at /home/ubuntu; 96.6 GB needed"
    locked = replace(GOOD, disk=replace(room, writable=False))
    assert "not writable" in the("disk", host_checks(locked)).detail


@pytest.mark.parametrize(("free", "status"), [(6_000_000, "ok"), (15_000, "warn"), (500, "fail")])
def test_too_few_inodes_are_reported(free: int, status: str) -> None:
    room = GOOD.disk
    assert room is not None
    facts = replace(GOOD, disk=replace(room, inodes_free=free))
    assert the("inodes", host_checks(facts)).status == status


def test_file_system_without_inodes_is_not_full() -> None:
    facts = replace(GOOD, disk=Disk(path="/", free=80 * GIB, total=100 * GIB, inodes_free=0, inodes_total=0))
    assert bad(host_checks(facts)) == []


@pytest.mark.parametrize(
    ("ahead", "uncertainty", "status"), [(4.9, 0.1, "ok"), (-7.0, 0.1, "warn"), (3600, 0.1, "warn"), (8.0, 9.0, "ok")]
)
def test_clock_difference_is_reported(ahead: float, uncertainty: float, status: str) -> None:
    """A difference within half the round trip may be a measuring error."""
    assert the("clock", host_checks(replace(GOOD, clock=Clock(ahead, uncertainty)))).status == status


@pytest.mark.parametrize(
    ("outcome", "status", "words"),
    [
        ("lingering", "ok", "runs are started in the user's systemd, which lingers"),
        ("will_linger", "warn", "the first launch lets that linger"),
        ("no_linger", "warn", "runs will be killed when this user's last login ends"),
        ("no_manager", "warn", "runs will be killed when the login ends that started them"),
    ],
)
def test_end_of_the_login_is_checked_if_it_ends_processes(outcome: str, status: str, words: str) -> None:
    check = the("logout", host_checks(replace(GOOD, logout=probe.parse_logout(Answer(value={"outcome": outcome})))))
    assert check.status == status and words in check.detail
    assert bool(check.hint) == (status == "warn")


@pytest.mark.parametrize("value", [{"outcome": "untouched"}, {"outcome": "other"}, {}, None, "lingering"])
def test_end_of_the_login_is_not_mentioned_if_it_ends_nothing_or_is_unknown(value: object) -> None:
    facts = replace(GOOD, logout=probe.parse_logout(Answer(value=value)))
    assert "logout" not in {check.name for check in host_checks(facts)}


def test_tmux_is_checked_only_if_it_is_used() -> None:
    facts = replace(GOOD, tmux=None)
    assert bad(host_checks(facts)) == [("launcher", "fail")]
    assert bad(host_checks(facts, replace(BOX, launcher="nohup"))) == []


def test_rsync_is_checked_on_both_sides_of_an_ssh_host() -> None:
    assert the("rsync", host_checks(GOOD, rsync_here=None)).detail == "not installed here"
    neither = the("rsync", host_checks(replace(GOOD, rsync=None), rsync_here=None))
    assert (neither.status, neither.detail) == ("fail", "not installed here nor on box")
    assert "rsync" not in {check.name for check in check_host(GOOD, HERE, 1.0)}


# --- GPUs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "hint"),
    [
        (gpus("gpus-no-driver", 9), "the kernel has no driver loaded"),
        (gpus("gpus-mismatch", 18), "the driver was updated under a running system: restart the box"),
        (gpus("gpus-none", 6), "the driver sees no GPU"),
        (Gpus(problem="nvidia-smi gave no answer within 5 s"), "the driver hangs"),
        (Gpus(problem="nvidia-smi is not installed", has_tool=False), "install the driver"),
    ],
)
def test_gpu_job_needs_a_working_driver(found: Gpus, hint: str) -> None:
    check = the("gpu", host_checks(replace(GOOD, gpus=found)))
    assert check.status == "fail"
    assert hint in check.hint and "`gpus = 0`" in check.hint


def test_cpu_job_or_cpu_host_needs_no_gpu() -> None:
    none = replace(GOOD, gpus=gpus("gpus-no-driver", 9))
    assert bad(host_checks(none, wanted=0.0)) == []
    assert bad(host_checks(none, replace(BOX, gpus=0))) == []


def test_machine_without_gpu_passes_if_no_job_is_named() -> None:
    facts = replace(GOOD, gpus=Gpus(problem="nvidia-smi is not installed", has_tool=False))
    assert bad(check_host(facts, HERE)) == [("gpu", "warn")]


def test_missing_cards_of_jobs_toml_are_reported() -> None:
    two = replace(GOOD, gpus=gpus("gpus-a100-two"))
    first, second, third = (replace(BOX, gpus=(index,)) for index in range(3))
    assert the("gpu", host_checks(two, first)).status == "ok"
    assert "Prohibited" in the("gpu", host_checks(two, second)).detail
    assert the("gpu", host_checks(two, third)).detail == "jobs.toml gives box 1 GPUs, but it has 0 of them (index 0, 1)"
    assert "a job needs 2 GPUs" in the("gpu", host_checks(two, first, wanted=2.0)).detail


def test_orphan_of_an_earlier_run_is_reported_with_the_command_to_end_it() -> None:
    owner = GpuOwner(
        pid=21784, owner="ubuntu", command="python -m w", run="worker1 20260126T210312-7f3a", run_ended=True
    )
    checks = host_checks(replace(HELD, gpu_owners={21784: owner}))
    assert the("gpu memory", checks).status == "fail"
    orphan = the("gpu process", checks)
    assert orphan.detail == (
        "pid 21784 uses 14.0 GiB: left over from run worker1 20260126T210312-7f3a, "
        "which has ended (ubuntu: python -m w)"
    )
    assert (orphan.status, orphan.hint) == ("warn", "on the box: kill 21784")


def test_memory_of_a_running_run_is_waited_for() -> None:
    owner = GpuOwner(pid=21784, owner="ubuntu", run="worker1 20260126T210312-7f3a", run_ended=False)
    checks = host_checks(replace(HELD, gpu_owners={21784: owner}))
    assert bad(checks) == []
    assert "used by running jobs" in the("gpu memory", checks).detail


def test_gpu_memory_held_by_others_is_reported() -> None:
    theirs = GpuOwner(pid=21784, owner="eve", command="jupyter lab")
    assert "jupyter lab of eve" in the("gpu process", host_checks(replace(HELD, gpu_owners={21784: theirs}))).detail
    assert "not visible from here" in the("gpu process", host_checks(HELD)).detail


def test_torch_without_gpu_support_is_reported() -> None:
    python = JobPython(version="3.10.12", executable="/usr/bin/python3", torch="2.6.0+cpu", cuda=False)
    assert "built for the CPU only" in the("torch", host_checks(replace(GOOD, job_python=python))).detail
    absent = JobPython(version="3.10.12", torch_error="ModuleNotFoundError: No module named 'torch'")
    assert bad(host_checks(replace(GOOD, job_python=absent))) == [("torch", "warn")]


# --- a job ----------------------------------------------------------------------------------------------


def job(**keys: Any) -> Job:
    return checked(Job, **{"name": "train", "command": "python -m workers.worker1", **keys})


def job_checks(found: JobFacts, the_job: Job, environment: frozenset[str] = frozenset()) -> list[Check]:
    return check_job(replace(GOOD, jobs={"train": found}), the_job, environment)


COMMAND = CommandFacts(
    of="command", program="python", found="/usr/bin/python", kind="module", runs="w", in_snapshot=True
)
FOUND = JobFacts(has_code=True, commands=(COMMAND,))
DATA = {"path": "/data", "pattern": "output/*.pt", "at_least": 3}


def test_valid_job_passes() -> None:
    samples = tuple(DataSample(path=f"/data/output/{index}.pt", size=786_000, head="PK") for index in range(3))
    found = replace(FOUND, data=DataFacts(directory="/data", exists=True, matches=3, samples=samples), prepared=None)
    checks = job_checks(found, job(data=DATA, secrets=["TOKEN"]), frozenset({"TOKEN"}))
    assert bad(checks) == []
    assert the("data", checks).detail == (
        "found files matching output/*.pt in /data; read 3 to test (786 kB, 786 kB, 786 kB)"
    )


# --- the environment of a job -----------------------------------------------------------------------------

LATER = EnvironmentFacts("requirements.txt", "uv", "3.11.7")


def in_environment(environment: EnvironmentFacts, **command: Any) -> list[Check]:
    found = replace(FOUND, environment=environment, commands=(replace(COMMAND, **command),))
    return job_checks(found, job(environment="requirements.txt"))


def test_program_that_the_environment_may_have_is_no_failure() -> None:
    program = {"program": "accelerate", "found": None, "kind": "", "runs": ""}
    check = the("command", in_environment(LATER, **program))
    assert (check.status, check.detail) == (
        "ok",
        "'accelerate' is not on the box; the environment has to provide it",
    )
    assert the("command", in_environment(replace(LATER, built=True), **program)).status == "fail"
    assert the("command", in_environment(LATER, **{**program, "program": "./train"})).status == "fail"


def test_script_that_is_not_in_the_code_fails_whatever_the_environment_has() -> None:
    checks = in_environment(LATER, found="/box/env/bin/python", kind="script", runs="gone.py", in_snapshot=False)
    assert the("command", checks).status == "fail"


def test_environment_is_described() -> None:
    check = the("environment", in_environment(LATER))
    assert check.detail == "requirements.txt will be built by uv, with Python 3.11.7; this can take minutes, once"
    assert the("environment", in_environment(replace(LATER, built=True))).detail == "requirements.txt is built"
    checks = in_environment(replace(LATER, uses_code=True))
    assert bad(checks) == [("environment", "warn")]


def test_environment_that_cannot_be_built_fails() -> None:
    check = the("environment", in_environment(replace(LATER, problem="uv.lock needs uv", hint="install uv")))
    assert (check.status, check.detail, check.hint) == ("fail", "uv.lock needs uv", "install uv")


# --- the data of a job ------------------------------------------------------------------------------------


def test_data_in_another_folder_is_suggested() -> None:
    """The job looks for *.npy in the data root, but the data is *.pt under output/."""
    data = DataFacts(directory="/data", exists=True, matches=0, instead=(("output/*.pt", 10000), ("*.json", 1)))
    wanted = job(data={"path": "/data", "pattern": "*.npy", "at_least": 10000})
    check = the("data", job_checks(replace(FOUND, data=data), wanted))
    assert (check.status, check.detail) == ("fail", "0 files match *.npy in /data; the job needs 10000")
    assert "10000 output/*.pt, 1 *.json" in check.hint


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (DataSample(path="/data/a.pt", error="Permission denied"), "cannot be read: Permission denied"),
        (DataSample(path="/data/a.pt", size=0), "is empty"),
        (
            DataSample(path="/data/a.pt", size=130, head="version https://git-lfs.github.com/spec/v1\n"),
            "Git LFS pointer",
        ),
    ],
)
def test_sample_that_does_not_load_fails(sample: DataSample, said: str) -> None:
    data = DataFacts(directory="/data", exists=True, matches=3, samples=(sample,))
    check = the("data", job_checks(replace(FOUND, data=data), job(data=DATA)))
    assert check.status == "fail" and said in check.detail


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (DataFacts(), "neither `data.path` nor `prepare`"),
        (DataFacts(directory="/data"), "no directory /data"),
    ],
)
def test_missing_data_fails(data: DataFacts, said: str) -> None:
    assert said in the("data", job_checks(replace(FOUND, data=data), job(data=DATA))).detail


def test_data_that_prepare_will_make_may_be_missing() -> None:
    wanted = job(data={"pattern": "*.pt", "at_least": 3}, prepare="python make.py")
    data = DataFacts(directory="/prepared/x", exists=False)
    for prepared, status in ((False, "ok"), (None, "ok"), (True, "fail")):
        found = replace(FOUND, data=data, prepared=prepared)
        assert the("data", job_checks(found, wanted)).status == status


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"found": None, "program": "trian"}, "fail", "the program 'trian' is not installed"),
        ({"in_snapshot": False}, "warn", "module w is not in the code that was sent"),
        ({"in_snapshot": False, "kind": "script", "runs": "w.py"}, "fail", "'w.py' is not in the code"),
        ({"unset": ("EPOCHS",)}, "warn", "$EPOCHS, which is not set"),
    ],
)
def test_command_that_cannot_run_fails(change: dict[str, Any], status: str, said: str) -> None:
    found = replace(FOUND, commands=(replace(COMMAND, **change),))
    check = the("command", job_checks(found, job()))
    assert check.status == status and said in check.detail and check.hint


def test_other_run_of_the_same_job_is_reported() -> None:
    check = the("other run", job_checks(replace(FOUND, live_run="20260126T210312-7f3a"), job()))
    assert (check.status, check.detail) == ("fail", "train is already running (run 20260126T210312-7f3a)")
    assert "orch stop train" in check.hint


def test_env_that_cannot_be_resolved_fails() -> None:
    check = the("env", job_checks(replace(FOUND, env_error="env.A uses $B, which is not set"), job()))
    assert (check.status, check.detail) == ("fail", "env.A uses $B, which is not set")


@pytest.mark.parametrize(
    ("keys", "host", "facts", "warnings"),
    [
        ({}, BOX, GOOD, 1),
        ({"gpus": 0}, BOX, GOOD, 0),  # it says so itself
        ({"gpus": 1}, BOX, GOOD, 0),
        ({}, replace(BOX, gpus=0), GOOD, 0),  # all jobs of the host run on the CPU
        ({}, BOX, replace(GOOD, gpus=gpus("gpus-none")), 0),
        ({"gpus": 1, "command": ["bash", "-c", "CUDA_VISIBLE_DEVICES=1 python train.py"]}, BOX, GOOD, 1),
        ({"gpus": 1, "command": "env CUDA_VISIBLE_DEVICES=1 python train.py"}, BOX, GOOD, 1),
    ],
)
def test_job_that_would_use_no_gpu_or_foreign_ones_is_warned(
    keys: dict[str, Any], host: Host, facts: BoxFacts, warnings: int
) -> None:
    assert bad(list(check_use(facts, host, job(**keys)))) == [("gpus", "warn")] * warnings


# --- the torch of a job -----------------------------------------------------------------------------------


def torch_checks(version: str, cuda: str | None, driver: str, hip: str | None = None, **keys: Any) -> list[Check]:
    torch = TorchFacts("/venv/bin/python", version, cuda, hip)
    cards = tuple(replace(card, driver=driver) for card in GOOD.gpus.cards)
    facts = replace(GOOD, gpus=replace(GOOD.gpus, cards=cards), jobs={"train": replace(FOUND, torch=torch)})
    return list(check_job_torch(facts, BOX, job(**{"gpus": 1, **keys})))


@pytest.mark.parametrize(
    ("version", "cuda", "driver", "needed", "hint"),
    [
        ("2.9.0+cu130", "13.0", "535.183.01", "580", "install a torch that is built for CUDA 12, or update the driver"),
        ("2.9.0+cu130", "13.0", "470.57.02", "580", "install a torch that is built for CUDA 11, or update the driver"),
        ("2.5.1+cu124", "12.4", "525.60.11", "525.60.13", "install a torch that is built for CUDA 11, or update"),
        ("2.0.0+cu118", "11.8", "440.33.01", "450.80.02", "update the driver of the box"),
    ],
)
def test_torch_that_is_too_new_for_the_driver_is_named(
    version: str, cuda: str, driver: str, needed: str, hint: str
) -> None:
    (check,) = torch_checks(version, cuda, driver)
    said = f"torch {version} of /venv/bin/python (CUDA {cuda}) needs driver >= {needed}, but box has {driver}:"
    assert check.status == "warn" and check.detail.startswith(said)
    assert check.hint.startswith(hint)


@pytest.mark.parametrize(
    ("cuda", "driver"),
    [("13.0", "580.65.06"), ("12.8", "525.60.13"), ("12.8", "580.65.06"), ("11.8", "450.80.02"), ("12.1", "[N/A]"),
     ("10.2", "418.39"), ("14.0", "580.65.06"), ("nonsense", "535.1"), ("13.0", "")],
)  # fmt: skip
def test_torch_that_fits_or_whose_need_is_not_known_passes(cuda: str, driver: str) -> None:
    assert torch_checks("2.9.0", cuda, driver) == []


def test_torch_without_cuda_is_named_if_the_job_has_a_gpu() -> None:
    (check,) = torch_checks("2.9.0+cpu", None, "580.65.06")
    assert "is built for the CPU only, so it will see no GPU, but the job has `gpus = 1`" in check.detail
    (check,) = torch_checks("2.9.0+rocm6.4", None, "580.65.06", hip="6.4.43482")
    assert "is built for ROCm (AMD GPUs)" in check.detail
    assert torch_checks("2.9.0+cpu", None, "580.65.06", gpus=0) == []


def test_secrets_come_from_the_laptops_environment() -> None:
    check = the("secrets", job_checks(FOUND, job(secrets=["A", "TOKEN"]), frozenset({"A"})))
    assert (check.status, check.detail) == ("fail", "TOKEN not set on this machine")


def test_job_that_cannot_be_checked_is_reported_and_its_secrets_are_checked() -> None:
    found = JobFacts(problem="no answer within 20 s")
    assert bad(job_checks(found, job(secrets=["A"]))) == [("job", "warn"), ("secrets", "fail")]
    assert bad(check_job(GOOD, job(), frozenset())) == [("job", "warn")]


def test_code_that_is_not_uploaded_yet_is_a_warning() -> None:
    assert bad(job_checks(JobFacts(), job())) == [("command", "warn")]


# --- control sequences from a box -------------------------------------------------------------------------


def test_quoted_text_is_one_short_printable_line() -> None:
    check = the("gpu", host_checks(replace(GOOD, gpus=Gpus(problem="\x1b[2Jgone\n" + "x" * 5000))))
    assert "\x1b" not in check.detail and "\n" not in check.detail
    assert len(check.detail) < 700


# --- after a reboot -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "status", "hint"),
    [
        (RebootMethod("cron"), "ok", ""),
        (RebootMethod("systemd"), "ok", ""),
        (RebootMethod("none", "no_daemon"), "warn", "enable --now cron"),
        (RebootMethod("none", "no_linger"), "warn", "enable-linger"),
        (RebootMethod("none", "no_scheduler"), "warn", "apt-get install cron"),
        (RebootMethod("none", "a reason of a later version"), "warn", "apt-get install cron"),
    ],
)
def test_runs_that_a_reboot_ends_are_reported(method: RebootMethod, status: str, hint: str) -> None:
    check = check_reboot(method)
    assert check.status == status
    assert hint in check.hint
    assert check.detail.startswith(NO_REBOOT) == (status == "warn")


def test_unknown_reboot_method_is_a_warning() -> None:
    assert check_reboot(None).status == "warn"
