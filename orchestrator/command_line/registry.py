"""The application, to which each module of this room adds its commands.

Each command imports what it needs when it runs, so that `orch --help` stays fast. Its function is named after it with
`_command` appended, because the modules of `orchestrator.commands` have the names of the commands.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

from orchestrator.command_line import command_options as options
from orchestrator.command_line.command_help import FIRST_STEPS, Commands, HelpfulCommand

app = typer.Typer(
    help="Run training jobs on GPU boxes over SSH, and get the results.",
    epilog=FIRST_STEPS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def add_command(
    name: str, *examples: str, takes_words: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that registers a function as the command `name`.

    The help is the function's docstring, followed by the examples.

    Args:
        name: The command.
        examples: Invocations of it.
        takes_words: Whether all that follows its first argument belongs to another command, options included.
    """
    settings = {"allow_interspersed_args": not takes_words}
    epilog = "\n  ".join(["\b\nExamples:", *examples])
    return app.command(name, cls=HelpfulCommand, epilog=epilog, context_settings=settings)


@app.callback(cls=Commands)
def orch(
    jobs_toml: options.File = None,
    json_before: options.JsonBefore = False,
    query: options.Query = None,
    version: options.Version = False,
) -> None:
    """Do nothing: the options have callbacks, and the help is that of `app`."""
