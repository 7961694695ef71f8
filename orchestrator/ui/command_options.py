"""The arguments and options of all commands. Each is declared once, with its placeholder and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option, echo


def show_version(is_given: bool) -> None:
    """Print the version and exit if `--version` is given."""
    if is_given:
        from importlib import metadata

        echo(f"orch {metadata.version('orch')}")
        raise Exit


# --- arguments -------------------------------------------------------------------------------------------

Jobs = Annotated[list[str], Argument(metavar="JOB...", help="Jobs of jobs.toml.")]
SomeRuns = Annotated[list[str] | None, Argument(metavar="[JOB|RUN]...", help="Jobs or run ids. Default: all.")]
TheRuns = Annotated[
    list[str],
    Argument(metavar="JOB|RUN...", help="Jobs or run ids. A job means its unfinished run, or else its newest run."),
]
OneRun = Annotated[
    str,
    Argument(metavar="JOB|RUN", help="A job or a run id. A job means its unfinished run, or else its newest run."),
]
AHost = Annotated[str, Argument(metavar="HOST", help="A host of jobs.toml.")]
SomeHost = Annotated[
    str | None, Argument(metavar="[HOST]", help="A host of jobs.toml. Default: every host that a job runs on.")
]

# --- options of several commands -------------------------------------------------------------------------

LaunchOn = Annotated[str | None, Option("--on", metavar="HOST", help="Run on this host, not on the job's own.")]
On = Annotated[str | None, Option("--on", metavar="HOST", help="Only this host.")]
Json = Annotated[bool, Option("--json", help="Print only JSON on stdout, one document per line.")]
Set = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Override a setting of the jobs for this command. Repeatable."),
]
Yes = Annotated[bool, Option("--yes", "-y", help="Upload large files without asking.")]
Wait = Annotated[bool, Option("--wait", help="Wait until all runs have finished; exit code 1 if one did not succeed.")]

# --- options of one command ------------------------------------------------------------------------------

Version = Annotated[bool, Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")]
File = Annotated[
    Path | None,
    Option(
        "--file",
        "-f",
        metavar="PATH",
        help="The jobs.toml to use. Default: the one in this directory or the nearest parent.",
    ),
]
Fingerprint = Annotated[
    str | None,
    Option("--fingerprint", metavar="SHA256:...", help="Pin without asking if the key has this fingerprint."),
]
Lines = Annotated[int, Option("--lines", "-n", metavar="N", min=0, help="Start with the last N lines.")]
Start = Annotated[int | None, Option("--from", metavar="BYTE", min=0, help="Start at this byte of the log.")]
Follow = Annotated[bool, Option("--follow/--no-follow", help="Continue as the log grows, until the run finishes.")]
ResumeFrom = Annotated[
    str | None,
    Option("--resume-from", metavar="JOB|RUN", help="Start from the newest checkpoint of this run, on the same host."),
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
WaitForStop = Annotated[bool, Option("--wait/--no-wait", help="Wait until the runs have stopped.")]
