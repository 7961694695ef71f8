"""The supervisor of one run: wait for its allocation, start the worker, monitor it, record how it ended.

It is the only writer of state.json and events.jsonl, and holds supervisor.lock while it lives. If it is killed, or the
box reboots, the next supervisor continues from there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Mapping, Optional, Sequence, Tuple, Union

from remote.contract import protocol, states
from remote.contract.events import AttemptEnded, RunNote
from remote.contract.files import read_json, remove
from remote.contract.logs import LogReader
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError, RunState
from remote.contract.records import read_record
from remote.contract.reported import FailureRecord
from remote.contract.run_record import RunRecord
from remote.contract.variables import expand
from remote.host import launchers, run_state
from remote.host.presence import GONE
from remote.host.process import boot_id, program_argv
from remote.host.run_state import Recorder
from remote.supervisor import endings, policy, requirements, workspace
from remote.supervisor.allocation import Allocation
from remote.supervisor.attempt import Attempt, end_leftovers
from remote.supervisor.control import Control, StopRequested
from remote.supervisor.failures import ExitDetails, Failure, classify
from remote.supervisor.history import (
    decided_end,
    judged,
    last_failure,
    marker,
    restarts_used,
    resumed_from,
    supervisor_errors,
)
from remote.supervisor.left_running import describe
from remote.supervisor.monitor import Monitor
from remote.supervisor.prepare import Prepared
from remote.supervisor.requirements import own_variables
from remote.supervisor.resume import resumption
from remote.supervisor.signals import has_trained, is_disk_full, missing_outputs, oom_kills, steps_done
from remote.supervisor.written_files import has_written

if TYPE_CHECKING:
    from remote.supervisor.environment import Environment

SUPERVISORS = 3  # how many supervisors may have an unexpected error before the run fails


class Supervisor:
    """Supervises one run: starts attempts until one succeeds or no restart is left.

    Attributes:
        control: The stop conditions of the run.
        recorder: Writes its state and events.
    """

    def __init__(self, run: RunPaths, record: RunRecord) -> None:
        self.run, self.record, self.job = run, record, record.job
        paths = ProjectPaths.of_run(run)
        self.code = paths.tree(record.code.tree)
        self.cwd = workspace.directory(run, record)
        self.secrets: Dict[str, str] = read_json(paths.secrets_of(run)) or {}
        if self.secrets:
            from remote.host.core_dumps import forbid_core_dumps

            forbid_core_dumps()
        job = record.job
        self.limits = policy.Limits(job.stall_after, job.deadline, job.restarts, job.attempt_limit, job.queue_deadline)
        self.recorder = Recorder(run)
        self.control = Control(run, self.record, self.limits, self.recorder)
        self.allocation = Allocation(run, self.record, self.secrets, self.control)
        self.monitor = Monitor(run, self.job, self.control, self.recorder, self._echo_log)
        self.monitor.directories = (self.cwd, run.root)
        self._echo = LogReader(run)
        self._echoed = 0

    def run_to_end(self) -> bool:
        """Supervise the run. Return False if SIGTERM ended the supervisor before the run ended."""
        final: Optional[RunState] = None
        try:
            final = self._live()
        except StopRequested as stop:
            if stop.end.reason == GONE:
                final = protocol.Failed(time.time(), GONE, stop.end.detail)
            elif stop.end.reason != "preempted":
                final = protocol.Stopped(time.time(), stop.end.reason, stop.end.detail)
        except AgentError as error:
            final = protocol.Failed(time.time(), error.code, "; ".join(filter(None, (error.message, error.hint))))
        if final is None:
            return False
        self._leave(final)
        return True

    def _leave(self, final: RunState) -> None:
        self.allocation.release()  # first, because writing the state may block while the disk is full
        if self.control.presence.why_gone() or getattr(final, "reason", "") == GONE:
            endings.restore_directory(self.run, self.record)
        run_state.tidy(self.run)
        if ProjectPaths.of_run(self.run).is_rehearsal(self.run):
            workspace.remove_tree(self.run.work)
        else:
            workspace.summarise(self.run)
        self.enter(final)

    def give_up(self, error: Exception) -> bool:
        """Record an unexpected error. After the last one allowed, end the worker and the run, and return True."""
        what = f"the supervisor failed: {error!r}; see {self.run.supervisor_log.name}"
        self.recorder.note(RunNote(supervisor_error=self.masked(repr(error))))
        if supervisor_errors(self.recorder.history) < SUPERVISORS:
            return False
        end_leftovers(self.run, self.secrets, self.job.stop_grace, self.job.stop_signal)
        self._leave(protocol.Failed(time.time(), "supervisor_error", what))
        return True

    def enter(self, state: RunState) -> None:
        """Make `state` the run's state, with secrets masked, and print it to our terminal."""
        state = run_state.with_texts(state, self.masked)
        self.recorder.enter(state)
        _print(f"[orch] {self.run.job} {self.run.run_id}: {state.name} {getattr(state, 'detail', '')}".rstrip())

    def masked(self, value: str) -> str:
        """Return `value` with secrets masked: a reason may quote the output of a program."""
        if not self.secrets:
            return value
        from remote.contract.masking import mask_text

        return mask_text(value, self.secrets)

    # --- attempts --------------------------------------------------------------------------------------

    def _live(self) -> RunState:
        decided = decided_end(self.recorder.history)
        if decided:  # an earlier supervisor was killed before it wrote the state
            return _final_state(*decided)
        number, worker = self._first_attempt()
        while True:
            ended = self._run_attempt(number, worker)
            step = policy.after_exit(
                self.limits,
                restarts_used(self.recorder.history),
                ended,
                last_failure(self.recorder.history),
                os.urandom(1)[0] / 256,
            )
            if not isinstance(step, policy.Finish) or step.state != "succeeded":
                self._note_failure(number, ended.failure, step)
            if isinstance(step, policy.Finish):
                return _final_state(step, ended.failure.exit_code)
            number, worker = number + 1, None
            reason = f"{step.reason}: {step.detail}"
            self.enter(protocol.Restarting(time.time(), number, reason, time.time() + step.delay))
            self.control.pause(step.delay)

    def _first_attempt(self) -> Tuple[int, Optional[Attempt]]:
        """Return the number of the attempt to continue with, and its worker if an earlier supervisor has started it."""
        left = Attempt.left(self.run, self.secrets)
        state = states.recorded(self.run)
        over = judged(self.recorder.history)
        if isinstance(state, protocol.Restarting):
            over |= {state.attempt - 1}
            self.control.pause(min(policy.MAX_BACKOFF, state.not_before - time.time()))
        if left and left.number not in over | {0}:  # a `prepare` (0) starts again
            self.recorder.note(RunNote(taken_over=left.number))
            return left.number, left
        end_leftovers(self.run, self.secrets, endings.GRACE_S)
        return max(over, default=0) + 1, None

    def _run_attempt(self, number: int, worker: Optional[Attempt]) -> policy.Ended:
        kills = oom_kills()
        if worker is None:
            worker = self._begin(number)
            self.enter(self._running(number, worker))
        elif worker.exit_code is None and not worker.is_of_this_boot:
            return _rebooted(number)
        elif worker.is_alive() and not isinstance(states.written(self.run), protocol.Running):
            self.enter(self._running(number, worker))
        watched = self.monitor.attend(worker, self.limits)
        by = watched.stop
        if by and by.reason == GONE:
            raise AgentError(GONE, by.detail)  # even if the worker seems to have succeeded in a new directory
        self.control.require_directory()
        if worker.exit_code != 0 and self.control.terminated:
            by = self.control.asked_to_stop()  # a shutdown ends the worker as well as us
        full = is_disk_full(self.run.root)
        if worker.exit_code == 0 and not by:
            return self._ended_well(worker, watched.left)
        failure = classify(worker.exit_code, self._exit_details(number, worker, oom_kills() - kills))
        if not by:
            from remote.supervisor import diagnostics

            diagnostics.take(self.run, number, failure.reason, {}, 0, self.secrets)
        return policy.Ended(failure, by, is_disk_full=full)

    def _ended_well(self, worker: Attempt, left: Mapping[int, str]) -> policy.Ended:
        """Return the end of a worker with exit code 0."""
        problem, remark = None, ""
        if self.job.is_rehearsal:
            from remote.supervisor import diagnostics, rehearsing

            log = diagnostics.log_tail(self.run, worker.log_start)
            problem = rehearsing.find_problem(self.run, self.job, self.cwd, left, log)
        elif left:
            remark = f"ended what it left running: {describe(list(left.values()))}"
        missing = missing_outputs(self.run, self.job.expects)
        return policy.Ended(Failure("", "", 0), missing=missing, problem=problem, remark=remark)

    def _running(self, number: int, worker: Attempt) -> protocol.Running:
        return protocol.Running(
            time.time(),
            number,
            worker.pid,
            worker.identity,
            worker.boot,
            self.job.rehearse_start or self.job.attempt_limit,
            resumed_from(self.recorder.history),
        )

    def _begin(self, number: int) -> Attempt:
        allocated = self.allocation.take(self._prepare, self._build)
        resumed = resumption(self.run, self.record, number, self.recorder.history)
        for note in resumed.notes:
            self.recorder.note(RunNote(resume=self.masked(note)))
        self.enter(protocol.Starting(time.time(), number, protocol.monotonic(), boot_id(), resumed.shown or None))
        run_state.reserve(self.run)
        env = {**allocated.env, protocol.ENV_ATTEMPT: str(number), **resumed.environment(self.record)}
        # No secret is put on a command line, which every user of the box can read.
        named = {name: value for name, value in env.items() if name not in self.secrets}
        devices, locks = allocated.grant.devices, allocated.grant.descriptors
        command = [*expand(self.job.command, named), *resumed.words(named)]
        return self._start(number, command, self.cwd, env, devices, locks)

    def _build(self, environment: Environment, env: Mapping[str, str]) -> None:
        from remote.supervisor.environment_build import Builder

        Builder(self.run, self.secrets, self.control, self.monitor, self.enter).build(environment, env)

    def _prepare(self, prepared: Prepared, env: Mapping[str, str]) -> None:
        env = {**env, protocol.ENV_PREPARED_DIR: str(prepared.directory)}
        own = own_variables(self.job, prepared.env, env)
        argv = prepared.argv(own)
        shown = "prepare: " + " ".join(argv)
        self.enter(protocol.Queued(time.time(), shown))
        cwd = prepared.make_workspace() if self.job.cwd == "work" else self.code
        worker = self._start(0, argv, cwd, {**env, **own}, (), prepared.descriptors)
        stop = self.monitor.follow(worker, self.control.limit_preparation("`prepare`")).stop
        if stop:
            raise StopRequested(stop)
        if worker.exit_code != 0:
            failure = classify(worker.exit_code, self._exit_details(0, worker, 0))
            raise AgentError("prepare_failed", f"{shown}: {failure.detail}; see training.log")
        prepared.finish()

    def _start(
        self,
        number: int,
        argv: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        devices: Sequence[str],
        locks: Sequence[int],
    ) -> Attempt:
        if not cwd.is_dir():
            raise AgentError("no_code", f"the working directory of this run, {cwd}, is no longer on the box")
        env = {**env, "PYTHONPATH": requirements.python_path(cwd, env.get("PYTHONPATH", ""), launchers.ENTRY)}
        argv = program_argv(argv, self.allocation.python)
        program = cwd / argv[0] if os.path.dirname(argv[0]) else argv[0]  # as the worker finds it
        from shutil import which

        if which(str(program), path=env.get("PATH")) is None:
            made = "; `prepare` has not made it" if number and self.job.prepare else ""
            raise AgentError("no_program", f"the program {argv[0]!r} is not on the box{made}")
        for stale in (self.run.heartbeat, self.run.failure, self.run.output_list):  # written by an earlier process
            remove(stale)
        workspace.remove_temporaries(self.run)
        line = self.masked(marker(self.recorder.history, number, time.time())) if number else ""
        return Attempt.start(
            self.run, number, argv, env, cwd, self.secrets, devices, locks, line, self.job.pty and number > 0
        )

    def _echo_log(self) -> None:
        """Show the log to whoever attaches to the terminal that we run in (tmux)."""
        if sys.stdout.isatty():
            start, data = self._echo.read(self._echoed)
            self._echoed = start + len(data)
            sys.stdout.buffer.write(data)
            sys.stdout.flush()

    # --- how attempts end --------------------------------------------------------------------------------

    def _exit_details(self, number: int, worker: Attempt, kills: int) -> ExitDetails:
        from remote.supervisor import diagnostics

        reported = read_record(FailureRecord, self.run.failure)
        return ExitDetails(
            log=diagnostics.log_tail(self.run, worker.log_start),
            reported=reported if reported and reported.attempt == number else None,
            kernel="\n".join(diagnostics.kernel_lines(worker.started)),
            oom_kills=kills,
            step=steps_done(self.run),
            has_written=has_written(self.run, time.time() - (protocol.monotonic() - worker.started)),
        )

    def _note_failure(self, number: int, failure: Failure, step: Union[policy.Restart, policy.Finish]) -> None:
        then = step.state if isinstance(step, policy.Finish) else "restarting"
        reason, detail, exception = (self.masked(text) for text in (step.reason, step.detail, failure.exception or ""))
        self.recorder.note(
            AttemptEnded(
                number,
                reason,
                detail,
                failure.exit_code,
                exception or None,
                failure.step,
                then,
                failure.has_written,
                failure.log_digest,
                has_trained(self.run),
            )
        )


def _rebooted(number: int) -> policy.Ended:
    detail = f"the box rebooted during attempt {number}"
    return policy.Ended(Failure("rebooted", detail), policy.End("rebooted", detail))


def _final_state(step: policy.Finish, exit_code: Optional[int]) -> RunState:
    if step.state == "succeeded":
        return protocol.Succeeded(time.time(), step.detail)
    if step.state == "stopped":
        return protocol.Stopped(time.time(), step.reason, step.detail)
    return protocol.Failed(time.time(), step.reason, step.detail, exit_code)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError:
        pass  # our log is on a full disk
