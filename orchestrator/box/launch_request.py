"""Build the request that starts runs on a box. Launch, check and rehearsal all use it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from orchestrator.box.agent_bundle import agent_bundle
from orchestrator.box.client import CONFIRM_S
from orchestrator.system.caller import caller
from remote.contract.launches import LaunchRequest, RunEntry
from remote.contract.run_record import CodeRecord, RunRecord

if TYPE_CHECKING:
    from orchestrator.spec.models import Host


def launch_request(host: Host, code: CodeRecord, runs: Sequence[RunEntry]) -> LaunchRequest:
    """Return the request that starts `runs`. It is safe to send again: the box starts each run id only once."""
    versions = {"orch": version("orch"), "agent": agent_bundle().name, "python": platform.python_version()}
    return LaunchRequest(host.record(), code, tuple(runs), versions, caller(), CONFIRM_S)


def run_record(project: str, request: LaunchRequest, entry: RunEntry) -> RunRecord:
    """Return the record of a run as far as this machine knows it before the box has written its own."""
    return RunRecord(
        entry.run_id, project, entry.job, request.host, request.code, versions=request.versions, by=request.by
    )
