"""All documented commands and options exist, and all that exist are documented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from orchestrator.cli import app
from tests.support import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
HELP = {"-h", "--help"}
SPAN = re.compile(r"`([^`]+)`")
BLOCK = re.compile(r"(?: {4}|\t)(.*)")
INVOCATION = re.compile(r"(?:^|[\s;&|(]|/)orch(?= |$)([^;&|`]*)")
DRAWN = re.compile(r"-{3,}|'|\\$")  # where a diagram or the next line of a shell command begins


@dataclass(frozen=True)
class Shown:
    """An invocation in the documentation: `command` is empty for options of `orch` itself."""

    command: str
    options: tuple[str, ...]
    where: str


def options() -> dict[str, list[set[str]]]:
    """Map each command to its options, each with all of its names; the empty name stands for `orch` itself."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return {
        command: [
            {name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("-")}
            for parameter in parameters
        ]
        for command, parameters in [
            ("", group.params),
            *((name, found.params) for name, found in group.commands.items()),
        ]
    }


def command_tree() -> dict[str, set[str]]:
    """Map each command to the names of its options."""
    return {command: set().union(*found) for command, found in options().items()}


def code_of(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each line's number and its code: its spans, or all of it within a block."""
    is_fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_fenced = not is_fenced
        elif is_fenced:
            yield number, [line]
        elif (block := BLOCK.fullmatch(line)) and not SPAN.search(line):
            yield number, [block[1]]
        else:
            yield number, SPAN.findall(line)


def read(code: str, where: str) -> Iterator[Shown]:
    """Yield every invocation of `orch` in a piece of code."""
    for found in INVOCATION.finditer(code):
        words = DRAWN.split(found[1])[0].split()
        if words:
            command = "" if words[0].startswith("-") else words[0]
            yield Shown(command, tuple(word.partition("=")[0] for word in words if word.startswith("-")), where)


def shown_on(page: Path) -> Iterator[Shown]:
    """Yield every invocation on a page. Options in a span of their own belong to the commands on their line."""
    for number, pieces in code_of(page.read_text(encoding="utf-8")):
        where = f"{page.name}:{number}"
        invocations = [shown for piece in pieces for shown in read(piece, where)]
        yield from invocations
        for piece in pieces:
            if piece.startswith("-") and invocations:
                yield Shown(invocations[-1].command, (piece.split()[0].partition("=")[0],), where)


def wrong(shown: Shown, commands: dict[str, set[str]]) -> str:
    if shown.command not in commands:
        return f"{shown.where}: there is no command {shown.command!r}"
    unknown = set(shown.options) - commands[shown.command] - HELP
    return f"{shown.where}: `orch {shown.command}` has no {', '.join(sorted(unknown))}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_on_a_page_exists(page: Path) -> None:
    commands = command_tree()
    assert [text for shown in shown_on(page) if (text := wrong(shown, commands))] == []


def test_every_command_is_documented() -> None:
    page = ROOT / "docs" / "operations.md"
    assert set(command_tree()) - {""} - {shown.command for shown in shown_on(page)} == set()


def test_every_option_is_documented() -> None:
    words = {
        word.partition("=")[0]
        for page in PAGES
        for _, pieces in code_of(page.read_text(encoding="utf-8"))
        for piece in pieces
        for word in piece.split()
    }
    missing = [
        f"orch {command} {'/'.join(sorted(names))}"
        for command, found in options().items()
        for names in found
        if names and not words & names
    ]
    assert missing == []


@pytest.mark.parametrize(
    "text",
    [
        "Run `orch lunch train`.",
        "Run `orch launch train --wiat`.",
        "Run `.venv/bin/orch status --forever`.",
        "| follow a log | `orch tail train`; from the start: `--form 0` |",
        "    orch sync --limits 3GB",
        "```\norch stop train --now\n```",
        "    for seed in 0 1; do orch lauch train; done",
    ],
)
def test_unknown_command_or_option_is_detected(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    commands = command_tree()
    assert [shown for shown in shown_on(page) if wrong(shown, commands)]


@pytest.mark.parametrize(
    "text",
    [
        "`orch launch worker1 --on box --set env.EPOCHS=5` and `orch --version`",
        "    '---- orch restart ----------'----",
        "The `orch` command reads `--anything` of other programs.",
        "`git clone --depth 1` is not ours.",
    ],
)
def test_known_or_foreign_command_passes(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    commands = command_tree()
    assert not [shown for shown in shown_on(page) if wrong(shown, commands)]
