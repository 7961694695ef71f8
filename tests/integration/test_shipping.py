"""Not uploaded: unusually large code without confirmation, and files that look like secrets."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from orchestrator.code.snapshot import CodeSnapshot
from orchestrator.commands.shipping import LARGE_FILE, describe_large
from orchestrator.spec.models import ProjectSettings
from tests.integration.conftest import Orch
from tests.support import wait_until


def snapshot(**sizes: int) -> CodeSnapshot:
    return CodeSnapshot(Path("/here"), tuple(sizes), "0" * 64, (), None, sum(sizes.values()), sizes)


def test_large_files_are_described() -> None:
    settings = ProjectSettings(name="x", include=("a",), max_size=300_000_000, max_files=3)
    assert describe_large(snapshot(b=LARGE_FILE), settings) == ""
    assert describe_large(snapshot(a=2 * LARGE_FILE), settings) == ""
    assert "the largest b (100 MB)" in describe_large(snapshot(a=LARGE_FILE, b=LARGE_FILE + 1), settings)
    assert "400 MB in 1 files" in describe_large(snapshot(a=4 * LARGE_FILE), settings)
    assert "in 4 files" in describe_large(snapshot(a=1, b=1, c=1, d=1), settings)
    assert "and 2 more" in describe_large(snapshot(**dict.fromkeys("bcdef", LARGE_FILE + 1)), settings)
    assert "\\x1b" in describe_large(snapshot(**{"\x1b]": LARGE_FILE + 1}), settings)


@pytest.fixture
def large(local_orch: Orch) -> Orch:
    local_orch.table("nothing", command=["true"])
    with (local_orch.project / "big.bin").open("wb") as file:
        file.truncate(LARGE_FILE + 1)
    return local_orch


def test_large_file_is_not_sent_without_confirmation(large: Orch) -> None:
    for command in (["sync", "--code"], ["launch", "nothing"], ["check", "nothing"]):
        done = subprocess.run(
            large.command(*command),
            cwd=large.project,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 4, done.stderr
        assert "big.bin (100 MB)" in done.stderr
        assert "--yes" in done.stderr
    assert not [path for path in (large.root / "test" / "code").iterdir() if len(path.name) == 64]
    large.run("sync", "--code", "--yes")
    large.run("sync", "--code")  # the box has it already
    large.launch("nothing")


def test_large_file_listed_in_include_is_sent(large: Orch) -> None:
    text = (large.project / "jobs.toml").read_text()
    (large.project / "jobs.toml").write_text(text.replace('name = "test"', 'name = "test"\ninclude = ["big.bin"]'))
    large.run("sync", "--code")


def test_many_files_need_confirmation(large: Orch) -> None:
    (large.project / "big.bin").unlink()
    text = (large.project / "jobs.toml").read_text()
    (large.project / "jobs.toml").write_text(text.replace('name = "test"', 'name = "test"\nmax_files = 2'))
    assert "files" in large.json("sync", "--code", code=4)["error"]["message"]
    (large.project / "jobs.toml").write_text(text.replace('name = "test"', 'name = "test"\nmax_size = "1 kB"'))
    large.run("sync", "--code", code=4)


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 4), (b"\n", 4), (b"\x04", 4)])
def test_user_at_a_terminal_is_prompted(large: Orch, answer: bytes, code: int) -> None:
    ours, theirs = pty.openpty()
    try:
        process = large.start("sync", "--code", stdin=theirs, stderr=theirs)
        seen = b""

        def asked() -> bool:
            nonlocal seen
            seen += os.read(ours, 4096)
            return b"Send it?" in seen

        wait_until(asked, 60, "the question")
        assert b"big.bin" in seen
        os.write(ours, answer)
        assert process.wait(60) == code
    finally:
        os.close(ours)
        os.close(theirs)


def test_failed_rehearsal_names_the_missing_file_that_was_not_sent(local_orch: Orch) -> None:
    local_orch.table("reader", command=["python", "-c", "open('prod.env')"], rehearse=True)
    (local_orch.project / "prod.env").write_text("A=1\n")
    done = local_orch.run("launch", "reader", code=4)
    assert "No such file or directory: 'prod.env'" in done.stderr
    assert "hint: not sent: prod.env; to send it anyway, list it in [project] include" in done.stderr
    text = (local_orch.project / "jobs.toml").read_text()
    (local_orch.project / "jobs.toml").write_text(text.replace('name = "test"', 'name = "test"\ninclude = ["*.env"]'))
    local_orch.launch("reader")
