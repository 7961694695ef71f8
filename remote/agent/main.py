"""The entry point on the box: reads a JSON request from stdin, writes a JSON reply or a stream of frames to stdout.

python3 -I -S agent-<hash>.pyz                     answer one request
python3 -I -S agent-<hash>.pyz supervise RUN_DIR   supervise a run
python3 -I -S agent-<hash>.pyz shim RUN_DIR        run the shim of its worker
python3 -I -S agent-<hash>.pyz resume ROOT         after a reboot: start a supervisor for each unfinished run
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, Dict

from remote.agent.lifetime import ReplyOnce, watch
from remote.contract.files import parse_object
from remote.contract.ownership import check_program, check_project
from remote.contract.paths import NAME, ProjectPaths
from remote.contract.protocol import AgentError, ErrorRecord, Reply
from remote.contract.requests import FollowRequest, Request, Where

if TYPE_CHECKING:
    from remote.contract import launches, replies, uploads

MAX_REQUEST_BYTES = 16 * 1024 * 1024


def main() -> None:
    """Do what the command line says."""
    os.umask(0o077)
    word, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) == 3 else ("", [])
    if word == "supervise":
        from remote.supervisor.supervise import supervise

        sys.exit(supervise(Path(rest[0])))
    if word == "shim":
        from remote.shim.shim import run_shim

        run_shim(Path(rest[0]))
        return
    if word == "resume":
        from remote.host.reboot import resume

        resume(Path(rest[0]))
        return
    line = sys.stdin.buffer.readline(MAX_REQUEST_BYTES)
    if not line:
        sys.exit("no request arrived on stdin")
    answer(line, sys.stdout.buffer, watch)


def answer(line: bytes, output: BinaryIO, begin: Callable[[str, ReplyOnce], None] = lambda op, reply: None) -> None:
    """Answer one request. Every failure becomes a reply.

    Args:
        line: The request.
        output: Where the reply goes.
        begin: Called with the operation and its reply before the operation starts.
    """
    once = ReplyOnce(output)
    op = ""
    try:
        request = Request.from_json(parse_object(line))
        check_program()
        op = request.op
        begin(op, once)
        if isinstance(request.what, FollowRequest):
            from remote.agent.follow import follow

            follow(_project(request), request.what, output)
            return
        reply = Reply(ok=True, result=OPERATIONS[op](request))
    except AgentError as error:
        reply = Reply(ok=False, error=error.record)
    except BrokenPipeError:  # the client has gone
        os._exit(0)
    except OSError as error:
        reply = Reply(ok=False, error=ErrorRecord("os_error", f"the box reports: {error}"))
    except Exception as error:  # noqa: BLE001 - the outermost level: without a reply the laptop would wait until its time limit
        reply = Reply(ok=False, error=ErrorRecord("agent_error", f"the agent failed at {op!r}: {error!r}"))
    once.give(reply)


def _project(request: Request) -> ProjectPaths:
    """Return the paths that a request is about. Check that no other user can change them."""
    where = request.where or Where("", "")
    if not where.root or not NAME.fullmatch(where.project):
        raise AgentError("bad_request", f"root {where.root!r} and project {where.project!r} do not name a project")
    try:
        paths = ProjectPaths(Path(where.root).expanduser().absolute(), where.project)
    except RuntimeError:  # `~name` without such a user
        raise AgentError("bad_request", f"root {where.root!r}: the box has no such home directory") from None
    check_project(paths)
    return paths.rehearsing() if where.rehearsal else paths


# Each operation imports what it needs, because the zipapp contains no bytecode: every import is compiled again.


def hello(request: Request) -> replies.HelloReply:
    """Reply with the Python version, the home directory and the clock of the box."""
    from remote.contract.replies import HelloReply

    return HelloReply(sys.version.split()[0], str(Path.home()), time.time(), os.getpid())


def digests(request: Request) -> replies.DigestsReply:
    """Return the checksums of parts of files."""
    from remote.agent.digests import digests

    return digests(request.what)


def status(request: Request) -> replies.StatusReply:
    """Report runs."""
    from remote.agent.status import status

    return status(_project(request), request.what)


def inventory(request: Request) -> replies.InventoryReply:
    """List one page of the files of a run."""
    from remote.agent.run_files import inventory

    return inventory(_project(request), request.what)


def inventories(request: Request) -> replies.InventoriesReply:
    """List the files of several runs, as many as fit into one reply."""
    from remote.agent.run_files import inventories

    return inventories(_project(request), request.what)


def checksums(request: Request) -> replies.ChecksumsReply:
    """Return the checksums of files of runs."""
    from remote.agent.file_checksums import checksums

    os.nice(10)  # the jobs of the box come first
    return checksums(_project(request), request.what)


def facts(request: Request) -> launches.FactsReply:
    """Collect facts about the box and about jobs on it."""
    from remote.agent.facts import facts

    return facts(_project(request), request.what)


def launch(request: Request) -> launches.LaunchReply:
    """Start runs."""
    from remote.agent.lifecycle import launch

    return launch(_project(request), request.what)


def stop(request: Request) -> replies.StopReply:
    """Stop runs."""
    from remote.agent.lifecycle import stop

    return stop(_project(request), request.what)


def restart(request: Request) -> replies.RestartReply:
    """Continue runs that have ended."""
    from remote.agent.lifecycle import restart

    return restart(_project(request), request.what)


def code_begin(request: Request) -> uploads.CodeBeginReply:
    """Prepare the upload of a snapshot."""
    from remote.agent import code_store

    return code_store.begin(_project(request), request.what.tree)


def code_commit(request: Request) -> uploads.CodeCommitReply:
    """Turn an upload into a snapshot."""
    from remote.agent import code_store

    return code_store.finish(_project(request), request.what.tree, request.what.incoming)


def data_begin(request: Request) -> uploads.DataBeginReply:
    """Prepare the upload of data."""
    from remote.agent import data_store

    return data_store.begin(_project(request), request.what)


def data_commit(request: Request) -> uploads.DataCommitReply:
    """Put uploaded data in place."""
    from remote.agent import data_store

    return data_store.commit(_project(request), request.what)


OPERATIONS: Dict[str, Callable[[Request], Any]] = {
    operation.__name__: operation
    for operation in (
        *(hello, digests, status, facts, inventory, inventories, checksums, launch, stop, restart),
        *(code_begin, code_commit, data_begin, data_commit),
    )
}
