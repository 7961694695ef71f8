"""Run real commands of the box: their output, their limits, and the processes that they leave behind."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from remote.host.commands import Output, run_command


def test_output_has_each_stream_and_the_exit_code() -> None:
    assert run_command(["sh", "-c", "echo out; echo err >&2; exit 3"], 60.0) == Output(3, b"out\n", b"err\n", True)


def test_command_reads_its_input_in_the_c_locale() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 200_000)
        file.seek(0)
        assert run_command(["sh", "-c", "wc -c; echo $LC_ALL; pwd"], 60.0, file).out.split() == [b"200000", b"C", b"/"]


def test_long_output_is_cut_and_said_to_be() -> None:
    found = run_command(["sh", "-c", "printf 12345"], 60.0, most=4)
    assert (found.out, found.is_complete) == (b"1234", False)


def test_output_is_incomplete_while_a_remaining_process_holds_it(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    found = run_command(["sh", "-c", f"sleep 600 & echo $! > {mark}; echo said"], 60.0)
    assert (found.code, found.out, found.is_complete) == (0, b"said\n", False)
    subprocess.run(["kill", mark.read_text().strip()], check=True)


def test_missing_command_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        run_command(["no-such-program"], 60.0)
