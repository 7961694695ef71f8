"""Fixtures for every test: a clean environment, boxes to connect to, and cleanup of processes."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import SSHD, LocalBox, SshdBox, clean_environment, end_leftovers

# No test asserts a wall time. A change is judged on the same examples every time; everybody else's runs search on.
hypothesis.settings.register_profile("any_machine", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("any_machine")
# Trainings of several tests at once share the cores, and threads that wait for a core spin meanwhile.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell without job control starts what it puts into the background deaf to Ctrl-C, and all its children with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell the fixtures of a test whether it failed: what it leaves is kept then."""
    report = yield
    item.stash[failed] = item.stash.get(failed, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def home(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """Give the test an empty HOME; end every process that still names it afterwards."""
    folder = tmp_path_factory.mktemp("home")
    for name, value in clean_environment(os.environ, folder).items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    yield folder
    end_leftovers([tmp_path, folder])
    if not request.node.stash.get(failed, False):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def local_box(tmp_path: Path, home: Path) -> LocalBox:
    project = tmp_path / "project"
    project.mkdir()
    return LocalBox(project, home)


@pytest.fixture
def sshd_box(tmp_path: Path) -> Iterator[SshdBox]:
    """Start a box behind a real sshd; stop it after the test."""
    if SSHD is None:
        if os.environ.get("CI"):
            pytest.fail("sshd is not installed, and in CI it has to be: apt install openssh-server")
        pytest.skip("sshd is not installed: apt install openssh-server")
    folder = tmp_path / "sshd"
    folder.mkdir()
    box = SshdBox(folder)
    box.start()
    try:
        yield box
    finally:
        box.close()
