"""Collect facts about the box and about jobs on it: raw answers to a fixed list of questions, which the laptop judges.

The questions are asked in parallel. If one fails or hangs (a dead network disk, a broken driver), the others are still
answered.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, Optional, Sequence

from remote.agent import code_store
from remote.agent.job_lookup import job_facts
from remote.agent.passed_rehearsals import forecast
from remote.agent.status import newest_run_id
from remote.contract import nvidia
from remote.contract.answers import Answer, Disk, GpuOwner
from remote.contract.files import disk_space, open_to_read
from remote.contract.launches import FactsReply, FactsRequest
from remote.contract.ownership import account_name
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.run_record import JobRecord
from remote.contract.schema import to_json
from remote.host import run_state
from remote.host.commands import run_command
from remote.host.liveness import is_live
from remote.host.logout import find_logout
from remote.host.process import PROC, boot_id, read_proc, run_dir_of
from remote.host.reboot import find_method

LIMIT_S = 5.0  # seconds for one answer
SLACK_S = 2.0  # extra seconds, in which a command that is killed at its limit reports that
JOB_LIMIT_S = 20.0  # ten thousand file names on a cold disk
TORCH_LIMIT_S = 50.0  # the first import of torch reads gigabytes; the laptop stops waiting after 60 s of silence
LIMIT_BYTES = 64 * 1024  # bytes of one stream or file

COMMANDS: Dict[str, Sequence[str]] = {
    "gpus": nvidia.CARDS,
    "gpu_processes": nvidia.PROCESSES,
    "tmux": ("tmux", "-V"),
    "rsync": ("rsync", "--version"),
}
PYTHON_CODE = """
import json, sys
found = {"version": "%d.%d.%d" % sys.version_info[:3], "executable": sys.executable}
if "torch" in sys.argv:
    try:
        import torch
        found["torch"], found["torch_cuda"] = torch.__version__, torch.version.cuda
        found["cuda"] = torch.cuda.is_available()
        found["devices"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except Exception as error:
        found["torch_error"] = "%s: %s" % (type(error).__name__, error)
print("\\n" + json.dumps(found))
"""


def facts(paths: ProjectPaths, request: FactsRequest) -> FactsReply:
    """Ask all questions, and wait for their answers."""
    now, started = time.time(), time.monotonic()
    python = os.path.expanduser(request.python or sys.executable)
    asked = {name: Question(_command(argv), LIMIT_S) for name, argv in COMMANDS.items()}
    asked.update({name: Question(look, LIMIT_S) for name, look in _looks(paths).items()})
    asked["job_python"] = _ask_python(python, request.torch)
    tree = request.tree if request.jobs and _has_code(paths, request.tree) else None
    looks = [(job.name, _job_look(paths, job, tree, request, python)) for job in request.jobs]
    jobs_asked = [(name, Question(look, JOB_LIMIT_S)) for name, look in looks]
    answers = {name: question.wait() for name, question in asked.items()}
    processes = nvidia.parse_processes(answers["gpu_processes"].out)
    owners = Question(lambda: Answer(value=[to_json(gpu_owner(process.pid)) for process in processes]), LIMIT_S)
    answers["gpu_owners"] = owners.wait()
    job_answers = {name: question.wait() for name, question in jobs_asked}
    took_s = time.monotonic() - started
    return FactsReply(now, took_s, answers, job_answers, newest_run_id(paths))


class Question(threading.Thread):
    """One question, asked in a thread as soon as it is created. A thread that hangs ends with the agent."""

    def __init__(self, ask: Callable[[], Answer], limit_s: float) -> None:
        super().__init__(daemon=True)
        self._ask, self._limit_s = ask, limit_s
        self._until = time.monotonic() + limit_s + SLACK_S
        self._answer: Optional[Answer] = None
        self.start()

    def run(self) -> None:
        """Ask the question (in the thread)."""
        try:
            self._answer = self._ask()
        except Exception as error:  # noqa: BLE001 - any error is the answer to this question and must not hide the others
            self._answer = Answer(error=str(error) or repr(error))

    def wait(self) -> Answer:
        """Return the answer, or an error if there is none within the time limit."""
        self.join(max(0.0, self._until - time.monotonic()))
        return self._answer or Answer(error=f"no answer within {self._limit_s:g} s")


# --- commands ----------------------------------------------------------------------------------------


def ask_command(argv: Sequence[str], limit_s: float = LIMIT_S) -> Answer:
    """Run a command and return its output. At the limit, kill it and all that it started."""
    try:
        output = run_command(argv, limit_s, most=LIMIT_BYTES)
    except FileNotFoundError:
        return Answer(error=f"{argv[0]} is not installed", absent=True)
    except subprocess.TimeoutExpired:
        return Answer(error=f"{argv[0]} gave no answer within {limit_s:g} s")
    out, err = (stream.decode("utf-8", "replace") for stream in (output.out, output.err))
    return Answer(out, err, output.code)


def _command(argv: Sequence[str]) -> Callable[[], Answer]:
    return lambda: ask_command(argv)


def _has_code(paths: ProjectPaths, tree: Optional[str]) -> bool:
    """Return whether the box has the snapshot, unaltered."""
    try:
        return tree is not None and code_store.has(paths, tree)
    except (AgentError, OSError):
        return False


def _job_look(
    paths: ProjectPaths, job: JobRecord, tree: Optional[str], request: FactsRequest, python: str
) -> Callable[[], Answer]:
    key = request.rehearsed.get(job.name)

    def look() -> Answer:
        found = job_facts(paths, job, tree, python)
        return Answer(value=to_json(replace(found, forecast=forecast(paths, job.name, key))))

    return look


def _ask_python(python: str, torch: bool) -> Question:
    limit_s = TORCH_LIMIT_S if torch else LIMIT_S
    argv = [python, "-c", PYTHON_CODE, *(["torch"] if torch else [])]
    return Question(lambda: ask_command(argv, limit_s), limit_s)


# --- the machine -------------------------------------------------------------------------------------


def _looks(paths: ProjectPaths) -> Dict[str, Callable[[], Answer]]:
    return {
        "python": lambda: Answer(value=platform.python_version()),
        "system": lambda: Answer(value=f"{platform.system()} {platform.release()} {platform.machine()}"),
        "boot_id": lambda: Answer(value=boot_id()),
        "memory": lambda: Answer(value=read_proc("meminfo").decode()),
        "disk": lambda: Answer(value=to_json(disk(paths.root))),
        "reboot": lambda: Answer(value=to_json(find_method())),
        "logout": lambda: Answer(value=to_json(find_logout())),
        "os_release": lambda: Answer(value=os_release()),
    }


def disk(root: Path) -> Disk:
    """Return the space at `root`, or at its nearest existing parent."""
    there = next(path for path in (root, *root.parents) if path.exists())
    space = disk_space(there)
    is_writable = os.access(str(there), os.W_OK | os.X_OK)
    return Disk(str(there), space.free, space.total, space.inodes_free, space.inodes, is_writable)


def os_release() -> str:
    """Return the file that names the distribution; "" if there is none."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open_to_read(Path(path), follow=True) as file:
                return file.read(LIMIT_BYTES).decode("utf-8", "replace")
        except OSError:
            continue
    return ""


def gpu_owner(pid: int) -> GpuOwner:
    """Return the owner of a process, its command, and the run that it belongs to.

    The owner is "" if the process cannot be seen from here (it is in another container).
    """
    try:
        owner = account_name((PROC / str(pid)).stat().st_uid)
    except OSError:
        owner = ""
    directory = os.fsdecode(run_dir_of(pid))  # readable only for our own processes, unless we are root
    run = RunPaths(Path(directory)) if os.path.isabs(directory) else None
    command = read_proc(str(pid), "cmdline").replace(b"\0", b" ").decode("utf-8", "replace").strip()[:1000]
    if run is None:
        return GpuOwner(pid, owner, command)
    return GpuOwner(pid, owner, command, f"{run.job} {run.run_id}", run_state.has_ended(run) or not is_live(run))
