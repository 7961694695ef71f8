"""A worker on a pseudo-terminal: signals, exit codes, its end, its children and a killed shim are as with a pipe."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from remote.contract.files import read_json
from remote.contract.locks import is_held
from remote.contract.paths import RunPaths
from remote.host.process import PROC
from remote.supervisor.attempt import Attempt
from tests.support import wait_until
from tests.unit.conftest import Start

pytestmark = pytest.mark.skipif(not PROC.joinpath("self").exists(), reason="this machine has no /proc")


def finish(worker: Attempt) -> int | None:
    wait_until(worker.has_ended, what="its end")
    assert worker.end(grace=30)
    return worker.exit_code


def test_worker_has_a_terminal(start: Start, box_run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERM", raising=False)
    code = """
        import os, sys
        print(*(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)))
        print(os.get_terminal_size(1), os.environ["TERM"])
        try:
            open("/dev/tty")
        except OSError:
            print("no controlling terminal")
    """
    assert finish(start(code, pty=True)) == 0
    assert box_run.log.read_text().splitlines() == [
        "False True True",
        "os.terminal_size(columns=120, lines=40) xterm-256color",
        "no controlling terminal",
    ]


def test_output_arrives_byte_exact(start: Start, box_run: RunPaths, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096 + b"end\n"
    (tmp_path / "data").write_bytes(data)
    worker = start("import os; os.execvp('cat', ['cat', 'data'])", pty=True)
    assert finish(worker) == 0
    assert box_run.log.read_bytes() == data


@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_exit_code_is_recorded(start: Start, box_run: RunPaths, code: str, expected: int) -> None:
    assert finish(start(f"print('last', end='')\n{code}", pty=True)) == expected
    assert box_run.log.read_text() == "last"


def test_request_to_stop_reaches_the_worker(start: Start, box_run: RunPaths) -> None:
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
        print("ready")
        time.sleep(600)
    """
    worker = start(code, until="ready", pty=True)
    assert worker.end(grace=30)
    assert worker.exit_code == 1
    assert box_run.log.read_text() == "ready\nstopped\n"


def test_remaining_child_is_logged_and_ended(start: Start, box_run: RunPaths, tmp_path: Path) -> None:
    child = "until [ -e go ]; do sleep 0.02; done; echo from the child; sleep 600"
    worker = start(f"import subprocess; subprocess.Popen(['sh', '-c', {child!r}]); print('parent')", "parent", pty=True)
    wait_until(lambda: not worker.is_alive(), what="the end of the parent")
    (tmp_path / "go").touch()
    wait_until(lambda: b"from the child\n" in box_run.log.read_bytes(), what="the output of the child")
    assert worker.end(grace=30)
    assert worker.exit_code == 0
    assert not is_held(box_run.shim_lock)


def test_worker_that_closes_its_output_is_not_ended(start: Start, tmp_path: Path) -> None:
    code = """
        import os, time
        os.close(1); os.close(2)
        while not os.path.exists("go"): time.sleep(0.02)
        os._exit(7)
    """
    worker = start(code, pty=True)
    (tmp_path / "go").touch()
    assert finish(worker) == 7


def test_next_shim_continues_after_a_kill(start: Start, box_run: RunPaths, tmp_path: Path) -> None:
    """While there is no shim, the worker waits as soon as the terminal is full."""
    code = """
        import os, time
        print("before")
        while not os.path.exists("go"): time.sleep(0.02)
        for number in range(20000): print(f"line {number}")
        raise SystemExit(5)
    """
    worker = start(code, until="before", pty=True)
    shim = int((read_json(box_run.worker) or {})["keeper"][0])
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: not is_held(box_run.shim_lock), what="the shim's end")
    (tmp_path / "go").touch()
    worker.tend()
    wait_until(worker.has_ended, what="its end")
    worker.end(grace=30)
    assert box_run.log.read_text() == "before\n" + "".join(f"line {number}\n" for number in range(20000))


def test_worker_that_lost_its_terminal_ends(start: Start, box_run: RunPaths, tmp_path: Path) -> None:
    """Its supervisor and its shim were killed. A new supervisor takes over, and the next attempt follows."""
    code = """
        import os, time
        print("before")
        while not os.path.exists("go"): time.sleep(0.02)
        print("after")
        time.sleep(600)
    """
    worker = start(code, until="before", pty=True)
    shim = int((read_json(box_run.worker) or {})["keeper"][0])
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: not is_held(box_run.shim_lock), what="the shim's end")
    worker._let_go_of_pipe()
    taken_over = Attempt.left(box_run, {})
    assert taken_over is not None and taken_over.is_alive()
    taken_over.tend()
    (tmp_path / "go").touch()
    wait_until(taken_over.has_ended, what="its end")
    taken_over.end(grace=30)
    assert taken_over.exit_code is None
    assert box_run.log.read_text() == "before\n"
