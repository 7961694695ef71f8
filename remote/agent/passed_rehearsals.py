"""Rehearsals that passed: remembered by what was rehearsed (the laptop's key) and by what it was rehearsed on.

passed/<key>.json       {"environment": ...}: what the box was like
rehearsals/<job>/       their run directories; the last one of a job is kept
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence

from remote.contract.files import JsonObject, displace, read_json, to_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.records import read_record, write_record
from remote.contract.run_record import RunRecord
from remote.contract.schema import Malformed
from remote.host.run_state import has_ended, has_succeeded

KEY = re.compile(r"[0-9a-f]{64}")
LEFTOVER_GRACE = 1.0  # seconds
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class _Passed:
    """What is in passed/<key>.json."""

    environment: str
    time: Optional[float] = None


def environment(python: str) -> str:
    """What a rehearsal's result depends on beside code and job: the interpreter, its packages, driver, kernel.

    A directory's mtime changes with every package that is installed or removed.
    """
    found = shutil.which(os.path.expanduser(python)) or python
    real = Path(os.path.realpath(found))
    homes = {Path(found).parent.parent, real.parent.parent}  # of a virtual environment, and of what it was made from
    packages = [path for home in homes for path in home.glob("lib/python3*/*-packages")]
    stamps = sorted([str(path), _mtime(path)] for path in [real, *packages])
    driver = DRIVER.read_text() if DRIVER.exists() else ""
    return sha256(to_json({"stamps": stamps, "driver": driver, "kernel": os.uname().release})).hexdigest()


def remember(paths: ProjectPaths, key: str, on: str) -> None:
    if not KEY.fullmatch(key):
        raise AgentError("bad_request", f"{key!r} is not a key of a rehearsal")
    paths.passed.mkdir(mode=0o700, parents=True, exist_ok=True)
    displace(paths.passed / f"{key}.json")
    write_record(paths.passed / f"{key}.json", _Passed(on, time.time()))


def missing(paths: ProjectPaths, rehearsed: Mapping[str, str], on: str) -> List[str]:
    """The jobs among `rehearsed` (job -> key) that have not passed on a box like this."""
    return [
        job
        for job, key in rehearsed.items()
        if not (isinstance(key, str) and KEY.fullmatch(key) and _has_passed(paths, key, on))
    ]


def forecast(paths: ProjectPaths, job: str, key: Any) -> Optional[JsonObject]:
    """Return what the last rehearsal of `job` measured, if it was the one of `key` and succeeded."""
    for run in paths.rehearsing().all_runs() if isinstance(key, str) else ():
        if run.job == job and _rehearsal_key(run) == key and has_succeeded(run):
            return read_json(run.forecast)
    return None


def _rehearsal_key(run: RunPaths) -> Optional[str]:
    try:
        return RunRecord.from_json(read_json(run.run)).job.rehearsal_key
    except Malformed:
        return None


def remove_ended(paths: ProjectPaths, jobs: Sequence[str]) -> None:
    """Remove the rehearsals of `jobs` that have ended, and end what is left of their processes."""
    from remote.supervisor.attempt import end_leftovers

    for run in paths.all_runs():
        if run.job in jobs and has_ended(run):
            end_leftovers(run, {}, LEFTOVER_GRACE)
            _remove_tree(run.root)


def _remove_tree(directory: Path) -> None:
    try:
        shutil.rmtree(str(directory), ignore_errors=True)
    except RecursionError:  # directories nested by the thousand
        subprocess.run(["rm", "-rf", "--", str(directory)], stdin=subprocess.DEVNULL, check=False)


def _has_passed(paths: ProjectPaths, key: str, on: str) -> bool:
    passed = read_record(_Passed, paths.passed / f"{key}.json")
    return passed is not None and passed.environment == on


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
