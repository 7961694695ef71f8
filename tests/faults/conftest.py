"""One fault, or a few, against a pair of light runs: what the night does with real training, in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos import box
from tests.chaos.faults import BY_NAME
from tests.chaos.harness import Night, Plan
from tests.chaos.pair import JOBS, Pair


@pytest.fixture(autouse=True)
def namespaces() -> None:
    why = box.missing()
    if why and os.environ.get("CI") and os.getuid() == 0:
        pytest.fail(f"in CI the faults have to be struck: {why}")
    if why:
        pytest.skip(f"faults cannot be struck on this machine: {why}")


@pytest.fixture
def night(tmp_path: Path) -> Iterator[Callable[..., Night]]:
    """A pair that is taken through the named faults; nothing may be lost, and each verdict must be the true one."""
    nights: list[Night] = []

    def live(*names: str) -> Night:
        plan = Plan(0, len(nights), [(BY_NAME[name], JOBS[number % 2]) for number, name in enumerate(names)])
        nights.append(Night(plan, tmp_path / f"night{len(nights)}", light=True))
        findings = nights[-1].live()
        assert not findings.said, "\n".join([*findings.said, *nights[-1].pair.refused])
        return nights[-1]

    yield live
    for known in nights:
        known.pair.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two runs at work that nothing has struck yet."""
    made = Pair(tmp_path / "pair", light=True)
    try:
        made.launch()
        for job in JOBS:
            made.wait_progress(job)
        yield made
    finally:
        made.close()
