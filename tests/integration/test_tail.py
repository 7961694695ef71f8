"""`orch tail` of programs that draw progress bars: on a terminal, into a pipe, and what the box sends."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from pathlib import Path

from tests.integration.conftest import Orch

BARS = """
import sys
print("loading \\x1b[2J data", flush=True)
for epoch in range(3):
    for step in range(2000):
        sys.stdout.write(f"\\repoch {epoch}: {step:6d}/2000 |" + "#" * 100 + "|")
    print(f"\\nloss {epoch}.5", flush=True)
sys.stdout.write("\\router 0")
for step in range(2000):
    sys.stdout.write(f"\\n\\rinner {step:4d}\\x1b[A\\router {step // 1000}")
print("\\n\\nsaved")
"""


def finished(orch: Orch) -> bytes:
    """Run BARS to its end; return its log."""
    (orch.project / "bars.py").write_text(BARS)
    orch.table("train", command=["python", "bars.py"])
    orch.run("launch", "train", "--wait")
    return orch.on_box("train").log.read_bytes()


def on_terminal(orch: Orch, *arguments: str) -> str:
    """Return what the command writes to a terminal of 30 rows and 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    client = subprocess.Popen(
        orch.command(*arguments), cwd=orch.project, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.DEVNULL
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 1 << 16):
            said += piece
    except OSError:
        pass  # the other end was closed
    os.close(ours)
    assert client.wait(60) == 0
    return said.decode()


def settled(data: bytes) -> list[str]:
    return [line for line in data.decode().splitlines() if not line.startswith("train ")]


def test_bars_are_folded_and_the_synced_log_has_every_byte(ssh_orch: Orch) -> None:
    log = finished(ssh_orch)
    assert len(log) > 750_000

    last = subprocess.run(ssh_orch.command("tail", "train", "-n", "4"), cwd=ssh_orch.project, capture_output=True)
    assert settled(last.stdout)[:4] == ["loss 2.5", "outer 1", "inner 1999", "saved"]

    ssh_orch.run("sync", "train")
    assert ssh_orch.mirror("train").log.read_bytes() == log


def test_terminal_shows_one_line_for_each_bar(local_orch: Orch) -> None:
    finished(local_orch)
    said = on_terminal(local_orch, "tail", "train", "--from", "0", "--no-follow")
    assert len(said) < 20_000
    assert "loading \\x1b[2J data" in said  # what else moves the cursor is shown, not done
    assert "\x1b[2J" not in said
    for epoch in range(3):
        bar = f"epoch {epoch}:   1999/2000 |" + "#" * 100 + "|"
        assert said.count(bar) == 1  # it has settled, and is complete
    assert said.count("outer 1\r\ninner 1999") >= 1 and said.endswith("saved\r\n")
    assert said.count("\r\nouter") < 10  # the same two rows are redrawn


def test_pipe_gets_the_lines_that_have_settled(local_orch: Orch, tmp_path: Path) -> None:
    finished(local_orch)
    said = local_orch.run("tail", "train", "-n", "100").stdout.splitlines()
    assert said[:8] == [
        "loading \x1b[2J data",
        *(
            line
            for epoch in range(3)
            for line in (f"epoch {epoch}:   1999/2000 |" + "#" * 100 + "|", f"loss {epoch}.5")
        ),
        "outer 1",
    ]
    assert said[8:10] == ["inner 1999", "saved"]
    documents = local_orch.run("tail", "train", "-n", "1", "--json").stdout
    assert "saved" in documents and len(documents) < 5000
