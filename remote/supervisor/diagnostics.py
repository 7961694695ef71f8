"""Write diagnostics before a worker is killed and after it has failed, to evidence/<attempt>-<reason>/.

    stacks.txt       Python stacks of all threads, from py-spy if it is installed, else from the worker's faulthandler
    processes.txt    /proc of the worker and its descendants
    machine.txt      memory, disk, load
    gpu.txt          nvidia-smi
    kernel.txt       kernel messages about memory, disks and GPUs
    log-tail.txt     the end of the log

Each part is independent. If one hangs or fails, only its time limit is lost, and its file contains the error.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, Sequence

from remote.contract import nvidia
from remote.contract.files import disk_space, open_to_read, write_atomic
from remote.contract.logs import LogReader, log_size
from remote.contract.masking import mask_text
from remote.contract.paths import RunPaths
from remote.host.commands import run_command
from remote.host.process import PROC, Stat, in_signal_mask, read_stat

LOG_TAIL = 1 << 16  # bytes
COMMAND_S = 10.0  # seconds for one command; a broken driver makes nvidia-smi hang
STACKS_S = 3.0  # seconds for faulthandler to write
MAX_DIRECTORIES = 20  # per run; the first ones are kept
STACK_SIGNAL = signal.SIGUSR1
_KERNEL_TOPICS = re.compile(
    r"oom|out of memory|killed process|xid|nvrm|nvidia|i/o error|ext4|xfs|nvme|segfault|hung", re.IGNORECASE
)
_STAMP = re.compile(r"^\[\s*(\d+\.\d+)\]")  # seconds since boot
_FIELDS = ("status", "wchan", "syscall", "stack", "limits", "io")


def take(
    run: RunPaths, attempt: int, reason: str, members: Mapping[int, Stat], leader: int, secrets: Mapping[str, str]
) -> Path:
    """Write the diagnostics. Never raises.

    Args:
        run: The run.
        attempt: The number of the attempt.
        reason: Why it is ended, or why it failed.
        members: The processes of the worker.
        leader: The pid of the worker; 0 if it has ended.
        secrets: Values to mask, by name.

    Returns:
        The directory.
    """
    directory = _new_directory(run, f"{attempt:02d}-{reason}")
    parts: Dict[str, Callable[[], str]] = {
        "stacks.txt": lambda: stacks(run, leader),
        "processes.txt": lambda: "\n".join(_process(pid) for pid in members),
        "machine.txt": lambda: _machine(run),
        "gpu.txt": lambda: _output(["nvidia-smi"]) + _output(nvidia.PROCESSES),
        "kernel.txt": lambda: "\n".join(kernel_lines()) or "no messages about memory, disks or GPUs\n",
        "log-tail.txt": lambda: log_tail(run),
    }
    for name, part in parts.items():
        if leader == 0 and name in ("stacks.txt", "processes.txt"):
            continue  # there is no process any more
        try:
            text = part()
        except Exception as error:  # noqa: BLE001 - a run must never fail because of its diagnostics
            text = f"could not be taken: {error!r}\n"
        try:
            write_atomic(directory / name, mask_text(text, secrets).encode("utf-8", "replace"))
        except OSError:
            pass  # a full disk: the rest may still fit
    return directory


def _new_directory(run: RunPaths, name: str) -> Path:
    taken = len(list(run.diagnostics.glob("*/"))) if run.diagnostics.is_dir() else 0
    directory = run.diagnostics / (name if taken < MAX_DIRECTORIES else "newest")
    number = 1
    while directory.exists() and directory.name != "newest":
        number += 1
        directory = run.diagnostics / f"{name}-{number}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        pass
    return directory


def stacks(run: RunPaths, pid: int) -> str:
    """Return the Python stacks of the process, or why there are none."""
    text = _output(["py-spy", "dump", "--pid", str(pid)]) if shutil.which("py-spy") else ""
    # If py-spy may not trace the process (ptrace_scope) or does not support it, ask the process itself.
    return text if "Thread " in text else text + _own_stacks(run, pid)


def _own_stacks(run: RunPaths, pid: int) -> str:
    if not in_signal_mask(pid, "SigCgt", STACK_SIGNAL):  # else it would end the process
        return "py-spy is not installed, and the worker has no faulthandler: it does not use remote.worker.Run\n"
    stat = read_stat(pid)
    if stat and stat.state in "Tt":
        return "the process is stopped (SIGSTOP) and cannot write its stacks\n"
    before = _size(run.stacks)
    os.kill(pid, STACK_SIGNAL)
    until = time.monotonic() + STACKS_S
    size = before
    while time.monotonic() < until:
        time.sleep(0.05)
        now = _size(run.stacks)
        if now > before and now == size:
            break  # it has stopped growing
        size = now
    if size <= before:
        return "the process did not answer the signal\n"
    with open_to_read(run.stacks) as file:
        file.seek(before)
        return file.read(1 << 20).decode("utf-8", "replace")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _process(pid: int) -> str:
    """Return what /proc shows about the process, except its environment, which holds secrets."""
    folder = PROC / str(pid)
    parts = [f"=== process {pid}", _read(folder / "cmdline").replace("\0", " ")]
    parts += [f"--- {name}\n{_read(folder / name)}" for name in _FIELDS]
    try:
        parts.append(f"--- {len(os.listdir(str(folder / 'fd')))} open files")
        threads = sorted(os.listdir(str(folder / "task")), key=int)
        parts += [
            f"--- thread {thread}: {_read(folder / 'task' / thread / 'comm').strip()}"
            f" {_read(folder / 'task' / thread / 'wchan')}"
            for thread in threads[:200]
        ]
    except OSError as error:
        parts.append(str(error))
    return "\n".join(parts) + "\n"


def _read(path: Path) -> str:
    try:
        return path.read_bytes()[: 1 << 16].decode("utf-8", "replace")
    except OSError as error:
        return error.strerror or str(error)


def _machine(run: RunPaths) -> str:
    disk = disk_space(run.root)
    free = f"disk: {disk.free} of {disk.total} bytes free,"
    inodes = f"{disk.inodes_free} of {disk.inodes} inodes free"
    return f"time: {time.time():.0f}\n{free} {inodes}\nload: {_read(PROC / 'loadavg')}\n{_read(PROC / 'meminfo')}"


def log_tail(run: RunPaths, start: int = 0, size: int = LOG_TAIL) -> str:
    """Return the last `size` bytes of the log, but nothing before offset `start`."""
    reader = LogReader(run)
    try:
        _, data = reader.read(max(start, log_size(run) - size), size)
    finally:
        reader.close()
    return data.decode("utf-8", "replace")


def kernel_lines(since: float = 0.0) -> List[str]:
    """Return kernel messages about memory, disks and GPUs, or why they cannot be read.

    Args:
        since: Seconds since boot; earlier messages are left out.
    """
    text = _output(["dmesg"])
    if "Operation not permitted" in text or not text:
        journal = _output(["journalctl", "-k", "-b", "-o", "short-monotonic", "-n", "2000", "--no-pager"])
        text = journal if journal and "No such file" not in journal else text
    return list(_relevant(text.splitlines(), since))[-200:]


def _relevant(lines: Sequence[str], since: float) -> Iterator[str]:
    for line in lines:
        stamp = _STAMP.match(line)
        is_new = stamp is None or float(stamp[1]) >= since
        if is_new and (_KERNEL_TOPICS.search(line) or "permitted" in line):
            yield line


def _output(command: Sequence[str]) -> str:
    """Return the output of a command (both streams), or why it cannot be run."""
    try:
        output = run_command(command, COMMAND_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}\n"
    return (output.out + output.err).decode("utf-8", "replace")
