"""The nvidia-smi commands that the box runs, and parsers for their output, for box and laptop.

The output is CSV: one line for each card or process, with the values in the order of the query and without units. A
value that a card does not report (`[N/A]`) is None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

CARD_FIELDS = (
    *("index", "name", "driver_version", "memory.total", "memory.used", "memory.free"),
    *("utilization.gpu", "compute_mode", "uuid", "temperature.gpu"),
)
_CSV = "--format=csv,noheader,nounits"
CARDS = ("nvidia-smi", f"--query-gpu={','.join(CARD_FIELDS)}", _CSV)
PROCESSES = ("nvidia-smi", "--query-compute-apps=pid,gpu_uuid,used_memory,process_name", _CSV)
UTILIZATION = ("nvidia-smi", "pmon", "-c", "1", "-s", "u")


@dataclass(frozen=True)
class Gpu:
    """One card. Memory in MiB, utilization in percent, temperature in degrees Celsius."""

    index: int
    name: str
    driver: str
    total: Optional[int]
    used: Optional[int]
    free: Optional[int]
    utilization: Optional[int]
    compute_mode: str
    uuid: str = ""
    temperature: Optional[int] = None


@dataclass(frozen=True)
class GpuProcess:
    """One process that holds memory of a card."""

    pid: int
    gpu: str  # UUID
    memory: Optional[int]  # MiB
    name: str


def parse_cards(text: str) -> List[Gpu]:
    """Return the cards in the output of CARDS. Lines of any other form are skipped."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [_card(row) for row in rows if len(row) == len(CARD_FIELDS) and _number(row[0]) is not None]


def _card(row: List[str]) -> Gpu:
    index, name, driver, total, used, free, utilization, mode, uuid, temperature = row
    numbers = (_number(total), _number(used), _number(free), _number(utilization))
    return Gpu(int(index), name, driver, *numbers, mode, uuid, _number(temperature))


def parse_processes(text: str) -> Tuple[GpuProcess, ...]:
    """Return the processes in the output of PROCESSES; a name may contain commas."""
    rows = [[cell.strip() for cell in line.split(",", 3)] for line in text.splitlines()]
    found = (row for row in rows if len(row) == 4 and _number(row[0]) is not None)
    return tuple(GpuProcess(int(row[0]), row[1], _number(row[2]), row[3]) for row in found)


def parse_utilization(text: str) -> Dict[int, int]:
    """Return the percent of its card's multiprocessors that each process uses, from the output of UTILIZATION.

    The columns are gpu, pid, type, sm, and more. A process that was not measured (`-`) is left out.
    """
    use: Dict[int, int] = {}
    for line in text.splitlines():
        fields = line.split()
        pid, percent = (_number(fields[1]), _number(fields[3])) if len(fields) > 3 else (None, None)
        if pid is not None and percent is not None:
            use[pid] = max(use.get(pid, 0), percent)
    return use


def _number(text: str) -> Optional[int]:
    return int(text) if re.fullmatch(r"[0-9]{1,12}", text) else None
