"""Data from a box is untrusted: hostile names, links, sizes and bytes against the real `orch`.

Unknown, changed and revoked host keys are in test_ssh.py, replies in contract/test_untrusted.py.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ui.terminal import ERASE_BELOW
from remote.contract.files import read_jsonl
from remote.contract.logs import CHUNK
from remote.contract.paths import RunPaths
from tests.integration.conftest import Orch
from tests.support import wait_until

GIGABYTE = 1 << 30
ENOUGH = 300 << 20  # bytes; every command must need less memory
TIMEOUT = 60.0  # seconds; most commands take less than one
RUN_ID = "20260126T210312-7f3a"


@dataclass(frozen=True)
class Done:
    code: int
    output: bytes  # stdout and stderr
    memory: int  # peak memory of one of its processes in bytes


# Starts the command and records what it used, in a separate process: until it calls exec, a child counts
# with the memory of its parent, and this process may have loaded torch.
MEASURE = """\
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


def measured(orch: Orch, tmp_path: Path, *arguments: str, timeout: float = TIMEOUT) -> Done:
    """Run a command in at most `timeout` seconds; return what it used."""
    output, needed = tmp_path / "output", tmp_path / "needed"
    command = [sys.executable, "-S", "-c", MEASURE, str(needed), *orch.command(*arguments)]
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=orch.project, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    try:
        code = process.wait(timeout)
    finally:
        process.kill()
    unit = 1 if sys.platform == "darwin" else 1024
    return Done(code, output.read_bytes(), int(needed.read_text()) * unit)


def ended_run(orch: Orch, job: str = "worker1") -> RunPaths:
    """Return a succeeded run of `job`."""
    orch.job(job, "metrics")
    orch.launch(job)
    orch.wait_for(job, "succeeded")
    return orch.on_box(job)


def strict(text: str) -> dict[str, Any]:
    """Parse a JSON document strictly, as other languages do."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    document: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return document


# --- links and names ------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Make a folder with files that must not be read or written through a run."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "private").write_text("private")
    (folder / "model.pt").write_text("old")
    return folder


def test_links_in_the_results_are_skipped_and_reported(ssh_orch: Orch, outside: Path) -> None:
    there = ended_run(ssh_orch)
    (there.results / "file").symlink_to(outside / "private")
    (there.results / "folder").symlink_to(outside)
    (there.results / "kept").write_text("kept")

    synced = ssh_orch.run("sync")

    here = ssh_orch.mirror("worker1").root.resolve()
    assert sorted(path.name for path in (here / "results").iterdir()) == ["kept"]
    assert not [path for path in here.rglob("*") if path.is_symlink() or path.name == "private"]
    for name in ("results/file", "results/folder"):
        assert f"not copied: {name} (" in synced.stderr


def test_folder_that_becomes_a_link_is_not_followed(ssh_orch: Orch, outside: Path) -> None:
    ssh_orch.job("worker1", "metrics", "end")
    ssh_orch.launch("worker1")
    wait_until(lambda: ssh_orch.has_started("worker1"), what="worker1")
    there = ssh_orch.on_box("worker1")
    (there.results / "folder").mkdir()
    (there.results / "folder" / "model.pt").write_text("mine")
    ssh_orch.run("sync")
    (there.results / "folder").rename(there.results / "moved")
    (there.results / "folder").symlink_to(outside)
    ssh_orch.open("end")
    ssh_orch.wait_for("worker1", "succeeded")

    ssh_orch.run("sync")

    here = ssh_orch.mirror("worker1").results
    assert not (here / "folder").is_symlink()
    assert [path.name for path in (here / "folder").iterdir()] == ["model.pt"]
    assert (here / "folder" / "model.pt").read_text() == "mine"
    assert (here / "moved" / "model.pt").read_text() == "mine"


def test_links_in_the_mirror_are_not_followed(ssh_orch: Orch, outside: Path) -> None:
    there = ended_run(ssh_orch)
    for name in ("file/model.pt", "folder/model.pt"):
        (there.results / name).parent.mkdir()
        (there.results / name).write_text("new, and of another length")
    here = ssh_orch.mirror("worker1").root.resolve() / "results"
    (here / "file").mkdir(parents=True)
    (here / "file" / "model.pt").symlink_to(outside / "model.pt")
    (here / "folder").symlink_to(outside)

    ssh_orch.run("sync")

    assert (outside / "model.pt").read_text() == "old"
    assert sorted(path.name for path in outside.iterdir()) == ["model.pt", "private"]
    for name in ("file/model.pt", "folder/model.pt"):
        assert (here / name).read_text() == "new, and of another length"
        assert here.resolve() in (here / name).resolve().parents


ODD_NAMES = [
    b"two\nlines",
    b"\x1b]0;title\x07\x1b[2J",
    b"-rf",
    b"--delete",
    b"no unicode \xff",
    b"\xc2\x9b31m",
    b"$(touch x)`touch y`;'\"",
    b" ",
]


@pytest.mark.parametrize("where", ["local", "ssh"])
def test_odd_file_names_are_synced_unchanged_and_shown_safely(
    where: str, request: pytest.FixtureRequest, outside: Path
) -> None:
    orch: Orch = request.getfixturevalue(f"{where}_orch")
    there = ended_run(orch)
    for name in ODD_NAMES:
        Path(os.fsdecode(os.fsencode(there.results) + b"/" + name)).write_bytes(name)
        Path(os.fsdecode(os.fsencode(there.diagnostics) + b"/" + name)).symlink_to(outside)

    synced = subprocess.run(orch.command("sync"), cwd=orch.project, capture_output=True, timeout=60, check=False)

    assert synced.returncode == 0, synced.stderr
    here = orch.mirror("worker1")
    found = {os.fsencode(path.name): path.read_bytes() for path in here.results.iterdir()}
    assert found == {name: name for name in ODD_NAMES}
    said = (synced.stdout + synced.stderr).decode()
    assert said.count("not copied: evidence/") == len(ODD_NAMES)
    assert [*filter(None, said.split("\n"))] == [line for line in said.split("\n") if line and line.isprintable()]
    shutil.rmtree(orch.project / "results" / ".mirror")  # as on a second laptop
    document = orch.run("sync", "--json").stdout
    assert document.isascii()
    assert len(strict(document)["runs"][0]["left_out"]) == len(ODD_NAMES)


# --- sizes and torn files -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run", "state", "events", "heartbeat", "latest_metrics"])
def test_one_gigabyte_file_takes_little_time_and_memory(local_orch: Orch, tmp_path: Path, name: str) -> None:
    there = ended_run(local_orch)
    path: Path = getattr(there, name)
    with path.open("ab") as file:
        file.truncate(GIGABYTE)  # sparse: takes no disk space

    done = measured(local_orch, tmp_path, "status", "--json")

    assert done.memory < ENOUGH
    assert done.code == 0
    run = strict(done.output.decode())["runs"][0]
    assert run["run_id"] == there.run_id
    assert run["state"] == "succeeded"  # the last event, because state.json does not say it


def test_mirror_with_one_gigabyte_files_can_be_read(ssh_orch: Orch, tmp_path: Path) -> None:
    ended_run(ssh_orch)
    ssh_orch.run("sync")
    for name in ("run", "state", "heartbeat", "latest_metrics"):
        with getattr(ssh_orch.mirror("worker1"), name).open("ab") as file:
            file.truncate(GIGABYTE)
    assert ssh_orch.box is not None
    ssh_orch.box.stop()

    done = measured(ssh_orch, tmp_path, "status")

    assert done.memory < ENOUGH
    assert done.code == 0
    assert b"worker1" in done.output
    assert b"succeeded" in done.output


def test_metrics_with_torn_lines_or_bad_values_are_read_partially(local_orch: Orch) -> None:
    goals = {"val_accuracy": ">= 75 %", "consistency": ">= 70 %"}
    local_orch.job("worker1", "metrics", goals=goals)
    local_orch.launch("worker1")
    local_orch.wait_for("worker1", "succeeded")
    there = local_orch.on_box("worker1")
    lines = b'{"epoch":1,"loss":NaN}\n\xff\x00\n{"epoch":2,"loss":-Infinity,"x":1e999}\n{"epoch":3,"lo'
    there.metrics.write_bytes(lines)
    there.latest_metrics.write_bytes(b'{"epoch":2,"val_accuracy":NaN,"consistency":1e999,"x":[NaN]}')

    run = strict(local_orch.run("status", "--json").stdout)["runs"][0]
    table = local_orch.run("status").stdout
    local_orch.run("sync")

    assert [item["holds"] for item in run["verdict"]] == [False, False]
    assert run["metrics"] == {"epoch": 2, "val_accuracy": None, "consistency": None, "x": [None]}
    assert "0/2" in table
    here = local_orch.mirror("worker1").metrics
    assert here.read_bytes() == lines
    assert [*read_jsonl(here)] == [{"epoch": 1, "loss": None}, {"epoch": 2, "loss": None, "x": None}]


# --- a box with arbitrary answers -----------------------------------------------------------------------

Speak = Callable[[str], Orch]
REPORT = {"job": "worker1", "run_id": RUN_ID, "now": 2.0, "supervised": True, "state": None}


@pytest.fixture
def box_says(ssh_orch: Orch, tmp_path: Path) -> Speak:
    """Make a box whose `python` runs code of the test instead of the agent."""

    def begin(body: str) -> Orch:
        program = tmp_path / "hostile"
        head = f"""\
            #!{os.path.realpath(sys.executable)} -S
            import json, sys
            out = sys.stdout.buffer
            asked = json.loads(sys.stdin.readline())
            def reply(**result):
                out.write(json.dumps({{"schema": 1, "ok": True, "result": result}}).encode() + b"\\n")
                out.flush()
            """
        program.write_text(textwrap.dedent(head) + textwrap.dedent(body))
        program.chmod(0o700)
        ssh_orch.host_table = ssh_orch.host_table.replace(f'python = "{sys.executable}"', f'python = "{program}"')
        assert str(program) in ssh_orch.host_table
        ssh_orch.job("worker1")
        run = ssh_orch.mirror("worker1").root.parent / RUN_ID
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"run_id": RUN_ID, "host": {"name": "gpu1"}}))
        return ssh_orch

    return begin


def listing(tmp_path: Path, files: str) -> str:
    """Make a box with one run whose inventory is `files`, a Python expression."""
    there = tmp_path / "worker1" / RUN_ID
    there.mkdir(parents=True)
    return f"""
        report = {REPORT!r}
        if asked["op"] == "status":
            reply(runs=[report])
        else:
            reply(runs=[dict(page=dict(path={str(there)!r}, files={files}, left_out=[], report=report))])
        """


@pytest.mark.parametrize("name", ["../escaped", "results/../../escaped", "/tmp/escaped", ".."])
def test_listed_name_outside_the_mirror_is_refused(box_says: Speak, tmp_path: Path, name: str) -> None:
    orch = box_says(listing(tmp_path, f"[['good', 1], [{name!r}, 1]]"))

    refused = orch.run("sync", code=3)

    assert f"invalid entry in its list of files: [{name!r}, 1]" in refused.stderr
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize("files", ["[7]", "[['a']]", "[['a', 1, 2, 3]]", "7", "{'a': 1}", "[['a\\0b', 1]]"])
def test_malformed_listing_is_a_clear_error(box_says: Speak, tmp_path: Path, files: str) -> None:
    orch = box_says(listing(tmp_path, files))

    done = measured(orch, tmp_path, "sync")

    assert b"Traceback" not in done.output
    assert done.code == 3


@pytest.mark.parametrize(
    ("command", "body"),
    [
        pytest.param("status", "reply(runs=[], more='x' * 100_000_000)", id="a large reply"),
        pytest.param("status", "while True: out.write(b'x' * 100_000)", id="a reply without an end"),
        pytest.param("tail", "while True: out.write(b'{' + b'x' * 100_000)", id="a frame without an end"),
        pytest.param(
            "tail", "out.write(b'{\"bytes\":1000000000}\\n')\nwhile True: out.write(b'x' * 99_999)", id="a large frame"
        ),
        pytest.param(
            "status",
            "while True: out.write(b'x' * 99_999 + b'\\n')",
            id="lines without an end",
        ),
    ],
)
def test_endless_output_of_a_box_takes_little_time_and_memory(
    box_says: Speak, tmp_path: Path, command: str, body: str
) -> None:
    orch = box_says(body)

    done = measured(orch, tmp_path, command, "worker1", timeout=30)

    assert done.memory < ENOUGH
    assert done.code == 3
    assert b"Traceback" not in done.output
    assert len(done.output) < 5000


def test_error_of_a_box_cannot_move_the_cursor(box_says: Speak) -> None:
    message = "\x1b]0;title\x07\x1b[2J\x9b31m\r\u202ered"
    error = {"code": "no_gpu", "message": message, "hint": message}
    orch = box_says(f'out.write(json.dumps({{"schema": 1, "ok": False, "error": {error!r}}}).encode() + b"\\n")')

    for arguments in (("stop", "worker1"), ("sync",), ("tail", "worker1")):
        refused = orch.run(*arguments, code=4)
        assert "\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\x0d\\u202ered" in refused.stderr
        assert not re.search(r"[^\n\x20-\x7e]", refused.stderr)


# --- a log on a terminal --------------------------------------------------------------------------------

ESCAPES = [
    b"\x1b]0;a title\x07",
    b"\x1b]52;c;cm0gLXJmIH4=\x07",  # the clipboard
    b"\x1b]8;;file:///etc/passwd\x1b\\link\x1b]8;;\x1b\\",
    b"\x1b[2J\x1b[H\x1b[10;10H\x1b[5A",
    b"\x1b[?1049h\x1b[?1000h\x1b[6n\x1b[c",
    b"\x1bP+q544e\x1b\\\x1b_x\x1b\\\x1bc",
    b"\x0e\x0f\x08\x0b\x0c\x00\x7f\x05",
    "\u0085\u0090\u009b31m\u009d0;title\u009c".encode(),
    "\u202edessap\u202c\u2066\u2069\u200f\u200b\ufeff".encode(),
]
MOVES = ESCAPES[3]  # what it moves over is left out
DRAWN = " done: é ß € 漢字 👍\r\n"  # what is left of PLAIN
PLAIN = "loss 0.5 \t 75 % |####    |\r done: é ß € 漢字 👍\n"


def on_terminal(orch: Orch, *arguments: str, errors: Path | None = None) -> bytes:
    """Return the terminal output of a command: stdout, and stderr unless it goes to the file `errors`."""
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    file = errors.open("wb") if errors else None
    process = orch.start(*arguments, stdin=theirs, stdout=theirs, stderr=file or theirs, env=environment)
    os.close(theirs)
    if file:
        file.close()
    got = b""
    until = time.monotonic() + TIMEOUT
    try:
        while time.monotonic() < until:
            if not select.select([ours], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # EIO: no process has the terminal open any more
                break
            if not data:
                break
            got += data
        assert process.wait(timeout=10) == 0, got
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return got


def harmless(shown: bytes) -> str:
    """Return the text; fail on control characters other than newline, tab and return.

    A line that arrives in pieces is drawn again, which orch's own sequence does.
    """
    text = ""
    for piece in re.split(rf"(\r(?:\x1b\[\d+A)?{re.escape(ERASE_BELOW)})", shown.decode()):
        if own := re.fullmatch(rf"\r(?:\x1b\[(\d+)A)?{re.escape(ERASE_BELOW)}", piece):
            text = "".join(text.splitlines(keepends=True)[: -1 - int(own[1] or 0)])
        else:
            text += piece
    assert not re.search(r"[^\n\r\t\x20-\x7e\xa0-\U0010ffff]", text)
    return text


@pytest.fixture
def with_log(local_orch: Orch) -> Callable[[bytes], Orch]:
    def write(log: bytes) -> Orch:
        ended_run(local_orch).log.write_bytes(log)
        return local_orch

    return write


def test_log_on_a_terminal_has_no_escape_sequences(with_log: Callable[[bytes], Orch], tmp_path: Path) -> None:
    orch = with_log(PLAIN.encode() + b"".join(escape + b"!\n" for escape in ESCAPES))

    text = harmless(on_terminal(orch, "tail", "worker1", "--from", "0", "--no-follow", errors=tmp_path / "errors"))

    assert text.startswith(DRAWN)
    assert "\\x1b]0;a title\\x07!\r\n" in text
    assert text.count("!\r\n") == len(ESCAPES)
    assert "\\x85\\x90\\x9b31m\\x9d0;title\\x9c!" in text


@pytest.mark.parametrize("control", ["\u009b2J", "\u009d0;title\u009c"])
def test_control_sequence_split_over_two_frames_is_detected(
    with_log: Callable[[bytes], Orch], tmp_path: Path, control: str
) -> None:
    orch = with_log(b"x" * (CHUNK - 1) + control.encode() + b"\n")

    text = harmless(on_terminal(orch, "tail", "worker1", "--from", "0", "--no-follow", errors=tmp_path / "errors"))

    assert f"x\\x{ord(control[0]):02x}{control[1]}" in text


@pytest.mark.parametrize("bad", [b"\x9b2J", b"\x9d0;title\x9c", b"\xc0\x9b2J", b"\xe0\x82\x9b", b"\xff\x90x"])
def test_bytes_that_are_not_text_are_shown_as_numbers(
    with_log: Callable[[bytes], Orch], tmp_path: Path, bad: bytes
) -> None:
    orch = with_log(b"x" + bad + b"\n")

    text = harmless(on_terminal(orch, "tail", "worker1", "--from", "0", "--no-follow", errors=tmp_path / "errors"))

    assert f"x\\x{bad[0]:02x}" in text


def test_character_split_over_two_frames_is_decoded(with_log: Callable[[bytes], Orch], tmp_path: Path) -> None:
    line = b"x" * (CHUNK - 2) + "👍é\n".encode()
    orch = with_log(line)

    text = harmless(on_terminal(orch, "tail", "worker1", "--from", "0", "--no-follow", errors=tmp_path / "errors"))

    assert text.startswith(line.decode().replace("\n", "\r\n"))


OWN = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A")  # colours and position of the status line


def test_only_the_status_line_controls_the_terminal(local_orch: Orch, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    hostile.write_bytes(PLAIN.encode() + b"".join(escape + b"!\n" for escape in ESCAPES))
    script = f"cat {hostile}; until test -e {local_orch.gates}/end; do sleep 0.05; done"
    local_orch.table("worker1", command=["bash", "-c", script])
    local_orch.launch("worker1")
    there = local_orch.on_box("worker1")
    wait_until(lambda: there.log.stat().st_size == hostile.stat().st_size, what="the log")
    there.heartbeat.write_text('{"phase":"\\u001b]0;title\\u0007\\u009b2J","epoch":1,"epochs":2}')

    at_work = on_terminal(local_orch, "tail", "worker1", "--from", "0", "--no-follow").decode()
    local_orch.open("end")
    shown = on_terminal(local_orch, "tail", "worker1", "--from", "0").decode()

    assert "running · \\x1b]0;title\\x07\\x9b2J" in harmless(OWN.sub("", at_work).encode())
    assert "\x1b[" in shown  # a status line, or at least a coloured outcome
    text = harmless(OWN.sub("", shown).encode())
    assert text.count("!\r\n") == len(ESCAPES)
    assert "succeeded" in text


def test_log_through_a_pipe_is_unchanged(with_log: Callable[[bytes], Orch]) -> None:
    escapes = [escape for escape in ESCAPES if escape != MOVES]
    log = b"".join([*escapes, b"\x9b\xff\xc2\n", b"x" * CHUNK, PLAIN.partition("\r")[2].encode()])
    orch = with_log(log)

    command = orch.command("tail", "worker1", "--from", "0", "--no-follow")
    shown = subprocess.run(command, cwd=orch.project, capture_output=True, timeout=60, check=True)
    document = orch.run("tail", "worker1", "--from", "0", "--no-follow", "--json").stdout

    assert shown.stdout == log
    assert document.isascii()
    assert document.replace("\n", "").isprintable()
    assert sum(strict(line)["bytes"] for line in document.splitlines()) == len(log)
