"""The same cause has the same exit code in every command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from orchestrator.cli import app
from tests.in_terminal import InTerminal
from tests.integration.conftest import Orch

CTRL_C = "\x03"
GROUP = get_command(app)
assert isinstance(GROUP, TyperGroup)
COMMANDS = GROUP.commands
# What the commands need besides the names of runs, jobs and hosts.
OTHERS = {"PATH": "jobs.toml", "-- COMMAND...": "true", "PORT[:REMOTE]": "6006", "METRIC": "val_accuracy"}


def arguments(name: str, run: str, job: str, host: str) -> list[str]:
    """Return the command with this run, job or host for each of its arguments."""
    found = [name]
    for param in COMMANDS[name].params:
        metavar = str(getattr(param, "metavar", ""))
        if param.param_type_name != "argument":
            continue
        if metavar == "[HOST:]PATH":
            found.append(f"{host}:there")
        elif metavar in OTHERS:
            found += ["--", OTHERS[metavar]] if metavar.startswith("--") else [OTHERS[metavar]]
        elif "RUN" in metavar or "JOB" in metavar:
            found.append(run if "RUN" in metavar else job)
        elif "HOST" in metavar:
            found.append(host)
        elif param.required:
            found.append("x")
    return found


def has(name: str, option: str) -> bool:
    return any(option in param.opts for param in COMMANDS[name].params)


def names_something(name: str) -> bool:
    words = arguments(name, "RUN", "JOB", "HOST")
    return any(word in ("RUN", "JOB", "HOST", "HOST:there") for word in words)


UNKNOWN = [arguments(name, "nope", "nope", "nope") for name in COMMANDS if names_something(name)]
UNKNOWN += [
    [name, "--on", "nope", *arguments(name, "train", "train", "gpu1")[1:]] for name in COMMANDS if has(name, "--on")
]
UNKNOWN += [["prune", "--here", "--on", "nope"], ["rm", "--here", "--on", "nope", "train"]]
UNKNOWN += [["best", "val_accuracy", "--job", "nope"], ["launch", "train", "--resume-from", "nope"]]


@pytest.mark.parametrize("words", UNKNOWN, ids=shlex.join)
def test_unknown_name_is_exit_code_2(words: list[str], local_orch: Orch) -> None:
    local_orch.host_table += '[hosts.gpu1]\nssh = "nobody.invalid"\n'
    local_orch.job("train")
    said = local_orch.run(*words, code=2)
    assert "nope" in said.stderr and "hint:" in said.stderr


# `watch` and `wait` wait until the host is back; others that are not here ask none, or show what is known of it.
ASKING = [
    "ssh",
    "exec",
    "attach",
    "forward",
    "status",
    "tail",
    "check",
    "launch",
    "push",
    "stop",
    "restart",
    "sync",
    "doctor",
    "trust",
]


def test_host_that_is_off_is_exit_code_3(ssh_orch: Orch) -> None:
    """One box for all commands, because each only fails to reach it."""
    assert ssh_orch.box is not None
    ssh_orch.job("train", "end")
    ssh_orch.launch("train")
    ssh_orch.box.stop()
    ssh_orch.run("disconnect")
    codes = {}
    for name in ASKING:
        words = arguments(name, "train", "train", "gpu1")
        done = ssh_orch.start(*words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
        _, errors = done.communicate(timeout=60)
        codes[name] = done.returncode if b"gpu1" in errors or name == "doctor" else errors.decode()
    assert codes == dict.fromkeys(ASKING, 3)
    ssh_orch.box.start()
    ssh_orch.open("end")
    ssh_orch.wait_for("train", "succeeded")


def test_path_longer_than_any_file_has_is_exit_code_2(local_orch: Orch) -> None:
    local_orch.host_table = f'known_hosts = "{"n" * 5000}"\n' + local_orch.host_table
    local_orch.job("train")
    assert "longer than the path of a file can be" in local_orch.run("status", code=2).stderr


def test_ctrl_c_at_the_question_of_trust_is_exit_code_130(ssh_orch: Orch, home: Path) -> None:
    ssh_orch.job("train")
    empty = home / "no_known_hosts"
    empty.write_text("")
    config = home / ".ssh" / "config"
    config.write_text(re.sub(r"(?m)^(\s*UserKnownHostsFile) .*$", rf"\1 {empty}", config.read_text()))
    for keys, code in ((CTRL_C, 130), ("n\n", 3)):
        shown = InTerminal(ssh_orch.command("trust", "gpu1"), ssh_orch.project)
        shown.expect("Trust this host key?")
        shown.type(keys)
        assert shown.wait() == code
        shown.close()
    assert empty.read_text() == ""
