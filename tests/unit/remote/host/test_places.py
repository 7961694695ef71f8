"""The places of a group: at most so many runs at a time, in order, and none is leaked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from remote.contract.paths import QUEUE
from remote.host.places import Places
from remote.host.ticket_queue import announce
from tests.support import ROOT

HOLDER = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from remote.host.places import Places
places = Places(Path(sys.argv[1]), 1, "1", lambda ticket: False)
taken = places.try_take()
places.close()
print(taken is not None, flush=True)
time.sleep(600)
"""


def nobody(ticket: str) -> bool:
    return False


def test_places_are_given_in_the_order_of_the_launch(tmp_path: Path) -> None:
    third, second, first = (Places(tmp_path, 2, name, nobody) for name in "321")
    assert second.try_take() is None and third.try_take() is None
    taken = first.try_take()
    assert taken is not None
    first.close()
    assert second.try_take() is not None
    second.close()
    assert third.try_take() is None  # both are taken
    taken.release()
    assert third.try_take() is not None


def test_place_of_a_late_supervisor_is_kept(tmp_path: Path) -> None:
    announce(tmp_path, "1")
    second = Places(tmp_path, 1, "2", nobody)
    assert second.try_take() is None
    first = Places(tmp_path, 1, "1", nobody)
    assert first.try_take() is not None


def test_late_run_comes_first_for_as_long_as_it_is_still_to_come(tmp_path: Path) -> None:
    coming = {"1"}
    announce(tmp_path, "1")
    os.utime(tmp_path / QUEUE / "1", (0, 0))  # announced long ago: the run still builds its environment
    second, third = (Places(tmp_path, 1, name, coming.__contains__) for name in "23")
    assert second.try_take() is None and third.try_take() is None
    coming.clear()  # it has failed
    assert third.try_take() is None
    assert second.try_take() is not None


def test_place_of_a_killed_process_is_free(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "True\n"
        waiting = Places(tmp_path, 1, "2", nobody)
        assert waiting.try_take() is None
        holder.kill()
        holder.wait(30)
    assert waiting.try_take() is not None
