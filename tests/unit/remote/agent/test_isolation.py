"""A bad run does not hide others, a job's name means its live run, and no agent outlives its client."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remote.agent import code_store, lifecycle, lifetime
from remote.agent.main import answer
from remote.agent.status import find_run, live_report, newest_run_id
from remote.contract.files import MAX_LEVELS, parse_object, read_json, write_json
from remote.contract.launches import RunEntry
from remote.contract.locks import try_lock
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError, Reply, Running, Stopped, Succeeded
from remote.contract.run_record import JobRecord, RunRef
from remote.contract.run_report import RunReport
from remote.contract.schema import to_json
from remote.host import launchers, reboot
from remote.host.run_state import enter, has_ended
from tests.remote_runs import in_private_mounts, new_run
from tests.support import ROOT, wait_until

OLD, NEW, FUTURE = "20260101T000000-0000", "20260102T000000-0000", "20991231T235959-ffff"
RUNNING = Running(1.0, 1, 2**22 + 1, "1")


def ask(paths: ProjectPaths, op: str, **args: Any) -> dict[str, Any]:
    output = io.BytesIO()
    request = {"schema": 1, "op": op, "args": {"root": str(paths.box), "project": paths.root.name, **args}}
    answer(json.dumps(request).encode() + b"\n", output)
    reply: dict[str, Any] = json.loads(output.getvalue())
    return reply


def reports(paths: ProjectPaths, **args: Any) -> dict[str, dict[str, Any]]:
    return {run["run_id"]: run for run in ask(paths, "status", which="all", **args)["result"]["runs"]}


# --- one bad run ----------------------------------------------------------------------------------------


def rewrite(text: str) -> Callable[[RunPaths], None]:
    def damage(run: RunPaths) -> None:
        run.run.write_text(text)

    return damage


def remove_record(run: RunPaths) -> None:
    run.run.unlink()


def only_the_directory(run: RunPaths) -> None:
    subprocess.run(["rm", "-rf", str(run.root)], check=True)
    run.root.mkdir()


def fifo(run: RunPaths) -> None:
    run.run.unlink()
    os.mkfifo(run.run)


DAMAGES: list[Any] = [
    pytest.param(rewrite("[]"), "cannot be read", id="a list"),
    pytest.param(rewrite("{"), "cannot be read", id="torn"),
    pytest.param(rewrite('{"job": "worker1", "host": {}, "code": {}}'), "'job' is not an object", id="job a text"),
    pytest.param(rewrite('{"job": {}, "host": ["box"], "code": 7}'), "'host', 'code' is not an object", id="host"),
    pytest.param(rewrite('{"a":' * 50_000), "cannot be read", id="nested"),
    pytest.param(remove_record, "has no run.json", id="without"),
    pytest.param(only_the_directory, "has no run.json", id="a bare directory"),
    pytest.param(fifo, "cannot be read", id="a FIFO"),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGES)
def test_damaged_run_is_reported_and_does_not_hide_others(
    paths: ProjectPaths, damage: Callable[[RunPaths], None], problem: str
) -> None:
    good, bad = new_run(paths, run_id=OLD), new_run(paths, run_id=NEW)
    enter(good, Succeeded(2.0))
    damage(bad)
    said = reports(paths)
    assert set(said) == {OLD, NEW}
    assert problem in said[NEW]["problem"] and said[NEW]["job"] == "worker1"
    assert "problem" not in said[OLD] and said[OLD]["state"]["state"] == "succeeded"
    assert len(json.dumps(said[NEW])) < 2000


@pytest.mark.parametrize(("damage", "problem"), DAMAGES)
def test_damaged_run_does_not_block_stop_restart_or_needs_of_others(
    paths: ProjectPaths, damage: Callable[[RunPaths], None], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = new_run(paths, run_id=OLD), new_run(paths, run_id=NEW)
    damage(bad)
    both = [["worker1", NEW], ["worker1", OLD]]
    stopped = ask(paths, "stop", runs=both, by="a@b")["result"]["runs"]
    assert [run["run_id"] for run in stopped] == [NEW, OLD]
    assert has_ended(good) and has_ended(bad)
    refusal = ask(paths, "restart", runs=[["worker1", NEW]])["error"]
    assert (refusal["code"], bool(refusal["hint"])) == ("damaged", True)
    started: list[str] = []
    monkeypatch.setitem(launchers.START, "nohup", lambda run: started.append(run.run_id))
    monkeypatch.setattr(code_store, "has", lambda *args: True)
    monkeypatch.setattr(reboot, "ensure", lambda *args: "none")
    assert ask(paths, "restart", runs=[["worker1", OLD]])["ok"] is True
    assert started == [OLD]
    enter(good, Succeeded(3.0))
    entry = RunEntry(FUTURE, JobRecord("worker2", needs=("worker1",)))
    assert lifecycle._resolve_needs(paths, [entry]) == {"worker2": (RunRef("worker1", OLD),)}


def test_damaged_run_does_not_prevent_resuming_others_after_a_reboot(
    paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, text in enumerate(['{"host": 7}', '{"host": {"launcher": "screen"}}', "{"]):
        new_run(paths, run_id=f"2026010{number + 1}T000000-0000").run.write_text(text)
    new_run(paths, run_id="20260109T000000-0000")
    started: list[str] = []

    def start(run: RunPaths) -> None:
        started.append(run.run_id[:8])
        if len(started) == 1:
            raise AgentError("tmux_failed", "starting it under tmux")

    monkeypatch.setitem(launchers.START, "nohup", start)
    reboot.resume(paths.box)
    assert started == ["20260101", "20260102", "20260103", "20260109"]


def test_run_whose_directory_disappears_is_reported_alone(paths: ProjectPaths) -> None:
    said = to_json(live_report(paths.run("worker1", OLD)))
    assert said == {**to_json(RunReport("worker1", OLD)), "problem": said["problem"]}
    assert "No such file or directory" in said["problem"]


def test_unstoppable_run_does_not_prevent_stopping_others(tmp_path: Path) -> None:
    """The directory of that run is on a file system that became read-only."""
    paths = ProjectPaths(tmp_path / "box", "persistence")
    bad, good = new_run(paths, run_id=OLD), new_run(paths, run_id=NEW)
    in_private_mounts(
        f"mount --bind '{bad.root}' '{bad.root}'\nmount -o remount,ro,bind '{bad.root}'",
        """
import json
from pathlib import Path
from remote.agent.lifecycle import stop
from remote.contract.paths import ProjectPaths
from remote.contract.requests import StopRequest
from remote.contract.schema import to_json
paths = ProjectPaths(Path(sys.argv[1]), "persistence")
said = to_json(stop(paths, StopRequest((("worker1", sys.argv[2]), ("worker1", sys.argv[3])), "a")))
(error,) = said["errors"]
assert error["run_id"] == sys.argv[2] and "Read-only file system" in error["message"], said
assert [(run["run_id"], run["state"]["state"]) for run in said["runs"]] == [(sys.argv[3], "stopped")], said
""",
        paths.box,
        OLD,
        NEW,
    )
    assert not has_ended(bad) and has_ended(good)


@pytest.mark.parametrize("record", [{"attempt": 1, "pid": "x", "keeper": ["x", 1]}, {"attempt": 1, "pid": [1]}])
def test_run_with_a_malformed_worker_record_can_be_stopped(paths: ProjectPaths, record: dict[str, Any]) -> None:
    run = new_run(paths, state=RUNNING, run_id=OLD)
    write_json(run.worker, {**record, "devices": 7, "log_start": "x", "started": [], "boot": 7})
    assert ask(paths, "stop", runs=[["worker1", OLD]])["ok"] is True
    assert has_ended(run)


@pytest.mark.parametrize("size", [70_000, 3_000_000])
def test_large_worker_files_do_not_fill_the_reply(paths: ProjectPaths, size: int) -> None:
    run = new_run(paths, run_id=OLD)
    for path in (run.heartbeat, run.latest_metrics, run.forecast):
        write_json(path, {"phase": "x" * size})
    record = {"job": {"goals": {"a": "x" * size}}, "host": {"name": "x" * size}, "attach": "x" * size}
    write_json(run.run, {**record, "code": {"branch": "x" * size, "dirty": "x" * size}, "created": "x" * size})
    assert len(json.dumps(reports(paths))) < 30_000


def test_deeply_nested_metrics_of_one_run_hide_no_other(paths: ProjectPaths) -> None:
    """The laptop refuses a complete reply if it is nested too deeply."""
    runs = [new_run(paths, run_id=run_id) for run_id in (OLD, NEW)]
    write_json(runs[0].latest_metrics, {"loss": 0.5})
    write_json(runs[1].latest_metrics, {"loss": nested_list(MAX_LEVELS - 1)})
    assert read_json(runs[1].latest_metrics) is not None

    reply = ask(paths, "status", which="all")

    assert parse_object(json.dumps(reply).encode()) is not None
    assert {run["run_id"]: run["metrics"] for run in reply["result"]["runs"]} == {OLD: {"loss": 0.5}, NEW: None}


def nested_list(levels: int) -> Any:
    return [nested_list(levels - 1)] if levels > 1 else 0


def test_heartbeat_without_a_phase_is_a_sign_of_life(paths: ProjectPaths) -> None:
    run = new_run(paths)
    write_json(run.heartbeat, {"epoch": 3, "monotonic": 0.0})
    said = live_report(run)
    assert said.heartbeat is None
    assert said.heartbeat_age is not None and said.heartbeat_age > 0


# --- which run a job's name stands for --------------------------------------------------------------------


@pytest.fixture
def hold() -> Iterator[Callable[[RunPaths], None]]:
    """Hold the lock of a run's supervisor."""
    locks: list[int] = []

    def take(run: RunPaths) -> None:
        lock = try_lock(run.supervisor_lock)
        assert lock is not None
        locks.append(lock)

    yield take
    for lock in locks:
        os.close(lock)


def three_runs(paths: ProjectPaths) -> tuple[RunPaths, RunPaths, RunPaths]:
    runs = tuple(new_run(paths, state=RUNNING, run_id=run_id) for run_id in (OLD, NEW, FUTURE))
    enter(runs[2], Stopped(2.0, "asked", "by a"))
    return runs  # type: ignore[return-value]


def test_live_run_is_chosen_over_one_with_a_later_id(paths: ProjectPaths, hold: Callable[[RunPaths], None]) -> None:
    old, new, future = three_runs(paths)
    assert find_run(paths, "worker1", None).root == future.root
    hold(old)
    assert find_run(paths, "worker1", None).root == old.root
    hold(new)
    assert find_run(paths, "worker1", None).root == new.root
    current = ask(paths, "status")["result"]["runs"]
    assert [run["run_id"] for run in current] == [OLD, NEW]
    entry = RunEntry(FUTURE, JobRecord("worker2", needs=("worker1",)))
    assert lifecycle._resolve_needs(paths, [entry])["worker2"] == (RunRef("worker1", NEW),)


def test_need_is_resolved_to_a_live_run_first(paths: ProjectPaths, hold: Callable[[RunPaths], None]) -> None:
    old, _, future = three_runs(paths)
    enter(future, Succeeded(3.0))
    entry = RunEntry(NEW, JobRecord("worker2", needs=("worker1",)))
    assert lifecycle._resolve_needs(paths, [entry])["worker2"][0].run_id == FUTURE
    hold(old)
    assert lifecycle._resolve_needs(paths, [entry])["worker2"][0].run_id == OLD


def test_stop_without_a_run_id_stops_the_live_run(paths: ProjectPaths, hold: Callable[[RunPaths], None]) -> None:
    old, _, future = three_runs(paths)
    hold(old)
    (said,) = ask(paths, "stop", runs=[["worker1", None]], by="a@b")["result"]["runs"]
    assert said["run_id"] == OLD
    assert read_json(old.stop) and not future.stop.exists()


def test_directory_without_run_json_is_not_the_newest_run(paths: ProjectPaths) -> None:
    run = new_run(paths, state=RUNNING, run_id=OLD)
    paths.run("worker1", FUTURE).root.mkdir()
    assert find_run(paths, "worker1", None).root == run.root
    assert [said["run_id"] for said in ask(paths, "status")["result"]["runs"]] == [OLD]
    assert newest_run_id(paths) == OLD


def test_facts_contain_the_newest_run_id(paths: ProjectPaths) -> None:
    assert ask(paths, "facts")["result"]["newest_run"] is None
    three_runs(paths)
    other = new_run(paths, run_id="20260103T000000-0000")
    other.root.parent.rename(paths.runs / "worker9")
    new_run(paths, run_id=NEW)
    assert ask(paths, "facts")["result"]["newest_run"] == FUTURE


# --- the agent and its client -----------------------------------------------------------------------------

AGENT = (
    "import remote.agent.lifetime as lifetime; lifetime.ANSWER_S = {limit}; from remote.agent.main import main; main()"
)


@pytest.fixture
def slow_python(tmp_path: Path) -> Path:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    script.chmod(0o700)
    return script


def start_agent(paths: ProjectPaths, op: str, limit: float = 55.0, **args: Any) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-S", "-c", AGENT.format(limit=limit)]
    agent = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert agent.stdin
    request = {"schema": 1, "op": op, "args": {"root": str(paths.box), "project": "persistence", **args}}
    with agent.stdin as stdin:
        stdin.write(json.dumps(request).encode() + b"\n")
    return agent


def is_gone(tmp_path: Path) -> bool:
    pid = int((tmp_path / "pid").read_text())
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_agent_ends_with_its_children_when_its_client_has_gone(
    paths: ProjectPaths, tmp_path: Path, slow_python: Path
) -> None:
    agent = start_agent(paths, "facts", python=str(slow_python), torch=True)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), what="the slow command")
    assert agent.stdout and agent.poll() is None
    agent.stdout.close()
    assert agent.wait(20) == 0  # the command alone would take 50 s
    wait_until(lambda: is_gone(tmp_path), what="the command to end")


def test_slow_answer_becomes_an_error_at_the_time_limit(paths: ProjectPaths, tmp_path: Path, slow_python: Path) -> None:
    agent = start_agent(paths, "facts", limit=1.0, python=str(slow_python), torch=True)
    assert agent.stdout
    with agent.stdout:
        reply = json.loads(agent.stdout.readline())
    assert reply["error"]["code"] == "too_slow" and reply["error"]["hint"]
    assert agent.wait(20) == 1
    wait_until(lambda: is_gone(tmp_path), what="the command to end")


def test_idle_follow_ends_with_its_client(paths: ProjectPaths, hold: Callable[[RunPaths], None]) -> None:
    run = new_run(paths, state=RUNNING, run_id=OLD)
    hold(run)
    agent = start_agent(paths, "follow", job="worker1", run_id=OLD)
    assert agent.stdout and agent.stdout.readline()
    agent.stdout.close()
    assert agent.wait(20) == 0


def test_blocked_follow_ends_with_its_client(paths: ProjectPaths, hold: Callable[[RunPaths], None]) -> None:
    """It blocks in a write, because the client does not read, until the client has gone."""
    run = new_run(paths, state=RUNNING, run_id=OLD)
    hold(run)
    run.log.write_bytes(b"x" * (8 << 20))
    agent = start_agent(paths, "follow", job="worker1", run_id=OLD, offset=0)
    assert agent.stdout and agent.stdout.read(1)
    time.sleep(0.5)  # by now the pipe is full
    assert agent.poll() is None
    agent.stdout.close()
    assert agent.wait(20) == 0


def test_change_continues_without_its_client_and_reports_the_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a launch is worse than a late one, so only the limit `CHANGE_S` ends it."""
    code = """
import sys, time
import remote.agent.lifetime as lifetime
lifetime.ANSWER_S, lifetime.CHANGE_S = 0.2, 1.0
from remote.agent import lifecycle
from remote.agent.main import main
from remote.contract.replies import StopReply
def slow(paths, request):
    time.sleep(0.7)
    open(sys.argv[2], "w").close()
    return StopReply(())
lifecycle.stop = slow
sys.argv = [sys.argv[0], *sys.argv[1:], "", ""]
main()
"""
    here = Path(os.environ["HOME"])
    for is_read in (True, False):
        argv = [sys.executable, "-S", "-c", code, str(here), str(here / f"done-{is_read}")]
        agent = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        assert agent.stdin and agent.stdout
        with agent.stdin as stdin:
            stdin.write(b'{"schema":1,"op":"stop","args":{"root":"/nowhere","project":"a","runs":[]}}\n')
        if is_read:
            assert json.loads(agent.stdout.readline())["error"]["code"] == "too_slow"
        agent.stdout.close()
        assert agent.wait(20) in (0, 1)
        assert (here / f"done-{is_read}").exists()


def test_closed_socket_counts_as_a_gone_client() -> None:
    """Depending on its build, sshd gives its commands pipes or sockets."""
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        assert lifetime._waits_until_gone(ours.fileno(), 20)
    with (ROOT / "pyproject.toml").open() as file:
        assert not lifetime._waits_until_gone(file.fileno(), 0.05)


def test_only_one_reply_is_written() -> None:
    output = io.BytesIO()
    reply = lifetime.ReplyOnce(output)
    reply.give(Reply(ok=True, result={"first": 1}))
    reply.give(Reply(ok=True, result={"second": 2}))
    assert json.loads(output.getvalue())["result"] == {"first": 1}


def test_status_opens_few_files_of_an_ended_run(paths: ProjectPaths) -> None:
    """Every command does this for every run. The test counts opened files, because times would vary."""
    runs = [new_run(paths, run_id=f"20260101T00000{number}-0000") for number in range(4)]
    for run in runs:
        enter(run, Succeeded(2.0))
    code = """
import collections, json, os, sys
from pathlib import Path
from remote.contract.paths import ProjectPaths
from remote.agent.status import status
from remote.contract.requests import StatusRequest
opened = collections.Counter()
def count(event, args):
    if event == "open":
        opened[os.path.basename(os.path.dirname(str(args[0])))] += 1
sys.addaudithook(count)
paths = ProjectPaths(Path(sys.argv[1]), "persistence")
for which in ("current", "all"):
    opened.clear()
    status(paths, StatusRequest(which))
    print(json.dumps({name: number for name, number in opened.items() if name.startswith("2026")}))
"""
    argv = [sys.executable, "-S", "-c", code, str(paths.box)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    current, every = map(json.loads, done.stdout.splitlines())
    assert len(every) == len(runs) and max(every.values()) <= 10
    assert sum(number <= 3 for number in current.values()) == len(runs) - 1  # all except the run that is reported
