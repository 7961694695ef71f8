"""The rehearsal with the real `orch`: faults are found before the launch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from remote.contract.paths import ProjectPaths
from remote.host.run_state import has_ended
from tests.integration.conftest import Orch
from tests.support import left_by, path_with_t4, wait_until

# Trains a step, or fails in the way that the test chose; records its arguments and each call.
JOB = """\
import json, os, sys
from pathlib import Path
from remote.worker import Run

gates = Path(os.environ["GATES"])
kind = "rehearsal" if os.environ.get("ORCH_REHEARSAL") == "1" else "run"
with (gates / "calls").open("a") as calls:
    print(kind, sys.argv[1:], file=calls)
run = Run.current()
run.beat("train", epoch=1, epochs=1, step=1, steps=1)
if kind == "rehearsal":
    exec(os.environ.get("FAULT", ""))
    run.results.joinpath("rehearsal.json").write_text(os.environ.get("FORECAST", "{}"))
run.log_metrics(epoch=1, step=1, metrics={"loss": float(os.environ.get("LOSS", "0.5"))})
print("done", flush=True)
"""


@pytest.fixture
def rehearsed(orch: Orch) -> Orch:
    orch.defaults = ""
    (orch.project / "job.py").write_text(JOB)
    return orch


@pytest.fixture
def local(local_orch: Orch) -> Orch:
    local_orch.defaults = ""
    (local_orch.project / "job.py").write_text(JOB)
    return local_orch


def job(orch: Orch, name: str, env: dict[str, str] | None = None, **keys: object) -> None:
    orch.table(name, command=["python", "job.py", name], env={"GATES": str(orch.gates), **(env or {})}, **keys)


def calls(orch: Orch) -> list[str]:
    return (orch.gates / "calls").read_text().splitlines() if (orch.gates / "calls").exists() else []


def test_job_is_rehearsed_once_per_code_job_and_box(rehearsed: Orch) -> None:
    job(rehearsed, "worker1")

    first = rehearsed.json("launch", "worker1")
    rehearsed.wait_for("worker1", "succeeded")
    second = rehearsed.json("launch", "worker1")
    rehearsed.wait_for("worker1", "succeeded")

    assert [outcome["verdict"] for outcome in first["rehearsals"]] == ["passed"]
    assert second["rehearsals"] == []
    assert calls(rehearsed) == ["rehearsal ['worker1']", "run ['worker1']", "run ['worker1']"]
    (rehearsed.project / "value.py").write_text("VALUE = 'new'\n")
    assert len(rehearsed.json("launch", "worker1")["rehearsals"]) == 1
    rehearsed.wait_for("worker1", "succeeded")
    job(rehearsed, "worker1", {"LOSS": "0.25"})
    assert len(rehearsed.json("launch", "worker1")["rehearsals"]) == 1


# Runs the box's Python; if that is to answer a request, first writes down the operation.
NOTING_PYTHON = """\
#!/bin/sh
case "$#:$3" in
    3:*.pyz) read -r request
             printf '%s\\n' "$request" | sed 's/.*"op": "\\([a-z_]*\\)".*/\\1/' >>LOG
             printf '%s\\n' "$request" | PYTHON "$@" ;;
    *) exec PYTHON "$@" ;;
esac
"""


def test_remembered_rehearsal_needs_no_request(ssh_orch: Orch, tmp_path: Path) -> None:
    orch, box, log = ssh_orch, ssh_orch.box, tmp_path / "operations"
    assert box is not None
    orch.defaults = ""
    (orch.project / "job.py").write_text(JOB)
    python = tmp_path / "python"
    python.write_text(NOTING_PYTHON.replace("LOG", str(log)).replace("PYTHON", sys.executable))
    python.chmod(0o700)
    orch.host_table = orch.host_table.replace(f'python = "{sys.executable}"', f'python = "{python}"')

    def cost() -> tuple[int, list[str]]:
        """Launch. Return the logins and the requests, without those that wait for a sign of life."""
        before = box.logins()
        log.unlink(missing_ok=True)
        orch.run("launch", "worker1")
        asked = [op for op in log.read_text().split() if op != "status"]
        logins = box.logins() - before
        orch.wait_for("worker1", "succeeded")
        return logins, asked

    job(orch, "worker1")
    first, remembered = cost(), cost()
    job(orch, "worker1", rehearse=False)
    uploading, without = cost(), cost()  # jobs.toml is code too

    assert first[1].count("launch") == 3  # it is asked, rehearsed and started
    assert "code_commit" in first[1] and "code_commit" in uploading[1]
    assert remembered == without == (0, ["facts", "launch"])  # the connection is used again
    assert calls(orch).count("rehearsal ['worker1']") == 1


def test_job_that_fails_its_rehearsal_is_not_started(rehearsed: Orch) -> None:
    fault = "def detector(confidence_threshold): pass\ndetector(min_confidence=0.4)"
    job(rehearsed, "worker1", {"FAULT": fault})
    job(rehearsed, "worker2")

    refused = rehearsed.run("launch", "worker1", "worker2", code=4).stderr

    first, *rest = refused[refused.index("orch: ") :].splitlines()
    assert first == (
        f"orch: rehearsing worker1 on {rehearsed.host}: TypeError: detector() got an unexpected keyword argument"
        " 'min_confidence' (exit code 1)"
    )
    assert any("Traceback (most recent call last):" in line for line in rest)
    assert set(calls(rehearsed)) == {"rehearsal ['worker1']", "rehearsal ['worker2']"}
    assert rehearsed.json("runs")["runs"] == []


@pytest.mark.parametrize(
    ("env", "cause"),
    [
        ({"FAULT": "import no_such_module"}, "ModuleNotFoundError: No module named 'no_such_module' (exit code 1)"),
        ({"FAULT": "os.kill(os.getpid(), 9)"}, "ended by SIGKILL"),
        ({"LOSS": "nan"}, "metric loss is missing or not a number after one validation"),
    ],
)
def test_failed_rehearsal_names_the_cause_in_the_first_line(local: Orch, env: dict[str, str], cause: str) -> None:
    job(local, "worker1", env, goals={"loss": "< 1"})
    refused = local.run("launch", "worker1", code=4).stderr
    assert cause in refused[refused.index("orch: ") :].splitlines()[0]
    assert local.json("runs")["runs"] == []


@pytest.mark.parametrize(
    ("forecast", "keys", "why"),
    [
        ({"seconds_total": 36000}, {"deadline": "1h"}, "it would take about 10 h, but its deadline is 1 h"),
        ({"checkpoint_bytes": 10**15, "checkpoints": 2}, {}, "its checkpoints need 2000.0 TB of disk"),
        ({"peak_host_bytes": 10**15}, {}, "together they need 1000.0 TB of memory"),
    ],
)
def test_run_whose_forecast_exceeds_a_limit_is_refused(
    local: Orch, forecast: object, keys: dict[str, str], why: str
) -> None:
    job(local, "worker1", {"FORECAST": json.dumps(forecast)}, **keys)
    assert why in local.run("launch", "worker1", code=4).stderr
    assert calls(local) == ["rehearsal ['worker1']"]


def test_jobs_that_do_not_fit_together_on_a_gpu_are_refused(
    local: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", path_with_t4(tmp_path / "tools"))
    local.host_table = "[hosts.local]\ngpus = 1\n"
    for name in ("worker1", "worker2"):
        job(local, name, {"FORECAST": json.dumps({"peak_gpu_bytes": 8 << 30})}, gpus=0.5)

    refused = local.run("launch", "worker1", "worker2", code=4).stderr

    said = "GPU 0 (Tesla T4, 15.0 GiB): needs worker1 8.0 GiB + worker2 8.0 GiB = 16.0 GiB"
    assert f"orch: launching on local: local: gpu forecast: {said}" in refused
    assert local.json("runs")["runs"] == []
    local.run("check", "worker1")
    local.run("check", "worker2")
    rehearsed_once = calls(local)
    assert said in local.run("launch", "worker1", "worker2", code=4).stderr
    assert calls(local) == rehearsed_once  # the figures are remembered too
    assert local.json("runs")["runs"] == []
    local.run("launch", "worker1", "--wait")


def test_launch_shows_the_forecast(local: Orch) -> None:
    forecast = {"seconds_total": 5400, "peak_host_bytes": 7 * 10**8, "checkpoint_bytes": 10**6, "checkpoints": 6}
    job(local, "worker1", {"FORECAST": json.dumps(forecast)})
    said = local.run("launch", "worker1").stdout
    assert "the run will take about 1 h 30 min · needs 700 MB of memory · writes 6 MB of checkpoints" in said


def test_check_rehearses_and_starts_nothing(local: Orch) -> None:
    job(local, "worker1")
    assert local.json("check", "worker1")["rehearsals"][0]["verdict"] == "passed"
    assert local.json("runs")["runs"] == []
    assert local.json("launch", "worker1")["rehearsals"] == []  # it is remembered


def test_rehearsal_can_have_its_own_command_or_be_disabled(local: Orch) -> None:
    job(local, "worker1", rehearse=["python", "job.py", "short"])
    job(local, "worker2", rehearse=False)
    local.launch("worker1", "worker2")
    local.wait_for("worker2", "succeeded")
    local.wait_for("worker1", "succeeded")
    assert sorted(calls(local)) == ["rehearsal ['short']", "run ['worker1']", "run ['worker2']"]


def test_interrupted_rehearsal_leaves_nothing_behind(local: Orch) -> None:
    job(local, "worker1", {"FAULT": "import time; time.sleep(600)"})
    client = local.start("launch", "worker1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: calls(local), what="the rehearsal")
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=30)
    assert client.returncode == 130
    mine = local.root / "test" / "rehearsals"
    wait_until(lambda: os.listdir(mine) and not left_by(list(mine.glob("*/*"))), what="its processes to be gone")
    assert local.json("runs")["runs"] == []


def test_rehearsal_that_is_interrupted_while_it_starts_is_stopped(local: Orch) -> None:
    job(local, "worker1", {"FAULT": "import time; time.sleep(600)"})
    client = local.start("launch", "worker1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    mine = ProjectPaths(local.root, "test").rehearsing()
    wait_until(lambda: list(mine.all_runs()), what="the directory of the rehearsal")
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=30)
    assert client.returncode == 130
    [run] = mine.all_runs()
    wait_until(lambda: has_ended(run), what="the rehearsal to be stopped")
    wait_until(lambda: not left_by([run.root]), what="its processes to be gone")


def test_launch_waits_for_the_rehearsal_of_a_killed_launch(local: Orch) -> None:
    job(local, "worker1", {"FAULT": "import time; time.sleep(4)"})
    client = local.start("launch", "worker1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: calls(local), what="the rehearsal")
    client.kill()
    client.communicate(timeout=30)
    local.launch("worker1")
    local.wait_for("worker1", "succeeded")
    assert [call.split()[0] for call in calls(local)] == ["rehearsal", "rehearsal", "run"]
