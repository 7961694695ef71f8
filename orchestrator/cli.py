"""The command line with all its commands: parse the arguments, call the command, show its result, exit."""

from __future__ import annotations

import gc

from orchestrator.command_line import (
    agent_commands,
    box_commands,
    follow_commands,
    launch_commands,
    look_commands,
    results_commands,
    setup_commands,
    tidy_commands,
)
from orchestrator.command_line.registry import app
from orchestrator.system import streams

__all__ = ["COMMANDS", "app", "main"]
# To import a module adds its commands to the application.
COMMANDS = (
    setup_commands,
    launch_commands,
    follow_commands,
    results_commands,
    look_commands,
    box_commands,
    tidy_commands,
    agent_commands,
)


def main() -> None:
    """Parse the command line, and run the command."""
    streams.prepare()
    try:
        app()
    except OSError:  # typer could not write the help or a usage error
        streams.give_up_unwritable()
        raise SystemExit(1) from None
    finally:
        gc.freeze()  # else the interpreter looks through all objects once more before it ends, for tens of milliseconds


if __name__ == "__main__":
    main()
