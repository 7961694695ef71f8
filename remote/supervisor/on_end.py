"""Run the command that the user wants to be run when a run has ended: `on_end` of [notify] in jobs.toml."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Mapping

from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import RunState
from remote.contract.run_record import RunRecord
from remote.contract.variables import expand
from remote.host.commands import run_command
from remote.host.process import end_family

GRACE_S = 2.0  # seconds for what the command has left running, from SIGTERM to SIGKILL
LIMIT_S = 30.0  # the end of the run is recorded after that at the latest
SAID_BYTES = 1 << 12  # of its output, of which the last line is noted


def run_on_end(run: RunPaths, record: RunRecord, cwd: Path, state: RunState, secrets: Mapping[str, str]) -> str:
    """Run `on_end` of the job, and return why it failed; empty if it did not. Never raises.

    What it has left running is ended: the environment of those processes has its secrets.

    Its environment is that of the supervisor, with the facts of the run, and the secrets that `on_end_secrets` names.

    Args:
        run: The run.
        record: Its record.
        cwd: The working directory of the run.
        state: How it ended, with secrets masked.
        secrets: The secrets of the run.
    """
    job = record.job
    facts = {
        "ORCH_JOB": run.job,
        "ORCH_RUN_ID": run.run_id,
        "ORCH_RUN_DIR": str(run.root),
        "ORCH_PROJECT": ProjectPaths.of_run(run).project,
        "ORCH_HOST": record.host.name,
        "ORCH_STATE": state.name,
        "ORCH_REASON": ": ".join(filter(None, (getattr(state, "reason", ""), getattr(state, "detail", "")))),
    }
    given = {name: secrets[name] for name in job.on_end_secrets if name in secrets}
    # No secret is put on a command line, which every user of the box can read.
    argv = expand(job.on_end, {**os.environ, **facts})
    try:
        place = str(cwd) if cwd.is_dir() else "/"
        output = run_command(argv, LIMIT_S, most=SAID_BYTES, env={**os.environ, **facts, **given}, cwd=place)
    except subprocess.TimeoutExpired:
        return f"{argv[0]}: not finished within {LIMIT_S:.0f} s, killed"
    except (OSError, ValueError) as error:
        return f"{argv[0]}: {error}"
    finally:
        end_family(0, 0, GRACE_S, ended=lambda: True, run_dir=str(run.root))
    if output.code == 0:
        return ""
    said = (output.err or output.out).decode("utf-8", "replace").strip().splitlines()
    return f"{argv[0]}: exit code {output.code}" + (f": {said[-1][:200]}" if said else "")
