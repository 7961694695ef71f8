"""The supervisor of one run: waits for its turn, starts the worker, watches it, says how it ended.

It is the only writer of state.json and events.jsonl, and holds supervisor.lock as long as it lives. One that comes
after another was killed, or after the box was restarted, goes on where that one stood.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple, Union

from remote import evidence, policy, protocol, reboot, states
from remote.attempt import Attempt
from remote.control import TICK, Control, StopRequested
from remote.failures import Failure, LastWords, classify
from remote.files import TEMP_PREFIX, read_json, remove, write_json
from remote.history import judged, last_failure, restarts_used, supervisor_errors
from remote.locks import try_lock
from remote.logs import LogReader
from remote.masking import mask_text
from remote.paths import ProjectPaths, RunPaths
from remote.prepare import Prepared, expand
from remote.process import identity, program_argv
from remote.protocol import AgentError, RunState
from remote.slots import CPU
from remote.states import Recorder
from remote.turn import Turn
from remote.witnesses import Progress, Sampler, gpu_memory_left, is_disk_full, missing_outputs, oom_kills, steps_done

LOOK_EVERY = 1.0  # seconds between two looks at the witnesses; an exit and a request to stop are seen at every tick
LEFTOVER_GRACE = 5.0  # seconds that a worker's children get to end after it has ended by itself
TOLD_TO_END = 128 + int(signal.SIGTERM)
SUCCESS = policy.Finish("succeeded")
SUPERVISORS = 3  # that may fail at something unexpected before the run is given up
WITHOUT_EVIDENCE = ("asked", "preempted")  # nothing is wrong with the worker


def supervise(directory: Path) -> int:
    """Take the run in `directory` to its end; exit code 0 where nothing is left to do for it."""
    run = RunPaths(directory)
    if try_lock(run.supervisor_lock, patience=5) is None or states.has_ended(run):
        return 0
    with open(str(run.supervisor_log), "ab") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())  # under tmux it would go with the terminal
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal or the connection that started us is gone
    _say_who(run)
    if not isinstance((read_json(run.run) or {}).get("job"), dict):
        _end_without_record(run)
        return 0
    supervisor = Supervisor(run)
    signal.signal(signal.SIGTERM, lambda number, frame: supervisor.control.terminate())
    try:
        is_over = supervisor.run_to_end()
    except Exception as error:  # noqa: BLE001 - the outermost loop: whatever it is, the run must say so
        traceback.print_exc()
        is_over = supervisor.give_up(error)
        if not is_over:
            return 1  # the guard starts another, which takes over what is at work
    if not is_over:
        supervisor.recorder.flush()
        return TOLD_TO_END
    supervisor.recorder.settle()
    reboot.release(ProjectPaths.of_run(run))
    return 0


def _say_who(run: RunPaths) -> None:
    """By which the keeper, and whoever asks for the run, finds us and our guard."""
    pids = {"": os.getpid(), "guard_": os.getppid()}
    record = {
        f"{who}{key}": value for who, pid in pids.items() for key, value in (("pid", pid), ("identity", identity(pid)))
    }
    try:
        write_json(run.supervisor, record)
    except OSError:
        pass  # a full disk: we do without


def _end_without_record(run: RunPaths) -> None:
    """Nobody knows any more what the run was to do, nor how long it may take."""
    left = Attempt.left(run, {})
    if left:
        left.end(LEFTOVER_GRACE)
    recorder = Recorder(run)
    recorder.enter(protocol.Failed(time.time(), "damaged", "run.json, which says what to run, cannot be read"))
    for path in (ProjectPaths.of_run(run).secrets_of(run), ProjectPaths.of_run(run).pipe_of(run), run.reserve):
        remove(path)
    recorder.settle()
    reboot.release(ProjectPaths.of_run(run))


class Supervisor:
    def __init__(self, run: RunPaths) -> None:
        self.run = run
        self.record: Dict[str, Any] = read_json(run.run) or {}
        self.job: Dict[str, Any] = self.record["job"]
        self.python = os.path.expanduser(self.record["host"]["python"])
        paths = ProjectPaths.of_run(run)
        self.code = paths.tree(self.record["code"]["tree"])
        self.secrets_file, self.pipe = paths.secrets_of(run), paths.pipe_of(run)
        self.secrets: Dict[str, str] = read_json(self.secrets_file) or {}
        self.limits = policy.Limits(
            self.job["stall_after"], self.job["deadline"], self.job["restarts"], self.job.get("attempt_limit")
        )
        self.recorder = Recorder(run)
        self.control = Control(run, self.record, self.limits, self.recorder)
        self.turn = Turn(run, self.record, self.secrets, self.control)
        self._echo = LogReader(run)
        self._echoed = 0

    def run_to_end(self) -> bool:
        """False where it was told to end before the run is over."""
        final: Optional[RunState] = None
        try:
            final = self._live()
        except StopRequested as stop:
            if stop.end.reason != "preempted":
                final = protocol.Stopped(time.time(), stop.end.reason, stop.end.detail)
        except AgentError as error:
            final = protocol.Failed(time.time(), error.code, error.message)
        if final is None:
            return False
        self._leave(final)
        return True

    def _leave(self, final: RunState) -> None:
        for path in (self.secrets_file, self.pipe, self.run.reserve):
            remove(path)
        self.enter(final)

    def give_up(self, error: Exception) -> bool:
        """False while another supervisor may do better; else end what is at work, and the run."""
        what = f"the supervisor failed: {error!r}; see {self.run.supervisor_log.name}"
        self.recorder.note(supervisor_error=self._masked(repr(error)))
        if supervisor_errors(self.run) < SUPERVISORS:
            return False
        left = Attempt.left(self.run, self.secrets)
        if left:
            left.end(self.job["stop_grace"])
        self._leave(protocol.Failed(time.time(), "supervisor_error", what))
        return True

    def enter(self, state: RunState) -> None:
        texts: Dict[str, Any] = {name: self._masked(value) for name, value in vars(state).items()}
        self.recorder.enter(dataclasses.replace(state, **texts))
        _say(f"[orch] {self.run.job} {self.run.run_id}: {state.name} {texts.get('detail', '')}".rstrip())

    def _masked(self, value: Any) -> Any:
        """A reason may quote what a program said."""
        return mask_text(value, self.secrets) if self.secrets and isinstance(value, str) else value

    # --- attempts --------------------------------------------------------------------------------------

    def _live(self) -> RunState:
        number, worker = self._where_it_stands()
        while True:
            ended = self._take_to_its_end(number, worker)
            step = policy.after_exit(
                self.limits, restarts_used(self.run), ended, last_failure(self.run), random.random()
            )
            if step != SUCCESS:
                self._note_failure(number, ended.failure, step)
            if isinstance(step, policy.Finish):
                return _final_state(step, ended.failure.exit_code)
            number, worker = number + 1, None
            reason = f"{step.reason}: {step.detail}"
            self.enter(protocol.Restarting(time.time(), number, reason, time.time() + step.delay))
            self.control.pause(step.delay)

    def _where_it_stands(self) -> Tuple[int, Optional[Attempt]]:
        """The attempt to go on with, and its worker where an earlier supervisor has started it."""
        left = Attempt.left(self.run, self.secrets)
        state = states.read_state(self.run)
        over = judged(self.run)
        if isinstance(state, protocol.Restarting):
            over |= {state.attempt - 1}
            self.control.pause(min(policy.MAX_BACKOFF, state.not_before - time.time()))
        if left and left.number == 0:
            left.end(LEFTOVER_GRACE)  # its `prepare` begins anew
        elif left and left.number not in over:
            self.recorder.note(taken_over=left.number)
            return left.number, left
        return max(over, default=0) + 1, None

    def _take_to_its_end(self, number: int, worker: Optional[Attempt]) -> policy.Ended:
        kills = oom_kills()
        if worker is None:
            worker = self._begin(number)
            self.enter(_running(number, worker))
        elif worker.exit_code is None and not worker.is_of_this_boot:
            return _rebooted(number)
        elif worker.is_alive() and not isinstance(states.written(self.run), protocol.Running):
            self.enter(_running(number, worker))
        by = self._attend(number, worker)
        if worker.exit_code != 0 and self.control.terminated:
            by = self.control.asked_to_stop()  # a machine that goes down ends the worker as it ends us
        full = is_disk_full(self.run.root)
        if worker.exit_code == 0 and not by:
            return policy.Ended(Failure("", "", 0), missing=missing_outputs(self.run, self.job["expects"]))
        failure = classify(worker.exit_code, self._last_words(number, worker, oom_kills() - kills))
        if not by:
            evidence.take(self.run, number, failure.reason, {}, 0, self.secrets)
        return policy.Ended(failure, by, is_disk_full=full)

    def _begin(self, number: int) -> Attempt:
        grant = self.turn.take(self._prepare)
        self.enter(protocol.Starting(time.time(), number))
        states.reserve(self.run)
        env = {**self.turn.env, protocol.ENV_ATTEMPT: str(number)}
        # A secret is no part of a command line, which every user of the box can read.
        named = {name: value for name, value in env.items() if name not in self.secrets}
        return self._start(number, expand(self.job["command"], named), env, grant.devices, grant.descriptors)

    def _prepare(self, prepared: Prepared, env: Mapping[str, str]) -> None:
        argv = prepared.argv()
        shown = "prepare: " + " ".join(argv)
        self.enter(protocol.Queued(time.time(), shown))
        own = {**prepared.env, protocol.ENV_PREPARED_DIR: str(prepared.directory)}
        worker = self._start(0, argv, {**env, **own}, (), prepared.descriptors)
        stop = self._watch(0, worker, self.control.why_stop)
        if stop:
            raise StopRequested(stop)
        if worker.exit_code != 0:
            failure = classify(worker.exit_code, self._last_words(0, worker, 0))
            raise AgentError("prepare_failed", f"{shown}: {failure.detail}; see training.log")
        prepared.finish()

    def _start(
        self, number: int, argv: Sequence[str], env: Mapping[str, str], devices: Sequence[str], locks: Sequence[int]
    ) -> Attempt:
        argv = program_argv(argv, self.python)
        program = self.code / argv[0] if os.path.dirname(argv[0]) else argv[0]  # as the worker finds it
        if shutil.which(str(program), path=env.get("PATH")) is None:
            raise AgentError("no_program", f"the program {argv[0]!r} is not on the box")
        for stale in (self.run.heartbeat, self.run.failure):  # what an earlier process said is not said of this one
            remove(stale)
        _remove_halves(self.run)
        return Attempt.start(self.run, number, argv, env, self.code, self.secrets, devices, locks)

    # --- watching --------------------------------------------------------------------------------------

    def _attend(self, number: int, worker: Attempt) -> Optional[policy.End]:
        """Follow an attempt to its end; why the supervisor ended it, if it did."""
        sampler = Sampler(self.run, worker.stats, worker.devices, is_alone=float(self.job["gpus"]) >= 1)
        sampler.start()
        progress, started = Progress(self.run), protocol.monotonic()

        def look() -> Optional[policy.End]:
            now = protocol.monotonic()
            worker.tend()
            progress.look()
            seen = policy.Seen(
                self.control.since_launch(),
                progress.since_step,
                progress.since_log,
                None if sampler.gpu_busy_at is None else now - sampler.gpu_busy_at,
                now - started,
                progress.heartbeat_age,
                is_disk_full(self.run.root),
            )
            return policy.while_running(self.limits, seen)

        try:
            return self._watch(number, worker, look)
        finally:
            sampler.end()
            if worker.devices and worker.devices != [CPU]:
                held = gpu_memory_left(sampler.pids)
                if held:
                    self.recorder.note(gpu_memory_held=held)

    def _watch(self, number: int, worker: Attempt, look: Callable[[], Optional[policy.End]]) -> Optional[policy.End]:
        """Follow a worker to its exit; end it, and all that it started, when there is a reason to."""
        stop, looked = None, -LOOK_EVERY
        while stop is None and not worker.has_ended():
            stop = self.control.asked_to_stop()
            if protocol.monotonic() - looked >= LOOK_EVERY:
                looked = protocol.monotonic()
                stop = stop or look()
                self.recorder.flush()
            self._echo_log()
            time.sleep(TICK)
        takes = [stop.reason] if stop and stop.reason not in WITHOUT_EVIDENCE else []

        def take(reason: str) -> None:
            evidence.take(self.run, number, reason, worker.stats(), worker.pid, self.secrets)

        if stop:
            self.recorder.note(ending=stop.reason, detail=stop.detail)
        for reason in takes:
            take(reason)
        # What the worker started ends with it, whether it was ended or went by itself.
        grace = self.job["stop_grace"] if stop else LEFTOVER_GRACE
        in_time = worker.end(grace, before_kill=lambda: None if takes else take("kill"))
        self._echo_log()
        if stop and not in_time:
            return policy.End(stop.reason, f"{stop.detail}; killed after {grace:.0f} s of grace")
        return stop

    def _echo_log(self) -> None:
        """Show the log to whoever attaches to the terminal that we run in (tmux)."""
        if sys.stdout.isatty():
            start, data = self._echo.read(self._echoed)
            self._echoed = start + len(data)
            sys.stdout.buffer.write(data)
            sys.stdout.flush()

    # --- what came of it -------------------------------------------------------------------------------

    def _last_words(self, number: int, worker: Attempt, kills: int) -> LastWords:
        said = read_json(self.run.failure)
        return LastWords(
            log=evidence.log_tail(self.run, worker.log_start),
            said=said if said and said.get("attempt") == number else None,
            kernel="\n".join(evidence.kernel_lines(worker.started)),
            oom_kills=kills,
            step=steps_done(self.run),
        )

    def _note_failure(self, number: int, failure: Failure, step: Union[policy.Restart, policy.Finish]) -> None:
        event = {**failure.to_json(), "reason": step.reason, "detail": step.detail}
        self.recorder.note(attempt_ended=number, **{key: self._masked(value) for key, value in event.items()})


def _running(number: int, worker: Attempt) -> protocol.Running:
    return protocol.Running(time.time(), number, worker.pid, worker.identity, worker.boot)


def _rebooted(number: int) -> policy.Ended:
    detail = f"the box was restarted while attempt {number} ran"
    return policy.Ended(Failure("rebooted", detail), policy.End("rebooted", detail))


def _remove_halves(run: RunPaths) -> None:
    """What a process that was killed left half-written."""
    for directory in (run.root, run.checkpoints):
        for path in directory.glob(TEMP_PREFIX + "*"):
            if path != run.reserve and path.is_file():
                remove(path)


def _final_state(step: policy.Finish, exit_code: Optional[int]) -> RunState:
    if step.state == "succeeded":
        return protocol.Succeeded(time.time())
    if step.state == "stopped":
        return protocol.Stopped(time.time(), step.reason, step.detail)
    return protocol.Failed(time.time(), step.reason, step.detail, exit_code)


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError:
        pass  # our own log, on a disk that is full
