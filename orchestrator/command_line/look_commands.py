"""Look back at runs: show, compare, best, ls, cat, open."""

from __future__ import annotations

import typer

from orchestrator.command_line import command_options as options
from orchestrator.command_line.command_frame import command
from orchestrator.command_line.registry import add_command


@add_command("show", "orch show train", "orch show 2ab4 --diff | git apply", "orch show train/2ab4 --json")
def show_command(
    context: typer.Context,
    run: options.OneRun,
    diff: options.Diff = False,
    utc: options.Utc = False,
    as_json: options.Json = False,
) -> None:
    """Show all that is known about a run.

    Its settings, host, code, attempts, metrics, files and cost, and the command that runs it again. Works while the
    host is off, with what was seen before.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import show
        from orchestrator.ui.show_text import ShowView

        screen.present(ShowView(show.show(project, run), diff, utc))


@add_command("compare", "orch compare 2ab4 91c0", "orch compare lr-sweep", "orch compare 'train/*' --json")
def compare_command(context: typer.Context, runs: options.TheRuns, as_json: options.JsonOfRuns = False) -> None:
    """Show what differs between runs.

    Settings, code and the newest metrics, side by side. Runs that differ only in a seed or the like are also shown as
    mean, standard deviation and number.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import compare
        from orchestrator.ui.compare_text import CompareView

        screen.present(CompareView(compare.compare(project, runs)))


@add_command("best", "orch best val_loss", "orch best accuracy lr-sweep", "orch best reward --min")
def best_command(
    context: typer.Context,
    metric: options.Metric,
    runs: options.SomeRuns = None,
    job: options.OfJob = None,
    least: options.Least = False,
    greatest: options.Greatest = False,
    as_json: options.JsonOfRuns = False,
) -> None:
    """Show the runs with the best value of a metric.

    The direction is that of a goal of the metric, or else to judge by its name. The best run is remembered as
    worth keeping.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import best
        from orchestrator.errors import SpecError
        from orchestrator.ui.compare_text import BestView

        if least and greatest:
            raise SpecError("--min and --max contradict each other", "leave out one of them")
        less_is_better = least if least or greatest else None
        screen.present(BestView(best.best(project, metric, job, less_is_better, runs or ())))


@add_command("ls", "orch ls train", "orch ls 2ab4 work/out", "orch ls train -R")
def ls_command(
    context: typer.Context,
    run: options.OneRun,
    directory: options.Directory = None,
    recursive: options.Recursive = False,
    as_json: options.Json = False,
) -> None:
    """List the files of a run.

    Those on its host, and those in its copy here. While the host is off, those of the copy.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import run_contents
        from orchestrator.ui.contents_text import ListView

        screen.present(ListView(run_contents.list_files(project, run, directory or "", recursive)))


@add_command("cat", "orch cat train out/eval.json", "orch cat 2ab4 out/model.pt > model.pt")
def cat_command(
    context: typer.Context,
    run: options.OneRun,
    path: options.FilePath,
    limit: options.FileLimit = "100MB",
    as_json: options.Json = False,
) -> None:
    """Print a file of a run.

    Fetches it first if the copy here is not complete. Into a pipe or a file, every byte is unchanged.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import run_contents
        from orchestrator.text import parse_size
        from orchestrator.ui.contents_text import ContentView

        screen.present(ContentView(run_contents.find_file(project, run, path, parse_size(limit, "--limit"))))


@add_command("open", "orch open train", 'cd "$(orch open train)"')
def open_command(context: typer.Context, run: options.OneRun, as_json: options.Json = False) -> None:
    """Open the copy of a run in the file manager.

    Prints its directory. Without a display, that is all.
    """
    with command(context, as_json) as (project, screen):
        from orchestrator.commands import run_contents
        from orchestrator.ui.contents_text import OpenedView

        screen.present(OpenedView(run_contents.open_copy(project, run)))
