"""Start, stop and continue runs: check, launch, push, stop, restart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from orchestrator.command_line import command_options as options
from orchestrator.command_line.command_frame import command, exit_with_verdict
from orchestrator.command_line.registry import add_command

if TYPE_CHECKING:
    from orchestrator.commands.plan import LaunchPlan
    from orchestrator.ui.renderer import Renderer
    from remote.contract.run_report import RunReport


@add_command("check", "orch check train", "orch check train --on gpu1")
def check_command(
    context: typer.Context,
    jobs: options.Jobs,
    on: options.LaunchOn = None,
    overrides: options.Set = None,
    sweeps: options.Sweep = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Test whether jobs would run, without starting them.

    Uploads the code, checks the host, and rehearses each job for at most a few minutes. Of a sweep, it tests the first
    combination.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import launch
        from orchestrator.commands.sweep import Wishes

        approve, wishes = screen.terminal.approval(yes), Wishes(sweeps or ())
        show = (screen.live, approve, screen.warned)
        checked = launch.launch(project, jobs, on, overrides or (), *show, rehearse_only=True, wishes=wishes)
        screen.checked(checked)


@add_command(
    "launch",
    "orch launch train",
    "orch launch a b --on gpu1 --wait",
    "orch launch train --set deadline=8h",
    "orch launch train --sweep env.SEED=0,1,2 --sweep env.LR=1e-3,3e-4 --at-once 2",
    "orch launch train --dry-run",
)
def launch_command(
    context: typer.Context,
    jobs: options.Jobs,
    on: options.LaunchOn = None,
    wait: options.Wait = False,
    overrides: options.Set = None,
    sweeps: options.Sweep = None,
    name: options.GroupName = None,
    at_once: options.AtOnce = None,
    again: options.Again = False,
    resume_from: options.ResumeFrom = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    as_json: options.JsonOfRuns = False,
) -> None:
    """Upload the code and start jobs.

    The jobs run in parallel and need no connection. Jobs that have not been rehearsed on the host are rehearsed first.
    A run starts beside other runs of its job, unless they have the same code and settings.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import launch, overview, watch
        from orchestrator.commands.sweep import Wishes

        wishes = Wishes(sweeps or (), name, at_once, again)
        if dry_run:
            from orchestrator.commands.plan import plan

            if context.meta.get(options.FIELDS):
                from orchestrator.errors import SpecError

                raise SpecError(
                    "--json FIELDS: --dry-run starts no runs, which could have fields", "write --json alone"
                )
            planned = plan(project, jobs, on, overrides or (), wishes, resume_from)
            _show_plan(screen, planned)
            return
        approve = screen.terminal.approval(yes)
        screen.leave_out_seen(project.spec.directory)
        show = (screen.live, approve, screen.warned)
        launched = launch.launch(project, jobs, on, overrides or (), *show, resume_from=resume_from, wishes=wishes)
        runs: Sequence[RunReport] = launched.runs
        screen.launched(launched, runs, wait)
        if wait:
            runs = screen.wait(watch.wait(project, runs), runs)
            screen.ended(runs)
            for note in overview.why_files_are_missing(project, runs):
                screen.terminal.note(note)
        exit_with_verdict(run for run in runs if wait or run.has_ended)


def _show_plan(screen: Renderer, planned: LaunchPlan) -> None:
    """Show what a launch would do. Exit with code 4 if it would be refused."""
    from orchestrator.errors import Refused
    from orchestrator.ui.plan_text import PlanView

    screen.present(PlanView(planned))
    if planned.would_fail:
        raise typer.Exit(Refused.exit_code)


@add_command("push", "orch push data gpu1:imagenet", "orch push data gpu1:/mnt/data/imagenet --force")
def push_command(
    context: typer.Context,
    source: options.PushSource,
    target: options.PushTarget,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Upload a file or directory with data.

    Shows the progress. If it is interrupted, the same command continues. A job that names the directory as `data.from`
    needs no push.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import push

        screen.pushed(push.push(project, source, target, force, screen.live))


@add_command("stop", "orch stop train", "orch stop train --no-wait")
def stop_command(
    context: typer.Context,
    runs: options.TheRuns,
    on: options.On = None,
    wait: options.WaitForStop = True,
    as_json: options.JsonOfRuns = False,
) -> None:
    """Stop runs after a checkpoint.

    Everything that they have written is kept. `orch restart` continues them.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import selection, stop, watch

        change = stop.stop(project, selection.targets(project, runs, on))
        stopped: Sequence[RunReport] = change.runs
        if wait:
            stopped = screen.wait(watch.wait(project, stopped), stopped, "being stopped")
        screen.stopped(change, stopped)


@add_command("restart", "orch restart train", "orch restart train --wait")
def restart_command(
    context: typer.Context,
    runs: options.TheRuns,
    on: options.On = None,
    wait: options.Wait = False,
    as_json: options.JsonOfRuns = False,
) -> None:
    """Continue failed or stopped runs from their last checkpoint.

    A job without `resume` in jobs.toml begins again, unless its program finds its checkpoints itself.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import selection, stop, watch

        change = stop.restart(project, selection.targets(project, runs, on))
        restarted: Sequence[RunReport] = change.runs
        if wait:
            restarted = screen.wait(watch.wait(project, restarted), restarted)
        screen.restarted(change, restarted)
        exit_with_verdict(run for run in restarted if wait or run.has_ended)
