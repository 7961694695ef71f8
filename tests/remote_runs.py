"""Runs on the box's side without a laptop: their directory and the agent's entry script."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from remote.contract.files import write_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Queued, monotonic
from remote.contract.schema import to_json
from remote.host.process import boot_id
from tests.support import ROOT

TREE = "0" * 64
RUN_ID = "20260126T210312-7f3a"
JOB: dict[str, Any] = {
    "name": "worker1",
    "command": ["python", "train.py"],
    "prepare": None,
    "env": {},
    "gpus": 0.0,
    "data": None,
    "expects": [],
    "restarts": 0,
    "stall_after": 60.0,
    "deadline": None,
    "stop_grace": 5.0,
    "needs": [],
    "goals": {},
}


def entry_script(folder: Path) -> Path:
    """Return a program that stands for the agent's zipapp and runs the agent of this checkout."""
    script = folder / "agent.py"
    script.write_text(
        f"import sys\n\nsys.path.insert(0, {str(ROOT)!r})\nfrom remote.agent.main import main\n\nmain()\n"
    )
    return script


def new_run(paths: ProjectPaths, code: str = "", state: Any = None, run_id: str = RUN_ID, **job: Any) -> RunPaths:
    """Make a run of the program `code` as a launch leaves it, before its supervisor starts."""
    program = paths.tree(TREE) / "train.py"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!{sys.executable} -S\n{dedent(code)}\n")
    program.chmod(0o700)
    run = paths.run("worker1", run_id)
    for directory in (run.root, run.checkpoints, run.diagnostics, run.results):
        directory.mkdir(parents=True)
    host = {"name": "box", "python": sys.executable, "launcher": "nohup", "gpus": 0}
    launched = {"monotonic": monotonic(), "boot": boot_id()}
    record = {"run_id": run_id, "project": paths.root.name, "job": {**JOB, **job}, "host": host, "code": {"tree": TREE}}
    write_json(run.run, {**record, "needs": [], **launched})
    write_json(run.state, to_json(state or Queued(1.0, "its supervisor")))
    run.log.touch()
    return run


@contextmanager
def nested(folder: Path, name: str, times: int) -> Iterator[None]:
    """Nest `times` directories of that name in `folder`, with a file in the innermost; remove them afterwards.

    They are too deep for `os.makedirs` and for pytest's cleanup.
    """
    here = Path.cwd()
    try:
        os.chdir(folder)
        for _ in range(times):
            os.mkdir(name)
            os.chdir(name)
        Path("file").write_text("x")
        os.chdir(here)
        yield
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", "--", str(folder / name)], check=True, timeout=60)


# --- a separate machine -------------------------------------------------------------------------------


def in_private_mounts(mounts: str, code: str, *args: object) -> None:
    """Run the Python `code` with `args` in a mount namespace prepared by the shell text `mounts`."""
    unshare = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a mount namespace cannot be created here: {error}")
    shell = f'set -e\n{mounts}\nexec "$@"'
    python = [sys.executable, "-S", "-c", f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{dedent(code)}"]
    argv = [*unshare, "sh", "-c", shell, "sh", *python, *map(str, args)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
