"""Bring results back: sync."""

from __future__ import annotations

import typer

from orchestrator.command_line import command_options as options
from orchestrator.command_line.command_frame import command
from orchestrator.command_line.registry import add_command


@add_command(
    "sync", "orch sync", "orch sync train --limit 200GB", "orch sync train --only 'results/**'", "orch sync --code"
)
def sync_command(
    context: typer.Context,
    runs: options.SomeRuns = None,
    on: options.On = None,
    code: options.Code = False,
    limit: options.Limit = "100GB",
    only: options.Only = None,
    exclude: options.Exclude = None,
    yes: options.Yes = False,
    as_json: options.JsonOfRuns = False,
) -> None:
    """Download results to results/JOB/RUN.

    Safe while runs are in progress. Skips runs whose copy is already complete. With --only or --exclude, the rest of a
    run is not touched, and the next `orch sync` downloads it.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import selection, shipping, sync
        from orchestrator.text import parse_size

        if code:
            if only or exclude:
                from orchestrator.errors import SpecError

                raise SpecError(
                    "--only and --exclude choose files of runs, which --code does not copy", "leave out one"
                )
            screen.shipped(shipping.ship_code(project, on, screen.terminal.approval(yes), screen.warned))
            return
        targets = selection.targets(project, runs or (), on, whole_jobs=True)
        chosen = sync.file_choice(only or (), exclude or ())
        screen.synced(sync.sync(project, targets, on, parse_size(limit, "--limit"), chosen))
