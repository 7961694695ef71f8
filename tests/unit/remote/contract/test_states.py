"""States and events reach the disk in order, even if the disk is full or read-only for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote.contract.events import RunNote
from remote.contract.files import append_jsonl, read_json, read_jsonl, write_json
from remote.contract.paths import RunPaths
from remote.contract.protocol import Failed, Queued, Restarting, Running, RunState, Starting, Succeeded
from remote.contract.schema import to_json
from remote.contract.states import A_SUPERVISOR, has_settled
from remote.host.run_state import RESERVE_BYTES, Recorder, has_ended, has_succeeded, read_state
from tests.remote_runs import in_private_mounts


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


def test_states_and_events_are_written_in_order(run: RunPaths) -> None:
    recorder = Recorder(run)
    recorder.enter(Starting(1.0, 1))
    recorder.note(RunNote(ending="stalled", detail="it did not move"))
    recorder.enter(Failed(2.0, "exit", "exit code 3", 3))
    assert recorder.flush()
    recorder.settle()
    said = [event.get("state", event.get("ending")) for event in read_jsonl(run.events)]
    assert said == ["starting", "stalled", "failed"]
    assert read_json(run.state) == to_json(Failed(2.0, "exit", "exit code 3", 3))
    assert run.reserve.stat().st_size == RESERVE_BYTES


HELPERS = """
import errno
from pathlib import Path
from remote.contract.events import RunNote
from remote.contract.files import read_json, read_jsonl
from remote.contract.paths import RunPaths
from remote.contract.protocol import Failed, Running, Starting
from remote.host.run_state import Recorder, read_state
run = RunPaths(Path(sys.argv[1]))

def fill(name):
    "Until not a byte more fits."
    with open(run.root / name, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
"""


def test_full_disk_uses_the_reserve_for_the_final_state(tmp_path: Path) -> None:
    in_private_mounts(
        f"mount -t tmpfs -o size=4m tmpfs '{tmp_path}'",
        HELPERS
        + """
recorder = Recorder(run)
recorder.enter(Starting(1.0, 1))
fill("ballast")
assert run.reserve.exists()
recorder.enter(Failed(2.0, "disk_full", "the disk is full"))
assert recorder.flush()
assert run.reserve.stat().st_size < 1 << 20, "the space came from nowhere"
assert read_state(run).reason == "disk_full"
fill("more")
recorder.note(RunNote(taken_over=1))
recorder.note(RunNote(ending="stalled"))
recorder.enter(Running(3.0, 2, 4242))
while recorder.flush():  # the rest of a disk block has space for a line or two
    recorder.note(RunNote(supervisor_error="x"))
assert [event for event in read_jsonl(run.events)][0]["state"] == "starting"
(run.root / "more").unlink()
recorder.note(RunNote(restarted_by="someone"))
assert recorder.flush()
events = list(read_jsonl(run.events))
order = [key for event in events for key in ("state", "taken_over", "ending", "restarted_by") if key in event]
assert order == ["state", "state", "taken_over", "ending", "state", "restarted_by"], order
assert len({(event["time"], str(event)) for event in events}) == len(events), "an event came twice"
assert read_json(run.state)["state"] == "running"
""",
        tmp_path,
    )


def test_final_state_needs_no_new_inode(tmp_path: Path) -> None:
    """An inode that the reserve freed would go to whoever creates the next file."""
    in_private_mounts(
        f"mount -t tmpfs -o size=64m,nr_inodes=100 tmpfs '{tmp_path}'",
        HELPERS
        + """
recorder = Recorder(run)
recorder.enter(Running(1.0, 1, 4242))
try:
    for number in range(100):
        (run.root / str(number)).touch()
except OSError as error:
    assert error.errno == errno.ENOSPC
assert run.reserve.exists()
recorder.enter(Failed(2.0, "disk_full", "the disk is full"))
assert recorder.flush()
assert read_state(run).reason == "disk_full"
assert not run.reserve.exists(), "the inode came from nowhere"
""",
        tmp_path,
    )


def test_states_are_written_after_a_read_only_disk_recovers(tmp_path: Path) -> None:
    in_private_mounts(
        f"mount -t tmpfs -o size=4m tmpfs '{tmp_path}'",
        HELPERS
        + """
import subprocess
recorder = Recorder(run)
recorder.enter(Starting(1.0, 1))
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
recorder.enter(Running(2.0, 1, 4242))
recorder.note(RunNote(ending="asked"))
recorder.enter(Failed(3.0, "exit", "exit code 1"))
assert not recorder.flush()
assert read_state(run).name == "starting"
Recorder(run)  # another recorder can start on the read-only disk
subprocess.run(["mount", "-o", "remount,rw", sys.argv[1]], check=True)
recorder.settle()
said = [event.get("state", event.get("ending")) for event in read_jsonl(run.events)]
assert said == ["starting", "running", "asked", "failed"], said
assert read_state(run).name == "failed"
""",
        tmp_path,
    )


def test_corrupt_state_is_recovered_from_the_last_event(run: RunPaths) -> None:
    assert read_state(run) is None
    for record in (to_json(Running(1.0, 1, 7)), {"ending": "asked"}, to_json(Succeeded(2.0))):
        append_jsonl(run.events, record)
    append_jsonl(run.events, {"attempt_ended": 1, "reason": "exit"})
    assert read_state(run) == Succeeded(2.0)
    assert has_ended(run) and has_succeeded(run)
    for damage in (b"", b'{"schema":1,"sta', b"[]", b'{"state":"asleep"}'):
        run.state.write_bytes(damage)
        assert read_state(run) == Succeeded(2.0)
    write_json(run.state, to_json(Starting(3.0, 2)))
    assert read_state(run) == Starting(3.0, 2)  # a valid file decides


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (Running(10.0, 1, 7, "7", "boot"), True),
        (Running(12.0, 1, 7, "7", "boot"), False),  # it may be about to fail
        (Starting(10.0, 1), False),
        (Restarting(10.0, 2, "exit: exit code 1", 15.0), True),
        (Queued(10.0, "a GPU"), True),
        (Queued(10.0, A_SUPERVISOR), False),
        (Succeeded(since=1.0), True),
        (None, False),
    ],
)
def test_launch_waits_until_the_process_has_lived_for_a_moment(state: RunState | None, expected: bool) -> None:
    assert has_settled(state, now=12.1) is expected
