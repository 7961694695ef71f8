"""Shared by the benchmarks: where figures go, and a project of 300 files with an sshd as its box."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import ROOT, SshdBox, clean_environment, end_leftovers

FILES = 300  # number of files in the project, including jobs.toml and job.py


@dataclass(frozen=True)
class Laptop:
    """A user of `orch` in `project`; the ssh config in the HOME of `env` has the host `box`."""

    project: Path
    env: Mapping[str, str]
    box: SshdBox

    def orch(self, *arguments: str) -> bytes:
        """Run `orch` and return its output; raise CalledProcessError if it fails."""
        program = shutil.which("orch", path=str(Path(sys.executable).parent))
        assert program, "orch is not installed next to this python"
        return self.run([program, *arguments])

    def run(self, command: list[str]) -> bytes:
        return subprocess.run(command, cwd=self.project, env=self.env, check=True, capture_output=True).stdout


@contextmanager
def laptop(folder: Path, spec: str, job: str) -> Iterator[Laptop]:
    """Yield a laptop with `spec` as jobs.toml and `job` as job.py; end everything started below `folder`."""
    project, home = folder / "project", folder / "home"
    for made in (project, home / ".ssh", folder / "sshd"):
        made.mkdir(mode=0o700, parents=True)
    (project / "job.py").write_text(job)
    (project / "jobs.toml").write_text(spec)
    for number in range(FILES - 2):
        (project / f"module_{number:03d}.py").write_text(f"VALUE = {number}\n" * 100)
    box = SshdBox(folder / "sshd")
    shutil.copy(box.config, home / ".ssh" / "config")
    env = {name: value for name, value in clean_environment({}, home).items() if value is not None}
    env["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    box.start()
    try:
        yield Laptop(project, env, box)
    finally:
        box.close()
        end_leftovers([folder])


def write_figures(name: str, figures: Mapping[str, Any]) -> None:
    """Write build/NAME.json; add the machine if the figures do not name it."""
    target = ROOT / "build" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"machine": platform.platform(), **figures}, indent=2) + "\n")
