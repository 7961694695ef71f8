"""Real processes and kernel locks: which locks are held, what the end of a process frees, and who is next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import dedent

import pytest

from remote.contract.files import read_json
from remote.contract.locks import is_held, locked, try_lock
from remote.contract.placement import SHARES
from remote.host.slots import CPU, Grant, Slots, announce
from tests.support import ROOT, wait_until

HOLD = """
    import sys
    from pathlib import Path
    from remote.contract.locks import try_lock
    print("held" if try_lock(Path(sys.argv[1])) is not None else "refused", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def python(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program that can import `remote` in a separate process; end it when the block exits."""
    argv = [sys.executable, "-S", "-c", dedent(code), *map(str, args)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, cwd=ROOT, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[str]) -> str:
    """Return the next line of its output."""
    assert process.stdout
    return process.stdout.readline().strip()


# --- locks --------------------------------------------------------------------------------------------


def test_lock_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with python(HOLD, path) as holder:
        assert says(holder) == "held"
        assert is_held(path)
        assert try_lock(path) is None
        with python(HOLD, path) as other:
            assert says(other) == "refused"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_lock_is_released_when_its_process_dies(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "lock"
    with python(HOLD, path) as holder:
        assert says(holder) == "held"
        holder.send_signal(number)
        holder.wait()
        assert not is_held(path)
        mine = try_lock(path)
    assert mine is not None
    assert is_held(path)
    os.close(mine)
    assert not is_held(path)


def test_stopped_process_keeps_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with python(HOLD, path) as holder:
        assert says(holder) == "held"
        holder.send_signal(signal.SIGSTOP)
        assert is_held(path)


def test_is_held_creates_no_file(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "lock")
    assert not is_held(tmp_path / "absent" / "lock")
    assert os.listdir(tmp_path) == []


def test_concurrent_is_held_calls_report_free(tmp_path: Path) -> None:
    look = """
        import sys
        from pathlib import Path
        from remote.contract.locks import is_held
        print(any(is_held(Path(sys.argv[1])) for _ in range(3000)), flush=True)
    """
    path = tmp_path / "lock"
    path.touch()
    with python(look, path) as one, python(look, path) as other:
        assert [says(one), says(other)] == ["False", "False"]


def test_try_lock_succeeds_during_is_held_calls(tmp_path: Path) -> None:
    look = """
        import sys
        from pathlib import Path
        from remote.contract.locks import is_held
        while True:
            is_held(Path(sys.argv[1]))
    """
    path = tmp_path / "lock"
    path.touch()
    with python(look, path), python(look, path):
        for _ in range(100):
            mine = try_lock(path, timeout=5)
            assert mine is not None
            os.close(mine)


def test_timeout_outlasts_a_short_holder_but_not_a_long_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with python(HOLD, path) as holder:
        assert says(holder) == "held"
        began = time.monotonic()
        assert try_lock(path, timeout=0.1) is None
        assert time.monotonic() - began >= 0.1
        waiting = python(
            """
            import sys
            from pathlib import Path
            from remote.contract.locks import try_lock
            print("waiting", flush=True)
            print(try_lock(Path(sys.argv[1]), timeout=60) is not None, flush=True)
            """,
            path,
        )
        with waiting as patient:
            assert says(patient) == "waiting"
            holder.kill()
            assert says(patient) == "True"


def test_locked_block_is_exclusive_and_released_on_error(tmp_path: Path) -> None:
    path = tmp_path / "new" / "directory" / "lock"
    with suppress(RuntimeError), locked(path):
        assert is_held(path)
        raise RuntimeError
    assert not is_held(path)
    add = """
        import sys
        from pathlib import Path
        from remote.contract.locks import locked
        for _ in range(200):
            with locked(Path(sys.argv[1])):
                count = Path(sys.argv[2])
                count.write_text(str(int(count.read_text()) + 1))
    """
    count = tmp_path / "count"
    count.write_text("0")
    with python(add, path, count) as one, python(add, path, count) as other:
        assert [one.wait(), other.wait()] == [0, 0]
    assert count.read_text() == "400"


def test_child_process_does_not_inherit_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    mine = try_lock(path)
    assert mine is not None
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    with child:
        os.close(mine)
        wait_until(lambda: not is_held(path), what="the child's start, which closes what it inherited")
        assert child.poll() is None
        child.kill()


# --- slots: allocation --------------------------------------------------------------------------------

Enter = Callable[..., Slots]


@pytest.fixture
def enter(tmp_path: Path) -> Iterator[Enter]:
    """Join the queue of a box, and leave it after the test."""
    joined = []

    def join(name: str, *devices: str) -> Slots:
        slots = Slots(tmp_path / "slots", devices or ("gpu0",), name)
        joined.append(slots)
        return slots

    yield join
    for slots in joined:
        slots.close()


@pytest.fixture
def take(enter: Enter) -> Iterator[Callable[..., Grant | None]]:
    """Request devices once without waiting: join the queue, ask, leave it. The devices are freed after the test."""
    granted: list[Grant] = []

    def ask(gpus: float, *devices: str) -> Grant | None:
        slots = enter(f"run{len(granted)}", *devices)
        try:
            grant = slots.try_take(gpus)
        finally:
            slots.close()
        granted.extend([grant] if grant else [])
        return grant

    yield ask
    for grant in granted:
        grant.release()


Take = Callable[..., Grant | None]


def devices_of(grant: Grant | None) -> list[str] | None:
    return grant.devices if grant else None


def test_two_halves_share_a_device_and_a_third_waits(take: Take) -> None:
    first = take(0.5)
    assert devices_of(first) == ["gpu0"]
    assert devices_of(take(0.5)) == ["gpu0"]
    assert take(0.5) is None
    assert take(1 / 12) is None
    assert first
    first.release()
    assert devices_of(take(0.5)) == ["gpu0"]


def test_whole_device_waits_until_the_device_is_free(take: Take) -> None:
    part = take(1 / 12)
    assert take(1) is None
    assert part
    part.release()
    assert devices_of(take(1)) == ["gpu0"]
    assert take(1 / 12) is None


@pytest.mark.parametrize("parts", [2, 3, 4, 6, 12])
def test_device_holds_exactly_its_shares(take: Take, parts: int) -> None:
    assert all(take(1 / parts) for _ in range(parts))
    assert take(1 / parts) is None


def test_different_shares_fill_a_device(take: Take) -> None:
    assert [bool(take(gpus)) for gpus in (0.5, 0.25, 1 / 6, 1 / 6, 1 / 12)] == [True, True, True, False, True]


def test_emptiest_device_comes_first(take: Take) -> None:
    box = ("gpu0", "gpu1")
    assert [devices_of(take(0.5, *box)) for _ in range(5)] == [["gpu0"], ["gpu1"], ["gpu0"], ["gpu1"], None]


def test_several_devices_are_granted_together_or_not_at_all(take: Take) -> None:
    box = ("gpu0", "gpu1", "gpu2")
    part = take(0.25, *box)
    assert devices_of(part) == ["gpu0"]
    assert take(3, *box) is None
    assert devices_of(take(2, *box)) == ["gpu1", "gpu2"]
    assert take(1, *box) is None
    assert devices_of(take(0.75, *box)) == ["gpu0"]  # the failed request holds nothing


def test_worker_sees_the_granted_devices(take: Take) -> None:
    grant = take(2, "gpu1", "gpu3", "gpu10")
    assert grant
    assert grant.cuda_visible_devices == "1,3"
    assert Grant(["gpu10"], []).cuda_visible_devices == "10"
    assert Grant([CPU], []).cuda_visible_devices == ""
    assert Grant([], []).cuda_visible_devices == ""


def test_jobs_share_the_cpu_of_a_host_without_gpu(take: Take, enter: Enter) -> None:
    assert devices_of(take(0.5, CPU)) == [CPU]
    assert devices_of(take(0.5, CPU)) == [CPU]
    assert take(0.5, CPU) is None


@pytest.mark.parametrize("gpus", [1, 4])
def test_job_for_gpus_takes_the_whole_cpu_device(take: Take, gpus: int) -> None:
    whole = take(gpus, CPU)
    assert devices_of(whole) == [CPU]
    assert take(0.5, CPU) is None


@pytest.mark.parametrize(
    ("devices", "gpus", "ever"),
    [
        (["gpu0"], 0.5, True),
        (["gpu0"], 1, True),
        (["gpu0"], 2, False),
        (["gpu0", "gpu3"], 2, True),
        (["gpu0", "gpu3"], 3, False),
        ([CPU], 8, True),
    ],
)
def test_impossible_request_is_detected_at_once(enter: Enter, devices: list[str], gpus: float, ever: bool) -> None:
    assert enter("a", *devices).can_ever_give(gpus) is ever


def test_releasing_twice_closes_nothing_else(take: Take, tmp_path: Path) -> None:
    grant = take(0.5)
    assert grant
    assert len(grant.descriptors) == SHARES // 2
    grant.release()
    descriptors = [os.open(tmp_path, os.O_RDONLY) for _ in range(SHARES)]
    grant.release()
    for descriptor in descriptors:
        os.close(descriptor)


# --- slots: order ---------------------------------------------------------------------------------------


def test_waiting_runs_are_served_in_order(enter: Enter) -> None:
    late, early = enter("20260127T000000-0000.a"), enter("20260126T000000-0000.b")
    assert late.try_take(0.5) is None
    grant = early.try_take(0.5)
    assert grant
    assert late.try_take(0.5) is None  # still in the queue
    early.close()
    second = late.try_take(0.5)
    assert second
    grant.release()
    second.release()


def test_small_request_does_not_overtake_a_large_one(enter: Enter) -> None:
    first = enter("1")
    running = first.try_take(0.5)
    first.close()
    large, small = enter("2"), enter("3")
    assert running
    assert large.try_take(1) is None
    assert small.try_take(0.5) is None
    running.release()
    grant = large.try_take(1)
    assert grant
    grant.release()


WAIT = """
    import sys
    from pathlib import Path
    from remote.host.slots import Slots
    slots = Slots(Path(sys.argv[1]), ["gpu0"], sys.argv[2])
    print("waiting", flush=True)
    sys.stdin.readline()
"""


def test_dead_waiting_run_does_not_block_the_queue(enter: Enter, tmp_path: Path) -> None:
    mine = enter("2")
    with python(WAIT, tmp_path / "slots", "1") as waiter:
        assert says(waiter) == "waiting"
        assert mine.try_take(0.5) is None
        waiter.kill()
        waiter.wait()
        grant = mine.try_take(0.5)
    assert grant
    assert os.listdir(tmp_path / "slots" / "queue") == ["2"]
    grant.release()


def test_restarted_waiting_run_keeps_its_place(enter: Enter, tmp_path: Path) -> None:
    with python(WAIT, tmp_path / "slots", "1") as waiter:
        assert says(waiter) == "waiting"
        waiter.kill()
        waiter.wait()
    behind, back = enter("2"), enter("1")
    assert behind.try_take(0.5) is None
    grant = back.try_take(0.5)
    assert grant
    grant.release()


# --- slots: release after a process dies ------------------------------------------------------------------

SUPERVISE = """
    import subprocess, sys
    from pathlib import Path
    from remote.host.slots import Slots
    slots = Slots(Path(sys.argv[1]), ["gpu0"], "1")
    grant = slots.try_take(1)
    slots.close()
    worker = subprocess.Popen(
        [sys.executable, "-S", "-c", "import signal; signal.pause()"],
        pass_fds=grant.descriptors if sys.argv[2] == "inherit" else (),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    print(worker.pid, flush=True)
    sys.stdin.readline()
"""


def test_grant_is_released_when_its_process_dies(take: Take, tmp_path: Path) -> None:
    with python(SUPERVISE, tmp_path / "slots", "keep") as holder:
        worker = int(says(holder))
        assert take(1 / 12) is None
        holder.kill()
        holder.wait()
        grant = take(1)
        os.kill(worker, signal.SIGKILL)
    assert grant


def test_worker_keeps_its_grant_when_the_supervisor_dies(take: Take, tmp_path: Path) -> None:
    with python(SUPERVISE, tmp_path / "slots", "inherit") as supervisor:
        worker = int(says(supervisor))
        supervisor.kill()
        supervisor.wait()
        try:
            assert take(1 / 12) is None
        finally:
            os.kill(worker, signal.SIGKILL)
    assert wait_until(lambda: take(1), what="the dead worker's GPU")


def test_released_grant_stays_taken_while_the_worker_lives(take: Take) -> None:
    grant = take(1)
    assert grant
    worker = subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=list(grant.descriptors)
    )
    with worker:
        grant.release()
        assert take(1 / 12) is None
        worker.kill()
        worker.wait()
        assert take(1)


# --- slots: concurrent requests -----------------------------------------------------------------------------

CONTEND = """
    import json, random, sys, time
    from pathlib import Path
    from remote.contract.files import read_json, write_json
    from remote.contract.locks import locked
    from remote.contract.placement import SHARES, shares_of
    from remote.host.slots import Slots

    box, who = Path(sys.argv[1]), sys.argv[2]
    chance = random.Random(who)
    ledger, lock = box / "ledger.json", box / "ledger.lock"

    def book(devices, shares):
        with locked(lock):
            record = read_json(ledger)
            for device in devices:
                record[device] += shares
                assert 0 <= record[device] <= SHARES, record
            record["most"] = max(record["most"], record["gpu0"] + record["gpu1"])
            write_json(ledger, record)

    for turn in range(4):
        gpus = chance.choice([1 / 12, 1 / 4, 1 / 3, 1 / 2, 1, 2])
        slots = Slots(box / "slots", ["gpu0", "gpu1"], f"{turn}.{who}")
        while True:
            grant = slots.try_take(gpus)
            if grant:
                break
            time.sleep(0.001)
        slots.close()
        assert len(grant.devices) == max(1, int(gpus)), grant.devices
        shares = shares_of(gpus)
        book(grant.devices, shares)
        time.sleep(chance.random() / 100)
        book(grant.devices, -shares)
        grant.release()
"""


def test_concurrent_requests_never_get_the_same_share(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text('{"gpu0": 0, "gpu1": 0, "most": 0}')
    asking: list[subprocess.Popen[bytes]] = []
    try:
        for who in range(8):
            argv = [sys.executable, "-S", "-c", dedent(CONTEND), str(tmp_path), str(who)]
            asking.append(subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL))
        assert [process.wait() for process in asking] == [0] * 8
    finally:
        for process in asking:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
    ledger = read_json(tmp_path / "ledger.json")
    assert ledger
    assert (ledger["gpu0"], ledger["gpu1"]) == (0, 0)
    assert ledger["most"] > SHARES  # both devices were in use at the same time; otherwise the test proves nothing
    assert os.listdir(tmp_path / "slots" / "queue") == []


# --- the order of a launch ------------------------------------------------------------------------------


def test_announced_place_is_kept_for_a_late_supervisor(tmp_path: Path) -> None:
    announce(tmp_path, "1")
    announce(tmp_path, "2")
    second = Slots(tmp_path, ["cpu"], "2")
    assert second.try_take(0.5) is None
    first = Slots(tmp_path, ["cpu"], "1")
    assert first.try_take(0.5)
    first.close()
    assert second.try_take(0.5)


def test_announced_place_expires_without_a_supervisor(tmp_path: Path) -> None:
    announce(tmp_path, "1")
    os.utime(tmp_path / "queue" / "1", (1.0, 1.0))
    assert Slots(tmp_path, ["cpu"], "2").try_take(0.5)
