"""The supervisor of one run: waits for its turn, starts the worker, watches it, says how it ended.

It is the only writer of state.json and events.jsonl, and holds supervisor.lock as long as it lives.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Tuple, TypeVar

from remote import admission, launchers, policy, protocol, states
from remote.files import append_jsonl, read_json, remove
from remote.locks import try_lock
from remote.paths import ProjectPaths, RunPaths
from remote.prepare import Prepared, expand
from remote.process import Worker, program_argv
from remote.protocol import AgentError, RunState
from remote.slots import Grant, Slots, place
from remote.witnesses import Progress, Sampler, missing_outputs

T = TypeVar("T")

TICK = 0.1  # seconds between two looks at the worker
LEFTOVER_GRACE = 5.0  # seconds that a worker's children get to end after it has ended by itself


def supervise(directory: Path) -> None:
    """Take the run in `directory` to its end; returns at once where another supervisor has it."""
    run = RunPaths(directory)
    if try_lock(run.supervisor_lock, patience=5) is None or states.has_ended(run):
        return
    with open(str(run.supervisor_log), "ab") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())  # under tmux it would go with the terminal
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal or the connection that started us is gone
    supervisor = Supervisor(run)
    signal.signal(signal.SIGTERM, lambda number, frame: supervisor.terminate())
    try:
        supervisor.run_to_end()
    except Exception as error:  # noqa: BLE001 - the outermost loop: whatever it is, the run must say so
        traceback.print_exc()
        detail = f"the supervisor failed: {error!r}; see {run.supervisor_log.name}"
        supervisor.enter(protocol.Failed(time.time(), "supervisor_error", detail))


class StopRequested(Exception):
    """The run is to end while no worker is at work."""

    def __init__(self, end: policy.End) -> None:
        super().__init__(end.reason)
        self.end = end


class Supervisor:
    def __init__(self, run: RunPaths) -> None:
        self.run = run
        self.paths = ProjectPaths.of_run(run)
        self.record: Dict[str, Any] = read_json(run.run) or {}
        self.job: Dict[str, Any] = self.record["job"]
        self.python = os.path.expanduser(self.record["host"]["python"])
        self.code = self.paths.tree(self.record["code"]["tree"])
        self.limits = policy.Limits(
            self.job["stall_after"], self.job["deadline"], self.job["restarts"], self.job.get("attempt_limit")
        )
        self.secrets: Dict[str, str] = read_json(self.paths.secrets_of(run)) or {}
        self.launched = protocol.monotonic()
        self.terminated = False
        self._echoed = 0

    def terminate(self) -> None:
        self.terminated = True

    def run_to_end(self) -> None:
        try:
            final = self._live()
        except StopRequested as stop:
            final = protocol.Stopped(time.time(), stop.end.reason, stop.end.detail)
        except AgentError as error:
            final = protocol.Failed(time.time(), error.code, error.message)
        finally:
            remove(self.paths.secrets_of(self.run))
        self.enter(final)

    def enter(self, state: RunState) -> None:
        state = self._without_secrets(state)
        states.enter(self.run, state)
        print(f"[orch] {self.run.job} {self.run.run_id}: {state.name} {getattr(state, 'detail', '')}".rstrip())

    def _without_secrets(self, state: RunState) -> RunState:
        """A reason may quote what a program said."""
        if not self.secrets:
            return state
        from remote.masking import mask_text

        texts: Dict[str, Any] = {
            name: mask_text(value, self.secrets) for name, value in vars(state).items() if isinstance(value, str)
        }
        return dataclasses.replace(state, **texts)

    def _live(self) -> RunState:
        for need in self.record["needs"]:
            other = self.paths.run(need["job"], need["run_id"])
            self._wait(f"{other.job} ({other.run_id}) to succeed", partial(admission.has_succeeded, other))
        env = admission.base_environment(self.paths, self.run, self.python)
        env.update(self.secrets)
        prepared = self._prepared(env) if self.job["prepare"] else None
        env.update(admission.job_environment(self.paths, self.job, prepared))
        admission.check_data(self.job, env.get(protocol.ENV_DATA_DIR))
        return self._attempts(env, self._granted())

    # --- before the first attempt ---------------------------------------------------------------------

    def _prepared(self, env: Mapping[str, str]) -> Path:
        """The directory that `prepare` makes, made here unless some run has made it."""
        prepared = Prepared(self.paths, self.code, self.job["prepare"], self.job["env"])
        if prepared.is_done():
            return prepared.directory
        self._wait("what another run prepares", prepared.try_begin)
        try:
            if not prepared.is_done():
                self._make(prepared, env)
        finally:
            prepared.release()
        return prepared.directory

    def _make(self, prepared: Prepared, env: Mapping[str, str]) -> None:
        argv = prepared.argv()
        shown = "prepare: " + " ".join(argv)
        self.enter(protocol.Queued(time.time(), shown))
        own = {**prepared.env, protocol.ENV_PREPARED_DIR: str(prepared.directory)}
        worker = self._start(argv, {**env, **own}, Grant([], []))
        stop = self._watch(worker, lambda: self._asked_to_stop() or self._past_deadline())
        if stop:
            raise StopRequested(stop)
        if worker.exit_code != 0:
            raise AgentError("prepare_failed", f"{shown}: {policy.describe_exit(worker.exit_code)}; see training.log")
        prepared.finish()

    def _granted(self) -> Grant:
        """The run's share of the box's devices, once its turn has come."""
        gpus = float(self.job["gpus"])
        if gpus == 0:
            return Grant([], [])
        slots = Slots(self.paths.slots, admission.devices(self.record["host"]), place(self.run))
        try:
            if not slots.can_ever_give(gpus):
                raise AgentError("no_gpu", f"it asks for {gpus:g} GPUs; the box has {len(slots.devices)}")
            what = f"{gpus:g} of {'/'.join(slots.devices)}"
            return self._wait(what, lambda: slots.try_take(gpus), self.job.get("slot_patience"))
        finally:
            slots.close()

    def _wait(self, what: str, ready: Callable[[], Optional[T]], patience: Optional[float] = None) -> T:
        """Be `queued` until `ready` gives something, and not at all where it does at once."""
        given, began = ready(), protocol.monotonic()
        if not given:
            self.enter(protocol.Queued(time.time(), what))
        while not given:
            if patience is not None and protocol.monotonic() - began > patience:
                raise AgentError("busy", f"{what} was not free within {patience:.0f} s")
            self._pause()
            given = ready()
        return given

    def _pause(self) -> None:
        stop = self._asked_to_stop() or self._past_deadline()
        if stop:
            raise StopRequested(stop)
        time.sleep(TICK)

    # --- attempts --------------------------------------------------------------------------------------

    def _attempts(self, env: Dict[str, str], grant: Grant) -> RunState:
        env = {**admission.share_of_cpu(grant, self.job["gpus"]), **env}  # the job's own word counts
        env["CUDA_VISIBLE_DEVICES"] = grant.cuda_visible_devices
        attempt = 1
        while True:
            exit_code, stop = self._attempt(attempt, env, grant)
            missing = missing_outputs(self.run, self.job["expects"])
            step = policy.after_exit(self.limits, attempt, exit_code, stop, missing)
            if isinstance(step, policy.Finish):
                return _final_state(step, exit_code)
            attempt += 1
            reason = f"{step.reason}: {step.detail}"
            self.enter(protocol.Restarting(time.time(), attempt, reason, time.time() + step.delay))
            resume = protocol.monotonic() + step.delay
            while protocol.monotonic() < resume:
                self._pause()

    def _attempt(self, attempt: int, env: Dict[str, str], grant: Grant) -> Tuple[int, Optional[policy.End]]:
        """Exit code, and why the supervisor ended it, if it did."""
        self.enter(protocol.Starting(time.time(), attempt))
        env = {**env, protocol.ENV_ATTEMPT: str(attempt)}
        # A secret is no part of a command line, which every user of the box can read.
        named = {name: value for name, value in env.items() if name not in self.secrets}
        worker = self._start(expand(self.job["command"], named), env, grant)
        self.enter(protocol.Running(time.time(), attempt, worker.pid, worker.identity))
        sampler = Sampler(self.run, worker.pid, grant.devices)
        sampler.start()
        progress, started = Progress(self.run), protocol.monotonic()

        def look() -> Optional[policy.End]:
            now = protocol.monotonic()
            gpu = progress.since(sampler.gpu_busy_at)
            seen = policy.Seen(now - self.launched, progress.age(), gpu, now - started)
            return self._asked_to_stop() or policy.while_running(self.limits, seen)

        try:
            stop = self._watch(worker, look)
        finally:
            sampler.end()
        return worker.exit_code, stop

    def _start(self, argv: Any, env: Mapping[str, str], grant: Grant) -> Worker:
        argv = program_argv(argv, self.python)
        program = self.code / argv[0] if os.path.dirname(argv[0]) else argv[0]  # as the worker finds it
        if shutil.which(str(program), path=env.get("PATH")) is None:
            raise AgentError("no_program", f"the program {argv[0]!r} is not on the box")
        remove(self.run.heartbeat)  # what an earlier process said is not said of this one
        pump = launchers.pump_argv(self.run.log, self.paths.secrets_of(self.run)) if self.secrets else ()
        return Worker(argv, env, self.code, self.run.log, grant.descriptors, pump)

    def _watch(self, worker: Worker, look: Callable[[], Optional[policy.End]]) -> Optional[policy.End]:
        """Follow a worker to its exit; end it, and all that it started, when `look` says why."""
        stop = None
        while stop is None and not worker.has_ended():
            stop = look()
            self._echo_log()
            time.sleep(TICK)
        if stop:
            append_jsonl(self.run.events, {"time": time.time(), "ending": stop.reason, "detail": stop.detail})
        # What the worker started ends with it, whether it was ended or went by itself.
        in_time = worker.end(self.job["stop_grace"] if stop else LEFTOVER_GRACE)
        self._echo_log()
        if stop and not in_time:
            return policy.End(stop.reason, f"{stop.detail}; killed after {self.job['stop_grace']:.0f} s of grace")
        return stop

    def _asked_to_stop(self) -> Optional[policy.End]:
        if self.terminated:
            return policy.End("preempted", "the supervisor was told to end (SIGTERM)")
        if not self.run.stop.exists():
            return None
        request = read_json(self.run.stop) or {}
        return policy.End("asked", f"by {request.get('by', 'someone')}")

    def _past_deadline(self) -> Optional[policy.End]:
        seen = policy.Seen(protocol.monotonic() - self.launched, since_progress=0.0)
        return policy.while_running(self.limits, seen)

    def _echo_log(self) -> None:
        """Show the log to whoever attaches to the terminal that we run in (tmux)."""
        if sys.stdout.isatty():
            with open(str(self.run.log), "rb") as log:
                log.seek(self._echoed)
                data = log.read(1 << 16)
            self._echoed += len(data)
            sys.stdout.buffer.write(data)
            sys.stdout.flush()


def _final_state(step: policy.Finish, exit_code: int) -> RunState:
    if step.state == "succeeded":
        return protocol.Succeeded(time.time())
    if step.state == "stopped":
        return protocol.Stopped(time.time(), step.reason, step.detail)
    return protocol.Failed(time.time(), step.reason, step.detail, exit_code)
