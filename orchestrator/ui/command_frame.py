"""What every command stands in: the project, the form of its results, and the exit code of its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from orchestrator.system import streams

if TYPE_CHECKING:
    from orchestrator.commands.project import Project
    from orchestrator.ui.renderer import Renderer
    from remote.contract.run_report import RunReport

R = TypeVar("R", bound="Renderer")


@contextmanager
def command(context: typer.Context, as_json: bool) -> Iterator[tuple[Project, Renderer]]:
    """Yield the project of the current directory, and what shows results: the one choice between text and JSON."""
    with reported(lambda: renderer(as_json)) as screen, opened(context, screen) as project:
        yield project, screen


def renderer(as_json: bool) -> Renderer:
    """Return what shows the results of a command: as JSON documents, or as text."""
    if as_json:
        from orchestrator.ui.documents import Documents

        return Documents()
    from orchestrator.ui.screen import Screen

    return Screen()


@contextmanager
def opened(context: typer.Context, screen: Renderer) -> Iterator[Project]:
    """Yield the project, whose secrets the screen masks from now on."""
    from orchestrator.commands.project import Project

    project = Project.open(context.obj or Path())
    project.report_retry = screen.terminal.note
    screen.terminal.mask = project.secrets.mask
    try:
        yield project
    finally:
        project.close()


@contextmanager
def reported(make: Callable[[], R]) -> Iterator[R]:
    """Yield the screen that `make` returns; every error becomes one message on it, and its exit code."""
    from orchestrator.errors import Interrupted, LaptopError, OrchError
    from orchestrator.system.interrupts import Ending, ending_cleanly

    screen, ending = make(), Ending()
    try:
        with ending_cleanly() as ending:
            yield screen
    except OrchError as error:
        screen.error(error)
        raise typer.Exit(ending.exit_code if isinstance(error, Interrupted) else error.exit_code) from None
    except KeyboardInterrupt:
        screen.error(Interrupted("interrupted; running jobs are not affected", "to see them: orch status"))
        raise typer.Exit(ending.exit_code) from None
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        streams.give_up_unwritable()
        raise typer.Exit(0) from None
    except (OSError, UnicodeError) as error:  # of this machine, and met where nobody expected it
        streams.give_up_unwritable()
        screen.error(LaptopError.of(error))
        raise typer.Exit(LaptopError.exit_code) from None
    finally:
        screen.terminal.quiet()


def exit_with_verdict(runs: Iterable[RunReport]) -> None:
    """Exit with code 1 unless all runs have succeeded."""
    if any(not run.has_succeeded for run in runs):
        raise typer.Exit(1)
