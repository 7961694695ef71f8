"""Events of the kernel: the end of a process, changes in a directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from remote.host import kernel_events
from remote.host.process import identity

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(os, "pidfd_open"), reason="this machine has no pidfd or no inotify"
)


def test_end_of_a_process_is_an_event() -> None:
    process = subprocess.Popen(["sleep", "600"])
    descriptor = kernel_events.open_process(process.pid, identity(process.pid))
    try:
        assert kernel_events.wait((descriptor, -1), 0) == set()
        process.kill()
        assert kernel_events.wait((descriptor, -1), 60) == {descriptor}
    finally:
        process.kill()
        process.wait()
        os.close(descriptor)


def test_ended_or_other_process_has_no_descriptor() -> None:
    assert kernel_events.open_process(os.getpid(), "of an earlier process") == -1
    assert kernel_events.open_process(0, "") == -1
    assert kernel_events.open_process(2**22 + 1, "1") == -1


@pytest.mark.parametrize("change", ["append", "replace", "create"])
def test_change_in_a_directory_is_an_event_once(tmp_path: Path, change: str) -> None:
    (tmp_path / "log").touch()
    (tmp_path.parent / "other").write_text("new")
    descriptor = kernel_events.open_directory(tmp_path)
    try:
        assert kernel_events.wait((descriptor,), 0) == set()
        if change == "append":
            with (tmp_path / "log").open("a") as log:
                log.write("a line")
        elif change == "replace":
            (tmp_path.parent / "other").replace(tmp_path / "log")
        else:
            (tmp_path / "new").touch()
        assert kernel_events.wait((descriptor,), 60) == {descriptor}
        kernel_events.drain(descriptor)
        assert kernel_events.wait((descriptor,), 0) == set()
        (tmp_path / "log").read_text()  # reading is no change
        assert kernel_events.wait((descriptor,), 0) == set()
    finally:
        os.close(descriptor)


def test_missing_directory_has_no_descriptor(tmp_path: Path) -> None:
    assert kernel_events.open_directory(tmp_path / "gone") == -1
