"""The agent's compiled twin runs from bytecode, and from its sources where the bytecode is another Python's."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from orchestrator.transport import agent_bundle
from remote.compiled import compiled

SHOW = "import sys; sys.path.insert(0, sys.argv[1]); import remote.agent; print(remote.agent.__file__)"


def shown(entry: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-S", "-c", SHOW, entry], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def agent(tmp_path: Path) -> Path:
    path = tmp_path / agent_bundle().name
    path.write_bytes(agent_bundle().data)
    return path


def test_it_runs_from_bytecode_and_answers_as_the_agent_does(tmp_path: Path) -> None:
    entry = compiled(str(agent(tmp_path)))

    assert shown(entry) == f"{entry}/remote/agent.pyc"
    assert compiled(entry) == entry
    request = b'{"schema": 1, "op": "hello", "args": {}}\n'
    done = subprocess.run([sys.executable, "-I", "-S", entry], input=request, capture_output=True, check=True)
    assert b'"ok":true' in done.stdout


def test_another_pythons_bytecode_is_passed_over(tmp_path: Path) -> None:
    entry = compiled(str(agent(tmp_path)))
    data = Path(entry).read_bytes()
    Path(entry).write_bytes(data.replace(importlib.util.MAGIC_NUMBER, b"\0\0\r\n"))

    assert shown(entry) == f"{entry}/remote/agent.py"


def test_where_it_cannot_be_made_the_agent_itself_is_run(tmp_path: Path) -> None:
    missing = tmp_path / "agent-1.pyz"

    assert compiled("/a/checkout/remote/agent.py") == "/a/checkout/remote/agent.py"
    assert compiled(str(missing)) == str(missing)
    assert list(tmp_path.iterdir()) == []
