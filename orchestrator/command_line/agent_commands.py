"""For agents: the page that teaches orch, and the MCP server."""

from __future__ import annotations

from pathlib import Path

import typer

from orchestrator.command_line.command_frame import reported
from orchestrator.command_line.registry import add_command


@add_command("skill", "orch skill", "orch skill > SKILL.md")
def skill_command() -> None:
    """Print one page that teaches a coding agent to use orch.

    It fits the version of orch that prints it.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen:
        from importlib import metadata, resources

        page = resources.files("orchestrator").joinpath("skill.md").read_text(encoding="utf-8")
        screen.terminal.write(page.replace("{version}", metadata.version("orch")).rstrip("\n"))


@add_command("mcp", "orch mcp", "orch --file project/jobs.toml mcp")
def mcp_command(context: typer.Context) -> None:
    """Serve orch to an agent as tools, by the Model Context Protocol over stdin and stdout.

    The tools are launch, wait, status, log, metrics and stop. Needs the package `mcp`.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen):
        from orchestrator import mcp_server

        mcp_server.serve(context.obj or Path())
