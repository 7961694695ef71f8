"""The list of commands in `orch --help`."""

from __future__ import annotations

from orchestrator.cli import app
from orchestrator.command_line.command_help import SECTIONS


def test_every_command_is_in_one_section_of_the_help() -> None:
    listed = sorted(name for names in SECTIONS.values() for name in names)
    assert listed == sorted(str(command.name) for command in app.registered_commands)
