"""Run ids: the UTC time of the launch and four hex digits. A new id sorts after every known id."""

from __future__ import annotations

import calendar
import secrets
import time

from orchestrator.text import duration
from remote.contract.paths import RUN_ID

STAMP = "%Y%m%dT%H%M%S"
SKEW_S = 60.0  # seconds; a smaller difference between clocks is not reported
MAX_AHEAD_S = 2 * 86400.0  # seconds; a date further in the future is ignored as wrong


def launched_at(run_id: str) -> float | None:
    """Return the time in a run id, in seconds since the epoch; None if it is not a valid run id."""
    if not RUN_ID.fullmatch(run_id):
        return None
    try:
        return float(calendar.timegm(time.strptime(run_id.partition("-")[0], STAMP)))
    except ValueError:
        return None


def is_ahead(run_id: str, now: float) -> bool:
    """Return whether the date in the id is invalid, or later than `now` + `MAX_AHEAD_S`."""
    launched = launched_at(run_id)
    return launched is None or launched > now + MAX_AHEAD_S


def is_older(run_id: str, now: float, seconds: float) -> bool:
    """Return whether the run was launched more than `seconds` before `now`."""
    launched = launched_at(run_id)
    return launched is not None and launched < now - seconds


def new_run_ids(count: int, now: float, newest: str | None = None) -> list[str]:
    """Return `count` new ids in ascending order, all after `newest`, the newest known id.

    They contain the time `now`. If `newest` is not older than that (it was launched in the same second, or the clock of
    its machine is ahead), they contain the second after the time of `newest`.
    """
    launched = launched_at(newest) if newest and not is_ahead(newest, now) else None
    moment = now if launched is None or launched < int(now) else launched + 1
    stamp = time.strftime(STAMP, time.gmtime(moment))
    first = secrets.randbelow(0x10000 - count)
    return [f"{stamp}-{first + place:04x}" for place in range(count)]


def skew_note(now: float, newest: str | None) -> str:
    """Return a warning if the run `newest` has a date ahead of this machine's clock, else ""."""
    launched = launched_at(newest) if newest else None
    if launched is None or launched - now < SKEW_S:
        return ""
    ahead = f"run {newest} is dated {duration(launched - now)} ahead of this machine's clock"
    if is_ahead(str(newest), now):
        return f"{ahead}; the ids of new runs ignore this date; check the clock of the machine that launched it"
    return f"{ahead}, so one of the two clocks is wrong; the ids of new runs still sort after it"
