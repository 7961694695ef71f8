"""Remember which rehearsals passed, so that they need not be repeated.

A rehearsal is identified by the laptop's key (the hash of job, code and host) and the environment of the box.

    passed/<key>.json       {"environment": ...}: the hash of the environment in which it passed
    rehearsals/<job>/       the run directories of rehearsals; the last one of each job is kept
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
from typing import List, Mapping, Optional, Sequence

from remote.contract.files import displace, read_json, to_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.records import read_record, write_record
from remote.contract.run_record import RunRecord
from remote.contract.run_report import Forecast, read_forecast
from remote.contract.schema import Malformed
from remote.host.run_state import has_ended, has_succeeded

KEY = re.compile(r"[0-9a-f]{64}")
LEFTOVER_GRACE = 1.0  # seconds for processes that a rehearsal left behind
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class _Passed:
    """The content of passed/<key>.json."""

    environment: str
    time: Optional[float] = None


def environment(python: str) -> str:
    """Return a hash of what a rehearsal depends on besides code and job: interpreter, packages, GPU driver, kernel.

    Packages are represented by the mtime of their directory, which changes when one is installed or removed.
    """
    found = shutil.which(os.path.expanduser(python)) or python
    real = Path(os.path.realpath(found))
    # The virtual environment, and the installation that it was made from.
    homes = {Path(found).parent.parent, real.parent.parent}
    packages = [path for home in homes for path in home.glob("lib/python3*/*-packages")]
    stamps = sorted([str(path), _mtime(path)] for path in [real, *packages])
    driver = DRIVER.read_text() if DRIVER.exists() else ""
    return sha256(to_json({"stamps": stamps, "driver": driver, "kernel": os.uname().release})).hexdigest()


def remember(paths: ProjectPaths, key: str, on: str) -> None:
    """Record that the rehearsal `key` passed in the environment `on`. Raise AgentError if `key` is malformed."""
    if not KEY.fullmatch(key):
        raise AgentError("bad_request", f"{key!r} is not a key of a rehearsal")
    paths.passed.mkdir(mode=0o700, parents=True, exist_ok=True)
    displace(paths.passed / f"{key}.json")
    write_record(paths.passed / f"{key}.json", _Passed(on, time.time()))


def missing(paths: ProjectPaths, rehearsed: Mapping[str, str], on: str) -> List[str]:
    """Return the jobs whose rehearsal has not passed in this environment.

    Args:
        paths: The project.
        rehearsed: The keys of the rehearsals, by job.
        on: The environment of the box.
    """
    return [job for job, key in rehearsed.items() if not (KEY.fullmatch(key) and _has_passed(paths, key, on))]


def forecast(paths: ProjectPaths, job: str, key: Optional[str]) -> Optional[Forecast]:
    """Return the measurements of the last rehearsal of `job`, if it has this `key` and succeeded; else None."""
    for run in paths.rehearsing().all_runs() if key else ():
        if run.job == job and _rehearsal_key(run) == key and has_succeeded(run):
            return read_forecast(read_json(run.forecast))
    return None


def _rehearsal_key(run: RunPaths) -> Optional[str]:
    try:
        return RunRecord.read(read_json(run.run)).job.rehearsal_key
    except Malformed:
        return None


def remove_ended(paths: ProjectPaths, jobs: Sequence[str]) -> None:
    """Remove the ended rehearsals of `jobs`. End the processes that they left behind."""
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
