"""What is seen of a run from outside its worker: heartbeat, log growth, expected files, machine and GPU load."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from remote.contract.files import TEMP_PREFIX, append_jsonl, read_json
from remote.contract.logs import log_size
from remote.contract.paths import RunPaths
from remote.contract.position import Position
from remote.contract.protocol import heartbeat_age, monotonic
from remote.host.process import Stat, output_of
from remote.host.slots import CPU

SAMPLE_EVERY = 15.0  # seconds
NVIDIA_SMI_S = 10.0  # seconds; with a broken driver it hangs
GPU_BUSY_PERCENT = 5.0
GPU_FREE_S = 10.0  # for the driver to give back what an ended process held
LOW_BYTES, LOW_SHARE, LOW_INODES = 64 << 20, 0.01, 8  # a disk with less is full: bytes, share of it, files
_GPU_QUERY = ("index", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu")


class Mark:
    """A value that is watched, and for how long it has not changed, in seconds."""

    def __init__(self) -> None:
        self._value: Any = None
        self._moved = monotonic()

    def age(self, value: Any) -> float:
        if value != self._value:
            self._value, self._moved = value, monotonic()
        return monotonic() - self._moved


class Progress:
    """For how long neither step nor log of a run has moved."""

    def __init__(self, run: RunPaths) -> None:
        self._run = run
        self._step, self._log = Mark(), Mark()
        self.since_step = self.since_log = 0.0
        self.heartbeat_age: Optional[float] = None

    def look(self) -> None:
        beat = read_json(self._run.heartbeat) or {}
        self.since_step = self._step.age(tuple(beat.get(key) for key in ("phase", "epoch", "step")))
        self.since_log = self._log.age(log_size(self._run))
        self.heartbeat_age = heartbeat_age(beat)


def steps_done(run: RunPaths) -> Optional[int]:
    """Return how many steps the heartbeat reports, over all epochs, or None if it reports none."""
    return Position.from_json(read_json(run.heartbeat)).steps_done()


def is_disk_full(path: Path) -> bool:
    """Whether there is hardly room for one more checkpoint; False where that cannot be asked."""
    try:
        disk = os.statvfs(str(path))
    except OSError:
        return False
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    return free < min(LOW_BYTES, total * LOW_SHARE) or (disk.f_files > 0 and disk.f_favail < LOW_INODES)


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started (proc(5): vmstat)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def missing_outputs(run: RunPaths, expects: Sequence[str]) -> List[str]:
    """The patterns of `expects` that match no non-empty file of the run."""
    return [pattern for pattern in expects if not _has_output(run, pattern)]


def _has_output(run: RunPaths, pattern: str) -> bool:
    try:
        return any(_has_content(path) for path in run.root.glob(pattern))
    except (OSError, RecursionError):  # directories nested by the thousand
        return False


def _has_content(path: Path) -> bool:
    """A file with something in it, or a directory with such a file below it; what a crash left half-made is none.

    Links in a directory are not followed into others: they may lead in a circle.
    """
    waiting = [path]
    while waiting:
        path = waiting.pop()
        try:
            if path.is_dir():
                waiting += [inner for inner in path.iterdir() if not (inner.is_symlink() and inner.is_dir())]
            elif path.stat().st_size > 0 and not path.name.startswith(TEMP_PREFIX):
                return True
        except OSError:
            pass
    return False


class Sampler(threading.Thread):
    """Writes samples.jsonl while a worker runs. A thread, since a broken driver can make nvidia-smi hang."""

    def __init__(
        self, run: RunPaths, members: Callable[[], Mapping[int, Stat]], devices: Sequence[str], is_alone: bool
    ) -> None:
        """`devices` are those that the run was given, `is_alone` whether it shares none of them with another."""
        super().__init__(daemon=True)
        self._run, self._members, self._devices, self._is_alone = run, members, frozenset(devices), is_alone
        self._ended = threading.Event()
        self.gpu_busy_at: Optional[float] = None  # monotonic time of the last sample that saw it use a GPU
        self.pids: Set[int] = set()  # all that were ever seen of the worker

    def run(self) -> None:
        before: Optional[Tuple[float, int]] = None
        while True:
            ticks, record = self._sample()
            now = monotonic()
            if before:
                seconds = (ticks - before[1]) / os.sysconf("SC_CLK_TCK")
                record["cpu_percent"] = round(100 * max(0.0, seconds) / (now - before[0]), 1)
            before = (now, ticks)
            if record["gpus"] and self._uses_gpu(record["gpus"]):
                self.gpu_busy_at = now
            try:
                append_jsonl(self._run.samples, record)
            except OSError:
                pass  # a full disk is the supervisor's to notice; samples are the first thing to do without
            if self._ended.wait(SAMPLE_EVERY):
                return

    def end(self) -> None:
        self._ended.set()

    def _uses_gpu(self, gpus: Sequence[Mapping[str, Optional[float]]]) -> bool:
        """By what its own processes use; by the use of its devices where that is unknown and nobody else is on them."""
        if self._devices <= {CPU}:
            return False
        mine = {pid: use for pid, use in gpu_use().items() if pid in self.pids}
        if mine:
            return any(use > 0 for use in mine.values())
        return self._is_alone and any(self._is_busy(gpu) for gpu in gpus)

    def _is_busy(self, gpu: Mapping[str, Optional[float]]) -> bool:
        mine = f"gpu{gpu['index']:.0f}" in self._devices if gpu["index"] is not None else False
        return mine and (gpu["utilization.gpu"] or 0.0) >= GPU_BUSY_PERCENT

    def _sample(self) -> Tuple[int, Dict[str, Any]]:
        stats = self._members()
        self.pids.update(stats)
        disk = os.statvfs(str(self._run.root))
        record: Dict[str, Any] = {
            "time": time.time(),
            "processes": len(stats),
            "rss_bytes": sum(stat.rss_pages for stat in stats.values()) * os.sysconf("SC_PAGE_SIZE"),
            "memory_available_bytes": _memory_available(),
            "disk_free_bytes": disk.f_bavail * disk.f_frsize,
            "gpus": gpu_load(),
        }
        return sum(stat.cpu_ticks for stat in stats.values()), record


def _memory_available() -> Optional[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return kib * 1024 if kib is not None else None


def gpu_load() -> List[Dict[str, Optional[float]]]:
    """One record per GPU (percent, MiB, MiB, degrees Celsius); empty without a working nvidia-smi."""
    return parse_gpu_load(_nvidia_smi(f"--query-gpu={','.join(_GPU_QUERY)}", "--format=csv,noheader,nounits"))


def gpu_use() -> Dict[int, float]:
    """Percent of its GPU's multiprocessors that each process uses, where the driver tells it."""
    return parse_gpu_use(_nvidia_smi("pmon", "-c", "1", "-s", "u"))


def gpu_memory() -> Dict[int, float]:
    """MiB of GPU memory that each process holds."""
    text = _nvidia_smi("--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    rows = [[_number(field) for field in line.split(",")] for line in text.splitlines()]
    return {int(row[0]): row[1] or 0.0 for row in rows if len(row) == 2 and row[0] is not None}


def gpu_memory_left(pids: Set[int]) -> Dict[str, float]:
    """MiB that ended processes still hold once the driver had its time to give them back, by pid."""
    until = monotonic() + GPU_FREE_S
    while True:
        held = {str(pid): mib for pid, mib in gpu_memory().items() if pid in pids}
        if not held or monotonic() > until:
            return held
        time.sleep(0.5)


def _nvidia_smi(*arguments: str) -> str:
    """What it prints; nothing without a working one."""
    try:
        code, said = output_of(["nvidia-smi", *arguments], NVIDIA_SMI_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.decode("utf-8", "replace") if code == 0 else ""


def parse_gpu_use(text: str) -> Dict[int, float]:
    """`nvidia-smi pmon -s u`: columns gpu, pid, type, sm, ...; a process with `-` was not measured."""
    use: Dict[int, float] = {}
    for line in text.splitlines():
        fields = line.split()
        percent = _number(fields[3]) if len(fields) > 3 and fields[1].isdigit() else None
        if percent is not None:
            use[int(fields[1])] = max(use.get(int(fields[1]), 0.0), percent)
    return use


def parse_gpu_load(text: str) -> List[Dict[str, Optional[float]]]:
    """nvidia-smi's CSV; a value that the card does not report (`[N/A]`) becomes None."""
    rows = [line.split(",") for line in text.splitlines()]
    return [dict(zip(_GPU_QUERY, map(_number, row))) for row in rows if len(row) == len(_GPU_QUERY)]


def _number(text: str) -> Optional[float]:
    try:
        return float(text)
    except ValueError:
        return None
