"""`orch mcp` as an agent uses it: a real client starts the server, and calls its tools over stdin and stdout."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from tests.integration.conftest import Orch

mcp = pytest.importorskip("mcp", reason="the package mcp is not installed")


def calls(orch: Orch, *wanted: tuple[str, Mapping[str, Any]]) -> list[Any]:
    """Return the result of each call, made one after the other in one session."""

    async def session() -> list[Any]:
        command, *arguments = orch.command("mcp")
        server = mcp.StdioServerParameters(command=command, args=arguments, cwd=orch.project)
        async with mcp.Client(server) as client:
            return [await client.call_tool(name, dict(values)) for name, values in wanted]

    return asyncio.run(asyncio.wait_for(session(), 60))


def test_agent_launches_waits_and_reads_a_run(local_orch: Orch) -> None:
    local_orch.job("train", "metrics", "metrics")

    launched, waited, status, log, metrics, least_log, least_metrics = calls(
        local_orch,
        ("launch", {"jobs": ["train"]}),
        ("wait", {"runs": ["train"], "timeout_s": 30}),
        ("status", {}),
        ("log", {"run": "train", "lines": 5}),
        ("metrics", {"run": "train"}),
        ("log", {"run": "train", "lines": -5}),
        ("metrics", {"run": "train", "last": 0}),
    )

    (run,) = launched.structured_content["result"]
    (ended,) = waited.structured_content["result"]
    assert (run["job"], ended["run_id"], ended["state"]) == ("train", run["run_id"], "succeeded")
    assert ended["metrics"] == {"val_accuracy": 0.97, "consistency": 0.44}
    assert status.structured_content["result"] == [ended]
    assert log.structured_content["result"] == "train: metrics\ntrain: metrics\n"
    assert [record["val_accuracy"] for record in metrics.structured_content["result"]] == [0.97, 0.97]
    assert least_log.structured_content["result"] == "train: metrics\n"
    assert least_metrics.structured_content["result"] == metrics.structured_content["result"][-1:]


def test_agent_stops_a_run(local_orch: Orch) -> None:
    local_orch.job("train", "gate")
    local_orch.launch("train")

    stopped, waited = calls(local_orch, ("stop", {"runs": ["train"]}), ("wait", {"runs": ["train"], "timeout_s": 30}))

    assert [run["job"] for run in stopped.structured_content["result"]] == ["train"]
    assert [run["state"] for run in waited.structured_content["result"]] == ["stopped"]


def test_mistake_of_an_agent_is_an_error_of_the_tool_with_a_hint(local_orch: Orch) -> None:
    local_orch.job("train", "gate")

    (answer,) = calls(local_orch, ("launch", {"jobs": ["trian"]}))

    assert answer.is_error
    assert "spec: jobs.toml: no job 'trian' (hint: did you mean 'train'?)" in answer.content[0].text
