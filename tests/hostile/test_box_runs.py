"""A box with hostile reports and logs; `box.check` tests what must hold."""

from __future__ import annotations

import pytest

from tests.hostile.agent import Way
from tests.hostile.box import cases, check
from tests.hostile.ways import reports, streams


@pytest.mark.slow
@pytest.mark.parametrize(("way", "command"), cases((*reports.WAYS, *streams.WAYS)))
def test_hostile_box_does_no_harm(request: pytest.FixtureRequest, way: Way, command: str) -> None:
    check(request, way, command)
