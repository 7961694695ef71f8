"""`orch ls`, `orch cat` and `orch open`: files of a run on its host, and in its copy while the host is off."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
from pathlib import Path

import pytest

from tests.integration.conftest import Orch

WRITES = """\
import os
os.makedirs("out/parts")
open("out/eval.json", "w").write('{"accuracy": 0.9}\\n')
open("out/all-bytes.bin", "wb").write(bytes(range(256)) * 40)
open("out/parts/a.txt", "w").write("\\x1b[2J the screen is not cleared\\n")
"""


@pytest.fixture(params=["openssh", "fabric"])
def ended(request: pytest.FixtureRequest, ssh_orch: Orch) -> Orch:
    """Return a project with one run that has ended and was not copied, by each client."""
    ssh_orch.host_table += f'client = "{request.param}"\n'
    (ssh_orch.project / "train.py").write_text(WRITES)
    ssh_orch.table("train", command=["python", "train.py"])
    ssh_orch.run("launch", "train", "--wait")
    return ssh_orch


def on_terminal(orch: Orch, *arguments: str) -> tuple[int, bytes]:
    """Return the exit code and what a terminal gets on stdout."""
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(ours, 1 << 16):
                shown.extend(data)
        except OSError:  # the other side was closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    done = orch.start(*arguments, stdout=theirs, stderr=theirs)
    code = done.wait(60)
    os.close(theirs)
    reader.join()
    os.close(ours)
    return code, bytes(shown)


def test_files_are_listed_and_printed_before_they_were_copied(ended: Orch) -> None:
    orch = ended
    assert orch.box is not None
    listed = orch.json("ls", "train", "out")
    assert (listed["kind"], listed["directory"], listed["error"]) == ("ls", "work/out/", None)
    assert [(entry["path"], entry["bytes"], entry["here"]) for entry in listed["entries"]] == [
        ("work/out/all-bytes.bin", 10240, False),
        ("work/out/eval.json", 18, False),
        ("work/out/parts/", 31, False),
    ]

    done = subprocess.run(
        orch.command("cat", "train", "out/all-bytes.bin"), cwd=orch.project, capture_output=True, check=True
    )
    assert done.stdout == bytes(range(256)) * 40
    assert orch.json("cat", "train", "work/out/eval.json")["text"] == '{"accuracy": 0.9}\n'
    error = orch.json("cat", "train", "out/parts/a.txt", "--limit", "30B", code=4)["error"]
    assert "31 B" in error["message"] and "--only /out/parts/a.txt" in error["hint"]

    here = {entry["path"] for entry in orch.json("ls", "train", "-R")["entries"] if entry["here"]}
    assert {"work/out/all-bytes.bin", "work/out/eval.json"} <= here and "work/out/parts/a.txt" not in here
    orch.run("disconnect")
    orch.box.stop()
    offline = orch.run("ls", "train", "out")
    assert "eval.json" in offline.stdout and "parts" not in offline.stdout and "gpu1" in offline.stderr
    assert orch.run("cat", "train", "out/eval.json").stdout == '{"accuracy": 0.9}\n'
    assert orch.json("cat", "train", "out/parts/a.txt", code=3)["error"]["code"] == "unreachable"


def test_terminal_gets_safe_text_and_no_binary(ended: Orch) -> None:
    ended.run("sync")
    assert on_terminal(ended, "cat", "train", "out/parts/a.txt") == (0, b"\\x1b[2J the screen is not cleared\r\n")
    code, shown = on_terminal(ended, "cat", "train", "out/all-bytes.bin")
    assert code == 4 and b"is not text" in shown and b"> FILE" in shown


def test_path_that_is_no_file_of_the_run_is_a_usage_error(ended: Orch) -> None:
    ended.run("sync")
    secret = ended.project / "secret.txt"
    secret.write_text("secret")
    copy = Path(ended.mirror("train").root.resolve())
    (copy / "link").symlink_to(ended.project)
    for path in ("../../../secret.txt", str(secret), "link/secret.txt", "out"):
        assert ended.run("cat", "train", path, code=2).stdout == ""
    error = ended.json("cat", "train", "work/out/eval.jsn", code=2)["error"]
    assert "'work/out/eval.json'" in error["hint"]
    assert "nothing" in ended.json("ls", "train", "nothing", code=2)["error"]["message"]


def test_copy_is_opened_if_there_is_a_display(ended: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    ended.run("sync")
    copy = ended.mirror("train").root.resolve()
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "xdg-open").write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/opened\n')
    (programs / "xdg-open").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    assert ended.run("open", "train").stdout == f"{copy}\n" and not (tmp_path / "opened").exists()
    monkeypatch.setenv("DISPLAY", ":9")
    assert ended.json("open", "train")["shown"]
    assert (tmp_path / "opened").read_text() == f"{copy}\n"
