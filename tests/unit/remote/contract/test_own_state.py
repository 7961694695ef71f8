"""Only the supervisor decides the state: a worker that changes state.json or events.jsonl changes no verdict."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote.agent.status import live_report
from remote.contract.events import AttemptEnded
from remote.contract.files import append_jsonl, read_json, read_jsonl, write_json
from remote.contract.locks import is_held, try_lock
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Failed, Running, Starting, Succeeded, state_from_json
from remote.contract.schema import to_json
from remote.contract.states import recorded
from remote.host import reboot
from remote.host.liveness import is_live
from remote.host.process import PROC, signal_group
from remote.host.run_state import Recorder, enter, has_ended, has_succeeded, read_state
from remote.supervisor import requirements
from tests.remote_runs import entry_script, new_run
from tests.support import wait_until

Supervise = Callable[..., Any]
RUNNING = Running(1.0, 1, 2**22 + 1, "1")

LIES = """
    import json, os, shutil, sys, time
    from pathlib import Path
    run = Path(os.environ["ORCH_RUN_DIR"])
    state, events = run / "state.json", run / "events.jsonl"
    said = json.dumps({"schema": 1, "state": "succeeded", "since": 1.0}) + "\\n"

    def clear(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # the supervisor may move it aside at the same time
        elif path.is_symlink() or path.exists():
            path.unlink(missing_ok=True)

    def lie(path):
        clear(path)
        unless_there(lambda: path.write_text(said))

    def directory(path):
        clear(path)
        unless_there(lambda: (path / "full").mkdir(parents=True))

    def fifo(path):
        clear(path)
        unless_there(lambda: os.mkfifo(path))

    def link(path):
        clear(path)
        unless_there(lambda: path.symlink_to("/dev/zero"))

    def unless_there(make):
        try:
            make()
        except OSError:
            pass  # the supervisor has already restored its own file

    def wait(name):
        while not (run / name).exists():
            time.sleep(0.02)
"""


@pytest.fixture
def run(paths: ProjectPaths) -> RunPaths:
    """A run whose last state is `running`, as its supervisor wrote it."""
    run = new_run(paths)
    enter(run, Starting(1.0, 1))
    enter(run, RUNNING)
    return run


@contextmanager
def held(run: RunPaths) -> Iterator[None]:
    lock = try_lock(run.supervisor_lock)
    assert lock is not None
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def supervised(paths: ProjectPaths, tmp_path: Path, code: str, **job: Any) -> Iterator[tuple[RunPaths, Any]]:
    """Yield a run of LIES and `code`, and the process of its supervisor. When the block exits, it has ended."""
    run = new_run(paths, LIES + code, **job)
    argv = [sys.executable, "-I", "-S", str(entry_script(tmp_path)), "supervise", str(run.root)]
    with run.supervisor_log.open("ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        yield run, process
        assert process.wait(60) == 0
    finally:
        signal_group(process.pid, 9)
        process.wait()
        worker = (read_json(run.worker) or {}).get("pid")
        if isinstance(worker, int):
            signal_group(worker, 9)


# --- which state counts ---------------------------------------------------------------------------------


def test_end_is_ignored_while_a_supervisor_runs(run: RunPaths) -> None:
    enter(run, Succeeded(2.0))  # in both files, as a worker may write it
    with held(run):
        assert read_state(run) == RUNNING
        assert not has_ended(run) and not has_succeeded(run) and is_live(run)
        assert isinstance(live_report(run).state, Running)
        assert not requirements.has_succeeded(run)
    assert read_state(run) == Succeeded(2.0)
    assert requirements.has_succeeded(run)
    assert isinstance(live_report(run).state, Succeeded)


def test_end_without_its_event_is_ignored(run: RunPaths) -> None:
    write_json(run.state, to_json(Succeeded(2.0)))
    assert read_state(run) == recorded(run) == RUNNING
    assert [other.root for other in reboot.unfinished(ProjectPaths.of_run(run).box)] == [run.root]
    append_jsonl(run.events, to_json(Failed(2.0, "exit", "exit code 1", 1)))
    assert read_state(run) == Failed(2.0, "exit", "exit code 1", 1)  # the event decides


@pytest.mark.parametrize("events", [None, b"", b"no json\n" * 100, b'{"time":1.0,"ending":"asked"}\n'])
def test_state_json_counts_if_events_contain_no_state(run: RunPaths, events: bytes | None) -> None:
    write_json(run.state, to_json(Succeeded(2.0)))
    if events is None:
        run.events.unlink()
    else:
        run.events.write_bytes(events)
    assert read_state(run) == Succeeded(2.0)
    with held(run):
        assert read_state(run) is None


def test_ended_run_does_not_keep_the_reboot_helper(run: RunPaths) -> None:
    """Its supervisor checks this while it holds the lock itself."""
    enter(run, Succeeded(2.0))
    with held(run):
        assert list(reboot.unfinished(ProjectPaths.of_run(run).box)) == []


def test_need_that_releases_its_lock_for_a_moment_is_waited_for(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended and released its lock after its state was read."""
    enter(run, Succeeded(2.0))
    answers = [True, False]
    monkeypatch.setattr(requirements, "is_held", lambda path: answers.pop(0))
    assert not requirements.has_succeeded(run)
    assert answers == [False]


def test_mirror_json_is_ignored(run: RunPaths) -> None:
    before = replace(live_report(run), now=0, heartbeat_age=0, disk_free=0)
    write_json(run.root / "mirror.json", {"files": 0})
    assert replace(live_report(run), now=0, heartbeat_age=0, disk_free=0) == before


# --- restored files -------------------------------------------------------------------------------------


def damage(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        if name == "directory":
            (path / "full").mkdir(parents=True)
        elif name == "fifo":
            os.mkfifo(path)
        elif name == "link":
            path.symlink_to("/dev/zero")
        elif name == "lie":
            path.write_text('{"schema":1,"state":"succeeded","since":1.0}\n')

    return change


DAMAGES = ["removed", "directory", "fifo", "link", "lie"]


@pytest.mark.parametrize("what", DAMAGES)
def test_recorder_restores_its_state_and_notes_it_once(run: RunPaths, what: str) -> None:
    recorder = Recorder(run)
    recorder.enter(Running(2.0, 1, 4242))
    for _ in range(3):
        damage(what)(run.state)
        assert recorder.flush()
        assert recorded(run) == Running(2.0, 1, 4242)
    assert sum("restored" in event for event in read_jsonl(run.events)) == 1
    recorder.enter(Succeeded(3.0))
    assert recorded(run) == Succeeded(3.0)


@pytest.mark.parametrize("what", DAMAGES)
def test_recorder_restores_removed_events(run: RunPaths, what: str) -> None:
    recorder = Recorder(run)
    recorder.note(AttemptEnded(1, "exit", "exit code 1", then="restarting"))
    damage(what)(run.events)
    assert recorder.flush()
    recorder.enter(Failed(3.0, "exit", "exit code 1", 1))
    said = [event.get("state", event.get("reason")) for event in read_jsonl(run.events)]
    assert said[-4:] == ["starting", "running", "exit", "failed"]
    assert recorded(run) == Failed(3.0, "exit", "exit code 1", 1)


def test_recorder_does_not_rewrite_unchanged_files(run: RunPaths) -> None:
    recorder = Recorder(run)
    recorder.enter(Running(2.0, 1, 4242, "1", "boot"))
    before = run.events.read_bytes(), run.state.stat().st_ino
    for _ in range(3):
        assert recorder.flush()
    assert (run.events.read_bytes(), run.state.stat().st_ino) == before


def test_long_detail_is_cut(run: RunPaths) -> None:
    Recorder(run).enter(Failed(2.0, "exit", "x" * 10_000_000))
    state = read_state(run)
    assert isinstance(state, Failed) and len(state.detail) == 4096
    assert run.state.stat().st_size < 8192


# --- a real worker that forges files --------------------------------------------------------------------

needs_proc = pytest.mark.skipif(not PROC.joinpath("self").exists(), reason="this machine has no /proc")


@needs_proc
def test_worker_that_writes_success_still_fails(paths: ProjectPaths, tmp_path: Path) -> None:
    code = """
    events.open("a").write(said)
    lie(state)
    (run / "lied").touch()
    wait("go")
    lie(state)
    sys.exit(3)
    """
    with supervised(paths, tmp_path, code) as (run, process):
        wait_until((run.root / "lied").exists, what="the lie")
        assert is_held(run.supervisor_lock)
        assert not has_ended(run)
        wait_until(lambda: read_json(run.state) and read_json(run.state)["state"] == "running", what="the truth again")  # type: ignore[index]
        assert process.poll() is None
        (run.root / "go").touch()
    state = read_state(run)
    assert isinstance(state, Failed) and state.exit_code == 3
    assert sum("restored" in event for event in read_jsonl(run.events)) == 1


@needs_proc
@pytest.mark.parametrize("file", ["state", "events"])
@pytest.mark.parametrize("what", ["clear", "lie", "directory", "fifo", "link"])
def test_verdict_is_right_when_a_worker_changes_the_files(
    paths: ProjectPaths, tmp_path: Path, file: str, what: str
) -> None:
    code = f"""
    for number in range(30):  # longer than the time between two checks of the supervisor
        {what}({file})
        time.sleep(0.05)
    sys.exit(3)
    """
    with supervised(paths, tmp_path, code) as (run, _):
        pass
    state = read_state(run)
    assert isinstance(state, Failed) and (state.reason, state.exit_code) == ("exit", 3)
    assert state_from_json(read_json(run.state)) == state
    assert has_ended(run) and not is_live(run)


@needs_proc
def test_clearing_the_events_gives_no_extra_attempts(paths: ProjectPaths, tmp_path: Path) -> None:
    code = """
    with open(run / "attempts", "a") as file:
        file.write("x")
    if os.environ["ORCH_ATTEMPT"] == "2":
        clear(events)
        time.sleep(1.5)
        clear(events)
    sys.exit(3 + int(os.environ["ORCH_ATTEMPT"]))
    """
    with supervised(paths, tmp_path, code, restarts=1) as (run, _):
        pass
    assert (run.root / "attempts").read_text() == "xx"
    state = read_state(run)
    assert isinstance(state, Failed) and state.exit_code == 5


@needs_proc
def test_next_supervisor_continues_a_run_with_a_forged_success(paths: ProjectPaths, tmp_path: Path) -> None:
    code = """
    lie(state)
    (run / "lied").touch()
    wait("go")
    sys.exit(3)
    """
    with supervised(paths, tmp_path, code) as (run, process):
        wait_until(lambda: isinstance(recorded(run), Running), what="the worker")
        process.kill()
        process.wait()
        wait_until((run.root / "lied").exists, what="the lie")
        write_json(run.state, to_json(Succeeded(1.0)))
        assert isinstance(read_state(run), Running) and is_live(run)
        (run.root / "go").touch()
        argv = [sys.executable, "-I", "-S", str(tmp_path / "agent.py"), "supervise", str(run.root)]
        assert subprocess.run(argv, cwd="/", timeout=60, check=False, capture_output=True).returncode == 0
        process.returncode = 0
    state = read_state(run)
    assert isinstance(state, Failed) and state.exit_code == 3
