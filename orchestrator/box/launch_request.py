"""The request that starts runs on a box: built here alone, for a launch, a check and a rehearsal."""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version

from orchestrator.box.agent_bundle import agent_bundle
from orchestrator.box.client import CONFIRM_S
from orchestrator.spec.models import Host
from remote.contract.requests import LaunchRequest, RunEntry
from remote.contract.run_record import CodeRecord, RunRecord


def launch_request(host: Host, code: CodeRecord, runs: Sequence[RunEntry]) -> LaunchRequest:
    """Return the request that starts `runs`; sent again with the same run ids it starts nothing twice."""
    versions = {"orch": version("orch"), "agent": agent_bundle().name, "python": platform.python_version()}
    return LaunchRequest(host.record(), code, tuple(runs), versions, caller(), CONFIRM_S)


def run_record(project: str, request: LaunchRequest, entry: RunEntry) -> RunRecord:
    """Return what this machine knows of a run before its box has made its record."""
    return RunRecord(
        entry.run_id, project, entry.job, request.host, request.code, versions=request.versions, by=request.by
    )


def caller() -> str:
    """Return who asks, for the run's record: user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such variable, and no entry in the password database
        user = str(os.getuid())
    return f"{user}@{platform.node()}"
