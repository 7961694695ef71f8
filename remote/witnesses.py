"""What is seen of a run from outside its worker: heartbeat, log growth, expected files, machine and GPU load."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from remote.files import TEMP_PREFIX, append_jsonl, read_json
from remote.paths import RunPaths
from remote.process import group_stats
from remote.protocol import monotonic
from remote.reports import log_size

SAMPLE_EVERY = 15.0  # seconds
GPU_BUSY_PERCENT = 5.0
_GPU_QUERY = ("index", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu")


def progress_mark(run: RunPaths) -> Tuple[Any, ...]:
    """A value that changes whenever the run moves: its step or its log. The heartbeat's time is no progress."""
    beat = read_json(run.heartbeat) or {}
    return (*(beat.get(key) for key in ("phase", "epoch", "step")), log_size(run))


class Progress:
    """For how long a run has not moved, in seconds."""

    def __init__(self, run: RunPaths) -> None:
        self._run = run
        self._mark: Tuple[Any, ...] = ()
        self._moved = monotonic()

    def age(self) -> float:
        mark = progress_mark(self._run)
        if mark != self._mark:
            self._mark, self._moved = mark, monotonic()
        return monotonic() - self._moved

    @staticmethod
    def since(moment: Optional[float]) -> Optional[float]:
        return None if moment is None else monotonic() - moment


def missing_outputs(run: RunPaths, expects: Sequence[str]) -> List[str]:
    """The patterns of `expects` that match no non-empty file of the run."""
    return [pattern for pattern in expects if not any(_has_content(path) for path in run.root.glob(pattern))]


def _has_content(path: Path) -> bool:
    """A file with something in it, or a directory with such a file in it; what a crash left half-made is none."""
    try:
        if path.is_dir():
            return any(_has_content(inner) for inner in path.iterdir())
        return path.stat().st_size > 0 and not path.name.startswith(TEMP_PREFIX)
    except OSError:
        return False


class Sampler(threading.Thread):
    """Writes samples.jsonl while a worker runs. A thread, since a broken driver can make nvidia-smi hang."""

    def __init__(self, run: RunPaths, group: int, devices: Sequence[str]) -> None:
        """`devices` are those that the run was given: what others do on other GPUs is no progress of this one."""
        super().__init__(daemon=True)
        self._run, self._group, self._devices = run, group, frozenset(devices)
        self._ended = threading.Event()
        self.gpu_busy_at: Optional[float] = None  # monotonic time of the last sample that saw GPU use

    def run(self) -> None:
        before: Optional[Tuple[float, int]] = None
        while True:
            ticks, record = self._sample()
            now = monotonic()
            if before:
                seconds = (ticks - before[1]) / os.sysconf("SC_CLK_TCK")
                record["cpu_percent"] = round(100 * max(0.0, seconds) / (now - before[0]), 1)
            before = (now, ticks)
            if any(self._is_busy(gpu) for gpu in record["gpus"]):
                self.gpu_busy_at = now
            try:
                append_jsonl(self._run.samples, record)
            except OSError:
                pass  # a full disk is the supervisor's to notice; samples are the first thing to do without
            if self._ended.wait(SAMPLE_EVERY):
                return

    def end(self) -> None:
        self._ended.set()

    def _is_busy(self, gpu: Mapping[str, Optional[float]]) -> bool:
        mine = f"gpu{gpu['index']:.0f}" in self._devices if gpu["index"] is not None else False
        return mine and (gpu["utilization.gpu"] or 0.0) >= GPU_BUSY_PERCENT

    def _sample(self) -> Tuple[int, Dict[str, Any]]:
        stats = list(group_stats(self._group))
        record: Dict[str, Any] = {
            "time": time.time(),
            "processes": len(stats),
            "rss_bytes": sum(stat.rss_pages for stat in stats) * os.sysconf("SC_PAGE_SIZE"),
            "memory_available_bytes": _memory_available(),
            "disk_free_bytes": shutil.disk_usage(str(self._run.root)).free,
            "gpus": gpu_load(),
        }
        return sum(stat.cpu_ticks for stat in stats), record


def _memory_available() -> Optional[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return kib * 1024 if kib is not None else None


def gpu_load() -> List[Dict[str, Optional[float]]]:
    """One record per GPU (percent, MiB, MiB, degrees Celsius); empty without a working nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpu_load(listed.stdout.decode("utf-8", "replace")) if listed.returncode == 0 else []


def parse_gpu_load(text: str) -> List[Dict[str, Optional[float]]]:
    """nvidia-smi's CSV; a value that the card does not report (`[N/A]`) becomes None."""
    rows = [line.split(",") for line in text.splitlines()]
    return [dict(zip(_GPU_QUERY, map(_number, row))) for row in rows if len(row) == len(_GPU_QUERY)]


def _number(text: str) -> Optional[float]:
    try:
        return float(text)
    except ValueError:
        return None
