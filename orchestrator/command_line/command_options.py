"""The arguments and options of all commands. Each is declared once, with its placeholder and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Exit, Option, echo

from orchestrator.command_line.command_values import COMMAND
from orchestrator.command_line.completion import complete_hosts, complete_jobs, complete_runs, complete_runs_and_hosts

FIELDS_METAVAR = "[FIELDS]"
FIELDS = "orch.fields"  # in the `meta` of the context: the fields after `--json`
QUERY = "orch.query"  # the same for the value of `--query`
JSON_IS_GIVEN = "orch.json"  # in the `meta` of the context: `--json` is before the command


def show_version(is_given: bool) -> None:
    """Print the version and exit if `--version` is given."""
    if is_given:
        from importlib import metadata

        echo(f"orch {metadata.version('orch')}")
        raise Exit


def keep_file(context: Context, value: Path | None) -> None:
    """Keep the path of `--file` for the command, which may follow it or precede it."""
    if value is not None:
        context.obj = value


def keep_json(context: Context, is_given: bool) -> None:
    """Keep `--json` for the command that follows."""
    if is_given:
        context.meta[JSON_IS_GIVEN] = True


def keep_query(context: Context, expression: str | None) -> None:
    """Keep the value of `--query` for the command, which may follow it or precede it."""
    if expression is not None:
        context.meta[QUERY] = expression
        context.meta[JSON_IS_GIVEN] = True


# --- arguments -------------------------------------------------------------------------------------------

Jobs = Annotated[list[str], Argument(metavar="JOB...", help="Jobs of jobs.toml.", autocompletion=complete_jobs)]
SchemaName = Annotated[
    str, Argument(metavar="jobs|documents", help="Of jobs.toml, or of the documents that --json prints.")
]
SomeRuns = Annotated[
    list[str] | None,
    Argument(
        metavar="[JOB|RUN]...", help="Jobs, runs, groups or patterns. Default: all.", autocompletion=complete_runs
    ),
]
UnfinishedRuns = Annotated[
    list[str] | None,
    Argument(
        metavar="[JOB|RUN]...",
        help="Jobs, run ids, groups or patterns. Default: all unfinished runs.",
        autocompletion=complete_runs,
    ),
]
TheRuns = Annotated[
    list[str],
    Argument(
        metavar="JOB|RUN...",
        help="Jobs, runs, groups or patterns. A job means its unfinished runs, or else its newest run.",
        autocompletion=complete_runs,
    ),
]
OneRun = Annotated[
    str,
    Argument(
        metavar="JOB|RUN",
        help="A job or a run id. A job means its unfinished run, or else its newest run.",
        autocompletion=complete_runs,
    ),
]
RunOrHost = Annotated[
    str,
    Argument(
        metavar="JOB|RUN|HOST",
        help="A job, a run id or a host. A job means its unfinished or newest run.",
        autocompletion=complete_runs_and_hosts,
    ),
]
Words = Annotated[list[str], Argument(metavar=COMMAND, help="The command, with its arguments.")]
Ports = Annotated[
    str,
    Argument(metavar="PORT[:REMOTE]", help="The port here; after a colon, that of the box if it differs."),
]
AHost = Annotated[str, Argument(metavar="HOST", help="A host of jobs.toml.", autocompletion=complete_hosts)]
SomeHost = Annotated[
    str | None,
    Argument(
        metavar="[HOST]",
        help="A host of jobs.toml. Default: every host that a job runs on.",
        autocompletion=complete_hosts,
    ),
]

# --- options of several commands -------------------------------------------------------------------------

LaunchOn = Annotated[
    str | None,
    Option("--on", metavar="HOST", help="Run on this host, not on the job's own.", autocompletion=complete_hosts),
]
On = Annotated[str | None, Option("--on", metavar="HOST", help="Only this host.", autocompletion=complete_hosts)]
Json = Annotated[bool, Option("--json", help="Print only JSON on stdout, one document per line.")]
JsonOfRuns = Annotated[
    bool,
    Option(
        "--json",
        metavar=FIELDS_METAVAR,
        help="Print only JSON on stdout, one document per line. With fields, such as `job,state,metrics.acc`: a list"
        " of the runs with only these.",
    ),
]
Set = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Override a setting of the jobs for this command. Repeatable."),
]
RemoveHere = Annotated[bool, Option("--here", help="Remove the copies on this machine.")]
RemoveThere = Annotated[bool, Option("--there", help="Remove what is on the hosts.")]
YesRemove = Annotated[bool, Option("--yes", "-y", help="Remove without asking.")]
DryRemoval = Annotated[bool, Option("--dry-run", help="Only show what would be removed.")]
Older = Annotated[str, Option("--older", metavar="AGE", help="Only what was not used for this long.")]
Larger = Annotated[str, Option("--larger", metavar="SIZE", help="Only what is at least this large, such as 10GB.")]
KeepNewest = Annotated[int, Option("--keep", metavar="N", min=0, help="Keep the N newest runs of each job.")]
Unsynced = Annotated[bool, Option("--unsynced", help="Remove also runs that have no other complete copy.")]
Yes = Annotated[bool, Option("--yes", "-y", help="Upload large files without asking.")]
Wait = Annotated[bool, Option("--wait", help="Wait until all runs have finished; exit code 1 if one did not succeed.")]

All = Annotated[bool, Option("--all", "-a", help="Show all runs, not only current or new ones.")]
Utc = Annotated[bool, Option("--utc", help="Show times in UTC instead of local time.")]
Sweep = Annotated[
    list[str] | None,
    Option(
        "--sweep",
        metavar="KEY=VALUE,VALUE",
        help="One run for each value; with several of these options, for each combination. Repeatable.",
    ),
]

# --- options of one command ------------------------------------------------------------------------------

Version = Annotated[bool, Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")]
File = Annotated[
    Path | None,
    Option(
        "--file",
        "-f",
        metavar="PATH",
        help="The jobs.toml to use. Default: the one in this directory or the nearest parent.",
        callback=keep_file,
        expose_value=False,
    ),
]
JsonBefore = Annotated[
    bool,
    Option("--json", help="The `--json` of the command, before it.", callback=keep_json, expose_value=False),
]
Query = Annotated[
    str | None,
    Option(
        "--query",
        metavar="EXPRESSION",
        help="Print what this JMESPath expression selects from the JSON, such as `runs[?state=='failed'].run_id`.",
        callback=keep_query,
        expose_value=False,
    ),
]
Fingerprint = Annotated[
    str | None,
    Option("--fingerprint", metavar="SHA256:...", help="Pin without asking if the key has this fingerprint."),
]
Lines = Annotated[int, Option("--lines", "-n", metavar="N", min=0, help="Start with the last N lines.")]
Start = Annotated[int | None, Option("--from", metavar="BYTE", min=0, help="Start at this byte of the log.")]
Follow = Annotated[
    bool, Option("--follow/--no-follow", "-f", help="Continue as the log grows, until the run finishes.")
]
Until = Annotated[
    str,
    Option(
        "--until",
        metavar="ended|goals|changed|stalled",
        help="What to wait for: the end; the end or all goals met; a new state; no progress. The last two: of one run.",
    ),
]
Timeout = Annotated[
    str | None,
    Option("--timeout", metavar="DURATION", help="Wait at most this long, such as 9m; exit code 5. Default: no limit."),
]
AnyOf = Annotated[bool, Option("--any", help="Return as soon as one run meets the condition. Default: all of them.")]
DryRun = Annotated[bool, Option("--dry-run", help="Show what would be sent, checked and started; do none of it.")]
ResumeFrom = Annotated[
    str | None,
    Option(
        "--resume-from",
        metavar="JOB|RUN",
        help="Start from the newest checkpoint of this run, on the same host.",
        autocompletion=complete_runs,
    ),
]
GroupName = Annotated[
    str | None, Option("--name", metavar="GROUP", help="The name of these runs as a group. Default: a new one.")
]
AtOnce = Annotated[
    int | None, Option("--at-once", metavar="N", min=1, help="At most N of the runs run at a time on a host.")
]
Again = Annotated[
    bool, Option("--again", help="Launch even if a run with the same code and settings is running or has succeeded.")
]
PushSource = Annotated[Path, Argument(metavar="PATH", help="A file or directory on this machine.")]
PushTarget = Annotated[
    str,
    Argument(
        metavar="[HOST:]PATH",
        help="The path on the host; a relative one is below `data/` of the project there. The host may be left out if"
        " all jobs run on one.",
    ),
]
Force = Annotated[bool, Option("--force", help="Replace other files that are there.")]
Code = Annotated[bool, Option("--code", help="Upload the code only; download nothing.")]
Limit = Annotated[str, Option("--limit", metavar="SIZE", help="Do not copy a run larger than this, such as 200GB.")]
Only = Annotated[
    list[str] | None,
    Option("--only", metavar="GLOB", help="Download only these files of each run, such as 'results/**'. Repeatable."),
]
Exclude = Annotated[
    list[str] | None,
    Option("--exclude", metavar="GLOB", help="Do not download these files, such as '*.pt'. Repeatable."),
]
Metric = Annotated[str, Argument(metavar="METRIC", help="The name of a metric.")]
OfJob = Annotated[
    str | None, Option("--job", metavar="JOB", help="Consider only runs of this job.", autocompletion=complete_jobs)
]
Least = Annotated[bool, Option("--min", help="The smallest value is the best.")]
Greatest = Annotated[bool, Option("--max", help="The largest value is the best.")]
Directory = Annotated[
    str | None, Argument(metavar="[DIR]", help="A directory of the run, or of its `work/`. Default: the run directory.")
]
Recursive = Annotated[bool, Option("--recursive", "-R", help="List all files below it.")]
FilePath = Annotated[str, Argument(metavar="FILE", help="A file of the run, or of its `work/`.")]
FileLimit = Annotated[str, Option("--limit", metavar="SIZE", help="Do not fetch a file larger than this, such as 2GB.")]
Diff = Annotated[bool, Option("--diff", help="Show only how its code differs from its commit, for `git apply`.")]
WaitForStop = Annotated[bool, Option("--wait/--no-wait", help="Wait until the runs have stopped.")]
