"""Start a supervisor so that it outlives the connection and the client."""

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
from remote.host.process import read_proc

# The supervisor runs from the agent's own zipapp, or in a checkout from the folder of the package.
ENTRY = os.path.abspath(sys.argv[0])

# A shell of 1 MB that starts the supervisor again, however it ended, until it exits with 0.
# If Python or the agent is missing, the loop gives up after ten attempts, which take about five minutes.
# On SIGTERM (the machine shuts down) the supervisor decides; the loop ends after the supervisor has ended.
RESPAWN_LOOP = """
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
    """Return the command of the run's supervisor."""
    return _agent_argv("supervise", run)


def shim_argv(run: RunPaths) -> List[str]:
    """Return the command of the run's shim."""
    return _agent_argv("shim", run)


def _agent_argv(word: str, run: RunPaths) -> List[str]:
    return [sys.executable, "-I", "-S", compiled(ENTRY), word, str(run.root)]


def respawn_argv(argv: List[str]) -> List[str]:
    """Return the command of a respawn loop around `argv`, which comes from `supervisor_argv`."""
    agent = argv[3]
    return ["/bin/sh", "-c", RESPAWN_LOOP, "orch-respawn", agent, *argv]


def check(launcher: str) -> None:
    """Raise AgentError `no_tmux` if the launcher needs tmux and this box does not have it."""
    from shutil import which  # imported only here, so that supervisors and shims start faster

    if launcher == "tmux" and which("tmux") is None:
        hint = 'install it (apt-get install tmux), or set `launcher = "nohup"` for this host in jobs.toml'
        raise AgentError("no_tmux", "starting the run under tmux: tmux is not installed on the box", hint)


def start(launcher: str, run: RunPaths) -> None:
    """Start a respawn loop with a supervisor. `launcher` is one of `remote.contract.choices.LAUNCHERS`.

    Raises:
        AgentError: `tmux_failed`: tmux did not start it.
    """
    START[launcher](run)


def attach_command(launcher: str, run: RunPaths) -> str:
    """Return the command that attaches to the run's terminal on the box; "" if it has none."""
    return f"tmux -L {tmux_socket(run)} attach -t {tmux_session(run)}" if launcher == "tmux" else ""


def tmux_session(run: RunPaths) -> str:
    """Return the name of the run's tmux session."""
    return f"{run.job}-{run.run_id}"


def tmux_socket(run: RunPaths) -> str:
    """Return the name of the tmux server: one per root, separate from the user's own."""
    return "orch-" + sha256(str(ProjectPaths.of_run(run).box).encode()).hexdigest()[:8]


def _environment() -> Dict[str, str]:
    """Return our environment without ORCH_RUN_DIR, which marks the processes of a run.

    Otherwise a run that a job launches would end together with that job.
    """
    return {name: value for name, value in os.environ.items() if name != ENV_RUN_DIR}


def _outliving_argv() -> List[str]:
    """Return the words to put before a command so that it outlives the login; none on most boxes."""
    if b"/session-" not in read_proc("self", "cgroup"):
        return []
    from remote.host.logout import outliving_argv  # only in a login that systemd-logind manages

    return outliving_argv()


def _start_nohup(run: RunPaths) -> None:
    # The descriptors must be new: with an inherited one, the caller of the agent would wait for the end of the run.
    with os.fdopen(open_own(run.supervisor_log, os.O_WRONLY | os.O_APPEND), "ab") as log:
        subprocess.Popen(
            [*_outliving_argv(), *respawn_argv(supervisor_argv(run))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        )


def _start_tmux(run: RunPaths) -> None:
    argv = ["tmux", "-L", tmux_socket(run), "new-session", "-d", "-s", tmux_session(run), "-c", "/", "--"]
    command = argv + respawn_argv(supervisor_argv(run))
    command = [*_outliving_argv(), *command]  # the server of tmux, if this starts it, is then outside of the login
    started = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=_environment())
    if started.returncode != 0:
        errors = started.stderr.decode("utf-8", "replace").strip()
        raise AgentError("tmux_failed", f"starting {tmux_session(run)} under tmux: {errors}")


START: Dict[str, Callable[[RunPaths], None]] = {"nohup": _start_nohup, "tmux": _start_tmux}
