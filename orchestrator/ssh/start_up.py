"""Find out what the start-up files of the login shell did to a command that has failed."""

from __future__ import annotations

from contextlib import closing

from orchestrator.errors import OrchError
from orchestrator.ssh.command import last_line
from orchestrator.ssh.ssh_session import Session

MARK = b"orch-start-up-check"
COMMAND = f"echo {MARK.decode()}; cat"  # every login shell runs this
CHECK_S = 10.0  # seconds without output
MAX_BYTES = 1 << 20
REMEDY = "let them do this only in a terminal (in bash, begin ~/.bashrc with: [[ $- == *i* ]] || return)"


def start_up_hint(session: Session) -> str:
    """Return what the start-up files do, and the remedy; "" if they leave commands and their input alone.

    Runs a command that repeats its input, and looks at what is missing in the output, or added to it.
    """
    try:
        with closing(session.start(COMMAND, MARK + b"\n", CHECK_S)) as command:
            output = command.stdout.read(MAX_BYTES)
    except TimeoutError:
        return f"the login shell runs no command within {CHECK_S:g} s: its start-up files wait for something; {REMEDY}"
    except (OrchError, OSError):
        return ""
    before, *rest = output.split(MARK + b"\n")
    files = "the start-up files of the login shell on the box"
    if not rest:
        return f"{files} start another program, such as tmux, or end the shell before it runs the command; {REMEDY}"
    if len(rest) == 1:
        return f"{files} read the input of the command, as a question (`read`) does; {REMEDY}"
    return f"{files} print something ({last_line(before)[:80]!r}); {REMEDY}" if before else ""
