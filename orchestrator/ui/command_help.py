"""The help of commands, with the arguments named as each command declares them: `orch launch [OPTIONS] JOB...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.core import TyperCommand, TyperGroup

from orchestrator.ui.command_values import plain

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
used, 4 refused (the message says why), 130 interrupted."""


class Commands(TyperGroup):
    """All commands, and the options before them."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """Return the options, those of typer itself included."""
        return plain(super().get_params(ctx))


class HelpfulCommand(TyperCommand):
    """A command whose help does not show Python types such as `<list[str]>`."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        """Return the arguments and options, those of typer itself included."""
        return plain(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """Return the parts of the usage line after the command's name."""
        return ["[OPTIONS]", *(name for name, _ in self._arguments(ctx))]

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the tables of arguments and options."""
        sections = {
            "Arguments": self._arguments(ctx),
            "Options": [
                record
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
