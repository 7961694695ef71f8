"""Run ids: UTC time and four hex digits, so that they sort by launch. A new one sorts after every known one."""

from __future__ import annotations

import calendar
import secrets
import time

from remote.contract.paths import RUN_ID

STAMP = "%Y%m%dT%H%M%S"
SKEW_S = 60.0  # clocks that differ by less are not worth a word
MOST_AHEAD_S = 2 * 86400.0  # what is dated further ahead is a mistake or a lie, and is not followed


def launched_at(run_id: str) -> float | None:
    """Return the time in a run id, in seconds since the epoch; None where it is not a date."""
    if not RUN_ID.fullmatch(run_id):
        return None
    try:
        return float(calendar.timegm(time.strptime(run_id.partition("-")[0], STAMP)))
    except ValueError:
        return None


def is_ahead(run_id: str, now: float) -> bool:
    """Whether the id is no date, or one so far ahead of `now` that it cannot be believed."""
    launched = launched_at(run_id)
    return launched is None or launched > now + MOST_AHEAD_S


def is_older(run_id: str, now: float, seconds: float) -> bool:
    """Whether the run was launched more than `seconds` before `now`."""
    launched = launched_at(run_id)
    return launched is not None and launched < now - seconds


def new_run_ids(count: int, now: float, newest: str | None = None) -> list[str]:
    """Return `count` ids in order, each after `newest`, the newest id that is known.

    They carry the time `now`; where `newest` is later (a launch from a machine whose clock is ahead), the second after
    it. Two launches of one second differ by their digits.
    """
    launched = launched_at(newest) if newest and not is_ahead(newest, now) else None
    moment = now if launched is None or launched < int(now) else launched + 1
    stamp = time.strftime(STAMP, time.gmtime(moment))
    first = secrets.randbelow(0x10000 - count)
    return [f"{stamp}-{first + place:04x}" for place in range(count)]


def skew_note(now: float, newest: str | None) -> str:
    """Say that a known run is dated ahead of this machine's clock; empty where none is."""
    launched = launched_at(newest) if newest else None
    if launched is None or launched - now < SKEW_S:
        return ""
    from orchestrator.text import duration

    ahead = f"run {newest} is dated {duration(launched - now)} ahead of this machine's clock"
    if is_ahead(str(newest), now):
        return f"{ahead}; new runs are not numbered after it; check the clock of the machine that launched it"
    return f"{ahead}; one of the two clocks is wrong; new runs are numbered after it"
