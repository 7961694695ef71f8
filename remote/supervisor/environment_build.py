"""Build the environment of a run's job, with the output in the run's log."""

from __future__ import annotations

import errno
import re
import time
from typing import Callable, List, Mapping, Optional

from remote.contract import protocol
from remote.contract.files import remove
from remote.contract.paths import RunPaths
from remote.contract.position import Position
from remote.contract.protocol import AgentError, Heartbeat, Queued, RunState
from remote.contract.records import write_record
from remote.supervisor import diagnostics, policy
from remote.supervisor.attempt import Attempt
from remote.supervisor.control import Control, StopRequested
from remote.supervisor.environment import Environment
from remote.supervisor.environment_files import FAILED
from remote.supervisor.monitor import Monitor

TAIL_BYTES = 16 * 1024  # of the output, searched for the reason of a failure
MAX_CHARS = 700  # of the reason
MAX_LINES = 4
LONGEST = 200  # characters of the line that is shown while it is built

_ERROR = re.compile(r"(?:ERROR|error|fatal|Caused by)\b|[×╰]")
_FULL = re.compile(r"No space left on device|os error 28|Disk quota exceeded|os error 122")
_NO_NETWORK = re.compile(
    r"name resolution|Name or service not known|dns error|Network is unreachable|No route to host|Connection refused"
    r"|Failed to establish a new connection|error sending request|timed out|CONNECTION FAILED",
    re.IGNORECASE,
)
NETWORK_HINT = (
    "the box could not reach a package index; set a proxy (HTTPS_PROXY) or another index (PIP_INDEX_URL, or "
    "UV_DEFAULT_INDEX for uv) in `env` of the job"
)


class Builder:
    """Builds environments for one run."""

    def __init__(
        self,
        run: RunPaths,
        secrets: Mapping[str, str],
        control: Control,
        monitor: Monitor,
        enter: Callable[[RunState], None],
    ) -> None:
        self._run, self._secrets = run, secrets
        self._control, self._monitor, self._enter = control, monitor, enter

    def build(self, environment: Environment, env: Mapping[str, str]) -> None:
        """Build the environment. If that fails or is stopped, nothing of it is left.

        Args:
            environment: The environment, of which we hold the lock.
            env: The environment variables of the build.

        Raises:
            AgentError: It cannot be built.
            StopRequested: The run is to end.
        """
        self._enter(Queued(time.time(), f"the environment ({environment.record.file})"))
        self._show("starting")
        began, limit = protocol.monotonic(), self._control.limit_preparation("the build of the environment")
        try:
            for argv in environment.commands():
                self._run_command(environment, argv, env, limit)
            environment.finish(protocol.monotonic() - began)
        except OSError as error:
            environment.discard()
            raise _not_written(environment, error) from None
        except BaseException:
            environment.discard()
            raise
        finally:
            remove(self._run.heartbeat)

    def _run_command(
        self,
        environment: Environment,
        argv: List[str],
        env: Mapping[str, str],
        limit: Callable[[], Optional[policy.End]],
    ) -> None:
        worker = Attempt.start(
            self._run, 0, argv, env, environment.source, self._secrets, descriptors=environment.descriptors
        )
        shown = ""

        def look() -> Optional[policy.End]:
            nonlocal shown
            line = last_line(self._log_of(worker))
            if line and line != shown:
                shown = line
                self._show(line)
            return limit()

        stop = self._monitor.follow(worker, look).stop
        if stop:
            raise StopRequested(stop)
        if worker.exit_code != 0:
            how = f"{environment.record.file} with {environment.tool.name}"
            raise failure(how, worker.exit_code, self._log_of(worker))

    def _show(self, line: str) -> None:
        try:
            write_record(self._run.heartbeat, Heartbeat.now(line, Position()))
        except OSError:
            pass  # the disk is full, which the command will report

    def _log_of(self, worker: Attempt) -> str:
        return diagnostics.log_tail(self._run, worker.log_start, TAIL_BYTES)


def _not_written(environment: Environment, error: OSError) -> AgentError:
    code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else FAILED
    return AgentError(code, f"building the environment in {environment.directory}: {error.strerror}")


def last_line(log: str) -> str:
    """Return the last line of the output that is not empty, as far as it is shown."""
    lines = (line.strip() for line in reversed(log.replace("\r", "\n").split("\n")))
    return next((line for line in lines if line), "")[:LONGEST]


def reason_in(log: str) -> str:
    """Return what the output of a failed command gives as the reason, in the program's own words, in one line."""
    lines = [line.strip() for line in log.replace("\r", "\n").split("\n") if line.strip()]
    lines = [line for line in lines if not line.startswith(("[notice]", "WARNING: You are using pip"))]
    of_pip = [line[len("ERROR: ") :] for line in lines if line.startswith("ERROR: ")]
    if of_pip:
        return "; ".join(of_pip[-MAX_LINES:])[:MAX_CHARS]
    first = next((index for index, line in enumerate(lines) if _ERROR.match(line)), 0)
    lines = lines[first:]
    half = MAX_LINES // 2  # the first lines say what failed, the last ones why
    return " ".join(lines if len(lines) <= MAX_LINES else [*lines[:half], *lines[-half:]])[:MAX_CHARS]


def failure(how: str, code: Optional[int], log: str) -> AgentError:
    """Return the error of a build whose command failed.

    Args:
        how: What was built with what, such as "uv.lock with uv".
        code: The exit code of the command; negative or None if it was killed.
        log: The end of its output.
    """
    ended = f"exit code {code}" if code is not None and code >= 0 else "killed"
    reason = reason_in(log).rstrip(".") or "no output"
    message = f"building the environment from {how} failed ({ended}): {reason}"
    if _FULL.search(log):
        return AgentError("disk_full", f"{message}; what was built of it has been removed")
    return AgentError(FAILED, f"{message}; see training.log", NETWORK_HINT if _NO_NETWORK.search(log) else "")
