"""`orch doctor`: what this machine has, and whether a host can be reached and used."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.checks import Check, fail, ok, warn
from orchestrator.errors import HostError, OrchError
from orchestrator.facts import ask
from orchestrator.preflight import check_host
from orchestrator.probe import Answer, Rsync, parse_rsync
from orchestrator.rsync import INSTALL
from orchestrator.spec import Host
from orchestrator.transport import Transport
from remote.protocol import Request

LIMIT_S = 10.0
SLOW_S = 2.0  # a command that takes a dozen exchanges begins to hurt
OLDEST_PYTHON = (3, 11)


def laptop_checks() -> list[Check]:
    """What every SSH host needs here."""
    return [_python(), _rsync(), _ssh()]


def host_checks(transport: Transport, address: Mapping[str, str], host: Host) -> list[Check]:
    """Whether the host answers, how fast, and what it has. A host that cannot be used is a failed check, no error."""
    try:
        reached = list(_reached(transport, host))
        facts = ask(transport, address, host, torch=host.gpus != 0)
    except OrchError as error:
        name = "connection" if isinstance(error, HostError) else "agent"
        return [fail(name, error.message, error.hint)]
    return [*reached, *check_host(facts, host, rsync_here=local_rsync() if host.ssh else None)]


def local_rsync() -> Rsync | None:
    return parse_rsync(_run(["rsync", "--version"]))


def _reached(transport: Transport, host: Host) -> Iterator[Check]:
    """Raises OrchError where it is not. The second exchange is timed: the first one connects."""
    started = time.monotonic()
    transport.call(Request("hello"))
    connected = time.monotonic()
    said = transport.call(Request("hello"))
    answered = time.monotonic() - connected
    if host.ssh is None:
        yield ok("connection", f"this machine; the agent answers in {_ms(answered)}")
        return
    detail = (
        f"reached as {host.ssh} in {_ms(connected - started)}; an exchange takes {_ms(answered)}, "
        f"{_ms(answered / 2)} each way; Python {said.get('python')} there"
    )
    hint = "a slow line, or a slow start of Python on the box"
    yield warn("connection", detail, hint) if answered > SLOW_S else ok("connection", detail)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


# --- this machine --------------------------------------------------------------------------------------


def _python() -> Check:
    version = f"Python {platform.python_version()} ({sys.executable}) on {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return fail("python here", version, "orch needs Python 3.11 or newer")
    return ok("python here", version)


def _rsync() -> Check:
    found = local_rsync()
    if found is None:
        return fail("rsync here", "rsync is not installed here; hosts with `ssh` need it", INSTALL)
    if found.kind == "openrsync":
        return ok("rsync here", f"openrsync, {found.version} (macOS ships it; `brew install rsync` has the GNU one)")
    return ok("rsync here", f"{found.kind} rsync {found.version}")


def _ssh() -> Check:
    """OpenSSH says its version on stderr."""
    answer = _run(["ssh", "-V"])
    if answer.problem:
        hint = "install the OpenSSH client: `apt install openssh-client`; macOS has it"
        return fail("ssh here", f"ssh does not run here: {answer.problem}", hint)
    return ok("ssh here", (answer.err or answer.out).strip().split("\n")[0])


def _run(command: Sequence[str]) -> Answer:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=LIMIT_S
        )
    except FileNotFoundError:
        return Answer(error=f"{command[0]} is not installed", absent=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(error=str(error))
    return Answer(done.stdout, done.stderr, done.returncode)
