"""Commands that need no connection, beside the smallest program that uses the same library for its options."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.figures import Figure, Limit, interleaved
from bench.setting import JOB, ORCH, User, environment, job, spec
from tests.support import end_leftovers

HELLO = """\
import typer

def main(name: str) -> None:
    \"\"\"Greet NAME.\"\"\"
    print(f"Hello {name}")

if __name__ == "__main__":
    typer.run(main)
"""


def starting(folder: Path, rounds: int) -> Iterator[Figure]:
    """Measure `orch --help`, and `orch status` where the only host is this machine and two runs have ended."""
    project, marks, home = (folder / name for name in ("project", "marks", "home"))
    for made in (project, marks, home):
        made.mkdir(parents=True)
    tables = "".join(job(name, "write", 1, 1000, here=folder) for name in ("one", "two"))
    (project / "job.py").write_text(JOB)
    (project / "jobs.toml").write_text(spec("local", tables))
    (folder / "hello.py").write_text(HELLO)
    here = User(project, environment(home), marks)
    hello = [sys.executable, str(folder / "hello.py"), "--help"]
    try:
        here.orch("launch", "one", "two", "--wait")
        figures = (("orch --help", [ORCH, "--help"], 1.15), ("orch status on this machine", [ORCH, "status"], 1.6))
        for name, command, most in figures:
            times = interleaved(rounds, {"orch": partial(here.seconds, command), "hello": partial(here.seconds, hello)})
            yield Figure(name, "typer hello --help", times["orch"], times["hello"], Limit(most))
    finally:
        end_leftovers([folder])
