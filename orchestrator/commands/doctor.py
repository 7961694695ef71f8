"""`orch doctor`: check this machine, and whether a host can be reached and used."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from orchestrator.box.client import Box
from orchestrator.box.probe import Answer, RsyncProgram, parse_rsync
from orchestrator.box.transport import Hop
from orchestrator.checks.check import Check, fail, ok, warn
from orchestrator.checks.preflight import check_host
from orchestrator.errors import HostError, OrchError
from orchestrator.spec.models import Host
from orchestrator.ssh.rsync import INSTALL
from remote.contract.reboot_method import CRON, NO_DAEMON, NO_LINGER, NO_SCHEDULER, SYSTEMD, RebootMethod

LIMIT_S = 10.0
NO_REBOOT = "runs will not continue after a reboot"
REBOOT_WORDS = {CRON: "cron", SYSTEMD: "the user's systemd"}
NO_REBOOT_WORDS = {  # why there is no method, and what helps
    NO_SCHEDULER: ("this user has neither cron nor a systemd user manager", "sudo apt-get install cron"),
    NO_DAEMON: ("crontab works, but no cron daemon is running", "sudo systemctl enable --now cron"),
    NO_LINGER: (
        "cron is not installed, and the systemd user manager ends with the login",
        "sudo loginctl enable-linger $USER",
    ),
}
SLOW_S = 2.0  # a command that takes a dozen exchanges begins to hurt
OLDEST_PYTHON = (3, 11)


def laptop_checks() -> list[Check]:
    """Check what every SSH host needs on this machine."""
    return [_python(), _rsync(), _ssh()]


def host_checks(box: Box, host: Host) -> list[Check]:
    """Check whether the host answers, how fast, and what it has. A host that cannot be used is a failed check."""
    found: list[Check] = []
    try:
        if host.ssh is not None:
            found += _ports(box.route())
        found += _reached(box, host)
        facts = box.facts(host, torch=host.gpus != 0)
    except OrchError as error:
        name = "connection" if isinstance(error, HostError) else "agent"
        return [*found, fail(name, error.message, error.hint)]
    found += check_host(facts, host, rsync_here=local_rsync() if host.ssh else None)
    return [*found, check_reboot(facts.reboot)] if host.ssh and host.survive_reboot else found


def local_rsync() -> RsyncProgram | None:
    return parse_rsync(_run(["rsync", "--version"]))


def _ports(route: tuple[Hop, ...]) -> Iterator[Check]:
    """Ports that must be reachable, and timeouts."""
    *jumps, end = route
    over = "".join(f" over {jump.hostname}:{jump.port}" for jump in jumps)
    over = over or (" by ProxyCommand" if end.by_proxy else "")
    times = f"timeouts: {end.connect_s} s to connect, {end.silence_s} s without an answer"
    yield ok("ports", f"{end.hostname}:{end.port}{over}; {times}")


def _reached(box: Box, host: Host) -> Iterator[Check]:
    """Raise OrchError if the host cannot be reached. The second exchange is timed, since the first one connects."""
    started = time.monotonic()
    box.hello()
    connected = time.monotonic()
    said = box.hello()
    answered = time.monotonic() - connected
    if host.ssh is None:
        yield ok("connection", f"this machine; agent {_ms(answered)}")
        return
    line = box.round_trip()
    detail = (
        f"connected as {host.ssh} in {_ms(connected - started)}; round trip {_ms(line)}, "
        f"agent {_ms(answered)}; Python {said.python} on the box"
    )
    hint = "the network is slow, or Python starts slowly on the box"
    yield warn("connection", detail, hint) if answered > SLOW_S else ok("connection", detail)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def check_reboot(method: RebootMethod | None) -> Check:
    """Tell whether runs continue after a reboot, by the method that the box found; None if it did not answer."""
    if method is None:
        detail = "the box did not report whether runs continue after a reboot"
        return warn("reboot", detail, "try again; if it persists, look at `crontab -l` on the box")
    if method.name in REBOOT_WORDS:
        return ok("reboot", f"runs continue after a reboot, by {REBOOT_WORDS[method.name]}")
    why, hint = NO_REBOOT_WORDS.get(method.why, NO_REBOOT_WORDS[NO_SCHEDULER])
    return warn("reboot", f"{NO_REBOOT}: {why}", f"on the box: {hint}")


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
        return ok("rsync here", f"openrsync, {found.version} (part of macOS; for GNU rsync: brew install rsync)")
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
