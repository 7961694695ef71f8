"""The environment of a run for a person who enters it: that of its worker, without the secrets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, NamedTuple, Optional

from remote.contract import protocol
from remote.contract.files import read_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.processes import WorkerRecord
from remote.contract.protocol import AgentError
from remote.contract.records import read_record
from remote.contract.run_record import EnvironmentUse, RunRecord
from remote.contract.schema import Malformed
from remote.host import launchers
from remote.host.outputs import WorkspaceRecord
from remote.host.slots import Grant
from remote.supervisor import requirements, workspace


class Entered(NamedTuple):
    """Where a person enters a run: the directory, the environment, and the interpreter of the job."""

    directory: Path
    env: Dict[str, str]
    python: str


def read_run(run: RunPaths) -> RunRecord:
    """Return the record of a run. Raise AgentError `damaged` if it cannot be read."""
    try:
        return RunRecord.read(read_json(run.run))
    except Malformed:
        message = f"{run.job} {run.run_id}: its run.json cannot be read or is damaged"
        raise AgentError("damaged", message, f"its files are in {run.root} on the box") from None


def directory_of(run: RunPaths, record: RunRecord) -> Path:
    """Return the working directory of the run's job; the run directory if that does not exist yet, or no longer."""
    found = workspace.directory(run, record)
    return found if found.is_dir() and not found.is_symlink() else run.root


def entered(run: RunPaths, record: RunRecord) -> Entered:
    """Return the environment of the run's last attempt as far as it is on record. It has no secret.

    Raises:
        AgentError: A variable of the job refers to one that is not set.
    """
    paths, job = ProjectPaths.of_run(run), record.job
    python = os.path.expanduser(record.host.python)
    env = requirements.base_environment(paths, run, python)
    # With a slash at its end it does not mark our process as one of the run, which would be ended with the run.
    env[protocol.ENV_RUN_DIR] = os.path.join(str(run.root), "")
    if job.environment:
        from remote.supervisor.environment import NamedEnvironment  # most jobs have none

        use = read_record(EnvironmentUse, run.environment)
        environment = NamedEnvironment(paths, use.key, use.tool) if use else None
        if environment and environment.is_done():
            env, python = environment.activate(env), environment.python
    env.update(requirements.places(paths, record))
    cwd = directory_of(run, record)
    env.update(requirements.job_environment(paths, job, prepared_directory(paths, run, record), cwd, env))
    worker = read_record(WorkerRecord, run.worker) or WorkerRecord()
    env = requirements.with_devices(env, Grant(worker.devices, []), job.gpus)
    env[protocol.ENV_ATTEMPT] = str(worker.attempt or 1)
    env["PYTHONPATH"] = requirements.python_path(cwd, env.get("PYTHONPATH", ""), launchers.ENTRY)
    return Entered(cwd, env, python)


def prepared_directory(paths: ProjectPaths, run: RunPaths, record: RunRecord) -> Optional[Path]:
    """Return the output of the job's `prepare`; None if it has none."""
    if record.job.prepare is None:
        return None
    made = read_record(WorkspaceRecord, run.workspace)
    if made and made.prepared:
        return paths.prepared / os.path.basename(made.prepared)
    from remote.supervisor.prepare import Prepared

    try:
        return Prepared(paths, paths.tree(record.code.tree), record.job.prepare, record.job.env).directory
    except (AgentError, OSError):  # its code is gone
        return None
