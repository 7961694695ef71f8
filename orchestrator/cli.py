"""The command line: parse the arguments, call the command, show its result, exit.

Each command imports what it needs when it runs, so that `orch --help` stays fast. A function here is named after its
command with `_command` appended, because the modules of `orchestrator.commands` have the names of the commands.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.system import streams
from orchestrator.ui import command_options as options
from orchestrator.ui.command_frame import command, exit_with_verdict, opened, reported
from orchestrator.ui.command_help import FIRST_STEPS, Commands, HelpfulCommand

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
    """Return a decorator that registers a function as the command `name`.

    The help is the function's docstring, followed by the examples.
    """
    return app.command(name, cls=HelpfulCommand, epilog="\n  ".join(["\b\nExamples:", *examples]))


@app.callback(cls=Commands)
def orch(context: typer.Context, file: options.File = None, version: options.Version = False) -> None:
    """Keep the path of `--file` for the command; the help is that of `app`."""
    context.obj = file


@add_command("init", "orch init")
def init_command() -> None:
    """Look at the code here, and write a jobs.toml to start from.

    Reads the files of the current directory and runs none of them: scripts and their options, the README, the lists of
    packages. In a git repository it also adds `.orch/` and `results/` to .gitignore, unless they are ignored already.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen:
        from orchestrator.commands import init

        screen.initialised(init.write_spec(Path()))


@add_command("doctor", "orch doctor", "orch doctor gpu1")
def doctor_command(context: typer.Context, host: options.SomeHost = None, as_json: options.Json = False) -> None:
    """Check this machine and the hosts.

    Shows the result of each check and how to fix each problem. Exit code 4 if a check failed.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import doctor

        checks = doctor.examine(project, host)
        screen.examined(checks)
        if any(checked.check.status == "fail" for checked in checks):
            raise typer.Exit(4)


@add_command("disconnect", "orch disconnect", "orch disconnect gpu1")
def disconnect_command(context: typer.Context, host: options.SomeHost = None) -> None:
    """Close the connections to the hosts that stay open between commands.

    A connection stays open for 10 minutes after its last use, so that the next command needs no login. Runs are not
    affected.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen, opened(context, screen) as project:
        from orchestrator.commands import disconnect

        screen.disconnected(disconnect.disconnect(project, host))


@add_command("trust", "orch trust gpu1", "orch trust gpu1 --fingerprint SHA256:...")
def trust_command(context: typer.Context, host: options.AHost, fingerprint: options.Fingerprint = None) -> None:
    """Pin a host's SSH key.

    Shows the fingerprint of the key, asks whether to trust it, and writes the key to known_hosts.
    """
    from orchestrator.ui.screen import Screen

    with reported(Screen) as screen, opened(context, screen) as project:
        from orchestrator.commands import trust

        def confirm(key: trust.OfferedKey) -> bool:
            if fingerprint:
                return key.fingerprint == fingerprint
            screen.host_key(host, key)
            if key.is_pinned:
                return True
            try:
                is_trusted = typer.confirm("Trust this host key?")
                return is_trusted and (not key.replaces or typer.confirm("Replace the key in known_hosts?"))
            except typer.Abort:  # stdin is closed, or Ctrl-C
                return False

        result = trust.trust(project, host, confirm)
        screen.trusted(result)
        if result.file is None:
            raise typer.Exit(3)


@add_command("check", "orch check train", "orch check train --on gpu1")
def check_command(
    context: typer.Context,
    jobs: options.Jobs,
    on: options.LaunchOn = None,
    overrides: options.Set = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Test whether jobs would run, without starting them.

    Uploads the code, checks the host, and rehearses each job for at most a few minutes.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import launch

        approve = screen.terminal.approval(yes)
        checked = launch.launch(project, jobs, on, overrides or (), screen.live, approve, screen.warned, True)
        screen.checked(checked)


@add_command("launch", "orch launch train", "orch launch a b --on gpu1 --wait", "orch launch train --set deadline=8h")
def launch_command(
    context: typer.Context,
    jobs: options.Jobs,
    on: options.LaunchOn = None,
    wait: options.Wait = False,
    overrides: options.Set = None,
    resume_from: options.ResumeFrom = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Upload the code and start jobs.

    The jobs run in parallel and need no connection. Jobs that have not been rehearsed on the host are rehearsed first.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import launch, overview, watch

        approve = screen.terminal.approval(yes)
        show = (screen.live, approve, screen.warned)
        launched = launch.launch(project, jobs, on, overrides or (), *show, resume_from=resume_from)
        runs: Sequence[RunReport] = launched.runs
        screen.launched(launched, runs, wait)
        if wait:
            runs = screen.wait(watch.wait(project, runs), runs)
            screen.ended(runs)
            for note in overview.why_files_are_missing(project, runs):
                screen.terminal.note(note)
        exit_with_verdict(run for run in runs if wait or run.has_ended)


@add_command("status", "orch status", "orch status train --on gpu1", "orch status --json")
def status_command(
    context: typer.Context, runs: options.SomeRuns = None, on: options.On = None, as_json: options.Json = False
) -> None:
    """Show unfinished runs and the newest run of each job."""
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview

        screen.overview(overview.ask_all(project, runs or (), on))


@add_command("watch", "orch watch", "orch watch train")
def watch_command(
    context: typer.Context, runs: options.SomeRuns = None, on: options.On = None, as_json: options.Json = False
) -> None:
    """Show live status until all runs have finished.

    Exit code 1 if a run did not succeed. Ctrl-C does not affect the runs.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview, watch

        def ask_hosts(before: overview.Overview | None) -> Iterator[overview.Overview]:
            return overview.ask_all(project, runs or (), on, before=before)

        exit_with_verdict(screen.watch(watch.overviews(ask_hosts)))


@add_command("runs", "orch runs", "orch runs train")
def runs_command(
    context: typer.Context, runs: options.SomeRuns = None, on: options.On = None, as_json: options.Json = False
) -> None:
    """Show all known runs, finished ones included."""
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview

        screen.overview(overview.ask_all(project, runs or (), on, "all"))


@add_command("tail", "orch tail train", "orch tail train -n 200 --no-follow")
def tail_command(
    context: typer.Context,
    run: options.OneRun,
    lines: options.Lines = 20,
    start: options.Start = None,
    follow: options.Follow = True,
    on: options.On = None,
    as_json: options.Json = False,
) -> None:
    """Follow the log of a run.

    Folds progress bars. Reconnects if the connection is lost. Shows how the run ended; exit code 1 if it did not
    succeed.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import overview, selection, watch

        events = watch.follow(
            project, selection.target(project, run, on), lines, start, once=not follow, fold=not as_json
        )
        last = screen.follow(events, run, follow)
        if last and follow:
            screen.ended([last])
            for note in overview.why_files_are_missing(project, [last]):
                screen.terminal.note(note)
            exit_with_verdict([last])


@add_command("sync", "orch sync", "orch sync train --limit 200GB", "orch sync --code")
def sync_command(
    context: typer.Context,
    runs: options.SomeRuns = None,
    on: options.On = None,
    code: options.Code = False,
    limit: options.Limit = "100GB",
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Download results to results/JOB/RUN.

    Safe while runs are in progress. Skips runs whose copy is already complete.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import selection, shipping, sync
        from orchestrator.text import parse_size

        if code:
            screen.shipped(shipping.ship_code(project, on, screen.terminal.approval(yes), screen.warned))
            return
        targets = selection.targets(project, runs or (), on)
        screen.synced(sync.sync(project, targets, on, parse_size(limit)))


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
    as_json: options.Json = False,
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
    as_json: options.Json = False,
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


def main() -> None:
    """Parse the command line, and run the command."""
    streams.prepare()
    try:
        app()
    except OSError:  # typer could not write the help or a usage error
        streams.give_up_unwritable()
        raise SystemExit(1) from None
    finally:
        gc.freeze()  # else the interpreter looks through all objects once more before it ends, for tens of milliseconds


if __name__ == "__main__":
    main()
