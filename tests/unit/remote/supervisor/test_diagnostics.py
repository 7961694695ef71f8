"""Take diagnostics of real processes: their stacks, the cost of a broken driver, and no harm to the processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from remote.contract.paths import RunPaths
from remote.host.process import PROC, is_stopped, read_stat
from remote.shim.log_writer import LogWriter
from remote.supervisor import diagnostics
from remote.supervisor.diagnostics import MAX_DIRECTORIES, kernel_lines, log_tail, stacks, take
from tests.support import wait_until
from tests.unit.conftest import Start

pytestmark = pytest.mark.skipif(not PROC.joinpath("self").exists(), reason="this machine has no /proc")

ANSWERS = """
    import faulthandler, signal, sys, time
    stacks = open({stacks!r}, "a")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)

    def load_the_next_batch():
        print("ready", flush=True)
        time.sleep(600)

    load_the_next_batch()
"""


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for substitute programs, which is first on the PATH; py-spy is not installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return folder


def install(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


# --- stacks -------------------------------------------------------------------------------------------


def test_stacks_come_from_the_workers_faulthandler(start: Start, box_run: RunPaths) -> None:
    worker = start(ANSWERS.format(stacks=str(box_run.stacks)), "ready")
    for _ in range(2):  # the second call returns the stacks of that moment
        said = stacks(box_run, worker.pid)
        assert said.count("in load_the_next_batch") == 1, said
    assert worker.is_alive()


def test_worker_without_faulthandler_is_not_signalled(start: Start, box_run: RunPaths) -> None:
    worker = start("import time; print('ready'); time.sleep(600)", "ready")
    assert "faulthandler" in stacks(box_run, worker.pid)
    assert worker.is_alive()
    assert read_stat(worker.pid) is not None


def test_foreign_signal_handler_gives_no_stacks(
    start: Start, box_run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnostics, "STACKS_S", 0.3)
    code = "import signal, time; signal.signal(signal.SIGUSR1, lambda *a: None); print('ready'); time.sleep(600)"
    worker = start(code, "ready")
    assert stacks(box_run, worker.pid) == "the process did not answer the signal\n"
    assert worker.is_alive()


def test_stopped_process_is_not_waited_for(start: Start, box_run: RunPaths) -> None:
    worker = start(ANSWERS.format(stacks=str(box_run.stacks)), "ready")
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(worker.pid))
    assert "stopped" in stacks(box_run, worker.pid)


def test_faulthandler_is_used_if_py_spy_may_not_trace(start: Start, box_run: RunPaths, path: Path) -> None:
    worker = start(ANSWERS.format(stacks=str(box_run.stacks)), "ready")
    install(path, "py-spy", "echo 'Error: Permission Denied: Try running again with elevated permissions' >&2; exit 1")
    said = stacks(box_run, worker.pid)
    assert "Permission Denied" in said and "in load_the_next_batch" in said
    install(path, "py-spy", 'echo "Thread 1 (idle): \\"MainThread\\"\n    step (loop.py:88) $*"')
    said = stacks(box_run, worker.pid)
    assert said.endswith(f"step (loop.py:88) dump --pid {worker.pid}\n") and "load_the_next_batch" not in said


# --- everything together ------------------------------------------------------------------------------


def test_all_diagnostics_are_written(start: Start, box_run: RunPaths, path: Path) -> None:
    install(path, "nvidia-smi", "echo driver: $*; echo token hunter2-and-more")
    code = ANSWERS.replace('print("ready"', 'print("said before the end", "ready"').format(stacks=str(box_run.stacks))
    worker = start(code, "ready")
    folder = take(box_run, 3, "stalled", worker.stats(), worker.pid, {"TOKEN": "hunter2-and-more", "WHO": "worker"})
    assert folder == box_run.diagnostics / "03-stalled"
    texts = {file.name: file.read_text() for file in folder.iterdir()}
    assert sorted(texts) == ["gpu.txt", "kernel.txt", "log-tail.txt", "machine.txt", "processes.txt", "stacks.txt"]
    assert "in load_the_next_batch" in texts["stacks.txt"]
    assert f"=== process {worker.pid}" in texts["processes.txt"] and "VmRSS" in texts["processes.txt"]
    assert "WHO=" not in texts["processes.txt"]  # an environment holds secrets
    assert "MemAvailable" in texts["machine.txt"] and "inodes free" in texts["machine.txt"]
    assert "driver: --query-compute-apps" in texts["gpu.txt"] and "***TOKEN***" in texts["gpu.txt"]
    assert texts["log-tail.txt"] == "said before the end ready\n"
    assert not any("hunter2" in text for text in texts.values())
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert worker.is_alive()


def test_ended_worker_has_no_process_diagnostics(box_run: RunPaths) -> None:
    folder = take(box_run, 1, "exit", {}, 0, {})
    assert sorted(os.listdir(folder)) == ["gpu.txt", "kernel.txt", "log-tail.txt", "machine.txt"]


def test_hanging_driver_costs_only_its_time_limit(
    box_run: RunPaths, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the limit this test would not end."""
    monkeypatch.setattr(diagnostics, "COMMAND_S", 0.3)
    install(path, "nvidia-smi", "exec sleep 600")
    folder = take(box_run, 1, "stalled", {}, 0, {})
    assert "timed out after 0.3 seconds" in (folder / "gpu.txt").read_text()
    assert "MemAvailable" in (folder / "machine.txt").read_text()


def test_first_and_newest_diagnostics_are_kept(box_run: RunPaths) -> None:
    box_run.diagnostics.mkdir(exist_ok=True)
    assert take(box_run, 1, "exit", {}, 0, {}).name == "01-exit"
    assert take(box_run, 1, "exit", {}, 0, {}).name == "01-exit-2"
    for number in range(2, MAX_DIRECTORIES):
        (box_run.diagnostics / f"{number:02d}-exit").mkdir()
    LogWriter(box_run).write(b"first of the last\n")
    assert take(box_run, 98, "exit", {}, 0, {}).name == "newest"
    LogWriter(box_run).write(b"last of the last\n")
    newest = take(box_run, 99, "exit", {}, 0, {})
    assert newest.name == "newest"
    assert (newest / "log-tail.txt").read_text() == "first of the last\nlast of the last\n"
    assert (box_run.diagnostics / "01-exit").is_dir()


def test_log_tail_starts_at_the_attempt(box_run: RunPaths) -> None:
    LogWriter(box_run).write(b"of the first\nof the second \xff\n")
    assert log_tail(box_run, len(b"of the first\n")) == "of the second \ufffd\n"
    assert log_tail(box_run, 0, 3) == " \ufffd\n"


def test_kernel_lines_are_filtered_by_topic_and_time(path: Path) -> None:
    install(
        path,
        "dmesg",
        "cat <<'END'\n"
        "[   12.000001] NVRM: loading NVIDIA UNIX x86_64 Kernel Module\n"
        "[  512.500000] eth0: link becomes ready\n"
        "[  612.500000] Out of memory: Killed process 4242 (python)\n"
        "END",
    )
    assert [line[15:19] for line in kernel_lines()] == ["NVRM", "Out "]
    assert [line[15:19] for line in kernel_lines(since=100.0)] == ["Out "]
    install(path, "dmesg", "echo 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1")
    install(path, "journalctl", "echo '[  700.000000] host kernel: NVRM: Xid (PCI:0000:00:1e): 79, GPU has fallen'")
    assert ["Xid" in line for line in kernel_lines(since=100.0)] == [True]
    install(path, "journalctl", "exit 1")
    assert ["not permitted" in line for line in kernel_lines()] == [True]
