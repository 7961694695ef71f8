from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remote.contract.paths import RunPaths
from remote.host.process import (
    PROC,
    end_family,
    family,
    identity,
    is_alive,
    is_empty,
    program_argv,
    read_stat,
    signal_group,
)
from remote.supervisor.attempt import Attempt
from tests.support import wait_until

needs_proc = pytest.mark.skipif(not PROC.joinpath("self").exists(), reason="this machine has no /proc")

Start = Callable[..., Attempt]


@pytest.fixture
def log(box_run: RunPaths) -> Path:
    return box_run.log


IGNORE = """
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready")
    while True:
        signal.pause()
"""
WAIT = """
    import signal
    print("ready")
    signal.pause()
"""


# --- ending -------------------------------------------------------------------------------------------


def test_worker_keeps_its_children_until_its_checkpoint_is_written(start: Start, log: Path) -> None:
    """A signal to the whole group would end the loader that the last step needs."""
    worker = start(
        """
        import signal, subprocess, sys
        loader = subprocess.Popen([sys.executable, "-S", "-c", "while True: print(input(), flush=True)"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def stop(number, frame):
            print("batch", file=loader.stdin, flush=True)
            print("checkpoint after", loader.stdout.readline(), end="")
            sys.exit(143)

        signal.signal(signal.SIGTERM, stop)
        print("ready")
        while True:
            signal.pause()
        """,
        "ready",
    )
    assert worker.end(grace=30)
    assert worker.exit_code == 143
    assert log.read_text().splitlines()[:2] == ["ready", "checkpoint after batch"]
    assert is_empty(worker.pid)


WRAPPED = """
import os, sys
program = '''
import signal, subprocess, sys, time
loader = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
def stop(number, frame):
    print("asked by", signal.Signals(number).name, flush=True)
    print("loader", "lives" if loader.poll() is None else "is gone", flush=True)
    sys.exit(143)
signal.signal(signal.{name}, stop)
print("ready", flush=True)
while True:
    time.sleep(0.05)
'''
script = 'trap "echo wrapper: asked" TERM INT USR1; "$0" -S -u -c "$1"; echo "wrapper: ended with $?"'
os.execv("/bin/bash", ["bash", "-c", script, sys.executable, program])
"""


@needs_proc
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_program_behind_a_shell_that_waits_for_it_is_asked(start: Start, log: Path, name: str) -> None:
    """The shell runs its trap only after the program has ended. What the program itself has forked is left to it."""
    worker = start(WRAPPED.replace("{name}", name), "ready")
    assert worker.end(grace=15, number=signal.Signals[name])
    said = log.read_text().splitlines()
    assert said[:3] == ["ready", f"asked by {name}", "loader lives"]
    assert "wrapper: ended with 143" in said


@needs_proc
def test_background_program_that_ignores_sigint_is_ended(start: Start) -> None:
    """A shell starts its background commands with SIGINT ignored."""
    worker = start("import os; os.execv('/bin/sh', ['sh', '-c', 'sleep 600 & echo ready; wait'])", "ready")
    assert worker.end(grace=30, number=signal.SIGINT)
    assert is_empty(worker.pid)


@needs_proc
def test_every_process_is_asked_before_the_kill(start: Start, log: Path) -> None:
    """The leader ignores the request, and the program that it has forked would save."""
    worker = start(
        """
        import os, signal, sys, time
        if os.fork():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.wait()
        else:
            signal.signal(signal.SIGTERM, lambda number, frame: (print("saved", flush=True), os._exit(0)))
            print("ready", flush=True)
            while True:
                time.sleep(0.05)
        """,
        "ready",
    )
    assert worker.end(grace=3)
    assert "saved" in log.read_text()


def test_program_without_signal_handlers_is_ended(start: Start) -> None:
    worker = start(WAIT, "ready")
    assert worker.end(grace=30)
    assert worker.exit_code == -signal.SIGTERM


def test_process_that_ignores_sigterm_is_killed_after_the_grace_period(start: Start) -> None:
    worker = start(IGNORE, "ready")
    began = time.monotonic()
    assert not worker.end(grace=0.3)
    assert time.monotonic() - began >= 0.3
    assert worker.exit_code == -signal.SIGKILL


@needs_proc
def test_stopped_worker_is_ended(start: Start) -> None:
    worker = start(WAIT, "ready")
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: read_stat(worker.pid).state == "T")  # type: ignore[union-attr]
    assert worker.end(grace=30)
    assert worker.exit_code == -signal.SIGTERM


def test_stopped_worker_writes_its_checkpoint_first(start: Start, log: Path) -> None:
    worker = start(
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda number, frame: (print("checkpoint"), sys.exit(143)))
        print("ready")
        while True:  # not signal.pause(): a signal that arrives just before it would be missed
            time.sleep(0.05)
        """,
        "ready",
    )
    os.kill(worker.pid, signal.SIGSTOP)
    assert worker.end(grace=30)
    assert log.read_text() == "ready\ncheckpoint\n"


GRANDCHILD = """
    import signal, subprocess, sys
    grandchild = "import signal; {ignore} print('ready', flush=True); signal.pause()"
    child = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-S', '-c', sys.argv[1]]).returncode)"
    subprocess.Popen([sys.executable, "-S", "-c", child, grandchild])
    signal.pause()
"""


def test_children_end_with_the_worker(start: Start) -> None:
    worker = start(GRANDCHILD.replace("{ignore}", ""), "ready")
    if PROC.joinpath("self").exists():
        assert len(family(worker.pid)) == 3
    assert worker.end(grace=30)
    assert is_empty(worker.pid)


def test_grandchild_that_ignores_sigterm_is_killed(start: Start) -> None:
    worker = start(GRANDCHILD.replace("{ignore}", "signal.signal(15, signal.SIG_IGN);"), "ready")
    assert not worker.end(grace=0.5)
    assert worker.exit_code == -signal.SIGTERM
    assert is_empty(worker.pid)


def test_children_are_ended_after_a_worker_that_exited(start: Start) -> None:
    worker = start(GRANDCHILD.replace("{ignore}", "").replace("    signal.pause()\n", "    input()\n"), "ready")
    wait_until(worker.has_ended)
    assert not is_empty(worker.pid)
    assert worker.end(grace=30)
    assert is_empty(worker.pid)
    assert worker.exit_code == 1


def test_ending_an_ended_worker_is_not_an_error(start: Start) -> None:
    worker = start("print('done')")
    wait_until(worker.has_ended)
    assert worker.end(grace=30)
    assert worker.exit_code == 0


def test_unrelated_process_with_a_reused_pid_is_not_ended() -> None:
    """The pid of a reaped worker now belongs to another process, which leads no group of that number."""
    stranger = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    with stranger:
        try:
            assert end_family(stranger.pid, 0, 5.0, lambda: True)
            assert stranger.stdin
            stranger.stdin.write(b"\n")
            stranger.stdin.close()
            assert stranger.wait() == 0
        finally:
            stranger.kill()


# --- the identity of processes --------------------------------------------------------------------------


def test_identity_is_stable_while_the_process_lives(start: Start) -> None:
    worker = start(WAIT, "ready")
    assert worker.identity
    assert is_alive(worker.pid, worker.identity)
    assert not is_alive(worker.pid, worker.identity + "1")
    assert not is_alive(worker.pid, "")
    assert identity(os.getpid()) != ""
    worker.end(grace=30)
    assert identity(worker.pid) == ""
    assert not is_alive(worker.pid, worker.identity)


@needs_proc
def test_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    known_as = identity(child.pid)
    with child:
        child.kill()
        wait_until(lambda: (stat := read_stat(child.pid)) and stat.state == "Z", what="a zombie")
        assert identity(child.pid) == ""
        assert not is_alive(child.pid, known_as)


@needs_proc
@pytest.mark.parametrize("name", ["a) R 1 (b", "two words", "((", "ünde"])
def test_process_name_may_contain_any_character(tmp_path: Path, name: str) -> None:
    with called(tmp_path, name.encode()) as process:
        wait_until(lambda: (stat := read_stat(process.pid)) and stat.rss_pages, what="its first pages")
        stat = read_stat(process.pid)
        assert stat is not None
        assert stat.state in "RSD"
        assert stat.group == process.pid
        assert stat.started_ticks.isdigit()
        assert identity(process.pid)


@needs_proc
@pytest.mark.parametrize("name", [b"caf\xe9", "nachtaufseher-übersicht".encode()], ids=["latin-1", "cut by the kernel"])
def test_process_name_that_is_not_utf8_is_read(tmp_path: Path, name: bytes) -> None:
    """The kernel cuts a name after 15 bytes, which may be in the middle of a character."""
    with called(tmp_path, name) as process:
        assert identity(process.pid)
        assert [stat.group for stat in family(process.pid).values()] == [process.pid]


@contextmanager
def called(folder: Path, name: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process with this name, which waits. The kernel takes the name from the link that starts it."""
    sleep = shutil.which("sleep")
    assert sleep
    program = os.path.join(os.fsencode(folder), name)
    os.symlink(os.fsencode(sleep), program)
    with subprocess.Popen([program, b"600"], stdin=subprocess.DEVNULL, start_new_session=True) as process:
        comm = PROC / str(process.pid) / "comm"
        try:
            wait_until(lambda: comm.read_bytes().rstrip(b"\n") == name[:15], what="its name")
            yield process
        finally:
            process.kill()


def test_signal_to_an_empty_group_returns_false(start: Start) -> None:
    worker = start(WAIT, "ready")
    assert signal_group(worker.pid, 0)
    worker.end(grace=30)
    assert not signal_group(worker.pid, signal.SIGKILL)
    assert is_empty(worker.pid)


@needs_proc
def test_cpu_time_of_a_group_is_counted(start: Start) -> None:
    worker = start(
        """
        import time
        while time.process_time() < 0.1:
            pass
        print("ready")
        time.sleep(600)
        """,
        "ready",
    )
    (stat,) = family(worker.pid).values()
    assert stat.cpu_ticks / os.sysconf("SC_CLK_TCK") >= 0.05
    assert stat.rss_pages * os.sysconf("SC_PAGE_SIZE") > 1 << 20


# --- the interpreter ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["python", "-m", "workers.worker1"], ["/venv/bin/python3", "-m", "workers.worker1"]),
        (["python3", "train.py"], ["/venv/bin/python3", "train.py"]),
        (["python"], ["/venv/bin/python3"]),
        (["/usr/bin/python3", "train.py"], ["/usr/bin/python3", "train.py"]),
        (["python3.11", "train.py"], ["python3.11", "train.py"]),
        (["torchrun", "python"], ["torchrun", "python"]),
        (["./python"], ["./python"]),
    ],
)
def test_python_becomes_the_hosts_interpreter(argv: list[str], expected: list[str]) -> None:
    assert program_argv(argv, "/venv/bin/python3") == expected
