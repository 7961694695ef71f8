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
from hashlib import sha256
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from remote.contract.files import displace, read_json, to_json, write_json
from remote.contract.paths import ProjectPaths
from remote.contract.protocol import AgentError
from remote.host.run_state import has_ended, has_succeeded

KEY = re.compile(r"[0-9a-f]{64}")
LEFTOVER_GRACE = 1.0  # seconds
DRIVER = Path("/proc/driver/nvidia/version")


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
        raise AgentError("bad_request", f"{key!r} is no key of a rehearsal")
    paths.passed.mkdir(mode=0o700, parents=True, exist_ok=True)
    displace(paths.passed / f"{key}.json")
    write_json(paths.passed / f"{key}.json", {"environment": on, "time": time.time()})


def missing(paths: ProjectPaths, rehearsed: Mapping[str, str], on: str) -> List[str]:
    """The jobs among `rehearsed` (job -> key) that have not passed on a box like this."""
    return [
        job
        for job, key in rehearsed.items()
        if not (isinstance(key, str) and KEY.fullmatch(key) and _has_passed(paths, key, on))
    ]


def forecast(paths: ProjectPaths, job: Mapping[str, Any], key: Any) -> Optional[Dict[str, Any]]:
    """What the job's last rehearsal measured, if it was the one of `key` and succeeded."""
    for run in paths.rehearsing().all_runs() if isinstance(key, str) else ():
        record = read_json(run.run) or {}
        if run.job == job["name"] and _object(record.get("job")).get("rehearsal_key") == key and has_succeeded(run):
            return read_json(run.forecast)
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
    return (read_json(paths.passed / f"{key}.json") or {}).get("environment") == on


def _object(value: Any) -> Dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
