"""The agent's zipapp with bytecode runs from the bytecode, or from its sources if another Python made the bytecode."""

from __future__ import annotations

import importlib.util
import os
import re
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.box.agent_bundle import agent_bundle
from remote.contract.protocol import AgentError
from remote.host.compiled import compiled

SHOW = "import sys; sys.path.insert(0, sys.argv[1]); import remote.agent.main; print(remote.agent.main.__file__)"


def shown(entry: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-S", "-c", SHOW, entry], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def agent(tmp_path: Path) -> Path:
    path = tmp_path / agent_bundle().name
    path.write_bytes(agent_bundle().data)
    return path


def test_agent_from_bytecode_gives_same_reply(tmp_path: Path) -> None:
    entry = compiled(str(agent(tmp_path)))

    assert shown(entry) == f"{entry}/remote/agent/main.pyc"
    assert compiled(entry) == entry
    request = b'{"schema": 1, "op": "hello", "args": {}}\n'
    done = subprocess.run([sys.executable, "-I", "-S", entry], input=request, capture_output=True, check=True)
    assert b'"ok":true' in done.stdout


def imported_from(path: Path) -> str:
    """Return the zipapp that the modules of an agent came from when it answered a request."""
    request = b'{"schema": 1, "op": "hello", "args": {}}\n'
    command = [sys.executable, "-v", "-I", "-S", str(path)]
    done = subprocess.run(command, input=request, capture_output=True, check=True)
    assert b'"ok":true' in done.stdout
    found = re.search(r"import 'remote.agent.main' # <zipimporter object \"(.*)/remote/agent/\">", done.stderr.decode())
    assert found is not None
    return Path(found[1]).name


def test_request_is_answered_from_the_copy_with_bytecode(tmp_path: Path) -> None:
    source = agent(tmp_path)
    assert imported_from(source) == source.name
    copy = Path(compiled(str(source)))
    assert imported_from(source) == copy.name
    flip(copy)
    assert imported_from(source) == source.name


def test_bytecode_of_another_python_is_ignored(tmp_path: Path) -> None:
    entry = compiled(str(agent(tmp_path)))
    data = Path(entry).read_bytes()
    Path(entry).write_bytes(data.replace(importlib.util.MAGIC_NUMBER, b"\0\0\r\n"))

    assert shown(entry) == f"{entry}/remote/agent/main.py"


def test_missing_zipapp_and_checkout_are_returned_unchanged(tmp_path: Path) -> None:
    missing = tmp_path / "agent-1.pyz"

    assert compiled("/a/checkout/remote/agent/main.py") == "/a/checkout/remote/agent/main.py"
    assert compiled(str(missing)) == str(missing)
    assert list(tmp_path.iterdir()) == []


# --- files that are already there ---------------------------------------------------------------------------

EVIL = "import pathlib; pathlib.Path(__file__).parents[3].joinpath('evil').touch()"


def planted(entry: Path) -> None:
    """Put a zipapp that reports its start in place of the compiled one."""
    with zipfile.ZipFile(entry, "w") as archive:
        archive.writestr("remote/__init__.py", "")
        archive.writestr("remote/agent/main.py", EVIL)
    entry.chmod(0o600)


def truncate(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes()[:-1000])


def flip(entry: Path) -> None:
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes(data)


def link(entry: Path) -> None:
    entry.rename(entry.with_name("elsewhere"))
    entry.symlink_to("elsewhere")


def of_another_agent(entry: Path) -> None:
    """Return an archive with a seal that is valid for another name."""
    other = entry.with_name("agent-1.pyz")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("remote/__init__.py", "")
        archive.writestr("remote/agent/main.py", EVIL)
    Path(compiled(str(other))).replace(entry)


@pytest.mark.parametrize(
    "change",
    [
        planted,
        truncate,
        flip,
        link,
        of_another_agent,
        lambda entry: entry.chmod(0o666),
        lambda entry: entry.write_bytes(b""),
    ],
)
def test_changed_bytecode_is_rebuilt(change: Callable[[Path], object], tmp_path: Path) -> None:
    entry = Path(compiled(str(agent(tmp_path))))

    change(entry)
    assert compiled(str(entry)) == str(entry)

    assert stat.S_IMODE(entry.lstat().st_mode) == 0o600
    assert shown(str(entry)) == f"{entry}/remote/agent/main.pyc"
    assert not (tmp_path / "evil").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_bytecode_of_another_user_is_rebuilt(tmp_path: Path) -> None:
    entry = Path(compiled(str(agent(tmp_path))))
    os.chown(entry, 12345, 12345)

    compiled(str(entry))

    assert entry.stat().st_uid == os.getuid()


def test_agent_that_does_not_match_its_hash_is_refused(tmp_path: Path) -> None:
    source = agent(tmp_path)
    source.write_bytes(source.read_bytes() + b"x")

    with pytest.raises(AgentError, match="does not match the hash in its name"):
        compiled(str(source))
