"""The main workflow with the real `orch`: launch, watch and sync, on this machine and over a real sshd."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from tests.integration.conftest import Orch
from tests.support import left_by, wait_until


def test_two_workers_run_at_the_same_time_and_are_synced(orch: Orch) -> None:
    expects = ["training.log", "latest_metrics.json", "checkpoints/*.pt"]
    goals = {"val_accuracy": ">= 75 %", "consistency": ">= 70 %"}
    orch.job("worker1", "worker2.started", "end", "metrics", expects=expects, goals=goals, gpus=0.5)
    orch.job("worker2", "worker1.started", "end", "metrics", expects=expects, goals=goals, gpus=0.5)

    orch.launch("worker1", "worker2")

    wait_until(lambda: orch.has_started("worker1", "worker2"), what="both workers")  # each waits for the other
    assert orch.states() == {"worker1": "running", "worker2": "running"}
    orch.open("end")
    orch.wait_for("worker1", "succeeded")
    orch.wait_for("worker2", "succeeded")
    tail = orch.run("tail", "worker2")
    assert "worker2: metrics" in tail.stdout
    assert "1 of 2 goals met" in tail.stdout
    assert "consistency 0.44, goal >= 0.7: missed" in tail.stdout

    orch.run("sync")

    for job in ("worker1", "worker2"):
        there, here = orch.on_box(job), orch.mirror(job)
        assert here.root.resolve().name == there.run_id
        for name in ("run", "state", "log", "metrics", "latest_metrics", "heartbeat", "events"):
            assert getattr(here, name).read_bytes() == getattr(there, name).read_bytes()
        assert here.checkpoint(3).read_bytes() == b"weights"
    assert orch.run("sync").stdout == "nothing new to copy\n"


def test_running_job_is_not_launched_twice(ssh_orch: Orch) -> None:
    ssh_orch.job("worker1", "end")
    ssh_orch.launch("worker1")
    run_id = ssh_orch.on_box("worker1").run_id

    refused = ssh_orch.run("launch", "worker1", code=4)

    assert f"worker1 is already running (run {run_id})" in refused.stderr
    assert "orch stop worker1" in refused.stderr


def test_worker_that_exits_3_has_failed_with_exit_code_3(orch: Orch) -> None:
    orch.job("worker1", "exit=3")

    launched = orch.run("launch", "worker1", "--wait", code=1)

    assert "failed · last line: worker1: exit=3 (exit code 3)" in launched.stdout
    assert orch.state("worker1")["exit_code"] == 3
    assert orch.run("tail", "worker1", code=1).stdout.startswith("worker1: exit=3\n")


def test_exit_0_without_the_expected_files_is_a_failure(local_orch: Orch) -> None:
    local_orch.job("worker1", "metrics", expects=["training.log", "results/summary.json"])

    launched = local_orch.run("launch", "worker1", "--wait", code=1)

    assert "failed · missing_output: exit code 0, but the run did not write: results/summary.json" in launched.stdout


def test_changed_tree_does_not_affect_a_running_job(ssh_orch: Orch) -> None:
    ssh_orch.job("worker1", "changed", "value")
    ssh_orch.job("worker2", "value")
    ssh_orch.launch("worker1")
    wait_until(lambda: ssh_orch.has_started("worker1"), what="worker1")
    (ssh_orch.project / "value.py").write_text("VALUE = 'new'\n")

    ssh_orch.run("launch", "worker2", "--wait")
    ssh_orch.open("changed")
    ssh_orch.wait_for("worker1", "succeeded")

    assert "value is old" in ssh_orch.on_box("worker1").log.read_text()
    assert "value is new" in ssh_orch.on_box("worker2").log.read_text()
    codes = [json.loads(ssh_orch.on_box(job).run.read_text())["code"]["tree"] for job in ("worker1", "worker2")]
    old, new = (ssh_orch.root / "test" / "code" / tree for tree in codes)
    assert (old / "value.py").stat().st_ino != (new / "value.py").stat().st_ino
    assert (old / "worker.py").stat().st_ino == (new / "worker.py").stat().st_ino  # linked, not sent again


def test_unchanged_tree_is_not_sent_again(ssh_orch: Orch) -> None:
    ssh_orch.job("worker1")
    first = ssh_orch.json("launch", "worker1")
    ssh_orch.wait_for("worker1", "succeeded")
    assert ssh_orch.box is not None
    before = ssh_orch.box.logins()

    second = ssh_orch.json("launch", "worker1")

    assert first["code"]["sent"] is True
    assert second["code"] == {**first["code"], "sent": False}
    assert before == 1 and ssh_orch.box.logins() == 1  # the connection is used again


def test_status_asks_a_box_once_for_all_its_runs(ssh_orch: Orch) -> None:
    for job in ("worker1", "worker2", "worker3"):
        ssh_orch.job(job, "end")
    ssh_orch.launch("worker1", "worker2", "worker3")
    assert ssh_orch.box is not None
    before = ssh_orch.box.log.read_text().count("Starting session: command")

    assert set(ssh_orch.states()) == {"worker1", "worker2", "worker3"}

    assert ssh_orch.box.log.read_text().count("Starting session: command") == before + 1


# --- tail ----------------------------------------------------------------------------------------------


def test_killed_tail_continues_at_the_same_byte(ssh_orch: Orch, tmp_path: Path) -> None:
    ssh_orch.job("worker1", "fill", "again", "fill", "end")
    ssh_orch.launch("worker1")
    got = tmp_path / "got"
    with got.open("wb") as file:
        client = ssh_orch.start("tail", "worker1", "--from", "0", stdout=file, stderr=subprocess.DEVNULL)
    wait_until(lambda: got.stat().st_size > 100_000, what="some of the log")
    client.send_signal(signal.SIGKILL)
    client.wait()
    ssh_orch.open("again", "end")

    rest = subprocess.run(
        ssh_orch.command("tail", "worker1", "--from", str(got.stat().st_size)),
        cwd=ssh_orch.project,
        capture_output=True,
        check=False,
    )

    log = ssh_orch.on_box("worker1").log.read_bytes()
    assert rest.returncode == 0
    assert (got.read_bytes() + rest.stdout)[: len(log)] == log
    assert (got.read_bytes() + rest.stdout)[len(log) :].startswith(b"worker1 2")  # the outcome, directly after the log


def test_tail_survives_a_broken_connection_without_losing_or_repeating_a_byte(ssh_orch: Orch, tmp_path: Path) -> None:
    assert ssh_orch.box is not None
    ssh_orch.job("worker1", "fill", "broken", "fill", "end")
    ssh_orch.launch("worker1")
    got, said = tmp_path / "got", tmp_path / "said"
    with got.open("wb") as out, said.open("wb") as err:
        client = ssh_orch.start("tail", "worker1", "--from", "0", stdout=out, stderr=err)
    wait_until(lambda: got.stat().st_size > 100_000, what="some of the log")

    ssh_orch.box.kill_connections()
    ssh_orch.open("broken", "end")

    assert client.wait(timeout=60) == 0
    log = ssh_orch.on_box("worker1").log.read_bytes()
    assert got.read_bytes()[: len(log)] == log
    assert b"succeeded" in got.read_bytes()[len(log) :]
    assert b"trying again in 1 s, the run is not affected" in said.read_bytes()


def test_ctrl_c_leaves_the_run_running_and_names_the_next_commands(local_orch: Orch) -> None:
    local_orch.job("worker1", "end")
    for arguments, hint in (
        (("launch", "worker1", "--wait"), rb"hint: .*orch status"),
        # Not beyond the 13 bytes that were shown.
        (("tail", "worker1"), rb"hint: to continue: orch tail worker1 --from (0|13)\n"),
    ):
        client = local_orch.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert client.stdout is not None
        assert client.stdout.readline()  # it already shows the run
        client.send_signal(signal.SIGINT)
        _, said = client.communicate(timeout=20)
        assert client.returncode == 130
        assert re.search(hint, said)
        assert local_orch.state("worker1")["state"] == "running"


# --- sync, stop, and the end of client and sshd ----------------------------------------------------------


def test_sync_works_while_the_worker_writes(ssh_orch: Orch) -> None:
    ssh_orch.job("worker1", "metrics", "fill", "end", "fill")
    ssh_orch.launch("worker1")
    wait_until(lambda: ssh_orch.on_box("worker1").log.stat().st_size > 100_000, what="some of the log")

    going = ssh_orch.json("sync")["runs"][0]

    assert going["whole"] is False
    home = ssh_orch.mirror("worker1")
    part = home.log.read_bytes()
    assert len(part) > 100_000
    assert home.checkpoint(1).read_bytes() == b"weights"
    ssh_orch.open("end")
    ssh_orch.wait_for("worker1", "succeeded")
    assert ssh_orch.json("sync")["runs"][0]["whole"] is True
    log = ssh_orch.on_box("worker1").log.read_bytes()
    assert log.startswith(part)
    assert home.log.read_bytes() == log


def test_stop_waits_for_a_checkpoint_and_leaves_no_processes(orch: Orch) -> None:
    orch.job("worker1", "never")
    orch.launch("worker1")
    wait_until(lambda: orch.has_started("worker1"), what="worker1")

    stopped = orch.run("stop", "worker1")

    assert "stopped by " in stopped.stdout
    run = orch.on_box("worker1")
    assert run.log.read_text().endswith("stopped after a checkpoint\n")
    assert run.checkpoint(1).read_bytes() == b"state at the stop"
    wait_until(lambda: not [p for p in left_by([run.root]) if _is_worker(p)], what="its processes to be gone")


def test_older_run_that_ended_meanwhile_is_not_reported_lost(local_orch: Orch) -> None:
    local_orch.job("worker1", "end", "exit=3")
    local_orch.launch("worker1")
    local_orch.open("end")
    local_orch.wait_for("worker1", "failed")
    local_orch.job("worker1")
    local_orch.run("launch", "worker1", "--wait")

    assert [run["state"] for run in local_orch.json("status")["runs"]] == ["succeeded"]
    assert [run["state"] for run in local_orch.json("runs")["runs"]] == ["failed", "succeeded"]
    older = local_orch.json("runs")["runs"][0]["run_id"]
    shutil.rmtree(local_orch.root / "test" / "runs" / "worker1" / older)
    assert [run["state"] for run in local_orch.json("status")["runs"]] == ["succeeded"]


def test_run_survives_the_end_of_client_and_sshd(ssh_orch: Orch) -> None:
    assert ssh_orch.box is not None
    ssh_orch.job("worker1", "end", "metrics")
    ssh_orch.job("worker2", "end", "metrics")
    ssh_orch.launch("worker1", "worker2")
    wait_until(lambda: ssh_orch.has_started("worker1", "worker2"), what="both workers")
    ssh_orch.box.kill_connections()
    ssh_orch.box.stop()

    gone = ssh_orch.run("status", code=3)

    assert "unreachable" in gone.stdout
    assert "connecting to gpu1" in gone.stderr
    ssh_orch.open("end")
    ssh_orch.wait_for("worker1", "succeeded")
    ssh_orch.wait_for("worker2", "succeeded")
    ssh_orch.box.start()
    assert ssh_orch.states() == {"worker1": "succeeded", "worker2": "succeeded"}


# --- slots, needs, prepare -------------------------------------------------------------------------------


def test_jobs_beyond_the_gpu_slots_queue_in_order(local_orch: Orch) -> None:
    for number in (1, 2, 3, 4):
        local_orch.job(f"worker{number}", f"end{number}", gpus=0.5)
    local_orch.launch("worker1", "worker2", "worker3", "worker4")
    wait_until(lambda: local_orch.has_started("worker1", "worker2"), what="the first two")
    assert local_orch.states() == {"worker1": "running", "worker2": "running", "worker3": "queued", "worker4": "queued"}

    local_orch.open("end1")
    wait_until(lambda: local_orch.has_started("worker3"), what="the third")

    assert local_orch.state("worker4")["state"] == "queued"
    supervisor, worker = _processes(local_orch, "worker2")
    os.kill(supervisor, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: local_orch.has_started("worker4"), what="the fourth, in the place of a crashed one")
    wait_until(lambda: local_orch.states()["worker2"] == "failed", what="a new supervisor to say how it ended")
    assert local_orch.state("worker2")["reason"] == "signal"


def test_launch_wait_shows_the_end_once_if_it_comes_at_once(local_orch: Orch) -> None:
    local_orch.table("quick", command=["true"])

    done = local_orch.run("launch", "quick", "--wait")

    assert (done.stdout + done.stderr).count("succeeded") == 1
    assert "on local\n" in done.stdout


def test_job_waits_until_its_needs_have_succeeded(local_orch: Orch) -> None:
    local_orch.job("first", "end")
    local_orch.job("second", needs=["first"])
    local_orch.job("broken", "exit=1", needs=["first"])
    local_orch.job("last", needs=["broken"])
    assert "launch both: orch launch first second" in local_orch.run("launch", "second", code=4).stderr

    local_orch.launch("first", "second", "broken", "last")

    assert "waiting for first" in local_orch.run("status", "second").stdout
    assert not local_orch.has_started("second")
    local_orch.open("end")
    local_orch.wait_for("second", "succeeded")
    assert "it needs broken" in local_orch.wait_for("last", "failed")["detail"]
    assert not local_orch.has_started("last")


def test_prepare_runs_once_for_jobs_with_the_same_input(local_orch: Orch) -> None:
    script = "echo $$ >> $ORCH_PREPARED_DIR/made; echo made once >> $COUNT"
    count = local_orch.gates / "count"
    prepare = {"command": ["bash", "-c", script], "inputs": ["worker.py"]}
    command = ["bash", "-c", "test -s $ORCH_DATA_DIR/made"]
    for job in ("worker1", "worker2", "worker3"):
        local_orch.table(job, command=command, prepare=prepare, env={"COUNT": str(count), "OTHER": job})

    local_orch.run("launch", "worker1", "worker2", "worker3", "--wait")

    assert count.read_text() == "made once\n"
    local_orch.run("launch", "worker1", "--wait", "--set", f"env.COUNT={count}2")
    assert Path(f"{count}2").read_text() == "made once\n"  # another input, another result


def test_failed_prepare_fails_the_run_before_it_starts(local_orch: Orch) -> None:
    local_orch.job("worker1", prepare=["bash", "-c", "echo no disk; exit 7"])

    said = local_orch.run("launch", "worker1", "--wait", code=1).stdout

    assert "prepare_failed: prepare: bash -c echo no disk; exit 7: exit code 7" in said
    assert not local_orch.has_started("worker1")


def test_missing_data_fails_the_run_before_it_starts(local_orch: Orch) -> None:
    data = local_orch.root / "test" / "videos"
    data.mkdir(parents=True)
    (data / "one.pt").touch()
    local_orch.job("worker1", data={"path": "videos", "pattern": "*.pt", "at_least": 2})

    said = local_orch.run("launch", "worker1", code=4).stderr

    assert "worker1: data: " in said
    assert str(data) in said
    assert not local_orch.has_started("worker1")


def test_secret_reaches_the_worker_and_no_remaining_file(orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hunter2-and-more")
    # The worker proves by a digest that it has the secret; it must not print it.
    show = 'import hashlib, os; print(hashlib.sha256(os.environ["TOKEN"].encode()).hexdigest())'
    orch.table("worker1", command=["python", "-c", show], secrets=["TOKEN"])

    orch.run("launch", "worker1", "--wait")
    orch.run("sync")

    assert sha256(b"hunter2-and-more").hexdigest() in orch.mirror("worker1").log.read_text()
    for folder in (orch.root, orch.project):
        for path in folder.rglob("*"):
            assert not path.is_file() or b"hunter2" not in path.read_bytes(), path
    monkeypatch.delenv("TOKEN")
    assert "secrets.TOKEN: TOKEN is not in the environment" in orch.run("launch", "worker1", code=2).stderr


# --- restart, deadline -----------------------------------------------------------------------------------


def test_killed_worker_is_restarted_up_to_the_limit(local_orch: Orch) -> None:
    local_orch.job("worker1", "end", restarts=1)
    local_orch.launch("worker1")
    os.kill(_processes(local_orch, "worker1")[1], signal.SIGKILL)
    local_orch.wait_for("worker1", "restarting")
    local_orch.wait_for("worker1", "running")

    assert local_orch.state("worker1")["attempt"] == 2
    os.kill(_processes(local_orch, "worker1")[1], signal.SIGKILL)

    failed = local_orch.wait_for("worker1", "failed")
    assert failed["detail"] == "ended by SIGKILL (attempt 2 of 2)"
    events = [json.loads(line) for line in local_orch.on_box("worker1").events.read_text().splitlines()]
    events = [event["state"] for event in events if "state" in event]
    assert events == ["starting", "running", "restarting", "starting", "running", "failed"]


def test_deadline_stops_a_run(local_orch: Orch) -> None:
    local_orch.job("worker1", "never", deadline="8 s")

    said = local_orch.run("launch", "worker1", "--wait", code=1).stdout

    assert "stopped · still running at its deadline of 8 s" in said
    assert "stopped after a checkpoint" in local_orch.on_box("worker1").log.read_text()


# --- missing files ---------------------------------------------------------------------------------------


def test_unknown_names_are_usage_errors(local_orch: Orch) -> None:
    local_orch.job("worker1")

    assert "did you mean 'worker1'" in local_orch.run("launch", "worker", code=2).stderr
    assert "worker1 has no run here" in local_orch.run("tail", "worker1", code=2).stderr
    assert "worker1 has no run on local" in local_orch.run("sync", "worker1").stderr
    assert "no run '20260101T000000-0000'" in local_orch.run("stop", "20260101T000000-0000", code=2).stderr
    assert local_orch.json("launch", "worker", code=2)["error"]["code"] == "spec"


def test_every_view_has_a_json_form_with_one_schema(local_orch: Orch) -> None:
    local_orch.job("worker1", "metrics", goals={"val_accuracy": ">= 75 %"})
    launched = local_orch.json("launch", "worker1")
    local_orch.wait_for("worker1", "succeeded")
    documents = [launched, *(local_orch.json(command) for command in ("status", "runs", "sync"))]

    for document in documents:
        assert document["schema"] == 1
        run = document["runs"][0]
        assert run["job"] == "worker1"
        assert {"run_id", "host", "state", "detail", "heartbeat", "verdict", "metrics"} <= set(run)
    run = documents[1]["runs"][0]
    assert run["state"] == "succeeded"
    assert run["fraction"] == 1.0
    [judged] = run["verdict"]
    assert judged == {
        "metric": "val_accuracy",
        "goal": "val_accuracy >= 0.75",
        "value": 0.97,
        "holds": True,
        "reason": "",
    }
    lines = [json.loads(line) for line in local_orch.run("tail", "worker1", "--json").stdout.splitlines()]
    assert [line["kind"] for line in lines] == ["log", "ended"]
    assert lines[0]["text"] == "worker1: metrics\n"


def _processes(orch: Orch, job: str) -> tuple[int, int]:
    """Return the pids of the job's supervisor and worker."""
    worker = orch.state(job)["pid"]
    mine = left_by([orch.on_box(job).root])
    supervisors = [pid for pid in mine if b"supervise" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return supervisors[0], worker


def _is_worker(pid: int) -> bool:
    try:
        return b"worker.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_watch_continues_after_a_lost_connection(ssh_orch: Orch, tmp_path: Path) -> None:
    ssh_orch.job("worker1", "end")
    ssh_orch.job("worker2", "end2")
    ssh_orch.launch("worker1", "worker2")
    assert ssh_orch.box is not None
    seen = tmp_path / "seen"
    with seen.open("wb") as file:
        watch = ssh_orch.start("watch", stdout=file, stderr=file)
    wait_until(lambda: seen.read_text().count("running") == 2, what="both running")

    ssh_orch.box.kill_connections()
    ssh_orch.box.stop()
    wait_until(lambda: "refused" in seen.read_text(), what="what it waits for")
    ssh_orch.open("end")
    ssh_orch.wait_for("worker1", "succeeded")
    ssh_orch.box.start()
    wait_until(lambda: seen.read_text().count("succeeded") == 1, what="the first one's end")
    ssh_orch.open("end2")

    assert watch.wait(timeout=30) == 0, seen.read_text()
    assert seen.read_text().count("succeeded") == 2
