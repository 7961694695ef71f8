"""The one entry on the box: a JSON request on stdin, a JSON reply (or a stream of frames) on stdout.

python3 -I -S agent-<hash>.pyz                     answer one request
python3 -I -S agent-<hash>.pyz supervise RUN_DIR   be the supervisor of a run
python3 -I -S agent-<hash>.pyz keep RUN_DIR        be the parent of its worker
python3 -I -S agent-<hash>.pyz resume ROOT         after a reboot: take up every run that has not ended
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict

from remote.agent.lifetime import Reply, watch
from remote.contract import replies, requests
from remote.contract.files import parse_object
from remote.contract.ownership import check_program, check_project
from remote.contract.paths import NAME, ProjectPaths
from remote.contract.protocol import AgentError, reply_error, reply_ok
from remote.contract.requests import Request, Where
from remote.contract.schema import to_json

MAX_REQUEST_BYTES = 16 * 1024 * 1024


def main() -> None:
    os.umask(0o077)
    word, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) == 3 else ("", [])
    if word == "supervise":
        from remote.supervisor.supervisor import supervise

        sys.exit(supervise(Path(rest[0])))
    if word == "keep":
        from remote.shim.shim import keep

        keep(Path(rest[0]))
        return
    if word == "resume":
        from remote.host.reboot import resume

        resume(Path(rest[0]))
        return
    answer(sys.stdin.buffer.readline(MAX_REQUEST_BYTES), sys.stdout.buffer, watch)


def answer(line: bytes, output: BinaryIO, begin: Callable[[str, Reply], None] = lambda op, reply: None) -> None:
    """Answer one request; every failure becomes a reply. `begin` hears of the operation before it is performed."""
    once = Reply(output)
    op = ""
    try:
        request = Request.from_json(parse_object(line))
        check_program()
        op = request.op
        begin(op, once)
        if isinstance(request.what, requests.FollowRequest):
            from remote.agent.follow import follow

            follow(_project(request), request.what, output)
            return
        reply = reply_ok(to_json(OPERATIONS[op](request)))
    except AgentError as error:
        reply = reply_error(error)
    except BrokenPipeError:  # nobody listens any more
        os._exit(0)
    except OSError as error:
        reply = reply_error(AgentError("os_error", f"the box's system says: {error}"))
    except Exception as error:  # noqa: BLE001 - the outermost edge: the laptop is owed a reply, not a silence
        reply = reply_error(AgentError("agent_error", f"the agent failed at {op!r}: {error!r}"))
    once.give(reply)


def _project(request: Request) -> ProjectPaths:
    """Return the paths that a request is about, looked at before anything is read there."""
    where = request.where or Where("", "")
    if not where.root or not NAME.fullmatch(where.project):
        raise AgentError("bad_request", f"root {where.root!r} and project {where.project!r} do not name a project")
    try:
        paths = ProjectPaths(Path(where.root).expanduser().absolute(), where.project)
    except RuntimeError:  # ~name of nobody
        raise AgentError("bad_request", f"root {where.root!r}: the box knows no such home directory") from None
    check_project(paths)
    return paths.rehearsing() if where.rehearsal else paths


# Each operation imports what it needs: the zipapp has no compiled files, so every import is compiled again.


def hello(request: Request) -> replies.HelloReply:
    return replies.HelloReply(sys.version.split()[0], str(Path.home()), time.time(), os.getpid())


def status(request: Request) -> replies.StatusReply:
    from remote.agent.status import status

    return status(_project(request), request.what)


def inventory(request: Request) -> replies.InventoryReply:
    from remote.agent.run_files import inventory

    return inventory(_project(request), request.what)


def facts(request: Request) -> replies.FactsReply:
    from remote.agent.facts import facts

    return facts(_project(request), request.what)


def launch(request: Request) -> replies.LaunchReply:
    from remote.agent.lifecycle import launch

    return launch(_project(request), request.what)


def stop(request: Request) -> replies.StopReply:
    from remote.agent.lifecycle import stop

    return stop(_project(request), request.what)


def restart(request: Request) -> replies.RestartReply:
    from remote.agent.lifecycle import restart

    return restart(_project(request), request.what)


def code_begin(request: Request) -> replies.CodeBeginReply:
    from remote.agent import code_store

    return code_store.begin(_project(request), request.what.tree)


def code_commit(request: Request) -> replies.CodeCommitReply:
    from remote.agent import code_store

    return code_store.finish(_project(request), request.what.tree, request.what.incoming)


OPERATIONS: Dict[str, Callable[[Request], Any]] = {
    operation.__name__: operation
    for operation in (hello, status, facts, inventory, launch, stop, restart, code_begin, code_commit)
}
