"""Ask a box where its runs stand: one exchange answers for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.reports import RunReport, read_reports
from orchestrator.transport import Transport
from remote.protocol import Request


def poll(
    transport: Transport, address: Mapping[str, str], which: str | Sequence[tuple[str, str]] = "current"
) -> tuple[RunReport, ...]:
    """One exchange for the project's runs on a box: `current` ones, `all`, or these (job, run id) as far as there."""
    return read_reports(transport.host, transport.call(Request("status", {**address, "which": which})))
