"""What benchmarks share: where figures go, and for those of a launch a project of 300 files and a sshd as its box."""

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

FILES = 300  # of the project, jobs.toml and job.py among them


@dataclass(frozen=True)
class Laptop:
    """Whoever types `orch` in `project`; `box` is a host of that name in the ssh config of `env`'s HOME."""

    project: Path
    env: Mapping[str, str]
    box: SshdBox

    def orch(self, *arguments: str) -> bytes:
        """What it prints. CalledProcessError where it fails."""
        program = shutil.which("orch", path=str(Path(sys.executable).parent))
        assert program, "orch is not installed beside this python"
        return self.run([program, *arguments])

    def run(self, command: list[str]) -> bytes:
        return subprocess.run(command, cwd=self.project, env=self.env, check=True, capture_output=True).stdout


@contextmanager
def laptop(folder: Path, spec: str, job: str) -> Iterator[Laptop]:
    """`spec` is its jobs.toml, `job` its job.py. Nothing that was started below `folder` is left afterwards."""
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
    """To build/NAME.json, with the machine that they are of where they do not say it."""
    target = ROOT / "build" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"machine": platform.platform(), **figures}, indent=2) + "\n")
