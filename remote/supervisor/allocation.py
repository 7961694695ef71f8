"""What a run waits for before it starts: other runs, its environment, `prepare`, its data, its share of the devices."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, Mapping, NamedTuple, Optional

from remote.contract import protocol
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.records import read_record, write_record
from remote.contract.run_record import PrepareRecord, RunRecord
from remote.host.slots import Grant, Slots, ticket_name
from remote.supervisor import requirements, trackers, workspace
from remote.supervisor.control import Control
from remote.supervisor.prepare import Prepared

if TYPE_CHECKING:
    from remote.supervisor.environment import Environment, NamedEnvironment

Make = Callable[[Prepared, Mapping[str, str]], None]
Build = Callable[["Environment", Mapping[str, str]], None]


class Allocated(NamedTuple):
    """What the attempts of a run get: their environment, and the share of the devices."""

    env: Dict[str, str]
    grant: Grant


class Allocation:
    """Waits for all that a run needs: once in the life of its supervisor, for all attempts.

    Attributes:
        python: The interpreter of the job: that of the host, or of the job's environment as soon as that exists.
    """

    def __init__(self, run: RunPaths, record: RunRecord, secrets: Mapping[str, str], control: Control) -> None:
        self._run, self._record, self._secrets, self._control = run, record, secrets, control
        self._paths = ProjectPaths.of_run(run)
        self._job = record.job
        self.python = os.path.expanduser(record.host.python)
        self._code = self._paths.tree(record.code.tree)
        self._allocated: Optional[Allocated] = None

    def take(self, make: Make, build: Build) -> Allocated:
        """Wait for all that the run needs. Later calls return the same.

        Args:
            make: Runs the job's `prepare`.
            build: Builds its environment.

        Raises:
            AgentError: The run cannot get what it needs.
            StopRequested: The run is to end.
        """
        if self._allocated is not None:
            return self._allocated
        env = requirements.base_environment(self._paths, self._run, self.python)
        if self._job.environment:  # first: a build that fails hours after the launch would be noticed by nobody
            env = self._in_environment(self._job.environment.file, env, build)
        for need in self._record.needs:
            other = self._paths.run(need.job, need.run_id)
            self._control.wait(f"{other.job} ({other.run_id}) to succeed", partial(requirements.has_succeeded, other))
        env.update(self._secrets)
        for need in self._record.needs:
            env[requirements.needs_variable(need.job)] = str(self._paths.run(need.job, need.run_id).root)
        env[protocol.ENV_CODE_DIR] = str(self._code)
        prepared = self._prepared(self._job.prepare, make, env) if self._job.prepare else None
        env.update(trackers.switched_off(self._job, self._secrets))  # not for `prepare`, which may download with them
        known = {name: value for name, value in env.items() if name not in self._secrets}
        known.update(requirements.variables_for_links(self._job, known))
        workspace.make(self._run, self._record, prepared.name if prepared else None, known)
        cwd = workspace.directory(self._run, self._record)
        env.update(requirements.job_environment(self._paths, self._job, prepared, cwd, env))
        requirements.check_data(self._job, env.get(protocol.ENV_DATA_DIR))
        grant = self._granted()
        # If the job sets its number of threads itself, that counts.
        env = {**requirements.share_of_cpu(grant, self._job.gpus), **env}
        env["CUDA_VISIBLE_DEVICES"] = grant.cuda_visible_devices
        self._allocated = Allocated(env, grant)
        return self._allocated

    def release(self) -> None:
        """Give the share of the devices back."""
        if self._allocated is not None:
            self._allocated.grant.release()

    def _in_environment(self, file: str, env: Dict[str, str], build: Build) -> Dict[str, str]:
        """Return `env` with the job's environment as the active one. Build it unless another run already has.

        Once chosen, it stays the environment of the run, even if uv is installed meanwhile, or if after a reboot cron
        starts the supervisor, with another PATH.
        """
        from remote.supervisor.environment import EnvironmentUse, NamedEnvironment  # most jobs have none

        use = read_record(EnvironmentUse, self._run.environment)
        environment = NamedEnvironment(self._paths, use.key, use.tool) if use else None
        if environment is None or not environment.is_done():
            environment = self._new_environment(file, env, build)
        environment.note_use()
        self.python = environment.python
        return environment.activate(env)

    def _new_environment(self, file: str, env: Mapping[str, str], build: Build) -> NamedEnvironment:
        """Return the environment that the job needs, and record it. Build it unless another run already has."""
        from remote.supervisor.environment import Environment
        from remote.supervisor.environment_tools import build_environment

        environment = Environment(self._paths, self._code, self._job, self.python, env)
        if not environment.is_done():
            shown = f"the environment ({file}), which another run builds"
            self._control.wait(shown, environment.try_begin)
            try:
                if not environment.is_done():
                    own = requirements.own_variables(self._job, environment.own_env, env)
                    own.update({name: self._secrets[name] for name in environment.secrets if name in self._secrets})
                    build(environment, build_environment(env, own, environment.target))
            finally:
                environment.release()
        try:
            write_record(self._run.environment, environment.use)
        except OSError:
            pass  # the disk is full; a later attempt computes it again
        return environment

    def _prepared(self, prepare: PrepareRecord, make: Make, env: Mapping[str, str]) -> Path:
        """Return the directory that `prepare` makes. Make it unless another run already has."""
        prepared = Prepared(self._paths, self._code, prepare, self._job.env)
        if prepared.is_done():
            return prepared.directory
        self._control.wait("the `prepare` of another run", prepared.try_begin)
        try:
            if not prepared.is_done():
                make(prepared, env)
        finally:
            prepared.release()
        return prepared.directory

    def _granted(self) -> Grant:
        gpus = self._job.gpus
        if gpus == 0:
            return Grant([], [])
        slots = Slots(self._paths.slots, requirements.devices(self._record.host), ticket_name(self._run))
        try:
            if not slots.can_ever_give(gpus):
                raise AgentError("no_gpu", f"the job needs {gpus:g} GPUs, but the box has {len(slots.devices)}")
            what = f"{gpus:g} of {'/'.join(slots.devices)}"
            return self._control.wait(what, lambda: slots.try_take(gpus), self._job.slot_timeout)
        finally:
            slots.close()
