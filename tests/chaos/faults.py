"""The faults: what each does to a pair of runs, and what the runs may report of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from remote.contract.paths import RunPaths
from tests.chaos.invariants import log_lines
from tests.chaos.pair import COLUMNS, JOBS, TIMEOUT_S, Pair
from tests.support import descendants, left_by, wait_until

SUSPENDED_S = 60.0
Injection = Callable[[Pair, str, Random], None]


@dataclass(frozen=True)
class Fault:
    """`inject` returns when the fault itself is over; recovery may take longer."""

    name: str
    inject: Injection
    ends: tuple[str, ...] = ()  # allowed reasons for an attempt to end; none: it must continue
    must_end: bool = False
    hits_both: bool = False  # both runs of the pair, not only the target
    stage: str = "run"  # `launch`: injected during the launch; `end`: the last one
    final: tuple[str, str] = ("succeeded", "")  # state and reason of the affected runs
    small_disk: bool = False
    own_clock: bool = False
    rehearse: bool = False  # the jobs are rehearsed before they start

    @property
    def group(self) -> str:
        return self.name.split(":")[0]


# --- worker --------------------------------------------------------------------------------------------


def injected_by_worker(what: str, pair: Pair, job: str, random: Random) -> None:
    """Tell the worker to inject the fault into itself."""
    before = len(pair.done(job))
    pair.tell(job, what)
    wait_until(
        lambda: any(record.get("injected") == what for record in pair.done(job)[before:]), TIMEOUT_S, f"{job}: {what}"
    )


def worker_flooded(pair: Pair, job: str, random: Random) -> None:
    injected_by_worker("flood", pair, job, random)
    wait_until(lambda: any("flood" in record for record in pair.done(job)), TIMEOUT_S, f"{job} to print the flood")


def worker_killed(pair: Pair, job: str, random: Random) -> None:
    pair.kill(pair.worker_pid(job))


def worker_stopped(pair: Pair, job: str, random: Random) -> None:
    pair.signal(pair.worker_pid(job), signal.SIGSTOP)


# --- supervisor ----------------------------------------------------------------------------------------


def supervisor_killed(pair: Pair, job: str, random: Random) -> None:
    victim = pair.supervisor_pid(job)
    pair.kill(victim)
    wait_until(lambda: pair.supervisor_pid(job) != victim, TIMEOUT_S, f"another supervisor of {job}")


def supervisor_stopped(pair: Pair, job: str, random: Random) -> None:
    """The worker dies while its supervisor is stopped; this must still be reported."""
    pair.signal(pair.supervisor_pid(job), signal.SIGSTOP)
    pair.kill(pair.worker_pid(job))


def supervisor_killed_between_writes(pair: Pair, job: str, random: Random) -> None:
    """Kill the supervisor when the first event of the end is on disk but the state is not yet."""
    run, victim = pair.run(job), pair.supervisor_pid(job)
    before = run.events.stat().st_size
    pair.kill(pair.worker_pid(job))
    until = time.monotonic() + TIMEOUT_S
    while run.events.stat().st_size == before and time.monotonic() < until:
        pass
    pair.kill(victim)


def shim_killed(pair: Pair, job: str, random: Random) -> None:
    victim = pair.shim_pid(job)
    pair.kill(victim)
    wait_until(lambda: pair.shim_pid(job) != victim, TIMEOUT_S, f"another shim of {job}")


# --- box -----------------------------------------------------------------------------------------------


def rebooted(pair: Pair, job: str, random: Random) -> None:
    pair.box.power_off()
    pair.box.power_on()
    pair.box.resume(sys.executable, pair.root)


def disk_filled(how: str, pair: Pair, job: str, random: Random) -> None:
    fill = pair.box.fill_disk if how == "bytes" else pair.box.fill_inodes
    fill()
    for name in JOBS:
        pair.wait_over(name)
    pair.box.free_disk()


def clock_moved(seconds: int, pair: Pair, job: str, random: Random) -> None:
    pair.box.set_clock(seconds)
    for name in JOBS:
        pair.wait_progress(name)


def made_read_only(pair: Pair, job: str, random: Random) -> None:
    with pair.box.read_only(pair.run(job).root):
        time.sleep(random.uniform(1.0, 4.0))


def second_supervisor(pair: Pair, job: str, random: Random) -> None:
    """It must notice that the run has a supervisor, and exit."""
    victim = Path(f"/proc/{pair.supervisor_pid(job)}/cmdline").read_bytes().split(b"\0")[:-1]
    command = pair.box.inside([os.fsdecode(word) for word in victim])
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr


# --- connection ----------------------------------------------------------------------------------------


def cut_for(seconds: float, pair: Pair, job: str, random: Random) -> None:
    pair.box.cut()
    time.sleep(seconds)
    pair.box.mend()


def cut_to_the_end(pair: Pair, job: str, random: Random) -> None:
    pair.box.cut()
    pair.release()
    for name in JOBS:
        pair.wait_over(name)
    pair.box.mend()


def _when_connected(pair: Pair, random: Random) -> None:
    """Wait for a random moment of a connection that is open."""
    wait_until(lambda: descendants(pair.box.sshd_pid), 20, "a connection")
    time.sleep(random.uniform(0.05, 1.0))


def reset_in_launch(pair: Pair, job: str, random: Random) -> None:
    client = pair.client("launch", *JOBS)
    _when_connected(pair, random)
    pair.box.reset_connections()
    client.wait(timeout=TIMEOUT_S)


def busy_client(pair: Pair, random: Random, *arguments: str) -> subprocess.Popen[bytes]:
    """Start an `orch` and return it while the box does something for it."""
    for _ in range(20):
        client = pair.client(*arguments)
        wait_until(lambda client=client: client.poll() is not None or pair.box.is_busy(), TIMEOUT_S, "a request")  # type: ignore[misc]
        time.sleep(random.uniform(0.0, 0.3))
        if client.poll() is None and pair.box.is_busy():
            return client
        client.kill()
        client.wait()
    raise AssertionError(f"orch {' '.join(arguments)} ended 20 times before the fault could be injected")


def reset_in_sync(pair: Pair, job: str, random: Random) -> None:
    client = busy_client(pair, random, "sync")
    pair.box.reset_connections()
    client.wait(timeout=TIMEOUT_S)


def reset_in_tail(pair: Pair, job: str, random: Random) -> None:
    client = busy_client(pair, random, "tail", job, "--from", "0")
    pair.box.reset_connections()
    client.kill()
    client.wait()


def slow_connection(pair: Pair, job: str, random: Random) -> None:
    with pair.box.slow("8mbit"):
        pair.sync_once()


def lost_packets(pair: Pair, job: str, random: Random) -> None:
    with pair.box.lossy(10):
        pair.sync_once()


def sshd_restarted(pair: Pair, job: str, random: Random) -> None:
    pair.box.kill_connections()
    pair.box.stop()
    time.sleep(random.uniform(0.0, 2.0))
    pair.box.start()


def sshd_unresponsive(pair: Pair, job: str, random: Random) -> None:
    with pair.box.unresponsive():
        code, _ = pair.orch("status")
        assert code != 0, "status succeeded although sshd does not answer"


# --- laptop --------------------------------------------------------------------------------------------


def client_killed_in_launch(pair: Pair, job: str, random: Random) -> None:
    client = pair.client("launch", *JOBS)
    time.sleep(random.uniform(0.2, 4.0))
    client.kill()
    client.wait()


def client_killed(command: str, pair: Pair, job: str, random: Random) -> None:
    client = busy_client(pair, random, command, *([job] if command == "tail" else []))
    client.kill()
    client.wait()


def laptop_suspended(pair: Pair, job: str, random: Random) -> None:
    """Stop a `tail` and every connection, as a laptop whose lid is closed, and continue them much later."""
    with (pair.folder / "tail").open("wb") as out:
        client = pair.client("tail", job, out=out)
    got = pair.folder / "tail"
    wait_until(lambda: got.stat().st_size > 0, TIMEOUT_S, "the first of the log")
    stopped = {client.pid, *descendants(client.pid), *left_by([pair.home])}
    for pid in stopped:
        pair.signal(pid, signal.SIGSTOP)
    time.sleep(SUSPENDED_S)
    for pid in stopped:
        pair.signal(pid, signal.SIGCONT)
    code, said = pair.orch("status")
    assert code == 0, said
    size = got.stat().st_size
    pair.wait_progress(job)
    wait_until(lambda: got.stat().st_size > size, TIMEOUT_S, "the tail to go on")
    client.kill()
    client.wait()


def two_launches(pair: Pair, job: str, random: Random) -> None:
    clients = [pair.client("launch", *JOBS) for _ in range(2)]
    for client in clients:
        client.wait(timeout=TIMEOUT_S)


def two_syncs(pair: Pair, job: str, random: Random) -> None:
    clients = [pair.client("sync") for _ in range(2)]
    for client in clients:
        client.wait(timeout=TIMEOUT_S)


# --- files ---------------------------------------------------------------------------------------------

DAMAGES = ("truncated", "empty", "garbage")
# Files whose content a run has twice or can do without. For the others the damage itself is a loss: see
# tests/faults/test_files.py.
SPARE = ("state", "worker", "supervisor", "heartbeat", "latest_metrics", "samples", "checkpoint")


def damage(path: Path, how: str, random: Random) -> None:
    data = path.read_bytes() if path.exists() else b""
    new = {"truncated": data[: len(data) // 2], "empty": b"", "garbage": random.randbytes(max(64, len(data)))}[how]
    path.write_bytes(new)


def damaged_file(run: RunPaths, name: str) -> Path:
    if name != "checkpoint":
        found: Path = getattr(run, name)
        return found
    return next(iter(run.checkpoints_newest_first()), run.checkpoint(1))


def file_damaged(pair: Pair, job: str, random: Random) -> None:
    """Damage a file and kill the supervisor, so that the next one starts from the damaged file."""
    name, how = random.choice(SPARE), random.choice(DAMAGES)
    damage(damaged_file(pair.run(job), name), how, random)
    supervisor_killed(pair, job, random)


def code_changed(pair: Pair, job: str, random: Random) -> None:
    """A job changes the snapshot that it came from; a job that starts later must get the code as it was sent."""
    injected_by_worker("change_code", pair, job, random)
    code, said = pair.orch("launch", "same", "--wait")
    assert code == 0, said
    assert b"".join(log_lines(pair.run("same"))) == f"{COLUMNS}\n".encode()


def rehearsed(pair: Pair, job: str, random: Random) -> None:
    """The rehearsals write what the runs write. Nothing of it may reach a run."""
    code, said = pair.orch("launch", *JOBS)
    assert code == 0, said


def killed_in_rehearsal(pair: Pair, job: str, random: Random) -> None:
    client = pair.client("launch", *JOBS)
    time.sleep(random.uniform(2.0, 8.0))
    client.kill()
    client.wait()


def _worker(name: str, *ends: str, must_end: bool = True, inject: Injection | None = None, **rest: object) -> Fault:
    return Fault(f"worker: {name}", inject or partial(injected_by_worker, name), ends, must_end, **rest)  # type: ignore[arg-type]


FAULTS: tuple[Fault, ...] = (
    _worker("sigkill", "signal", inject=worker_killed),
    _worker("sigstop", "stalled", inject=worker_stopped),
    _worker("exit_1", "exit"),
    _worker("exit_0", must_end=False, stage="end", final=("failed", "missing_output")),
    _worker("segfault", "signal"),
    _worker("memory", "oom"),
    _worker("nan", "non_finite"),
    _worker("deadlock", "stalled"),
    _worker("ignores_sigterm", "stalled"),
    _worker("forks", "exit"),
    _worker("flood", must_end=False, inject=worker_flooded),
    _worker("no_utf8", must_end=False),
    Fault("supervisor: sigkill", supervisor_killed),
    Fault("supervisor: sigstop", supervisor_stopped, ("signal",), must_end=True),
    Fault("supervisor: killed between two writes", supervisor_killed_between_writes, ("signal",), must_end=True),
    Fault("supervisor: shim sigkill", shim_killed),
    Fault("box: reboot", rebooted, ("rebooted",), must_end=True, hits_both=True),
    Fault(
        "box: disk full",
        partial(disk_filled, "bytes"),
        ("disk_full",),
        hits_both=True,
        stage="end",
        final=("failed", "disk_full"),
        small_disk=True,
    ),
    Fault(
        "box: inodes full",
        partial(disk_filled, "inodes"),
        ("disk_full",),
        hits_both=True,
        stage="end",
        final=("failed", "disk_full"),
        small_disk=True,
    ),
    Fault("box: clock two hours back", partial(clock_moved, -7200), own_clock=True),
    Fault("box: clock two hours forward", partial(clock_moved, 7200), own_clock=True),
    Fault("box: read-only", made_read_only, ("exit", "disk_full"), small_disk=True),
    Fault("box: a second supervisor", second_supervisor),
    Fault("connection: cut 1 s", partial(cut_for, 1.0)),
    Fault("connection: cut 30 s", partial(cut_for, 30.0)),
    Fault("connection: cut to the end", cut_to_the_end, stage="end"),
    Fault("connection: reset in launch", reset_in_launch, stage="launch"),
    Fault("connection: reset in sync", reset_in_sync),
    Fault("connection: reset in tail", reset_in_tail),
    Fault("connection: 8 Mbit/s", slow_connection),
    Fault("connection: 10 % lost", lost_packets),
    Fault("connection: sshd restarted", sshd_restarted),
    Fault("connection: sshd never answers", sshd_unresponsive),
    Fault("laptop: killed in launch", client_killed_in_launch, stage="launch"),
    Fault("laptop: killed in sync", partial(client_killed, "sync")),
    Fault("laptop: killed in tail", partial(client_killed, "tail")),
    Fault("laptop: suspended", laptop_suspended),
    Fault("laptop: two launches", two_launches, stage="launch"),
    Fault("laptop: two syncs", two_syncs),
    Fault("laptop: killed in the rehearsal", killed_in_rehearsal, stage="launch", rehearse=True),
    Fault("files: damaged", file_damaged),
    Fault("files: written by the rehearsal", rehearsed, stage="launch", rehearse=True),
    Fault("files: code changed by its job", code_changed),
)
BY_NAME = {fault.name: fault for fault in FAULTS}
