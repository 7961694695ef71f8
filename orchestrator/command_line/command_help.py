"""How commands are parsed and explained: their help, the options that may be anywhere, and suggestions for mistakes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from typer import BadParameter
from typer.core import TyperCommand, TyperGroup

from orchestrator.command_line import json_fields
from orchestrator.command_line.command_options import FIELDS, FIELDS_METAVAR, JSON_IS_GIVEN
from orchestrator.command_line.command_values import plain

if TYPE_CHECKING:
    from typer._click.core import Context, Parameter
    from typer._click.formatting import HelpFormatter

FIRST_STEPS = """\b
First steps:
  orch init          write a jobs.toml; set your command and your host in it
  orch doctor        check this machine and the hosts
  orch launch train  start the job `train`
  orch tail train    follow its log
  orch sync          download results
\b
Exit codes: 1 a job failed, 2 wrong usage or jobs.toml, 3 a host cannot be
used, 4 refused (the message says why), 5 still going (`orch wait`), 130
interrupted."""


FILE, QUERY_NAME = "jobs_toml", "query"  # the names of the parameters that are `--file` and `--query`
UsageError: type[Exception] = BadParameter.__bases__[0]  # of typer, or of click for an older typer

# The commands in the order of the help. Each command belongs to one section.
SECTIONS = {
    "Prepare": ("init", "schema", "doctor", "trust", "disconnect"),
    "Run": ("check", "launch", "stop", "restart", "push"),
    "Follow": ("status", "watch", "wait", "runs", "tail"),
    "Results": ("sync", "show", "compare", "best", "ls", "cat", "open"),
    "On the box": ("ssh", "exec", "attach", "forward"),
    "Tidy": ("df", "rm", "prune"),
    "For agents": ("skill", "mcp"),
}


# What similar programs call a command.
OTHER_NAMES = {
    "run": "launch",
    "start": "launch",
    "submit": "launch",
    "logs": "tail",
    "log": "tail",
    "ps": "status",
    "list": "runs",
    "kill": "stop",
    "cancel": "stop",
    "resume": "restart",
    "delete": "rm",
    "remove": "rm",
    "download": "sync",
    "pull": "sync",
    "upload": "push",
    "diff": "compare",
}


class Commands(TyperGroup):
    """All commands, and the options before them."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return [name for names in SECTIONS.values() for name in names]

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the commands with the first sentence of their help, in sections."""
        width = max(map(len, self.commands))
        for title, names in SECTIONS.items():
            rows = [(name, first_sentence(self.commands[name].help or "")) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), sentence) for name, sentence in rows])

    def resolve_command(self, ctx: Context, args: list[str]) -> Any:
        """Return the command that the arguments name. Suggest it for the name that other programs give it."""
        usual = OTHER_NAMES.get(args[0])
        if usual:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {usual!r}?")
        return super().resolve_command(ctx, args)

    def get_params(self, ctx: Context) -> list[Parameter]:
        """Return the options, those of typer itself included."""
        return plain(super().get_params(ctx))

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the options before the command."""
        with did_you_mean():
            return super().parse_args(ctx, args)


class HelpfulCommand(TyperCommand):
    """A command whose help does not show Python types such as `<list[str]>`.

    It takes `--file` and `--query` as well, so that these options may be before the command or after it.
    """

    def get_params(self, ctx: Context) -> list[Parameter]:
        """Return the arguments and options, those of all commands and of typer itself included."""
        own = super().get_params(ctx)
        taken = {name for param in own for name in param.opts}
        shared_names = (FILE, QUERY_NAME) if any(param.name == "as_json" for param in own) else (FILE,)
        shared = [copy.copy(param) for param in ctx.find_root().command.params if param.name in shared_names]
        for param in shared:
            param.opts = [name for name in param.opts if name not in taken]
        return plain([*own[:-1], *shared, *own[-1:]])  # `--help` stays the last

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse what follows the name of the command."""
        params = super().get_params(ctx)
        if any(param.metavar == FIELDS_METAVAR for param in params):
            needs_argument = any(param.required and param.param_type_name == "argument" for param in params)
            args, ctx.meta[FIELDS] = json_fields.taken(args, takes_single=not needs_argument)
        with did_you_mean():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Context) -> Any:
        """Run the command, with `--json` if that is before its name."""
        if ctx.meta.get(JSON_IS_GIVEN):
            if "as_json" not in ctx.params:
                ctx.fail(f"orch {self.name} has no --json.")
            ctx.params["as_json"] = ctx.params["as_json"] or True
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """Return the parts of the usage line after the command's name."""
        return ["[OPTIONS]", *(name for name, _ in self._arguments(ctx))]

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the tables of arguments and options."""
        sections = {
            "Arguments": self._arguments(ctx),
            "Options": [
                (f"{record[0]} {FIELDS_METAVAR}" if param.metavar == FIELDS_METAVAR else record[0], record[1])
                for param in self.get_params(ctx)
                if param.param_type_name == "option" and (record := param.get_help_record(ctx))
            ],
        }
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _arguments(self, ctx: Context) -> list[tuple[str, str]]:
        """Return the name and the help of each argument."""
        return [
            (param.metavar or param.name or "", getattr(param, "help", ""))
            for param in self.get_params(ctx)
            if param.param_type_name == "argument"
        ]


def first_sentence(text: str) -> str:
    """Return the first sentence of a help text, which is its first paragraph."""
    return " ".join(text.partition("\n\n")[0].split())


@contextmanager
def did_you_mean() -> Iterator[None]:
    """Word the suggestions for an unknown option as those for an unknown command, the most similar one first."""
    try:
        yield
    except UsageError as error:
        unknown: Any = error  # only the error of an unknown option has suggestions
        if possible := getattr(error, "possibilities", None):
            unknown.message += ". Did you mean " + ", ".join(map(repr, possible)) + "?"
            unknown.possibilities = None
        raise
