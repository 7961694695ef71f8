"""`orch ssh`, `exec`, `attach` and `forward`: use a box as a person, in the directory and environment of a run."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from orchestrator.box.client import Box
from orchestrator.box.retry import Backoff, Waiting
from orchestrator.box.transport import TRY_AGAIN
from orchestrator.commands import run_names, selection
from orchestrator.commands.selection import Target
from orchestrator.errors import HostTooSlow, HostUnreachable, LaptopError, SpecError
from remote.contract.paths import RUN_ID

if TYPE_CHECKING:
    from orchestrator.commands.project import OpenedProject
    from remote.contract.requests import RunName

LOCALHOST = "127.0.0.1"
CHECK_S = 1.0  # seconds between two looks at a connection; a master ends after 10 minutes without one
MAX_PORT = 65535


@dataclass(frozen=True)
class Place:
    """A run on its host, or a project there if `run` is None."""

    box: Box
    run: RunName | None
    path: str  # the directory in which a shell starts; the host says it
    has_terminal: bool = False  # whether tmux shows the run
    listens: bool | None = None  # whether a program listens at the port that was asked about

    @property
    def host(self) -> str:
        """The host in jobs.toml."""
        return self.box.host


def target_of(project: OpenedProject, name: str, on: str | None = None, hosts: Collection[str] = ()) -> Target:
    """Return the one run that a name means. A host is asked only if the run is not known here.

    Args:
        project: The project that has the run.
        name: What the user wrote.
        on: Consider only runs on this host.
        hosts: Hosts that the user may have meant instead, for the hint.

    Raises:
        SpecError: There is no such run, or the name means several.
    """
    run = run_names.one_run(project, name, on)
    if run is None and hosts and name not in project.spec.jobs and not RUN_ID.fullmatch(name):
        raise run_names.no_such_run(project, name, project.runs_on(on), hosts)
    return selection.target(project, "/".join(run.key) if run else name, on)


def find(project: OpenedProject, name: str, on: str | None = None, port: int | None = None) -> Place:
    """Return the place of the run or host that `name` means.

    Args:
        project: The project.
        name: A job, a run or a host.
        on: Consider only runs on this host.
        port: The port of which the result says whether a program listens there.

    Raises:
        SpecError: There is no such run or host.
        HostError: The host cannot be used.
    """
    if name in project.spec.hosts and name not in project.spec.jobs:
        box = project.box(name)
        reply = box.place(None, port)
        return Place(box, None, reply.path, listens=reply.listens)
    return place_of(project, target_of(project, name, on, project.spec.hosts), port)


def place_of(project: OpenedProject, target: Target, port: int | None = None) -> Place:
    """Return the place of a run, as `find` does."""
    box = project.box(target.host).at(target.address.where)
    reply = box.place(target.name, port)
    return Place(box, (target.job, reply.run_id), reply.path, reply.has_terminal, reply.listens)


def shell(place: Place) -> int:
    """Run the user's shell in a place, with this process's stdin and stdout. Return its exit code."""
    return place.box.enter(place.run, (), sys.stdin.isatty())


def execute(place: Place, command: Sequence[str]) -> int:
    """Run a command in a place, with this process's stdin, stdout and stderr. Return its exit code.

    It gets a terminal only if stdin and stdout are one: else what it writes could not be told from its errors.
    """
    return place.box.enter(place.run, command, sys.stdin.isatty() and sys.stdout.isatty())


def attach(place: Place) -> int:
    """Show the terminal of a run until the user detaches, and pass no key on to it. Return the exit code of tmux.

    Raises:
        SpecError: Stdin is not a terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        name = place.run[0] if place.run else place.host
        raise SpecError("attaching needs a terminal, but stdin and stdout are not one", f"orch tail {name}")
    return place.box.enter(place.run, (), has_terminal=True, attach=True)


# --- ports ------------------------------------------------------------------------------------------------


def parse_ports(text: str) -> tuple[int, int]:
    """Return the port on this machine and the one on the box. Raise SpecError if `text` is not PORT[:REMOTE]."""
    words = text.split(":")
    ports = [int(word) for word in words if word.isascii() and word.isdigit() and 1 <= int(word) <= MAX_PORT]
    if len(ports) != len(words) or len(ports) > 2:
        raise SpecError(f"{text!r} is not PORT or PORT:REMOTE", f"write numbers from 1 to {MAX_PORT}, such as 6006")
    return ports[0], ports[-1]


def require_free(port: int) -> None:
    """Raise LaptopError if nothing can listen at the port of this machine."""
    try:
        with socket.create_server((LOCALHOST, port)):
            return
    except OSError as error:
        doing = f"listening at port {port} of this machine"
        if error.errno == errno.EADDRINUSE:
            raise LaptopError(f"{doing}: it is in use", "choose another: PORT:REMOTE") from None
        raise LaptopError(f"{doing}: {os.strerror(error.errno or 0)}", "choose a port above 1023") from None


def forward(
    place: Place, local: int, remote: int, is_ready: Callable[[], None], lost: Callable[[str], None]
) -> NoReturn:
    """Forward a port of this machine to one of the box, for ever: Ctrl-C ends it. Connect again if that is needed.

    Args:
        place: The box.
        local: The port of this machine.
        remote: The port of the box.
        is_ready: Called once, when connections are forwarded.
        lost: Called with a message when the connection was lost.

    Raises:
        LaptopError: The port of this machine is in use.
        HostError: The host cannot be reached in the first place, or does not forward.
    """
    require_free(local)
    backoff, was_ready = Backoff(), False
    while True:
        try:
            with place.box.forward(local, remote) as works:
                if not was_ready:
                    is_ready()
                was_ready = True
                backoff.reset()
                while works():
                    time.sleep(CHECK_S)
            raise HostUnreachable(f"forwarding port {local} to {place.host}: the connection was lost", TRY_AGAIN)
        except HostUnreachable as error:
            if not was_ready or isinstance(error, HostTooSlow):
                raise
            backoff.next()
            lost(str(Waiting(error, backoff.delay)))
            backoff.sleep()
