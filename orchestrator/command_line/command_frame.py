"""What all commands share: open the project, choose text or JSON, turn errors into messages and exit codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from orchestrator.command_line.command_options import FIELDS, QUERY
from orchestrator.system import streams

if TYPE_CHECKING:
    from orchestrator.commands.project import OpenedProject
    from orchestrator.ui.renderer import Renderer
    from remote.contract.run_report import RunReport

R = TypeVar("R", bound="Renderer")


@contextmanager
def command(context: typer.Context, as_json: bool) -> Iterator[tuple[OpenedProject, Renderer]]:
    """Yield the project that the command works on, and the renderer for its results."""
    with reported(lambda: renderer(as_json)) as screen:
        if context.meta.get(FIELDS) or context.meta.get(QUERY):
            _select(context, screen)
        with opened(context, screen) as project:
            yield project, screen


def _select(context: typer.Context, screen: Renderer) -> None:
    """Let `screen` print only what `--json FIELDS` and `--query` select. Raise SpecError if they are malformed."""
    from orchestrator.ui.document_query import FIELDS_OF, RUN_FIELDS, DocumentQuery
    from orchestrator.ui.documents import Documents

    assert isinstance(screen, Documents)  # both options are for JSON
    known = FIELDS_OF.get(context.info_name or "", RUN_FIELDS)
    screen.query = DocumentQuery(context.meta.get(FIELDS, ""), context.meta.get(QUERY, ""), known)


def renderer(as_json: bool) -> Renderer:
    """Return the renderer that prints JSON documents, or the one that prints text."""
    if as_json:
        from orchestrator.ui.documents import Documents

        return Documents()
    from orchestrator.ui.screen import Screen

    return Screen()


@contextmanager
def opened(context: typer.Context, screen: Renderer) -> Iterator[OpenedProject]:
    """Yield the project, and mask its secrets in all output of `screen`.

    Raises:
        SpecError: There is no jobs.toml, or it has mistakes.
    """
    from orchestrator.commands.project import OpenedProject

    project = OpenedProject.open(context.obj or Path())
    project.report_retry = screen.terminal.note
    project.asking = screen.terminal.asking
    project.waiting = screen.terminal.waiting
    project.show_transfer = lambda text: screen.live(text, True)
    screen.terminal.mask = project.secrets.mask
    try:
        yield project
    finally:
        project.close()


@contextmanager
def reported(make: Callable[[], R]) -> Iterator[R]:
    """Yield the renderer that `make` returns. Turn every expected error into one message and its exit code."""
    from orchestrator.errors import Interrupted, LaptopError, OrchError
    from orchestrator.system.interrupts import Ending, ending_cleanly, showing_cursor_when_stopped

    screen, ending = make(), Ending()
    try:
        with ending_cleanly() as ending, showing_cursor_when_stopped(lambda: screen.terminal.has_hidden_cursor):
            yield screen
    except OrchError as error:
        screen.error(error)
        raise typer.Exit(ending.exit_code if isinstance(error, Interrupted) else error.exit_code) from None
    except KeyboardInterrupt:
        screen.error(Interrupted("interrupted; running jobs are not affected", "to see them: orch status"))
        raise typer.Exit(ending.exit_code) from None
    except BrokenPipeError:  # the reader of our output has exited, as `head` does
        streams.give_up_unwritable()
        raise typer.Exit(0) from None
    except (OSError, UnicodeError) as error:  # an error of this machine that no other code has handled
        streams.give_up_unwritable()
        screen.error(LaptopError.of(error))
        raise typer.Exit(LaptopError.exit_code) from None
    finally:
        screen.terminal.quiet()


def exit_with_verdict(runs: Iterable[RunReport]) -> None:
    """Exit with code 1 if a run has not succeeded."""
    if any(not run.has_succeeded for run in runs):
        raise typer.Exit(1)
