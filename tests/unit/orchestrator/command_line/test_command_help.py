"""The help of commands, the options that may be anywhere, and suggestions for mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.command_line.command_help import OTHER_NAMES, SECTIONS


def test_every_command_is_in_one_section_of_the_help() -> None:
    listed = sorted(name for names in SECTIONS.values() for name in names)
    assert listed == sorted(str(command.name) for command in app.registered_commands)


COMMANDS = sorted(str(command.name) for command in app.registered_commands)
JOBS_TOML = """\
[project]
name = "test"
[hosts.gpu1]
ssh = "nobody.invalid"
[jobs.train]
command = ["true"]
host = "local"
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_no_python_types(name: str) -> None:
    said = CliRunner().invoke(app, [name, "-h"])
    assert said.exit_code == 0
    assert re.search(rf"^  Examples:\n    orch {name}\b", said.output, re.MULTILINE)
    assert not re.search(r"<\w|\[\[|\]\]|\.{4}|\w\.\.\.\.", said.output)


@pytest.mark.parametrize("name", COMMANDS)
def test_usage_error_has_no_python_types(name: str) -> None:
    said = CliRunner().invoke(app, [name, "--unknown"])
    assert said.exit_code == 2
    assert "No such option: --unknown" in said.output
    assert not re.search(r"<\w|\[\[|\]\]|\.{4}", said.output)


def test_shell_completes_every_job_run_and_host() -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    missing = [
        f"orch {name} {param.name}"
        for name, command in group.commands.items()
        for param in command.params
        if re.search("RUN|JOB|HOST", str(getattr(param, "metavar", ""))) and param._custom_shell_complete is None
    ]
    assert missing == ["orch push target"]  # a path there, which cannot be known


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    """The path of a jobs.toml that is not in this directory."""
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "jobs.toml"
    path.write_text(JOBS_TOML)
    return str(path)


@pytest.mark.parametrize(
    "words",
    ["-f FILE status --json", "status -f FILE --json", "status --json --file FILE", "--json -f FILE status"],
)
def test_options_of_all_commands_may_be_anywhere(words: str, elsewhere: str) -> None:
    said = CliRunner().invoke(app, words.replace("FILE", elsewhere).split())
    assert said.exit_code == 0, said.output
    assert said.stdout.startswith('{"schema": 1, "kind": "status"')


def test_f_after_tail_means_to_follow(elsewhere: str) -> None:
    """As for tail(1). The other name of the option is still that of all commands."""
    said = CliRunner().invoke(app, ["tail", "-f", "trian", "--file", elsewhere])
    assert (said.exit_code, "did you mean 'train'?" in said.output) == (2, True)


def test_json_before_a_command_without_it_is_a_usage_error() -> None:
    said = CliRunner().invoke(app, ["--json", "init"])
    assert (said.exit_code, "orch init has no --json" in said.output) == (2, True)


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        (["lauch", "train"], "Did you mean 'launch'"),
        (["run", "train"], "Did you mean 'launch'"),
        (["logs", "train"], "Did you mean 'tail'"),
        (["ps"], "Did you mean 'status'"),
        (["kill", "train"], "Did you mean 'stop'"),
        (["launch", "train", "--onn", "gpu1"], "Did you mean '--on'"),
        (["--verson"], "Did you mean '--version'"),
    ],
)
def test_mistyped_command_or_option_gets_a_suggestion(words: list[str], suggested: str) -> None:
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 2
    assert suggested in said.output


def test_names_of_other_programs_suggest_commands_and_are_none() -> None:
    names = {name for section in SECTIONS.values() for name in section}
    assert set(OTHER_NAMES.values()) <= names and names.isdisjoint(OTHER_NAMES)
