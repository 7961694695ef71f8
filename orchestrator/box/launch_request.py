"""Start runs on a box: one request, which the box answers whole or not at all."""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from orchestrator.box.agent_bundle import agent_bundle
from orchestrator.box.reports import RunReport, read_reports
from orchestrator.box.transport import Transport
from orchestrator.errors import AgentUnusable
from orchestrator.spec.models import Host, Job
from orchestrator.spec.secrets import Vault
from remote.contract.protocol import Request

CONFIRM_S = 5.0  # for how long the box waits for its supervisors to say where their runs stand


def entries(
    jobs: Sequence[Job], vault: Vault, ids: Sequence[str], records: Sequence[Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """One entry of a request for each job, under its run id; `records` stand in for the jobs' own tables."""
    records = records or [job.model_dump(mode="json") for job in jobs]
    return [
        {"run_id": run_id, "job": record, "secrets": vault.values(job)}
        for job, record, run_id in zip(jobs, records, ids, strict=True)
    ]


def request(
    address: Mapping[str, str], host: Host, runs: Sequence[Mapping[str, Any]], code: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole request; sent again with the same run ids it starts nothing twice."""
    return {
        **address,
        "host": host.model_dump(mode="json", include={"name", "gpus", "launcher", "python", "survive_reboot"}),
        "code": dict(code),
        "versions": {"orch": version("orch"), "agent": agent_bundle().name, "python": platform.python_version()},
        "by": caller(),
        "confirm_s": CONFIRM_S,
        "runs": list(runs),
    }


def caller() -> str:
    """Who asks, for the run's record: user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such variable, and no entry in the password database
        user = str(os.getuid())
    return f"{user}@{platform.node()}"


@dataclass(frozen=True)
class LaunchReply:
    """The runs; or the jobs that the box wants rehearsed first."""

    unrehearsed: tuple[str, ...] = ()
    runs: tuple[RunReport, ...] = ()


def start(transport: Transport, request_args: Mapping[str, Any]) -> LaunchReply:
    result = transport.call(Request("launch", request_args))
    asked = [(run["job"]["name"], run["run_id"]) for run in request_args["runs"]]
    return read_answer(transport.host, result, asked, request_args.get("rehearsed") or {})


def read_answer(
    host: str, result: Mapping[str, Any], asked: Sequence[tuple[str, str]], rehearsed: Collection[str]
) -> LaunchReply:
    """Raise AgentUnusable unless it is about the runs that were `asked` for, as (job, run id).

    The box may ask for a rehearsal of the jobs `rehearsed`.
    """
    if not result.get("have_code"):
        raise AgentUnusable(
            f"launching on {host}: the agent does not have the code that was sent", "run the command again"
        )
    unrehearsed = result.get("unrehearsed") or []
    if not isinstance(unrehearsed, list) or not all(job in list(rehearsed) for job in unrehearsed):
        raise AgentUnusable(f"launching on {host}: the agent asked to rehearse unknown jobs: {unrehearsed!r:.100}")
    if unrehearsed:
        return LaunchReply(tuple(unrehearsed))
    runs = read_reports(host, result).runs
    if [(run.job, run.run_id) for run in runs] != list(asked):
        raise AgentUnusable(
            f"launching on {host}: the reply does not match the launched runs", "to ask again: orch status"
        )
    return LaunchReply((), runs)
