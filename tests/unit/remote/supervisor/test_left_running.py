from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from remote.host.process import PROC, Stat, read_stat
from remote.supervisor.left_running import LONGEST, command_lines, describe

pytestmark = pytest.mark.skipif(not PROC.joinpath("self").exists(), reason="command lines are read in /proc alone")


@pytest.fixture
def left(request: pytest.FixtureRequest) -> Iterator[dict[int, Stat]]:
    """Processes with the arguments that the test gives."""
    code = "print(flush=True); import time; time.sleep(600)"
    started = [
        subprocess.Popen([sys.executable, "-S", "-c", code, *arguments], stdout=subprocess.PIPE)
        for arguments in request.param
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    yield {process.pid: stat for process in started if (stat := read_stat(process.pid))}
    for process in started:
        process.kill()
        process.communicate()


SECRET = "hunter2-" * 5


@pytest.mark.parametrize(
    ("left", "end"),
    [
        ([["--lr", "3"]], " --lr 3"),
        ([["--token", SECRET]], " --token ***TOKEN***"),
        ([["x" * 20, SECRET, "y" * 200]], "..."),  # it would be cut within the secret
        ([["--logdir", "tensorboard"]], None),
    ],
    indirect=["left"],
)
def test_command_line_is_masked_and_cut(left: dict[int, Stat], end: str | None) -> None:
    found = list(command_lines(left, {"TOKEN": SECRET}).values())
    assert [len(line) <= LONGEST and line.endswith(end or "") for line in found] == ([True] if end else [])
    assert "hunter2" not in " ".join(found)


@pytest.mark.parametrize(
    ("commands", "text"),
    [
        (["python3 a.py"], "python3 a.py"),
        (["a", "a", "b"], "a, b"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
    ],
)
def test_some_of_many_processes_are_named(commands: Sequence[str], text: str) -> None:
    assert describe(commands) == text
