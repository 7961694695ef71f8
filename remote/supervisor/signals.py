"""Liveness signals of a run, observed from outside its worker: heartbeat, log growth, output, machine and GPU load."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, List, Mapping, Optional, Sequence, Set, Tuple

from remote.contract.files import TEMP_PREFIX, append_jsonl, disk_space, read_json
from remote.contract.logs import log_size
from remote.contract.meminfo import parse_meminfo
from remote.contract.nvidia import Gpu
from remote.contract.paths import RunPaths
from remote.contract.protocol import FROM_OUTPUT, Heartbeat, monotonic
from remote.contract.records import read_record
from remote.contract.samples import LoadSample
from remote.contract.schema import from_json, to_json
from remote.host import gpu_driver
from remote.host.outputs import Outputs, matches
from remote.host.process import Stat, read_proc
from remote.host.slots import CPU
from remote.supervisor.written_files import look_at_files

SAMPLE_EVERY = 15.0  # seconds
GPU_BUSY_PERCENT = 5.0
CPU_BUSY_PERCENT = 10.0  # of one core; threads that only wait, poll and report use a few per cent
LOW_BYTES, LOW_SHARE, LOW_INODES = 64 << 20, 0.01, 8  # free space below which a disk is full: bytes, share, inodes


class Mark:
    """Measure for how long a value has not changed."""

    def __init__(self) -> None:
        self._value: Any = None
        self._moved = monotonic()

    def age(self, value: Any) -> float:
        """Take the current value. Return for how many seconds it has not changed."""
        if value != self._value:
            self._value, self._moved = value, monotonic()
        return monotonic() - self._moved


class Progress:
    """Measure for how many seconds the step and the log of a run have not changed."""

    def __init__(self, run: RunPaths) -> None:
        self._run = run
        self._step, self._log = Mark(), Mark()
        self.since_step = self.since_log = 0.0
        self.heartbeat_age: Optional[float] = None
        self.has_steps = False  # whether the worker itself reports its step

    def look(self) -> None:
        """Read the heartbeat and the size of the log."""
        heartbeat = read_json(self._run.heartbeat) or {}
        # Values of any type: a step that a program writes as 12.0 or "12" is progress too.
        self.since_step = self._step.age([heartbeat.get(key) for key in ("phase", "epoch", "step")])
        self.since_log = self._log.age(log_size(self._run))
        self.heartbeat_age = from_json(Heartbeat, heartbeat, problems=[]).age
        self.has_steps = heartbeat.get("step") is not None and heartbeat.get("source") != FROM_OUTPUT


def steps_done(run: RunPaths) -> Optional[int]:
    """Return how many steps the worker reports, over all epochs, or None if it reports none.

    A step that was read in its output does not count: many programs begin again at 0 when they resume.
    """
    heartbeat = read_record(Heartbeat, run.heartbeat)
    return heartbeat.position.steps_done() if heartbeat and heartbeat.source != FROM_OUTPUT else None


def has_trained(run: RunPaths) -> bool:
    """Return whether the worker has shown a step or an epoch of its training, also in its output."""
    heartbeat = read_record(Heartbeat, run.heartbeat)
    if heartbeat is None or heartbeat.phase != "train":  # in another phase it may still prepare its data
        return False
    return bool(heartbeat.position.step or heartbeat.position.epoch)


def is_disk_full(path: Path) -> bool:
    """Return whether the disk may lack the space for another checkpoint; False if that is unknown."""
    try:
        disk = disk_space(path)
    except OSError:
        return False
    return disk.free < min(LOW_BYTES, disk.total * LOW_SHARE) or (disk.inodes > 0 and disk.inodes_free < LOW_INODES)


def oom_kills() -> int:
    """Return how many processes the kernel has killed since boot because memory was short (proc(5): vmstat)."""
    lines = read_proc("vmstat").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(b"oom_kill ")), 0)


def missing_outputs(run: RunPaths, expects: Sequence[str]) -> List[str]:
    """Return the patterns of `expects` that match no non-empty file of the run."""
    return [pattern for pattern in expects if not _has_output(run, pattern)]


def _has_output(run: RunPaths, pattern: str) -> bool:
    try:
        if any(_has_content(path) for path in run.root.glob(pattern)):
            return True
        parts = [part for part in pattern.split("/") if part not in ("", ".")]
        return any(
            found.st_size > 0 and matches(os.fsdecode(name).split("/"), parts) for name, found in Outputs(run).files()
        )
    except (OSError, RecursionError):  # directories nested by the thousand
        return False


def _has_content(path: Path) -> bool:
    """Return whether `path` is a non-empty file, or a directory with such a file below it.

    Temporary files that a crash left behind do not count. Links to directories are not followed below `path`: they may
    form a circle.
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
    """Write samples.jsonl while a worker runs. It is a thread, because a broken driver can make nvidia-smi hang."""

    def __init__(
        self,
        run: RunPaths,
        members: Callable[[], Mapping[int, Stat]],
        devices: Sequence[str],
        is_alone: bool,
        every: float = SAMPLE_EVERY,
    ) -> None:
        """Prepare to sample.

        Args:
            run: The run.
            members: Returns the processes of the worker.
            devices: The devices of the run.
            is_alone: Whether the run shares none of them with another run.
            every: Seconds between two samples.
        """
        super().__init__(daemon=True)
        self._run, self._members, self._devices, self._is_alone = run, members, frozenset(devices), is_alone
        self._every = every
        self._ended = threading.Event()
        # The monotonic times of the last samples in which it used a GPU, used the CPU, had written to a file:
        self.gpu_busy_at: Optional[float] = None
        self.cpu_busy_at: Optional[float] = None
        self.output_at: Optional[float] = None
        self.pids: Set[int] = set()  # of all processes of the worker so far

    def run(self) -> None:
        """Sample until `end` is called (in the thread)."""
        before: Optional[Tuple[float, int]] = None
        output = look_at_files(self._run)
        while True:
            cards = gpu_driver.cards()
            ticks, sample = self._sample(cards)
            now = monotonic()
            if before:
                seconds = (ticks - before[1]) / os.sysconf("SC_CLK_TCK")
                percent = 100 * max(0.0, seconds) / (now - before[0])
                sample = replace(sample, cpu_percent=round(percent, 1))
                if percent >= CPU_BUSY_PERCENT:
                    self.cpu_busy_at = now
                written = look_at_files(self._run)
                if written is not None and written != output:
                    self.output_at = now if output is not None else self.output_at
                    output = written
            before = (now, ticks)
            if cards and self._uses_gpu(cards):
                self.gpu_busy_at = now
            try:
                append_jsonl(self._run.samples, to_json(sample))
            except OSError:
                pass  # the supervisor detects a full disk; a run can do without samples
            if self._ended.wait(self._every):
                return

    def end(self) -> None:
        """Stop sampling."""
        self._ended.set()

    def _uses_gpu(self, cards: Sequence[Gpu]) -> bool:
        """Prefer per-process use; fall back to the use of its devices if nobody else is on them."""
        if self._devices <= {CPU}:
            return False
        mine = {pid: use for pid, use in gpu_driver.utilization().items() if pid in self.pids}
        if mine:
            return any(use > 0 for use in mine.values())
        own = [card for card in cards if f"gpu{card.index}" in self._devices]
        return self._is_alone and any((card.utilization or 0) >= GPU_BUSY_PERCENT for card in own)

    def _sample(self, cards: Sequence[Gpu]) -> Tuple[int, LoadSample]:
        """Return the CPU time of the worker's processes so far, in clock ticks, and a sample."""
        stats = self._members()
        self.pids.update(stats)
        sample = LoadSample(
            time=time.time(),
            processes=len(stats),
            rss_bytes=sum(stat.rss_pages for stat in stats.values()) * os.sysconf("SC_PAGE_SIZE"),
            memory_available_bytes=_memory_available(),
            disk_free_bytes=disk_space(self._run.root).free,
            gpus=tuple(cards),
        )
        return sum(stat.cpu_ticks for stat in stats.values()), sample


def _memory_available() -> Optional[int]:
    """Return the available memory in bytes, None if it is unknown (no Linux)."""
    memory = parse_meminfo(read_proc("meminfo").decode())
    return memory.available if memory else None
