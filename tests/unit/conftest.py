"""A project on a box, a worker under a real shim as the run's supervisor has it, and an nvidia-smi."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from remote.contract.paths import ProjectPaths, RunPaths
from remote.host import launchers
from remote.host.process import signal_group
from remote.supervisor.attempt import Attempt
from tests.remote_runs import entry_script, new_run
from tests.support import wait_until

Start = Callable[..., Attempt]
Driver = Callable[[str], None]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """An `nvidia-smi` that does what the shell text says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def install(text: str) -> None:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
        (folder / "nvidia-smi").chmod(0o755)

    return install


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    return ProjectPaths(tmp_path / "box", "persistence")


@pytest.fixture
def box_run(paths: ProjectPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """A run whose shims can be started from here."""
    monkeypatch.setattr(launchers, "ENTRY", str(entry_script(tmp_path)))
    return new_run(paths)


@pytest.fixture
def start(box_run: RunPaths, tmp_path: Path) -> Iterator[Start]:
    """Start a Python program; end what is left of it after the test."""
    workers: list[Attempt] = []

    def begin(
        code: str,
        until: str = "",
        descriptors: tuple[int, ...] = (),
        secrets: Mapping[str, str] | None = None,
        number: int = 1,
        pty: bool = False,
    ) -> Attempt:
        """Start it and return when the log has a complete line with `until`; the line end comes after the text."""
        argv = [sys.executable, "-S", "-u", "-c", dedent(code)]
        env = {**os.environ, "WHO": "worker"}
        worker = Attempt.start(box_run, number, argv, env, tmp_path, secrets or {}, descriptors=descriptors, pty=pty)
        workers.append(worker)
        said = re.compile(re.escape(until.encode()) + (b".*\n" if until else b""))
        wait_until(lambda: said.search(box_run.log.read_bytes()), what=f"{until!r} in the log")
        return worker

    yield begin
    for worker in workers:
        signal_group(worker.pid, signal.SIGKILL)
        worker.end(grace=0)
