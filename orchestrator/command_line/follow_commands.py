"""Follow runs: status, watch, wait, runs, tail."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from orchestrator.command_line import command_options as options
from orchestrator.command_line.command_frame import command, exit_with_verdict
from orchestrator.command_line.registry import add_command

NEWEST = 30  # runs that `orch runs` shows on a terminal


@add_command("status", "orch status", "orch status train --on gpu1", "orch status --json")
def status_command(
    context: typer.Context,
    runs: options.SomeRuns = None,
    on: options.On = None,
    everything: options.All = False,
    utc: options.Utc = False,
    as_json: options.JsonOfRuns = False,
) -> None:
    """Show unfinished runs and the newest run of each job.

    With --all, show all runs, finished ones included.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview

        which = "all" if everything else "current"
        screen.overview(overview.ask_all(project, runs or (), on, which, is_thorough=everything), utc)


@add_command("watch", "orch watch", "orch watch train")
def watch_command(
    context: typer.Context,
    runs: options.SomeRuns = None,
    on: options.On = None,
    utc: options.Utc = False,
    as_json: options.JsonOfRuns = False,
) -> None:
    """Show live status until all runs have finished.

    Exit code 1 if a run that was named, or that had not finished, did not succeed. Ctrl-C does not affect the runs.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview, watch

        live: set[tuple[str, str]] = set()  # runs that were unfinished at some time

        def ask_hosts(before: overview.Overview | None) -> Iterator[overview.Overview]:
            for found in overview.ask_all(project, runs or (), on, before=before):
                live.update((run.job, run.run_id) for run in found.runs if run.is_live)
                yield found

        last = screen.watch(watch.overviews(ask_hosts), utc)
        exit_with_verdict(run for run in last if runs or (run.job, run.run_id) in live)


@add_command(
    "wait", "orch wait", "orch wait train lr-sweep --timeout 9m --json", "orch wait --any --until ended --json"
)
def wait_command(
    context: typer.Context,
    runs: options.UnfinishedRuns = None,
    until: options.Until = "ended",
    timeout: options.Timeout = None,
    is_any: options.AnyOf = False,
    on: options.On = None,
    as_json: options.Json = False,
) -> None:
    """Wait for runs, and say in a few lines what has happened.

    Made for scripts: nothing is written until the wait is over, and a lost connection is opened again. Exit code 0 if
    all runs succeeded, 1 if one did not, 5 at the time limit, 3 if a host did not answer until then.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import wait

        limit = None if timeout is None else wait.time_limit(timeout)
        waiting = wait.Wait(project, wait.chosen(project, runs or (), on), wait.condition(until), is_any, limit)
        screen.until(waiting.events(), len(waiting.runs))
        result = waiting.result()
        screen.waited(result)
        raise typer.Exit(result.exit_code)


@add_command("runs", "orch runs", "orch runs train", "orch runs 'lr-*' --all")
def runs_command(
    context: typer.Context,
    runs: options.SomeRuns = None,
    on: options.On = None,
    everything: options.All = False,
    utc: options.Utc = False,
    as_json: options.JsonOfRuns = False,
) -> None:
    """Show the runs of the past, finished ones included.

    A terminal shows the newest 30 and all unfinished ones, or all with --all. A pipe and --json always get all.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview

        found = overview.ask_all(project, runs or (), on, "all", is_thorough=everything)
        screen.overview(found, utc, None if everything else NEWEST)


@add_command("tail", "orch tail train", "orch tail train -n 200 --no-follow", "orch tail lr-sweep")
def tail_command(
    context: typer.Context,
    runs: options.TheRuns,
    lines: options.Lines = 20,
    start: options.Start = None,
    follow: options.Follow = True,
    on: options.On = None,
    as_json: options.Json = False,
) -> None:
    """Follow the logs of runs.

    Of several runs, each line has the name of its run. Folds progress bars. Reconnects if the connection is lost. Shows
    how the runs ended; exit code 1 if one did not succeed.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import follow_several, overview, selection, watch

        targets = follow_several.worth_following(project, selection.targets(project, runs, on))
        if len(targets) == 1:
            events = watch.follow(project, targets[0], lines, start, once=not follow, fold=not as_json)
            last = screen.follow(events, " ".join(runs), follow)
            reports = [last] if last else []
        else:
            if start is not None:
                from orchestrator.errors import SpecError

                raise SpecError("--from: a byte of one log, but several runs are meant", "name one run")
            from orchestrator.ui import several_logs

            pieces = follow_several.follow_several(project, targets, lines, once=not follow, fold=not as_json)
            reports = several_logs.show(screen, pieces, " ".join(runs), follow_several.as_known(project, targets))
        if reports and follow:
            screen.ended(reports)
            for note in overview.why_files_are_missing(project, reports):
                screen.terminal.note(note)
            exit_with_verdict(reports)
