"""Tidy: df, rm, prune."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from orchestrator.command_line import command_options as options
from orchestrator.command_line.command_frame import command
from orchestrator.command_line.registry import add_command

if TYPE_CHECKING:
    from orchestrator.commands.project import OpenedProject
    from orchestrator.commands.rm import Plan
    from orchestrator.ui.renderer import Renderer


@add_command("df", "orch df", "orch df --on gpu1")
def df_command(context: typer.Context, on: options.On = None, as_json: options.Json = False) -> None:
    """Show what the project uses on the disks of the hosts and of this machine."""
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import df
        from orchestrator.ui.tidy_text import DisksView

        disks = df.disks(project, on)
        screen.present(DisksView(disks))
        screen.raise_first(disks.errors)


@add_command("rm", "orch rm train/2ab4", "orch rm 'lr-*' --here", "orch rm old-sweep --yes")
def rm_command(
    context: typer.Context,
    runs: options.TheRuns,
    here: options.RemoveHere = False,
    there: options.RemoveThere = False,
    dry_run: options.DryRemoval = False,
    yes: options.YesRemove = False,
    on: options.On = None,
    as_json: options.Json = False,
) -> None:
    """Remove runs: their copies here and what is on the host, unless --here or --there names only one of them.

    Shows what and how much it is, and asks first. A run that has not ended is never removed.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import rm

        is_both = here == there
        plan = rm.plan(project, runs, on, here or is_both, there or is_both)
        _remove(project, screen, "rm", plan, dry_run, yes, as_json)


@add_command("prune", "orch prune", "orch prune --older 7d --larger 1GB --dry-run", "orch prune --here --yes")
def prune_command(
    context: typer.Context,
    older: options.Older = "30d",
    larger: options.Larger = "0",
    newest: options.KeepNewest = 1,
    unsynced: options.Unsynced = False,
    here: options.RemoveHere = False,
    there: options.RemoveThere = False,
    dry_run: options.DryRemoval = False,
    yes: options.YesRemove = False,
    on: options.On = None,
    as_json: options.Json = False,
) -> None:
    """Remove old runs, rehearsals, snapshots, environments and prepared data from the hosts.

    Keeps what a run needs, the newest and the best runs of each job, and runs that are not copied to this machine. With
    --here, removes old copies here. Shows what and how much it is, and asks first.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import prune

        rules = prune.PruneRules.parse(older, larger, newest, unsynced)
        plan = prune.plan(project, rules, on, here, there or not here)
        _remove(project, screen, "prune", plan, dry_run, yes, as_json)


def _remove(
    project: OpenedProject, screen: Renderer, kind: str, plan: Plan, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Show a plan, let the user confirm it, and carry it out."""
    from orchestrator.commands import rm
    from orchestrator.ui.tidy_text import RemovalPlanView, RemovedView, question

    is_all = dry_run or plan.is_empty
    if is_all or not as_json:
        screen.present(RemovalPlanView(kind, plan))
    if is_all:
        screen.raise_first(plan.errors)
        return
    rm.require_yes(screen.terminal.approval(yes)(question(plan)))
    removed = rm.carry_out(project, plan)
    screen.present(RemovedView(kind, removed))
    screen.raise_first(removed.errors)
