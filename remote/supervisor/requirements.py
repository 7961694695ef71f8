"""What a run needs before its first attempt: the success of other runs, its environment, its data, its devices."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Dict, List, Mapping, Optional

from remote.contract import protocol
from remote.contract.locks import is_held
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.run_record import HostRecord, JobRecord
from remote.contract.variables import Unresolved, expand_value, references, resolve
from remote.host import gpu_driver
from remote.host.run_state import is_awaited, read_state
from remote.host.slots import CPU, Grant
from remote.supervisor.data_files import find_files, what_is_in


def has_succeeded(other: RunPaths) -> bool:
    """Return whether `other` has succeeded; False while it still may.

    Raises:
        AgentError: `need_failed`: it can no longer succeed.
    """
    if is_held(other.supervisor_lock):
        return False  # its recorded end counts only after its supervisor has released the lock
    state = read_state(other)
    if isinstance(state, protocol.Succeeded):
        return True
    if isinstance(state, protocol.Ended):
        how = f"{state.name}: {state.detail}" if isinstance(state, (protocol.Failed, protocol.Stopped)) else ""
        raise AgentError("need_failed", f"it needs {other.job}, whose run {other.run_id} {how}")
    if state is None or not (is_held(other.supervisor_lock) or is_awaited(other)):
        raise AgentError("need_failed", f"it needs {other.job}, but its run {other.run_id} no longer has a supervisor")
    return False


def devices(host: HostRecord) -> List[str]:
    """Return the names of the host's devices: `gpu0`, `gpu1`, ..., or `cpu` for `gpus = 0` in jobs.toml.

    Raises:
        AgentError: `no_gpu`: jobs.toml does not set `gpus`, and no GPU works.
    """
    declared = host.gpus
    if declared is None:
        declared = len(gpu_driver.cards())
        if declared == 0:
            detail = "no working GPU found (nvidia-smi); `gpus = 0` for this host in jobs.toml runs its jobs on the CPU"
            raise AgentError("no_gpu", detail)
    indices = range(declared) if isinstance(declared, int) else declared
    return [f"gpu{index}" for index in indices] or [CPU]


def base_environment(paths: ProjectPaths, run: RunPaths, python: str) -> Dict[str, str]:
    """Return the environment of every process of a run: the box's own, with our additions."""
    env = {**os.environ, protocol.ENV_RUN_DIR: str(run.root)}
    env["PYTHONUNBUFFERED"] = "1"  # the log is followed as it grows
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the indices of nvidia-smi; CUDA's own order is the fastest first
    env["PYTHONPYCACHEPREFIX"] = str(paths.bytecode)  # a snapshot is never written to
    if os.path.dirname(python):
        env["PATH"] = os.path.dirname(python) + os.pathsep + env.get("PATH", os.defpath)
    return env


def needs_variable(job: str) -> str:
    """Return the variable with the directory of the run of `job` that a run needs."""
    return protocol.ENV_NEEDS + job.upper().replace("-", "_")


def python_path(cwd: Path, existing: str, agent: str) -> str:
    """Return the PYTHONPATH of a job.

    The packages of its own code come first, so that no other version of them that is installed on the box is imported.
    The agent comes last: `from remote.worker import Run` works in every job.

    Args:
        cwd: The working directory. Its folder `src` is searched too if it has packages.
        existing: The PYTHONPATH that the job would have.
        agent: The agent's zipapp, or the folder of the package in a checkout.
    """
    own = [cwd, *(cwd / "src" for _ in itertools.islice((cwd / "src").glob("*/__init__.py"), 1))]
    last = agent if agent.endswith(".pyz") else os.path.dirname(os.path.abspath(agent))
    return os.pathsep.join(filter(None, [*map(str, own), existing, last]))


def job_environment(
    paths: ProjectPaths, job: JobRecord, prepared: Optional[Path], cwd: Path, base: Mapping[str, str]
) -> Dict[str, str]:
    """Return what the job's own process has in addition: its variables, its goals, its data.

    Args:
        paths: The project.
        job: The job.
        prepared: The output of its `prepare`; None if it has none.
        cwd: Its working directory.
        base: The environment that this is added to. The job's variables may refer to it, except to secrets.

    Raises:
        AgentError: `bad_env`: A variable of the job refers to one that is not set, or to a secret.
    """
    env = {protocol.ENV_GOALS: json.dumps(job.goals)}
    if job.keep_checkpoints:
        env[protocol.ENV_KEEP_CHECKPOINTS] = str(job.keep_checkpoints)
    if prepared:
        env[protocol.ENV_PREPARED_DIR] = str(prepared)
    data = data_directory(paths, job, prepared, cwd, base)
    if data:
        env[protocol.ENV_DATA_DIR] = str(data)
    return {**env, **own_variables(job, job.env, {**base, **env})}


def own_variables(job: JobRecord, own: Mapping[str, str], base: Mapping[str, str]) -> Dict[str, str]:
    """Return `own`, all or some variables of the job, with the variables in their values replaced.

    Raises:
        AgentError: `bad_env`: see `job_environment`.
    """
    if not job.expand_env:
        return dict(own)
    secret = next((name for name in job.secrets if any(name in references(value) for value in own.values())), None)
    if secret is not None:  # the value would be put on a command line that names the variable
        raise AgentError("bad_env", f"env refers to the secret ${secret}; let the program read {secret} itself")
    try:
        return resolve(own, base)
    except Unresolved as error:
        raise AgentError("bad_env", str(error)) from None


def variables_for_links(job: JobRecord, base: Mapping[str, str]) -> Dict[str, str]:
    """Return the variables of the job that the targets of its links refer to, directly or through others.

    Raises:
        AgentError: `bad_env`: see `job_environment`.
    """
    own: Dict[str, str] = {}
    waiting = list(job.links.values())
    while waiting:
        new = {name: job.env[name] for name in references(waiting.pop()) if name in job.env and name not in own}
        own.update(new)
        waiting += new.values()
    return own_variables(job, own, base)


def share_of_cpu(grant: Grant, share: float) -> Dict[str, str]:
    """Return the number of threads for a job on the CPU, by its share of the cores.

    Two jobs with one thread per core each take several times as long as with half as many threads each (measured with
    torch on two cores: four times).
    """
    if grant.devices != [CPU]:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, int(cores * min(1.0, share))))}


def data_directory(
    paths: ProjectPaths, job: JobRecord, prepared: Optional[Path], cwd: Path, base: Mapping[str, str]
) -> Optional[Path]:
    """Return the data directory: `data.path`, else the output of `prepare`; None without either.

    A relative path is looked for in the output of `prepare`, in the working directory, and in the project's directory
    on the box. If it is in none of them, it is meant to be in the first of these, or without `prepare` in the last.

    Raises:
        AgentError: `bad_env`: The path refers to a variable that is not set in `base`.
    """
    path = job.data.path if job.data else None
    if not path:
        return prepared
    if job.expand_env:
        try:
            path = expand_value(path, base, "data.path")
        except Unresolved as error:
            raise AgentError("bad_env", str(error)) from None
    places = [*([prepared] if prepared else []), cwd, paths.root]
    found = (place / Path(path).expanduser() for place in places)
    return next((place for place in found if place.exists()), (prepared or paths.root) / Path(path).expanduser())


def check_data(job: JobRecord, directory: Optional[str]) -> None:
    """Raise AgentError `no_data` if there are fewer data files than the job asks for."""
    wanted = job.data
    if not wanted:
        return
    found = len(find_files(Path(directory), wanted.pattern, wanted.at_least)) if directory else 0
    if found >= wanted.at_least:
        return
    detail = f"{found} files match {wanted.pattern} in {directory}; the job asks for at least {wanted.at_least}"
    if directory and os.path.isdir(directory):
        kinds = ", ".join(f"{count} {kind}" for kind, count in what_is_in(Path(directory)))
        detail += f"; it contains {kinds or 'no files'}"
    elif directory:
        detail += "; there is no such directory"
    raise AgentError("no_data", detail)
