"""What all commands share: open the project, choose text or JSON, turn errors into messages and exit codes."""

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
    """Yield the project that the command works on, and the renderer for its results."""
    with reported(lambda: renderer(as_json)) as screen, opened(context, screen) as project:
        yield project, screen


def renderer(as_json: bool) -> Renderer:
    """Return the renderer that prints JSON documents, or the one that prints text."""
    if as_json:
        from orchestrator.ui.documents import Documents

        return Documents()
    from orchestrator.ui.screen import Screen

    return Screen()


@contextmanager
def opened(context: typer.Context, screen: Renderer) -> Iterator[Project]:
    """Yield the project, and mask its secrets in all output of `screen`.

    Raises:
        SpecError: There is no jobs.toml, or it has mistakes.
    """
    from orchestrator.commands.project import Project

    project = Project.open(context.obj or Path())
    project.report_retry = screen.terminal.note
    project.asking = screen.terminal.asking
    screen.terminal.mask = project.secrets.mask
    try:
        yield project
    finally:
        project.close()


@contextmanager
def reported(make: Callable[[], R]) -> Iterator[R]:
    """Yield the renderer that `make` returns. Turn every expected error into one message and its exit code."""
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
