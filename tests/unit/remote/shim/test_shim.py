"""A real shim and a real worker: no output is lost, and the exit code is recorded."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from remote.contract.files import read_json, to_json, write_json
from remote.contract.locks import is_held
from remote.contract.logs import CHUNK, log_size
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.host import launchers
from remote.host.process import PROC, identity, is_alive, is_stopped
from remote.supervisor.attempt import Attempt
from tests.support import ROOT, wait_until
from tests.unit.conftest import Start

pytestmark = pytest.mark.skipif(not PROC.joinpath("self").exists(), reason="this machine has no /proc")


def record(run: RunPaths) -> dict[str, Any]:
    return read_json(run.worker) or {}


def finish(worker: Attempt) -> int | None:
    """Wait for the end of the worker, until its log is complete; return its exit code."""
    wait_until(worker.has_ended, what="its end")
    assert worker.end(grace=30)
    return worker.exit_code


def kill_shim(run: RunPaths) -> int:
    pid = int(record(run)["keeper"][0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_held(run.shim_lock), what="the shim's end")
    return pid


# --- the record ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9), ("pass", 0)],
)
def test_shim_records_the_exit_code(start: Start, box_run: RunPaths, code: str, expected: int) -> None:
    worker = start(code)
    before = time.time()
    assert finish(worker) == expected
    end = record(box_run)
    assert end["exit_code"] == expected
    assert (end["attempt"], end["pid"], end["log_start"], end["devices"]) == (1, worker.pid, 0, [])
    assert abs(end["ended"] - before) < 60
    assert finish(worker) == expected  # the result stays the same


def test_stdout_and_stderr_are_appended_in_order(start: Start, box_run: RunPaths) -> None:
    box_run.log.write_text("before\n")
    worker = start("import sys; print('out'); print('err', file=sys.stderr); print('last')")
    assert finish(worker) == 0
    assert box_run.log.read_text() == "before\nout\nerr\nlast\n"
    assert finish(start("print('second')", number=2)) == 0
    assert box_run.log.read_text() == "before\nout\nerr\nlast\nsecond\n"
    assert record(box_run)["log_start"] == len("before\nout\nerr\nlast\n")


@pytest.mark.parametrize(("before", "separated"), [("", ""), ("one\n", "one\n"), ("\r 40%", "\r 40%\n")])
def test_marker_is_a_line_of_its_own(box_run: RunPaths, tmp_path: Path, before: str, separated: str) -> None:
    box_run.log.write_text(before, newline="")
    worker = Attempt.start(box_run, 2, ["/bin/echo", "more"], {}, tmp_path, {}, marker="[orch] --- attempt 2 ---")
    assert finish(worker) == 0
    assert box_run.log.read_bytes().decode() == separated + "[orch] --- attempt 2 ---\nmore\n"
    assert record(box_run)["log_start"] == len(separated + "[orch] --- attempt 2 ---\n")


def test_worker_starts_with_the_given_command_and_directory(start: Start, box_run: RunPaths, tmp_path: Path) -> None:
    worker = start(
        "import os, sys; print(os.getcwd(), os.environ['WHO'], repr(sys.stdin.read()), os.getpgrp(), os.getsid(0))"
    )
    assert finish(worker) == 0
    assert box_run.log.read_text().split() == [str(tmp_path), "worker", "''", str(worker.pid), str(worker.pid)]


def test_worker_gets_exactly_the_given_environment(box_run: RunPaths, tmp_path: Path) -> None:
    worker = Attempt.start(box_run, 1, ["/usr/bin/env"], {"ONLY": "this"}, tmp_path, {})
    assert finish(worker) == 0
    assert box_run.log.read_text() == "ONLY=this\n"


def test_worker_has_default_signal_handlers(start: Start, box_run: RunPaths) -> None:
    code = """
        import signal
        numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
        print([number.name for number in numbers if signal.getsignal(number) == signal.SIG_IGN])
    """
    assert finish(start(code)) == 0
    assert box_run.log.read_text() == "[]\n"


def test_only_named_descriptors_stay_open(start: Start, tmp_path: Path) -> None:
    named, other = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    try:
        code = f"""
            import os
            os.fstat({named})
            try:
                os.fstat({other})
            except OSError:
                raise SystemExit(7)
        """
        assert finish(start(code, descriptors=(named,))) == 7
    finally:
        os.close(named)
        os.close(other)


# --- output -------------------------------------------------------------------------------------------


def test_output_arrives_byte_exact(start: Start, box_run: RunPaths, tmp_path: Path) -> None:
    data = os.urandom(300_000) + b"\xff\x00 no newline at the end"
    (tmp_path / "data").write_bytes(data)
    assert (
        finish(
            start(f"import os; os.write(1, b''); open(1, 'wb').write(open({str(tmp_path / 'data')!r}, 'rb').read())")
        )
        == 0
    )
    assert box_run.log.read_bytes() == data


def test_secrets_are_masked_across_chunks(start: Start, box_run: RunPaths, tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = f"""
        import os, time
        os.write(1, b"token: hunt")
        while not os.path.exists({str(go)!r}):
            time.sleep(0.01)
        os.write(1, b"er2-and-more \\xff.\\n")
        os.write(1, b"unfinished hunte")
    """
    worker = start(code, secrets={"TOKEN": "hunter2-and-more"})
    # Bytes that may be the start of a secret are held back.
    wait_until(lambda: box_run.log.read_bytes() == b"token: ", what="the start of the line")
    go.touch()
    assert finish(worker) == 0
    assert box_run.log.read_bytes() == b"token: ***TOKEN*** \xff.\nunfinished hunte"
    assert "hunter2" not in json.dumps(record(box_run))


def test_line_is_logged_immediately(start: Start, box_run: RunPaths) -> None:
    worker = start("print('one'); input()  # waits for the end of its input\n", "one")
    assert finish(worker) == 1


def test_worker_that_closes_its_output_is_not_ended(start: Start, box_run: RunPaths, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    worker = start(
        f"""
        import os
        print("closing")
        os.close(1); os.close(2)
        open({str(gate)!r}).read()
        os._exit(5)
        """,
        "closing",
    )
    gate.write_text("go")  # the worker opens it after it has closed its output
    assert finish(worker) == 5
    assert box_run.log.read_text() == "closing\n"


def test_output_of_a_remaining_child_is_logged(start: Start, box_run: RunPaths) -> None:
    worker = start(
        """
        import os, sys, time
        if os.fork() == 0:
            while True:
                print("child", os.getpid(), flush=True)
                time.sleep(0.05)
        sys.exit(4)
        """,
        "child",
    )
    wait_until(worker.has_ended)
    size = box_run.log.stat().st_size
    wait_until(lambda: box_run.log.stat().st_size > size, what="another line of the child")
    assert is_held(box_run.shim_lock)
    assert worker.end(grace=30)
    assert worker.exit_code == 4
    assert not is_held(box_run.shim_lock)


def waiting_in(pipe: Path) -> int:
    """Return the number of bytes in the pipe that were not read yet."""
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)
    finally:
        os.close(descriptor)


def is_full(pipe: Path) -> bool:
    """Return whether the pipe is full, except for one page: a single byte written earlier may use a whole page."""
    return waiting_in(pipe) >= 65_536 - 4096


# --- when a shim dies -------------------------------------------------------------------------------

COUNT = """
import os, sys, time
for number in range(4000):
    os.write(1, b"line %06d %s\\n" % (number, b"x" * 88))  # in total more than a pipe holds
    if number == 300:
        open(sys.argv[1], "w").close()
    if number % 20 == 0:
        time.sleep(0.001)
"""


def test_killed_shim_loses_at_most_its_buffer_and_repeats_nothing(box_run: RunPaths, tmp_path: Path) -> None:
    """At most one read is lost: the bytes that the shim had read and not yet written."""
    mark = tmp_path / "mark"
    argv = [sys.executable, "-S", "-c", COUNT, str(mark)]
    worker = Attempt.start(box_run, 1, argv, dict(os.environ), tmp_path, {})
    wait_until(mark.exists)
    shim = kill_shim(box_run)
    assert is_alive(worker.pid, worker.identity)
    worker.tend()
    wait_until(lambda: record(box_run)["keeper"][0] != shim, what="another shim")
    wait_until(worker.has_ended, timeout=60)
    assert worker.end(grace=30)
    lines = [line for line in box_run.log.read_bytes().splitlines() if len(line) == 100]
    assert lines, (box_run.log.read_bytes()[:300], box_run.supervisor_log.read_text())
    numbers = [int(line[5:11]) for line in lines]
    assert numbers == sorted(set(numbers)), "a line came twice, or too early"
    assert numbers[0] == 0 and numbers[-1] == 3999
    gaps = [later - number - 1 for number, later in itertools.pairwise(numbers) if later > number + 1]
    assert len(gaps) <= 1 and sum(gaps) <= CHUNK // 101 + 2
    assert worker.exit_code is None  # not observed, because the shim that was its parent is gone
    assert record(box_run)["attempt"] == 1


def test_worker_without_shim_waits_with_its_output(start: Start, box_run: RunPaths, tmp_path: Path) -> None:
    go = tmp_path / "go"
    worker = start(
        f"""
        import os, time
        print("ready", flush=True)
        while not os.path.exists({str(go)!r}):
            time.sleep(0.01)
        os.write(1, b"x" * 200_000)  # more than a pipe holds
        print("end", flush=True)
        """,
        "ready",
    )
    kill_shim(box_run)
    go.touch()
    wait_until(lambda: is_full(ProjectPaths.of_run(box_run).pipe_of(box_run)), what="a full pipe")
    assert box_run.log.read_text() == "ready\n"
    worker.tend()
    wait_until(worker.has_ended)
    assert worker.end(grace=30)
    assert box_run.log.read_text() == "ready\n" + "x" * 200_000 + "end\n"
    assert record(box_run)["exit_code"] is None and "ended" in record(box_run)


def test_shim_started_after_the_last_writer_ends(box_run: RunPaths) -> None:
    """The worker ended after it was checked and before its new shim started."""
    pipe = ProjectPaths.of_run(box_run).pipe_of(box_run)
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    write_json(box_run.worker, {"attempt": 1, "pid": 2**22 + 1, "identity": "1"})
    run_shim(box_run, {"attempt": 1, "pipe": str(pipe), "secrets": {}})
    assert "ended" in record(box_run)


def test_stopped_shim_is_resumed(start: Start, box_run: RunPaths) -> None:
    worker = start("import time; print('ready'); time.sleep(600)", "ready")
    shim = int(record(box_run)["keeper"][0])
    os.kill(shim, signal.SIGSTOP)
    wait_until(lambda: is_stopped(shim))
    worker.tend()
    wait_until(lambda: not is_stopped(shim))


def test_sigterm_does_not_end_the_shim(start: Start, box_run: RunPaths) -> None:
    worker = start("import time; print('one'); time.sleep(0.5); print('two')", "one")
    shim = int(record(box_run)["keeper"][0])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(shim, number)
    assert finish(worker) == 0
    assert box_run.log.read_text() == "one\ntwo\n"


def test_exit_code_is_recorded_without_a_supervisor(box_run: RunPaths, tmp_path: Path) -> None:
    """The process that started the shim has ended before the worker ends."""
    code = f"""
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from remote.host import launchers
        from remote.supervisor.attempt import Attempt
        from remote.contract.paths import RunPaths
        launchers.ENTRY = {launchers.ENTRY!r}
        argv = [sys.executable, "-S", "-c", "import os, time; print('on'); time.sleep(0.5); print('end'); os._exit(6)"]
        Attempt.start(RunPaths(Path({str(box_run.root)!r})), 1, argv, dict(os.environ), Path("/"), {{}})
        os.kill(os.getpid(), 9)
    """
    assert subprocess.run([sys.executable, "-S", "-c", dedent(code)], timeout=60).returncode == -9
    left = Attempt.left(box_run, {})
    assert left is not None
    assert finish(left) == 6
    assert box_run.log.read_text().endswith("end\n")


# --- invalid requests ---------------------------------------------------------------------------------


def run_shim(run: RunPaths, request: Any, cut: int | None = None) -> None:
    """Run a shim with this request to its end."""
    text = to_json(request)[:cut]
    argv = [sys.executable, "-I", "-S", launchers.ENTRY, "shim", str(run.root)]
    subprocess.run(argv, input=text, timeout=30, check=True)


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_incomplete_order_is_ignored(box_run: RunPaths, cut: int) -> None:
    run_shim(box_run, {"attempt": 1, "argv": ["/bin/true"], "pipe": "/x", "secrets": {}}, cut)
    assert not box_run.worker.exists()
    assert box_run.log.read_bytes() == b""


@pytest.mark.parametrize("program", ["no-such-program", "/etc/passwd", "/"])
def test_program_that_cannot_start_is_reported(box_run: RunPaths, tmp_path: Path, program: str) -> None:
    with pytest.raises(AgentError) as refusal:
        Attempt.start(box_run, 1, [program], dict(os.environ), tmp_path, {})
    assert refusal.value.code == "no_program"
    assert refusal.value.message.startswith(f"starting {program!r}: [Errno ")
    assert "ended" in record(box_run)
    wait_until(lambda: not is_held(box_run.shim_lock))


# --- leftovers of a worker ----------------------------------------------------------------------------

DAEMON = """
    import os, signal, sys, time
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        quiet = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(quiet, number)  # the daemon does not hold the worker's output open
        {ignore}
        with open({pid!r} + ".tmp", "w") as file:
            file.write(str(os.getpid()))
        os.rename({pid!r} + ".tmp", {pid!r})
        time.sleep(600)
    os.waitpid(middle, 0)
    while not os.path.exists({pid!r}):
        time.sleep(0.01)
    print("ready", flush=True)
    {then}
"""


@pytest.mark.parametrize("then", ["time.sleep(600)", "sys.exit(3)"], ids=["it is ended", "it goes by itself"])
@pytest.mark.parametrize("ignore", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"], ids=["meek", "stubborn"])
def test_daemon_in_its_own_session_ends_with_the_worker(
    start: Start, box_run: RunPaths, tmp_path: Path, then: str, ignore: str
) -> None:
    file = tmp_path / "daemon"
    worker = start(DAEMON.format(pid=str(file), ignore=ignore, then=then), "ready")
    daemon = int(file.read_text())
    known_as = identity(daemon)
    assert daemon in worker.stats() or then != "time.sleep(600)"
    if then != "time.sleep(600)":
        wait_until(worker.has_ended)
        assert record(box_run)["exit_code"] == 3  # recorded immediately, not when the daemon ends
    assert worker.end(grace=1 if ignore else 30) == (not ignore)
    assert not is_alive(daemon, known_as)
    assert not is_held(box_run.shim_lock)


# --- a log that cannot be written -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/full")])
def test_other_file_type_named_like_the_log_is_moved_aside(
    start: Start, box_run: RunPaths, make: Callable[[Path], None]
) -> None:
    box_run.log.unlink()
    make(box_run.log)
    argv = [sys.executable, "-S", "-c", "print('x' * 1_000_000)"]
    worker = Attempt.start(box_run, 1, argv, dict(os.environ), Path("/"), {})
    assert finish(worker) == 0
    assert log_size(box_run) == 1_000_001
    assert len(list(box_run.root.glob("training.log.displaced-*"))) == 1
