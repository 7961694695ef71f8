"""How a supervisor is started so that it outlives the connection and the client that asked for it."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from typing import Callable, Dict, List

from remote.contract.files import open_own
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import ENV_RUN_DIR, AgentError
from remote.host.compiled import compiled

# The agent's own zipapp (or, in a checkout, the package's folder) is what the supervisor runs from.
ENTRY = os.path.abspath(sys.argv[0])

# A shell of a megabyte that starts the supervisor anew, in whatever way it was ended, until it has nothing more to do.
# Where the Python or the agent that it runs are gone, it gives up after ten looks, some five minutes.
# A SIGTERM (the machine goes down) is the supervisor's to answer; it ends the guard once the supervisor has ended.
GUARD = """
trap '' HUP
trap 'exit 143' TERM
program=$1 pause=1 missing=0
shift
until "$@"; do
    if [ -e "$1" ] && [ -e "$program" ]; then missing=0; else missing=$((missing + 1)); fi
    [ $missing -lt 10 ] || exit 1
    sleep $pause
    [ $pause -ge 60 ] || pause=$((pause * 2))
done
"""


def supervisor_argv(run: RunPaths) -> List[str]:
    return _agent_argv("supervise", run)


def keeper_argv(run: RunPaths) -> List[str]:
    return _agent_argv("keep", run)


def _agent_argv(word: str, run: RunPaths) -> List[str]:
    return [sys.executable, "-I", "-S", compiled(ENTRY), word, str(run.root)]


def guarded(argv: List[str]) -> List[str]:
    """`argv` as `supervisor_argv` gives it: its fourth word is the agent."""
    return ["/bin/sh", "-c", GUARD, "orch-guard", argv[3], *argv]


def check(launcher: str) -> None:
    """Raise AgentError unless this box can start supervisors that way."""
    from shutil import which  # here alone: supervisors and keepers start sooner without it

    if launcher == "tmux" and which("tmux") is None:
        hint = 'install it (apt-get install tmux), or say `launcher = "nohup"` for this host in jobs.toml'
        raise AgentError("no_tmux", "starting the run under tmux: tmux is not installed on the box", hint)


def start(launcher: str, run: RunPaths) -> None:
    LAUNCHERS[launcher](run)


def attach_command(launcher: str, run: RunPaths) -> str:
    """What a person types on the box to see the run's terminal; empty where there is none."""
    return f"tmux -L {tmux_socket(run)} attach -t {tmux_session(run)}" if launcher == "tmux" else ""


def tmux_session(run: RunPaths) -> str:
    return f"{run.job}-{run.run_id}"


def tmux_socket(run: RunPaths) -> str:
    """One tmux server per root, apart from the user's own."""
    return "orch-" + sha256(str(ProjectPaths.of_run(run).box).encode()).hexdigest()[:8]


def _environment() -> Dict[str, str]:
    """Ours, without the mark of a run's processes: what one run launches would end with it."""
    return {name: value for name, value in os.environ.items() if name != ENV_RUN_DIR}


def _start_nohup(run: RunPaths) -> None:
    # Its own descriptors: one that the agent's caller also holds would keep that caller waiting for the run's end.
    with os.fdopen(open_own(run.supervisor_log, os.O_WRONLY | os.O_APPEND), "ab") as log:
        subprocess.Popen(
            guarded(supervisor_argv(run)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        )


def _start_tmux(run: RunPaths) -> None:
    argv = ["tmux", "-L", tmux_socket(run), "new-session", "-d", "-s", tmux_session(run), "-c", "/", "--"]
    command = argv + guarded(supervisor_argv(run))
    started = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=_environment())
    if started.returncode != 0:
        said = started.stderr.decode("utf-8", "replace").strip()
        raise AgentError("tmux_failed", f"starting {tmux_session(run)} under tmux: {said}")


LAUNCHERS: Dict[str, Callable[[RunPaths], None]] = {"nohup": _start_nohup, "tmux": _start_tmux}
