"""A box with hostile files and launch answers, and one reached by SSH; see `box.check`."""

from __future__ import annotations

import pytest

from tests.hostile.agent import Way
from tests.hostile.box import cases, check
from tests.hostile.ways import OVER_SSH, files, launches


@pytest.mark.slow
@pytest.mark.parametrize(("way", "command"), cases((*files.WAYS, *launches.WAYS, *OVER_SSH)))
def test_hostile_box_does_no_harm(request: pytest.FixtureRequest, way: Way, command: str) -> None:
    check(request, way, command)
