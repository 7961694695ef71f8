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
from typing import Any, BinaryIO, Callable, Dict, Mapping

from remote.agent.arguments import check
from remote.agent.lifetime import Reply, watch
from remote.contract.files import parse_object
from remote.contract.ownership import check_program, check_project
from remote.contract.paths import NAME, ProjectPaths
from remote.contract.protocol import SCHEMA, AgentError, reply_error, reply_ok

Args = Mapping[str, Any]
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
        request = parse_object(line)
        if request is None or request.get("schema") != SCHEMA:
            raise AgentError("bad_request", "the request is not one of this version")
        check_program()
        op, args = str(request.get("op")), request.get("args", {})
        if not isinstance(args, dict):
            raise AgentError("bad_request", "the arguments of the request are no object")
        perform = None if op == "follow" else operation(op)
        check(op, args)
        begin(op, once)
        if perform is None:
            from remote.agent.follow import follow

            follow(project_of(args), args, output)
            return
        reply = reply_ok(perform(args))
    except AgentError as error:
        reply = reply_error(error)
    except BrokenPipeError:  # nobody listens any more
        os._exit(0)
    except OSError as error:
        reply = reply_error(AgentError("os_error", f"the box's system says: {error}"))
    except Exception as error:  # noqa: BLE001 - the outermost edge: the laptop is owed a reply, not a silence
        reply = reply_error(AgentError("agent_error", f"the agent failed at {op!r}: {error!r}"))
    once.give(reply)


def operation(op: str) -> Callable[[Args], Dict[str, Any]]:
    found = OPERATIONS.get(op)
    if found is None:
        raise AgentError("bad_request", f"the agent knows no operation {op!r}")
    return found


def project_of(args: Args) -> ProjectPaths:
    root, project = str(args.get("root") or ""), str(args.get("project") or "")
    if not root or not NAME.fullmatch(project):
        raise AgentError("bad_request", f"root {root!r} and project {project!r} do not name a project")
    try:
        paths = ProjectPaths(Path(root).expanduser().absolute(), project)
    except RuntimeError:  # ~name of nobody
        raise AgentError("bad_request", f"root {root!r}: the box knows no such home directory") from None
    check_project(paths)
    return paths.rehearsing() if args.get("rehearsal") is True else paths


# Each operation imports what it needs: the zipapp has no compiled files, so every import is compiled anew.


def hello(args: Args) -> Dict[str, Any]:
    return {"python": sys.version.split()[0], "home": str(Path.home()), "now": time.time(), "pid": os.getpid()}


def status(args: Args) -> Dict[str, Any]:
    from remote.agent.status import status

    return status(project_of(args), args)


def inventory(args: Args) -> Dict[str, Any]:
    from remote.agent.run_files import inventory

    return inventory(project_of(args), args)


def facts(args: Args) -> Dict[str, Any]:
    from remote.agent.facts import facts

    return facts(project_of(args), args)


def launch(args: Args) -> Dict[str, Any]:
    from remote.agent.lifecycle import launch

    return launch(project_of(args), args)


def stop(args: Args) -> Dict[str, Any]:
    from remote.agent.lifecycle import stop

    return stop(project_of(args), args)


def restart(args: Args) -> Dict[str, Any]:
    from remote.agent.lifecycle import restart

    return restart(project_of(args), args)


def code_begin(args: Args) -> Dict[str, Any]:
    from remote.agent import code_store

    return code_store.begin(project_of(args), str(args.get("tree")))


def code_commit(args: Args) -> Dict[str, Any]:
    from remote.agent import code_store

    return code_store.finish(project_of(args), str(args.get("tree")), str(args.get("incoming")))


OPERATIONS: Dict[str, Callable[[Args], Dict[str, Any]]] = {
    operation.__name__: operation
    for operation in (hello, status, facts, inventory, launch, stop, restart, code_begin, code_commit)
}
