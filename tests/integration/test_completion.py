"""Shell completion as typer installs it: Tab in real shells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.box.known_runs import Address, KnownRun, KnownRuns
from orchestrator.spec.models import RESULTS
from remote.contract.protocol import Running, Succeeded
from tests.in_terminal import InTerminal
from tests.support import ROOT

JOBS_TOML = """\
[project]
name = "test"
[hosts.gpu-one]
ssh = "nobody.invalid"
[jobs.train]
command = ["python", "train.py"]
[jobs.evaluate]
command = ["python", "evaluate.py"]
mistake = "completion still knows the names"
"""
OLD, NEW = "20260101T000000-aaaa", "20260102T000000-bbbb"
WORDS = {  # what is typed before Tab, and what the shell may offer
    "orch launch ": {"train", "evaluate"},
    "orch launch train ": {"evaluate"},
    "orch tail ": {"train", "evaluate", "lr-sweep", "aaaa", "bbbb"},
    "orch tail 2026010": {OLD, NEW},
    "orch ssh ": {"train", "evaluate", "lr-sweep", "aaaa", "bbbb", "gpu-one", "local"},
    "orch exec gpu": {"gpu-one"},
    "orch doctor ": {"gpu-one", "local"},
    "orch status --on ": {"gpu-one", "local"},
    "orch res": {"restart"},
    "orch sync --l": {"--limit"},
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with two runs, and a program `orch` beside it in `bin`."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "jobs.toml").write_text(JOBS_TOML)
    known, address = KnownRuns(folder / RESULTS), Address("nobody.invalid", "~/orch", "test")
    known.save(KnownRun("train", OLD, "gpu-one", address, state=Succeeded(1.0), group="lr-sweep"))
    known.save(KnownRun("train", NEW, "gpu-one", address, state=Running(1.0, 1, 1)))
    (tmp_path / "bin").mkdir()
    orch = tmp_path / "bin" / "orch"
    orch.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n" + MAIN)
    orch.chmod(0o755)
    return folder


MAIN = "from orchestrator.program import main\nmain()\n"


@pytest.fixture
def environment(project: Path, home: Path) -> dict[str, str]:
    path = f"{project.parent / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(home), "TERM": "xterm", "PS1": "$ "}


def script_of(shell: str, project: Path, environment: dict[str, str]) -> str:
    """Return the completion script, which orch prints for the shell that runs it."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    words = [shell, "-c", "orch --show-completion; true"]  # `true`, because a shell becomes its last command
    return subprocess.run(words, cwd=project, env=environment, text=True, capture_output=True, check=True).stdout


BASH = """\
{script}
COMP_WORDS=({words}) COMP_CWORD={last}
_orch_completion orch
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize("typed", WORDS)
def test_bash_offers_what_may_follow(typed: str, project: Path, environment: dict[str, str]) -> None:
    words = typed.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    code = BASH.format(script=script_of("bash", project, environment), words=quoted, last=len(words) - 1)
    said = subprocess.run(
        ["bash", "-c", code], cwd=project, env=environment, text=True, capture_output=True, check=True
    )
    assert set(said.stdout.split()) == WORDS[typed]
    assert said.stderr == ""


@pytest.mark.parametrize("typed", WORDS)
def test_fish_offers_what_may_follow(typed: str, project: Path, environment: dict[str, str]) -> None:
    code = f"{script_of('fish', project, environment)}\ncomplete -C {typed!r}"
    words = ["fish", "--no-config", "-c", code]
    said = subprocess.run(words, cwd=project, env=environment, text=True, capture_output=True, check=True)
    assert {line.split("\t")[0] for line in said.stdout.splitlines()} == WORDS[typed]


@pytest.fixture
def terminal(project: Path, environment: dict[str, str]) -> Iterator[Callable[..., InTerminal]]:
    opened: list[InTerminal] = []

    def start(*command: str) -> InTerminal:
        opened.append(InTerminal(["env", *(f"{key}={environment[key]}" for key in ("PATH", "PS1")), *command], project))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source ./script"),
    "zsh": (["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -D; source ./script"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_a_run_in_a_terminal(
    shell: str, project: Path, environment: dict[str, str], terminal: Callable[..., InTerminal]
) -> None:
    (project / "script").write_text(script_of(shell, project, environment))
    command, prepare = SHELLS[shell]
    shown = terminal(*command)
    shown.type(f"{prepare}; echo rea''dy\n")
    shown.expect("ready")
    shown.type("orch tail bb\t")
    shown.expect("bbbb")
    shown.type("\x15exit\n")  # Ctrl-U deletes the line
    assert shown.wait() == 0


PROBE = """
import json, sys
sys.argv = ["orch"]
try:
    from orchestrator.program import main
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_completion_of_runs_imports_no_client_and_no_layout(project: Path, environment: dict[str, str]) -> None:
    asked = {"COMP_WORDS": "orch tail ", "COMP_CWORD": "2", "_ORCH_COMPLETE": "complete_bash", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROBE]
    said = subprocess.run(command, cwd=project, env=environment | asked, text=True, capture_output=True, check=True)
    assert "lr-sweep" in said.stdout.split()
    heavy = {"paramiko", "pydantic", "rich", "orchestrator.ssh", "orchestrator.commands.project"}
    assert heavy & set(json.loads(said.stderr)) == set()


def test_nothing_is_offered_without_a_jobs_toml(project: Path, environment: dict[str, str]) -> None:
    (project / "jobs.toml").unlink()
    asked = {"COMP_WORDS": "orch tail ", "COMP_CWORD": "2", "_ORCH_COMPLETE": "complete_bash"}
    said = subprocess.run(["orch"], cwd=project, env=environment | asked, text=True, capture_output=True, check=True)
    assert (said.stdout.strip(), said.stderr) == ("", "")
