"""`orch doctor`: check this machine, and whether hosts can be reached and used."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.box.client import Box
from orchestrator.box.host_facts import BoxFacts
from orchestrator.box.probe import RsyncProgram, parse_rsync
from orchestrator.box.transport import Hop
from orchestrator.checks import versions
from orchestrator.checks.check import Check, Checked, fail, ok, warn
from orchestrator.checks.preflight import check_host
from orchestrator.commands.project import Project, uses_openssh
from orchestrator.errors import HostError, OrchError, SpecError
from orchestrator.spec.models import Host, Job
from orchestrator.ssh.rsync import INSTALL
from remote.contract.answers import Answer
from remote.contract.reboot_method import CRON, NO_DAEMON, NO_LINGER, NO_SCHEDULER, SYSTEMD, RebootMethod

LIMIT_S = 10.0  # seconds for a program on this machine to report its version
NO_REBOOT = "runs will not continue after a reboot"
REBOOT_METHODS = {CRON: "cron", SYSTEMD: "the user's systemd"}
NO_REBOOT_REASONS = {  # why there is no method, and the command that fixes it
    NO_SCHEDULER: ("this user has neither cron nor a systemd user manager", "sudo apt-get install cron"),
    NO_DAEMON: ("crontab works, but no cron daemon is running", "sudo systemctl enable --now cron"),
    NO_LINGER: (
        "cron is not installed, and the systemd user manager ends with the login",
        "sudo loginctl enable-linger $USER",
    ),
}
SLOW_S = 2.0  # one reply; some commands need a dozen


def examine(project: Project, name: str | None) -> list[Checked]:
    """Check this machine and the host `name`, or every host that a job runs on.

    Raises:
        SpecError: jobs.toml has no such host.
    """
    hosts = [project.spec.host(name).name] if name else project.hosts_of_jobs()
    found = [Checked("this machine", check) for check in laptop_checks(_needs_openssh(project, hosts))]
    for name in hosts:
        host, jobs = project.spec.host(name), [job for job in project.spec.jobs.values() if job.host == name]
        found += [Checked(name, check) for check in host_checks(project.box(name), host, jobs)]
    return found


def laptop_checks(needs_openssh: bool = True) -> list[Check]:
    """Check the programs on this machine: Python, and what hosts that are reached by OpenSSH need: rsync and ssh."""
    return [_python(), *([_rsync(), _ssh()] if needs_openssh else [])]


def _needs_openssh(project: Project, names: Sequence[str]) -> bool:
    """Return False only if hosts are reached by SSH, but none by OpenSSH."""
    hosts = [host for host in map(project.spec.host, names) if host.ssh is not None]
    return not hosts or any(map(uses_openssh, hosts))


def host_checks(box: Box, host: Host, jobs: Sequence[Job] = ()) -> list[Check]:
    """Check whether the host answers, how fast, and what it has.

    An error of the host becomes a failed check, the last of the list.

    Args:
        box: The host.
        host: The host in jobs.toml.
        jobs: The jobs that run there.
    """
    found: list[Check] = []
    try:
        if host.ssh is not None:
            found += _ports(box.route())
            found.append(ok("client", box.connection()))
        found += _connection(box, host)
        handshake = box.handshake()
        facts = box.facts(host, torch=host.gpus != 0)
    except OrchError as error:
        name = "connection" if isinstance(error, (HostError, SpecError)) else "agent"
        return [*found, fail(name, error.message, error.hint)]
    found += check_facts(facts, host)
    python = facts.job_python
    found += versions.check_torch(python.executable, python.torch or "", jobs)
    if host.ssh is not None:
        is_openssh = uses_openssh(host)
        found += versions.check_handshake(handshake, facts.os_release, is_openssh)
        found += versions.check_box_rsync(facts.rsync, facts.os_release) if is_openssh else ()
    return [*found, check_reboot(facts.reboot)] if host.ssh and host.survive_reboot else found


def check_facts(facts: BoxFacts, host: Host, gpus: float | None = None) -> list[Check]:
    """Check a box by its facts, and the rsync of this machine if the host needs it. See `check_host`."""
    needs_rsync = uses_openssh(host)
    here = local_rsync() if needs_rsync else None
    return check_host(facts, host, gpus, rsync_here=here, needs_rsync=needs_rsync)


def local_rsync() -> RsyncProgram | None:
    """Return the rsync of this machine, or None if it is not installed or does not run."""
    return parse_rsync(_run(["rsync", "--version"]))


def _ports(route: tuple[Hop, ...]) -> Iterator[Check]:
    """Name the ports that must be reachable, and the timeouts."""
    *jumps, end = route
    via = "".join(f" over {jump.hostname}:{jump.port}" for jump in jumps)
    via = via or (" by ProxyCommand" if end.by_proxy else "")
    timeouts = f"timeouts: {end.connect_s} s to connect, {end.silence_s} s without an answer"
    yield ok("ports", f"{end.hostname}:{end.port}{via}; {timeouts}")


def _connection(box: Box, host: Host) -> Iterator[Check]:
    """Connect, then time a second request, which needs no new connection. Raise OrchError if the host fails."""
    started = time.monotonic()
    box.hello()
    connected = time.monotonic()
    reply = box.hello()
    agent_s = time.monotonic() - connected
    if host.ssh is None:
        yield ok("connection", f"this machine; agent {_ms(agent_s)}")
        return
    detail = (
        f"connected to {host.ssh} in {_ms(connected - started)}; round trip {_ms(box.round_trip())}, "
        f"agent {_ms(agent_s)}; Python {reply.python} on the box"
    )
    hint = "the network is slow, or Python starts slowly on the box"
    yield warn("connection", detail, hint) if agent_s > SLOW_S else ok("connection", detail)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def check_reboot(method: RebootMethod | None) -> Check:
    """Check whether runs continue after a reboot.

    Args:
        method: What the box found to restart runs; None if it did not report it.
    """
    if method is None:
        detail = "the box did not report whether runs continue after a reboot"
        return warn("reboot", detail, "try again; if it persists, look at `crontab -l` on the box")
    if method.name in REBOOT_METHODS:
        return ok("reboot", f"runs continue after a reboot, by {REBOOT_METHODS[method.name]}")
    why, hint = NO_REBOOT_REASONS.get(method.why, NO_REBOOT_REASONS[NO_SCHEDULER])
    return warn("reboot", f"{NO_REBOOT}: {why}", f"on the box: {hint}")


# --- this machine --------------------------------------------------------------------------------------


def _python() -> Check:
    version = f"Python {platform.python_version()} ({sys.executable}) on {platform.system()} {platform.machine()}"
    return ok("python here", version)


def _rsync() -> Check:
    found = local_rsync()
    if found is None:
        return fail("rsync here", "rsync is not installed here; hosts with `ssh` need it", INSTALL)
    if found.kind == "openrsync":
        return ok("rsync here", f"openrsync, {found.version} (part of macOS; for GNU rsync: brew install rsync)")
    version = versions.parse_version(found.version)
    return versions.check_product("rsync here", versions.RSYNC, f"GNU rsync {found.version}", version, _os_release())


def _ssh() -> Check:
    """Check that ssh runs. OpenSSH writes its version to stderr."""
    answer = _run(["ssh", "-V"])
    if answer.problem:
        hint = "install the OpenSSH client: `apt install openssh-client` (macOS includes it)"
        return fail("ssh here", f"ssh does not run here: {answer.problem}", hint)
    shown = (answer.err or answer.out).strip().split("\n")[0]
    return versions.check_product("ssh here", versions.SSH, shown, versions.parse_openssh(shown), _os_release())


def _os_release() -> str:
    """Return the file that names the distribution of this machine; "" if there is none, as on macOS."""
    with suppress(OSError):
        return Path("/etc/os-release").read_text(encoding="utf-8", errors="replace")
    return ""


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
