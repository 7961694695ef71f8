"""The command line: parse, call, render, exit code. Everything else is imported when a command needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.system import streams

if TYPE_CHECKING:
    from orchestrator.box.reports import RunReport
    from orchestrator.commands.project import Project
    from orchestrator.ui.screen import Screen

app = typer.Typer(
    help="Runs training jobs on GPU boxes over SSH and reports the outcome.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Jobs = Annotated[list[str], typer.Argument(metavar="JOB...", help="Jobs of jobs.toml.")]
SomeRuns = Annotated[list[str] | None, typer.Argument(metavar="[JOB|RUN]...", help="Jobs or run ids; all by default.")]
TheRuns = Annotated[
    list[str], typer.Argument(metavar="JOB|RUN...", help="Jobs (their live run, or their newest) or run ids.")
]
OneRun = Annotated[str, typer.Argument(metavar="JOB|RUN", help="A job (its live run, else its newest) or a run id.")]
On = Annotated[str | None, typer.Option("--on", metavar="HOST", help="A host of jobs.toml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON documents, and nothing else, on stdout.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a job setting for this launch.")
]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ship large files and trees without asking.")]


def show_version(is_wanted: bool) -> None:
    if is_wanted:
        with reported(as_json=False) as screen:
            screen.say(f"orch {metadata.version('orch')}")
        raise typer.Exit


@app.callback()
def orch(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="The jobs.toml to use; searched for upwards by default.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    context.obj = file


@app.command()
def init() -> None:
    """Write a jobs.toml to begin with."""
    with reported(as_json=False) as screen:
        from orchestrator.commands import init as starter

        screen.initialised(starter.write(Path()))


@app.command("doctor")
def examine(
    context: typer.Context,
    host: Annotated[str | None, typer.Argument(metavar="[HOST]", help="A host of jobs.toml.")] = None,
    as_json: Json = False,
) -> None:
    """Look at this machine and at the hosts, and say what to do about what is wrong."""
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import launch as pipeline

        checks = pipeline.examine(project, host)
        screen.examined(checks)
        if any(checked.check.status == "fail" for checked in checks):
            raise typer.Exit(4)


@app.command()
def trust(
    context: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help="A host of jobs.toml.")],
    fingerprint: Annotated[
        str | None,
        typer.Option("--fingerprint", metavar="SHA256:...", help="Pin the key if it is this one; ask nothing."),
    ] = None,
) -> None:
    """Show the key of a host, and pin it once you say that it is the right one."""
    with command(context, as_json=False) as (project, screen):
        from orchestrator.commands import trust as trusting

        def is_right(shown: trusting.Shown) -> bool:
            if fingerprint:
                return shown.fingerprint == fingerprint
            screen.host_key(host, shown)
            try:
                is_right = typer.confirm("Is it the right one?")
                return is_right and (not shown.replaces or typer.confirm("Replace the key on file?"))
            except typer.Abort:  # nobody is there to answer
                return False

        trusted = trusting.trust(project, host, is_right)
        screen.trusted(trusted)
        if trusted.file is None:
            raise typer.Exit(3)


@app.command()
def launch(
    context: typer.Context,
    jobs: Jobs,
    on: On = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until every run has ended.")] = False,
    overrides: Set = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Ship the code and start jobs, in parallel and detached."""
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import launch as pipeline
        from orchestrator.commands import watch as watching

        launched = pipeline.launch(project, jobs, on, overrides or (), screen.live, screen.approval(yes))
        screen.live("launched; waiting for the first heartbeat")
        runs: Sequence[RunReport] = watching.confirm(project, launched.runs)
        screen.quiet()
        screen.launched(launched, runs)
        if wait:
            runs = screen.wait(watching.wait(project, runs), runs)
            screen.ended(runs)
        exit_with_verdict(run for run in runs if wait or run.has_ended)


@app.command()
def check(
    context: typer.Context,
    jobs: Jobs,
    on: On = None,
    overrides: Set = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Dry-run jobs without starting them."""
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import launch as pipeline

        approve = screen.approval(yes)
        screen.checked(pipeline.launch(project, jobs, on, overrides or (), screen.live, approve, rehearse_only=True))


@app.command()
def status(context: typer.Context, runs: SomeRuns = None, on: On = None, as_json: Json = False) -> None:
    """Show one line per run: what is running, and the newest run of each job."""
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview

        screen.overview(overview.as_answered(project, runs or (), on))


@app.command()
def watch(context: typer.Context, runs: SomeRuns = None, on: On = None, as_json: Json = False) -> None:
    """Live status until all runs have finished."""
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview
        from orchestrator.commands import watch as watching

        def look(before: overview.Overview | None) -> Iterator[overview.Overview]:
            return overview.as_answered(project, runs or (), on, before=before)

        seen = screen.watch(watching.overviews(look))
        exit_with_verdict(seen)


@app.command("runs")
def list_runs(context: typer.Context, runs: SomeRuns = None, on: On = None, as_json: Json = False) -> None:
    """Every run that is known, ended ones too."""
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview

        screen.overview(overview.as_answered(project, runs or (), on, "all"))


@app.command()
def tail(
    context: typer.Context,
    run: OneRun,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Begin with the last N lines.")] = 20,
    start: Annotated[int | None, typer.Option("--from", min=0, help="Begin at this byte of the log.")] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on as the log grows.")] = True,
    on: On = None,
    as_json: Json = False,
) -> None:
    """Follow a run's log to its end, and say how it ended."""
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import selection
        from orchestrator.commands import watch as watching

        events = watching.follow(project, selection.target(project, run, on), lines, start, once=not follow)
        last = screen.follow(events, run)
        if last and follow:
            screen.ended([last])
            exit_with_verdict([last])


@app.command()
def sync(
    context: typer.Context,
    runs: SomeRuns = None,
    on: On = None,
    code: Annotated[bool, typer.Option("--code", help="Upload the code only; download nothing.")] = False,
    limit: Annotated[
        str, typer.Option("--limit", metavar="SIZE", help="Copy no run that is larger, such as 200GB.")
    ] = "100GB",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Download results; safe while runs are in progress."""
    with command(context, as_json) as (project, screen):
        from orchestrator.box.mirror import Mirrored, NotMirrored
        from orchestrator.commands import selection, shipping
        from orchestrator.commands import sync as syncing
        from orchestrator.text import parse_size

        if code:
            screen.shipped(shipping.ship_code(project, on, screen.approval(yes)))
            return
        copied: list[Mirrored] = []
        failed: list[NotMirrored] = []
        notes: list[str] = []
        for item in syncing.sync(project, selection.targets(project, runs or (), on), on, parse_size(limit)):
            if isinstance(item, Mirrored):
                screen.copied(item)
                copied.append(item)
            elif isinstance(item, NotMirrored):
                failed.append(item)
            else:
                notes.append(item.text)
        screen.synced(copied, failed, notes)


@app.command()
def stop(
    context: typer.Context,
    runs: TheRuns,
    on: On = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until they have stopped.")] = True,
    as_json: Json = False,
) -> None:
    """Stop runs after a checkpoint; what they wrote stays."""
    with command(context, as_json) as (project, screen):
        from orchestrator.box.launch_request import caller
        from orchestrator.commands import selection
        from orchestrator.commands import stop as ending
        from orchestrator.commands import watch as watching

        stopping = ending.stop(project, selection.targets(project, runs, on), caller())
        stopped: Sequence[RunReport] = stopping.runs
        if wait:
            stopped = screen.wait(watching.wait(project, stopped), stopped, "being stopped")
        screen.stopped(stopping, stopped)


@app.command()
def restart(
    context: typer.Context,
    runs: TheRuns,
    on: On = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until every run has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Let runs that failed or were stopped go on from their last checkpoint."""
    with command(context, as_json) as (project, screen):
        from orchestrator.box.launch_request import caller
        from orchestrator.commands import selection
        from orchestrator.commands import stop as ending
        from orchestrator.commands import watch as watching

        change = ending.restart(project, selection.targets(project, runs, on), caller())
        going: Sequence[RunReport] = watching.confirm(project, change.runs)
        if wait:
            going = screen.wait(watching.wait(project, going), going)
        screen.restarted(change, going)
        exit_with_verdict(run for run in going if wait or run.has_ended)


# --- what the commands share ---------------------------------------------------------------------------


@contextmanager
def command(context: typer.Context, as_json: bool) -> Iterator[tuple[Project, Screen]]:
    """The project that we are in, and the screen."""
    with reported(as_json) as screen:
        from orchestrator.commands.project import Project

        project = Project.open(context.obj or Path())
        project.say_waiting = screen.note
        screen.mask = project.vault.mask
        try:
            yield project, screen
        finally:
            project.close()


@contextmanager
def reported(as_json: bool) -> Iterator[Screen]:
    """The screen; every error becomes one message on it, and its exit code."""
    from orchestrator.errors import Interrupted, LaptopError, OrchError
    from orchestrator.system.interrupts import Ending, ending_cleanly
    from orchestrator.ui.screen import Screen

    screen, ending = Screen(as_json), Ending()
    try:
        with ending_cleanly() as ending:
            yield screen
    except OrchError as error:
        screen.error(error)
        raise typer.Exit(ending.exit_code if isinstance(error, Interrupted) else error.exit_code) from None
    except KeyboardInterrupt:
        screen.error(Interrupted("interrupted; running jobs are not affected", "`orch status` shows them"))
        raise typer.Exit(ending.exit_code) from None
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        streams.give_up_unwritable()
        raise typer.Exit(0) from None
    except (OSError, UnicodeError) as error:  # of this machine, and met where nobody expected it
        streams.give_up_unwritable()
        screen.error(LaptopError.of(error))
        raise typer.Exit(LaptopError.exit_code) from None
    finally:
        screen.quiet()


def exit_with_verdict(runs: Iterator[RunReport] | Sequence[RunReport]) -> None:
    if any(not run.has_succeeded for run in runs):
        raise typer.Exit(1)


def main() -> None:
    streams.prepare()
    try:
        app()
    except OSError:  # the help, or the words about a wrong usage, cannot be written
        streams.give_up_unwritable()
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
