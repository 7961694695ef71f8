"""Which devices a job gets. The locks of the box and the forecast of the laptop both use this rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.contract.placement import SHARES, choose, shares_of
from remote.host.slots import Slots

ASKED = st.sampled_from([1 / 12, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("free", "gpus", "expected"),
    [
        ({"gpu0": 12, "gpu1": 12}, 1, ["gpu0"]),
        ({"gpu0": 6, "gpu1": 12}, 0.5, ["gpu1"]),  # the device with the most free shares comes first
        ({"gpu0": 6, "gpu1": 5}, 0.5, ["gpu0"]),
        ({"gpu0": 5, "gpu1": 5}, 0.5, None),
        ({"gpu0": 12, "gpu1": 11, "gpu2": 12}, 2, ["gpu0", "gpu2"]),
        ({"gpu0": 12}, 2, None),
        ({}, 1, None),
    ],
)
def test_emptiest_devices_come_first(free: dict[str, int], gpus: float, expected: list[str] | None) -> None:
    assert choose(free, gpus) == expected


@given(st.lists(ASKED, max_size=8), st.integers(1, 4))
def test_no_device_is_given_beyond_its_shares(asked: list[float], devices: int) -> None:
    free = dict.fromkeys(range(devices), SHARES)
    for gpus in asked:
        for device in choose(free, gpus) or ():
            free[device] -= shares_of(gpus)
    assert all(0 <= left <= SHARES for left in free.values())


def test_locks_follow_the_rule(tmp_path: Path) -> None:
    """Several jobs in a row get the same devices from the real locks as from the pure function."""
    devices = ["gpu0", "gpu1", "gpu2"]
    free = dict.fromkeys(devices, SHARES)
    slots = Slots(tmp_path, devices, "a")
    grants = []
    try:
        for gpus in (0.5, 1 / 3, 1 / 3, 1.0, 0.5, 1 / 6):
            chosen = choose(free, gpus)
            grant = slots.try_take(gpus)
            assert (grant.devices if grant else None) == (sorted(chosen) if chosen else None)
            for device in chosen or ():
                free[device] -= shares_of(gpus)
            grants.append(grant)
    finally:
        slots.close()
        for grant in grants:
            if grant:
                grant.release()
