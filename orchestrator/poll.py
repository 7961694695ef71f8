"""Ask a box where its runs stand: one exchange answers for all of them."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.reports import RunReport, read_reports
from orchestrator.transport import Transport
from remote.protocol import Request


def poll(transport: Transport, address: Mapping[str, str], which: str = "current") -> tuple[RunReport, ...]:
    """One exchange for all runs of the project on a box; `which` is `current` or `all`."""
    return read_reports(transport.host, transport.call(Request("status", {**address, "which": which})))
