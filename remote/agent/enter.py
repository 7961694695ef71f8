"""Enter a run or the project: where it is, and a command there that replaces this process."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Mapping, Sequence

from remote.agent.status import find_run
from remote.contract.entering import EnterRequest, PlaceReply, PlaceRequest
from remote.contract.ownership import check_run
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.run_record import RunRecord
from remote.host import launchers
from remote.host.process import program_argv
from remote.supervisor.run_environment import directory_of, entered, read_run

NOT_EXECUTABLE, NOT_FOUND = 126, 127  # the exit codes of a shell
PORT_S = 1.0  # seconds for a program on this machine to accept a connection
TMUX_S = 5.0  # seconds for tmux to answer


def place(paths: ProjectPaths, request: PlaceRequest) -> PlaceReply:
    """Return where a run or the project is.

    Raises:
        AgentError: There is no such run, or another user can change it.
    """
    listens = None if request.port is None else _listens(request.port)
    if not request.job:
        return PlaceReply(str(_project_directory(paths)), listens=listens)
    run = find_run(paths, request.job, request.run_id)
    check_run(run)
    record = read_run(run)
    return PlaceReply(str(directory_of(run, record)), run.run_id, _has_terminal(run, record), listens)


def enter(paths: ProjectPaths, request: EnterRequest) -> int:
    """Run the command of the request, and return its exit code. A shell or tmux replaces this process instead.

    Raises:
        AgentError: There is no such run, or its environment cannot be made.
    """
    if not request.job:
        directory = _project_directory(paths)
        if request.command:
            return _run(request.command, directory, dict(os.environ))
        return _execute(_shell(os.environ), directory, dict(os.environ))
    run = find_run(paths, request.job, request.run_id)
    check_run(run)
    record = read_run(run)
    if request.attach:
        env = {name: value for name, value in os.environ.items() if name != "TMUX"}  # we may be in a tmux already
        return _execute(_tmux(run, "attach", "-r"), run.root, env)
    directory, env, python = entered(run, record)
    if request.command:
        return _run(program_argv(request.command, python), directory, env)
    return _execute(_shell(env), directory, env)


def _project_directory(paths: ProjectPaths) -> Path:
    """Return the project's directory; the home directory if there is none yet."""
    return paths.root if paths.root.is_dir() else Path.home()


def _shell(env: Mapping[str, str]) -> List[str]:
    """Return the user's shell. It is not a login shell, whose start-up files would replace PATH."""
    return [env.get("SHELL") or pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"]


def _run(argv: Sequence[str], directory: Path, env: Dict[str, str]) -> int:
    """Run a command as a child, and return its exit code as a shell does: 128 and the number of a signal.

    If it replaced this process, a signal would become the code 255, as which ssh reports a broken connection.
    """
    keys = (signal.SIGINT, signal.SIGQUIT)  # the terminal sends them to both of us, and the command decides
    before = {number: signal.signal(number, signal.SIG_IGN) for number in keys}
    pid = os.fork()
    if pid == 0:
        code = NOT_EXECUTABLE
        try:
            for number, handler in before.items():
                signal.signal(number, handler)
            code = _execute(argv, directory, env)
            sys.stderr.flush()
        finally:
            os._exit(code)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):  # else the other end would see no end of a stream that the command closes
        os.dup2(null, descriptor)
    status = os.waitpid(pid, 0)[1]
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _execute(argv: Sequence[str], directory: Path, env: Dict[str, str]) -> int:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the command would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.chdir(str(directory))
        os.execvpe(argv[0], list(argv), env)
    except OSError as error:
        sys.stderr.write(f"orch: {argv[0]}: {error.strerror}\n")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def _tmux(run: RunPaths, *command: str) -> List[str]:
    # `=`: exactly this session, and no other one whose name begins with that
    return ["tmux", "-L", launchers.tmux_socket(run), *command, "-t", f"={launchers.tmux_session(run)}"]


def _has_terminal(run: RunPaths, record: RunRecord) -> bool:
    if record.host.launcher != "tmux":
        return False
    null = subprocess.DEVNULL
    try:
        done = subprocess.run(_tmux(run, "has-session"), stdin=null, stdout=null, stderr=null, timeout=TMUX_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(PORT_S)
        try:
            return client.connect_ex(("127.0.0.1", port)) == 0
        except (OSError, OverflowError):
            return False
