"""Ask a box where its runs stand: one exchange answers for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.box.reports import HostStatus, read_reports
from orchestrator.box.transport import Transport
from remote.contract.protocol import Request


def poll(
    transport: Transport, address: Mapping[str, str], which: str = "current", also: Sequence[tuple[str, str]] = ()
) -> HostStatus:
    """One exchange for the project's runs on a box: the `current` ones, `all` or `none`, and these (job, run id)."""
    request = Request("status", {**address, "which": which, "also": list(also)})
    return read_reports(transport.host, transport.call(request))
