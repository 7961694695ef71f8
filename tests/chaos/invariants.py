"""Compare what a pair of runs left behind with the journals of the workers and the injected faults."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote.contract.files import read_json, read_jsonl
from remote.contract.locks import is_held
from remote.contract.logs import LogReader
from remote.contract.paths import RunPaths
from tests.chaos.box import wait_gone
from tests.chaos.pair import COLUMNS, HISTORY, JOBS, Pair

LINE = re.compile(rb"chaos (\d+) (\d+) ")
COUNTS = (
    "wrong_verdicts",
    "checkpoints_lost",
    "metrics_lines_lost",
    "metrics_lines_repeated",
    "log_bytes_lost",
    "processes_left",
    "slots_left",
    "weights_differing",
    "working_files_wrong",
)


@dataclass
class Findings:
    """`counts` has the names of COUNTS; `messages` explains each that is not 0."""

    counts: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

    def add(self, name: str, number: int, text: str) -> None:
        assert name in COUNTS, name
        if number:
            self.counts[name] += number
            self.messages.append(f"{name} {number}: {text}")


def examine(pair: Pair, damaged: set[str]) -> Findings:
    """Check everything but the verdicts, which depend on the faults; the runs must be over and synced."""
    found = Findings()
    for job in JOBS:
        journal, mirror = pair.done(job), pair.mirror(job)
        _log(found, job, journal, mirror)
        _metrics(found, job, journal, mirror)
        _checkpoints(found, job, journal, mirror, damaged)
        _working_files(found, job, journal, mirror)
        if len(pair.runs(job)) != 1:
            found.add("wrong_verdicts", 1, f"{job} has {len(pair.runs(job))} runs: it was launched twice")
    left = wait_gone([pair.root])
    found.add("processes_left", len(left), ", ".join(_command(pid) for pid in left))
    held = [path.name for path in sorted((pair.root / "slots").glob("*.lock")) if is_held(path)]
    found.add("slots_left", len(held), ", ".join(held))
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return f"{pid} (ended)"


def log_lines(run: RunPaths) -> Iterator[bytes]:
    """Yield every line of the log, compressed parts first."""
    reader, offset, rest = LogReader(run), 0, b""
    try:
        while True:
            start, data = reader.read(offset, 1 << 20)
            if not data:
                break
            offset = start + len(data)
            *lines, rest = (rest + data).split(b"\n")
            yield from (line + b"\n" for line in lines)
    finally:
        reader.close()
    if rest:
        yield rest


def _log(found: Findings, job: str, journal: list[dict[str, Any]], mirror: RunPaths) -> None:
    """Check that each printed line is in the mirror once and unchanged, and that the flood is complete."""
    lines: Counter[tuple[int, int]] = Counter()
    sums: dict[tuple[int, int], int] = {}
    flood, floods = None, []
    for line in log_lines(mirror):
        match = LINE.match(line)
        if match:
            key = int(match[1]), int(match[2])
            lines[key] += 1
            sums[key] = zlib.crc32(line)
        elif line == b"flood begins\n":
            flood = hashlib.sha256()
        elif line == b"flood ends\n" and flood is not None:
            floods.append(flood.hexdigest())
            flood = None
        elif flood is not None and line.startswith((b"flood", b"x")):
            flood.update(line)
    for record in journal:
        key = record["attempt"], record.get("line", 0)
        if "line" in record and (lines[key] != 1 or sums[key] != record["crc"]):
            found.add("log_bytes_lost", record["size"], f"{job}: line {key} found {lines[key]} times, or it differs")
        if "flood" in record and record["sha256"] not in floods:
            found.add("log_bytes_lost", record["flood"], f"{job}: the flood is incomplete")
    repeated = [key for key, times in lines.items() if times > 1]
    found.add("log_bytes_lost", len(repeated), f"{job}: repeated lines: {repeated[:5]}")


def _metrics(found: Findings, job: str, journal: list[dict[str, Any]], mirror: RunPaths) -> None:
    there = Counter((line.get("epoch"), line.get("step")) for line in read_jsonl(mirror.metrics))
    wrote = {tuple(record["metrics"]) for record in journal if "metrics" in record}
    lost = sorted(wrote - set(there))
    found.add("metrics_lines_lost", len(lost), f"{job}: {lost[:5]}")
    repeated = [key for key, times in there.items() if times > 1]
    found.add("metrics_lines_repeated", len(repeated), f"{job}: {repeated[:5]}")


def _checkpoints(found: Findings, job: str, journal: list[dict[str, Any]], mirror: RunPaths, damaged: set[str]) -> None:
    """Check that each attempt resumed from the newest checkpoint, and that the last one is synced."""
    newest: dict[str, Any] | None = None
    digests: dict[int, str] = {}
    for record in journal:
        if "checkpoint" in record:
            newest = record
            epoch, weights = record["whole_epoch"], record["weights"]
            if epoch is not None and digests.setdefault(epoch, weights) != weights:
                found.add("weights_differing", 1, f"{job}: epoch {epoch} in attempt {record['attempt']}")
        written = newest["checkpoint"] if newest else 0
        if "resumed" in record and record["resumed"] < written and job not in damaged:
            lost = written - record["resumed"]
            found.add(
                "checkpoints_lost",
                lost,
                f"{job}: {written} was written, attempt {record['attempt']} resumed from {record['resumed']}",
            )
    if newest:
        path = mirror.checkpoint(newest["checkpoint"])
        same = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == newest["sha256"]
        found.add("checkpoints_lost", int(not same), f"{job}: {path.name} is missing or differs on the laptop")


def _working_files(found: Findings, job: str, journal: list[dict[str, Any]], mirror: RunPaths) -> None:
    """Check that a run found its own files in its working directory, all of them, and that they are on the laptop."""
    owner = f"runs/{job}/{mirror.run_id}"
    written: list[tuple[int, int]] = []  # attempt, epoch
    for record in journal:
        if "found" in record:
            _as_written(
                found, f"{job}, attempt {record['attempt']}", owner, written, record["found"], record["history"]
            )
        elif "working_files" in record:
            written.append((record["attempt"], record["working_files"]))
    model, history = mirror.work / "model.txt", mirror.work / HISTORY
    text = model.read_text() if model.is_file() else ""
    lines = history.read_text().splitlines() if history.is_file() else [COLUMNS] * (not written)
    _as_written(found, f"{job}, on the laptop", owner, written, text, lines)


def _as_written(
    found: Findings, where: str, owner: str, written: list[tuple[int, int]], model: str, history: list[str]
) -> None:
    """Compare the two files with what was written so far. A kill may have left one more than the journal says."""
    writer, _, epoch = model.partition(" ")
    newest = written[-1][1] if written else 0
    wrong = writer != owner if model else bool(written)
    found.add("working_files_wrong", int(wrong), f"{where}: model.txt is {model!r}, not of {owner}")
    lost = max(0, newest - int(epoch)) if model and not wrong else 0
    found.add("working_files_wrong", lost, f"{where}: model.txt is of epoch {epoch}, {newest} was written")
    missing = [pair for pair in written if f"{owner},{pair[0]},{pair[1]}" not in history]
    found.add("working_files_wrong", len(missing), f"{where}: {HISTORY} lacks {missing[:5]}")
    others = [line for line in history[1:] if not line.startswith(f"{owner},")]
    others += history[:1] if history[:1] != [COLUMNS] else []
    found.add("working_files_wrong", len(others), f"{where}: {HISTORY} has {others[:5]}")


def same_weights(found: Findings, journals: list[list[dict[str, Any]]]) -> None:
    """Check that an epoch has the same weights in all workers: the seed is the same, so faults make no difference."""
    digests: dict[int, Counter[str]] = {}
    for journal in journals:
        for record in journal:
            if record.get("whole_epoch") is not None:
                digests.setdefault(record["whole_epoch"], Counter())[record["weights"]] += 1
    differing = {epoch: len(seen) for epoch, seen in digests.items() if len(seen) > 1}
    found.add(
        "weights_differing", len(differing), f"epochs with more than one result: {dict(list(differing.items())[:5])}"
    )


def shown_state(pair: Pair, job: str) -> tuple[str, str]:
    """Return state and reason from the laptop's copy."""
    state = read_json(pair.mirror(job).state) or {}
    return str(state.get("state")), str(state.get("reason") or "")
