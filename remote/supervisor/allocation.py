"""What a run waits for before it starts: other runs, its environment, `prepare`, a place in its group, devices."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, NamedTuple, Optional

from remote.contract import protocol
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.records import read_record, write_record
from remote.contract.run_record import EnvironmentUse, PrepareRecord, RunRecord
from remote.host.liveness import is_supervised
from remote.host.places import Places
from remote.host.slots import Grant, Slots
from remote.host.ticket_queue import run_of_ticket, ticket_name
from remote.supervisor import requirements, trackers, workspace
from remote.supervisor.control import Control
from remote.supervisor.prepare import Prepared
from remote.supervisor.signals import is_disk_full

if TYPE_CHECKING:
    from remote.supervisor.environment import Environment, NamedEnvironment

DISK_EVERY = 1.0  # seconds between two looks whether a full disk has space again
PLACE_EVERY = 0.5  # seconds between two looks for a place: a hundred runs of a group may wait for one

Make = Callable[[Prepared, Mapping[str, str]], None]
Build = Callable[["Environment", Mapping[str, str]], None]


class Allocated(NamedTuple):
    """What the attempts of a run get: their environment, and the share of the devices.

    Attributes:
        env: The environment variables.
        devices: The devices.
        locks: The descriptors of the locks that the attempts inherit: of the devices, and of the place in the group.
    """

    env: Dict[str, str]
    devices: List[str]
    locks: List[int]


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
        self._grant: Optional[Grant] = None
        self._place: Optional[Grant] = None  # in the group

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
        self._wait_for_space()
        env = requirements.base_environment(self._paths, self._run, self.python)
        if self._job.environment:  # first: a build that fails hours after the launch would be noticed by nobody
            env = self._in_environment(self._job.environment.file, env, build)
        for need in self._record.needs:
            other = self._paths.run(need.job, need.run_id)
            self._control.wait(f"{other.job} ({other.run_id}) to succeed", partial(requirements.has_succeeded, other))
        env.update(self._secrets)
        env.update(requirements.places(self._paths, self._record))
        prepared = self._prepared(self._job.prepare, make, env) if self._job.prepare else None
        self._take_place()
        self._wait_for_space()  # others have written while this run was queued
        env.update(trackers.switched_off(self._job, self._secrets))  # not for `prepare`, which may download with them
        known = {name: value for name, value in env.items() if name not in self._secrets}
        known.update(requirements.variables_for_links(self._job, known))
        workspace.make(self._run, self._record, prepared.name if prepared else None, known)
        cwd = workspace.directory(self._run, self._record)
        env.update(requirements.job_environment(self._paths, self._job, prepared, cwd, env))
        requirements.check_data(self._job, env.get(protocol.ENV_DATA_DIR))
        grant = self._granted()
        while self._lacks_space():
            grant.release()  # to jobs of other projects
            self._wait_for_space()
            grant = self._granted()
        self._grant = grant
        env = requirements.with_devices(env, grant, self._job.gpus)
        locks = [*grant.descriptors, *(self._place.descriptors if self._place else [])]
        self._allocated = Allocated(env, grant.devices, locks)
        return self._allocated

    def release(self) -> None:
        """Give the share of the devices back, and the place in the group."""
        for grant in (self._grant, self._place):
            if grant is not None:
                grant.release()

    def _lacks_space(self) -> bool:
        """Return whether the first attempt cannot start because the disk is full. A later one fails, as it did before.

        Nobody frees space for a rehearsal while `orch launch` waits for it, so it fails too.
        """
        is_first = self._control.since_begin() is None
        return is_first and not self._job.is_rehearsal and is_disk_full(self._run.root)

    def _wait_for_space(self) -> None:
        """Wait until the disk has space: each run of a queue would fail on a full disk, one after the other."""
        self._control.wait("space: the disk of the box is full", lambda: not self._lacks_space(), every=DISK_EVERY)

    def _take_place(self) -> None:
        """Wait for a place in the group, if only some of its runs may run at a time."""
        group, count = self._record.group, self._record.at_once
        if not (group and count) or self._place is not None:
            return
        places = Places(self._paths.group(group), count, ticket_name(self._run), self._is_coming)
        try:
            what = f"a place in {group} (at most {count} at once)"
            self._place = self._control.wait(what, places.try_take, every=PLACE_EVERY)
        finally:
            places.close()

    def _is_coming(self, ticket: str) -> bool:
        run = run_of_ticket(self._paths, ticket)
        return run is not None and is_supervised(run)

    def _in_environment(self, file: str, env: Dict[str, str], build: Build) -> Dict[str, str]:
        """Return `env` with the job's environment as the active one. Build it unless another run already has.

        Once chosen, it stays the environment of the run, even if uv is installed meanwhile, or if after a reboot cron
        starts the supervisor, with another PATH.
        """
        from remote.supervisor.environment import NamedEnvironment  # most jobs have none

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
            prepared.note_use()
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
