"""One or a few faults against a pair of light runs: what a chaos run does with real training, in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos import box
from tests.chaos.faults import BY_NAME
from tests.chaos.harness import ChaosRun, Plan
from tests.chaos.pair import CLIENTS, JOBS, Pair


@pytest.fixture(autouse=True)
def namespaces() -> None:
    why = box.missing()
    if why and os.environ.get("CI") and os.getuid() == 0:
        pytest.fail(f"faults must be injected in CI: {why}")
    if why:
        pytest.skip(f"faults cannot be injected on this machine: {why}")


@pytest.fixture
def chaos_run(tmp_path: Path) -> Iterator[Callable[..., ChaosRun]]:
    """Return a function that injects the named faults into a pair; nothing may be lost or wrongly reported."""
    made: list[ChaosRun] = []

    def inject(*names: str, client: str = CLIENTS[0]) -> ChaosRun:
        plan = Plan(0, len(made), [(BY_NAME[name], JOBS[number % 2]) for number, name in enumerate(names)], client)
        made.append(ChaosRun(plan, tmp_path / f"run{len(made)}", light=True))
        findings = made[-1].run()
        assert not findings.messages, "\n".join([*findings.messages, *made[-1].pair.refused])
        return made[-1]

    yield inject
    for known in made:
        known.pair.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Start two runs without any fault."""
    made = Pair(tmp_path / "pair", light=True)
    try:
        made.launch()
        for job in JOBS:
            made.wait_progress(job)
        yield made
    finally:
        made.close()
