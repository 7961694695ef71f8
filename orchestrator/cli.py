"""The command line: parse, call, render, exit code. Everything else is imported when a command needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.system import streams
from orchestrator.ui import command_options as options
from orchestrator.ui.command_frame import command, exit_with_verdict, opened, reported
from orchestrator.ui.command_help import FIRST_STEPS, HelpfulCommand

if TYPE_CHECKING:
    from remote.contract.run_report import RunReport

app = typer.Typer(
    help="Run training jobs on GPU boxes over SSH, and get the results.",
    epilog=FIRST_STEPS,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def add_command(name: str, *examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function as the command `name`; its docstring is the help, and the examples follow it."""
    return app.command(name, cls=HelpfulCommand, epilog="\n  ".join(["\b\nExamples:", *examples]))


@app.callback()
def orch(context: typer.Context, file: options.File = None, version: options.Version = False) -> None:
    context.obj = file


@add_command("init", "orch init")
def init() -> None:
    """Write a jobs.toml to start from.

    Writes it into the current directory, and adds `.orch/` and `results/` to .gitignore in a git repository.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen:
        from orchestrator.commands import init as starter

        screen.initialised(starter.write(Path()))


@add_command("doctor", "orch doctor", "orch doctor gpu1")
def examine(context: typer.Context, host: options.SomeHost = None, as_json: options.Json = False) -> None:
    """Check this machine and the hosts.

    Shows what was found, and what to do about each problem. Exit code 4 if a check failed.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import launch as pipeline

        checks = pipeline.examine(project, host)
        screen.examined(checks)
        if any(checked.check.status == "fail" for checked in checks):
            raise typer.Exit(4)


@add_command("trust", "orch trust gpu1", "orch trust gpu1 --fingerprint SHA256:...")
def trust(context: typer.Context, host: options.AHost, fingerprint: options.Fingerprint = None) -> None:
    """Pin a host's SSH key.

    Shows the fingerprint of the key, asks whether it is the right one, and writes the key to known_hosts.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen, opened(context, screen) as project:
        from orchestrator.commands import trust as trusting

        def is_right(shown: trusting.Shown) -> bool:
            if fingerprint:
                return shown.fingerprint == fingerprint
            screen.host_key(host, shown)
            try:
                is_right = typer.confirm("Trust this host key?")
                return is_right and (not shown.replaces or typer.confirm("Replace the key in known_hosts?"))
            except typer.Abort:  # nobody is there to answer
                return False

        trusted = trusting.trust(project, host, is_right)
        screen.trusted(trusted)
        if trusted.file is None:
            raise typer.Exit(3)


@add_command("check", "orch check train", "orch check train --on gpu1")
def check(
    context: typer.Context,
    jobs: options.Jobs,
    on: options.LaunchOn = None,
    overrides: options.Set = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Dry-run jobs without starting them.

    Sends the code, checks the host, and rehearses each job for a few minutes at most.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import launch as pipeline

        approve = screen.terminal.approval(yes)
        screen.checked(pipeline.launch(project, jobs, on, overrides or (), screen.live, approve, rehearse_only=True))


@add_command("launch", "orch launch train", "orch launch a b --on gpu1 --wait", "orch launch train --set deadline=8h")
def launch(
    context: typer.Context,
    jobs: options.Jobs,
    on: options.LaunchOn = None,
    wait: options.Wait = False,
    overrides: options.Set = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Send the code and start jobs.

    The jobs run in parallel and need no connection. What was not rehearsed on the host before is rehearsed first.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import launch as pipeline
        from orchestrator.commands import watch as watching

        approve = screen.terminal.approval(yes)
        launched = pipeline.launch(project, jobs, on, overrides or (), screen.live, approve)
        screen.live("launched; waiting for the first sign of life")
        runs: Sequence[RunReport] = watching.confirm(project, launched.runs)
        screen.launched(launched, runs, wait)
        if wait:
            runs = screen.wait(watching.wait(project, runs), runs)
            screen.ended(runs)
        exit_with_verdict(run for run in runs if wait or run.has_ended)


@add_command("status", "orch status", "orch status train --on gpu1", "orch status --json")
def status(
    context: typer.Context, runs: options.SomeRuns = None, on: options.On = None, as_json: options.Json = False
) -> None:
    """Show unfinished runs and the newest run of each job."""
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview

        screen.overview(overview.as_answered(project, runs or (), on))


@add_command("watch", "orch watch", "orch watch train")
def watch(
    context: typer.Context, runs: options.SomeRuns = None, on: options.On = None, as_json: options.Json = False
) -> None:
    """Show live status until all runs have finished.

    Exit code 1 if a run did not succeed. Ctrl-C does not affect the runs.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview
        from orchestrator.commands import watch as watching

        def look(before: overview.Overview | None) -> Iterator[overview.Overview]:
            return overview.as_answered(project, runs or (), on, before=before)

        exit_with_verdict(screen.watch(watching.overviews(look)))


@add_command("runs", "orch runs", "orch runs train")
def list_runs(
    context: typer.Context, runs: options.SomeRuns = None, on: options.On = None, as_json: options.Json = False
) -> None:
    """Show all known runs, finished ones included."""
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview

        screen.overview(overview.as_answered(project, runs or (), on, "all"))


@add_command("tail", "orch tail train", "orch tail train -n 200 --no-follow")
def tail(
    context: typer.Context,
    run: options.OneRun,
    lines: options.Lines = 20,
    start: options.Start = None,
    follow: options.Follow = True,
    on: options.On = None,
    as_json: options.Json = False,
) -> None:
    """Follow the log of a run.

    Survives a lost connection. When the run has finished, shows how; exit code 1 if it did not succeed.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import selection
        from orchestrator.commands import watch as watching

        events = watching.follow(project, selection.target(project, run, on), lines, start, once=not follow)
        last = screen.follow(events, run, follow)
        if last and follow:
            screen.ended([last])
            exit_with_verdict([last])


@add_command("sync", "orch sync", "orch sync train --limit 200GB", "orch sync --code")
def sync(
    context: typer.Context,
    runs: options.SomeRuns = None,
    on: options.On = None,
    code: options.Code = False,
    limit: options.Limit = "100GB",
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Download results to results/JOB/RUN.

    Safe while runs are in progress. What was already copied completely is not copied again.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import selection, shipping
        from orchestrator.commands import sync as syncing
        from orchestrator.text import parse_size

        if code:
            screen.shipped(shipping.ship_code(project, on, screen.terminal.approval(yes)))
            return
        targets = selection.targets(project, runs or (), on)
        screen.synced(syncing.sync(project, targets, on, parse_size(limit)))


@add_command("stop", "orch stop train", "orch stop train --no-wait")
def stop(
    context: typer.Context,
    runs: options.TheRuns,
    on: options.On = None,
    wait: options.WaitForStop = True,
    as_json: options.Json = False,
) -> None:
    """Stop runs after a checkpoint.

    Keeps everything that they wrote. `orch restart` continues them.
    """
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


@add_command("restart", "orch restart train", "orch restart train --wait")
def restart(
    context: typer.Context,
    runs: options.TheRuns,
    on: options.On = None,
    wait: options.Wait = False,
    as_json: options.Json = False,
) -> None:
    """Continue failed or stopped runs from their last checkpoint."""
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


def main() -> None:
    streams.prepare()
    try:
        app()
    except OSError:  # the help, or the message about wrong usage, cannot be written
        streams.give_up_unwritable()
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
