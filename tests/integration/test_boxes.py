"""Boxes as they are: limits of the SSH server, login shells, start-up files, read-only home directories."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.integration.conftest import Orch
from tests.support import SshdBox, sizes


@pytest.fixture(params=["openssh", "fabric"])
def box(request: pytest.FixtureRequest, sshd_box: SshdBox) -> SshdBox:
    """Reach the box with each client."""
    sshd_box.client = request.param
    return sshd_box


@pytest.fixture
def orch(box: SshdBox, ssh_orch: Orch) -> Orch:
    ssh_orch.host_table += f'client = "{box.client}"\n'
    return ssh_orch


def program(path: Path, text: str) -> None:
    """Write a shell script that can be run."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


# --- limits of the SSH server ---------------------------------------------------------------------------------


def test_server_with_one_session_per_connection_serves_every_command(box: SshdBox, orch: Orch) -> None:
    box.options["MaxSessions"] = 1
    box.restart()
    orch.job("b", "end")
    orch.launch("b")
    tail = orch.start("tail", "b")
    try:
        assert orch.states() == {"b": "running"}
        orch.open("end")
        assert tail.wait(30) == 0
    finally:
        tail.kill()
        tail.wait()
    orch.run("sync")
    assert orch.mirror("b").log.read_text() == "b: end\n"


def test_request_during_a_stream_needs_no_second_session(box: SshdBox) -> None:
    box.options["MaxSessions"] = 1
    box.restart()
    folder = box.home / "there"
    folder.mkdir()
    (folder / "log").write_text("x")
    transport = box.transport()
    stream = transport._session.start("echo first; sleep 60", b"", 30)
    try:
        assert stream.stdout.readline() == b"first\n"
        other = transport._session.start("echo second", b"", 30)
        assert other.stdout.read() == b"second\n"
        other.close()
        transport.pull(str(folder), box.folder / "here", {"log": 1})
    finally:
        stream.close()
    assert sizes(box.folder / "here") == {"log": 1}


# --- code that cannot be linked ---------------------------------------------------------------------------------


def test_code_is_sent_without_links_where_linking_fails(ssh_orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with protected hard links, or a mount over the older snapshot."""
    ssh_orch.host_table += 'client = "openssh"\n'
    refuse = 'echo "rsync: link failed: Operation not permitted (1)" >&2; exit 23'
    folder = ssh_orch.project.parent / "here"
    program(folder / "rsync", f'case "$*" in *--link-dest*) {refuse};; esac\nexec {shutil.which("rsync")} "$@"')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    ssh_orch.job("b", "value")
    ssh_orch.run("launch", "b", "--wait")
    (ssh_orch.project / "value.py").write_text("VALUE = 'new'\n")

    done = ssh_orch.run("launch", "b", "--wait")

    assert "Operation not permitted (1); sending all files, without links" in done.stderr
    assert "value is new" in ssh_orch.on_box("b").log.read_text()
