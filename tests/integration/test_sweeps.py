"""Many runs of one job: sweeps, groups, several live runs, places that no crash leaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from remote.contract.files import read_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Queued, Running, Stopped, Succeeded
from remote.host.run_state import read_state
from tests.integration.conftest import Orch
from tests.remote_runs import entry_script
from tests.support import left_by, wait_until

# Waits for a gate of its own, named after its seed.
SEEDED = """\
import os, time
from pathlib import Path
print("seed", os.environ["SEED"], flush=True)
while not any((Path(os.environ["GATES"]) / gate).exists() for gate in ("all", os.environ["SEED"])):
    time.sleep(0.01)
"""

# The first run fills the disk, once its gate is open.
FILLING = """\
import os, time
from pathlib import Path
gates, disk = Path(os.environ["GATES"]), Path(os.environ["DISK"])
while not (gates / "fill").exists():
    time.sleep(0.01)
if not (gates / "filled").exists():
    (gates / "filled").touch()
    found = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(found.f_bavail * found.f_frsize - (500 << 10)))
"""


@pytest.fixture
def seeded(local_orch: Orch) -> Orch:
    return with_seeds(local_orch)


def with_seeds(orch: Orch, **keys: Any) -> Orch:
    (orch.project / "seeded.py").write_text(SEEDED)
    orch.table("train", command="python seeded.py", env={"GATES": str(orch.gates), "SEED": "9"}, restarts=2, **keys)
    return orch


def runs(orch: Orch) -> list[RunPaths]:
    return list(ProjectPaths(orch.root, "test").all_runs())


def in_state(orch: Orch, state: type) -> int:
    return len([run for run in runs(orch) if isinstance(read_state(run), state)])


def wait_for(orch: Orch, **counts: int) -> None:
    """Wait until so many runs of the box are in each state."""
    kinds = {"running": Running, "queued": Queued, "succeeded": Succeeded, "stopped": Stopped}
    wait_until(lambda: all(in_state(orch, kinds[name]) == count for name, count in counts.items()), 60, f"{counts}")


def test_sweep_of_six_runs_two_at_a_time_and_is_rehearsed_once(ssh_orch: Orch) -> None:
    ssh_orch.defaults = ""
    orch = with_seeds(ssh_orch, rehearse="true")

    launched = orch.json(
        "launch", "train", "--sweep", "env.SEED=0,1,2", "--sweep", "env.LR=1e-3,3e-4", "--at-once", "2"
    )

    assert len(launched["rehearsals"]) == 1 and len(launched["runs"]) == 6
    values = [run["values"] for run in launched["runs"]]
    assert values[:2] == [{"env.SEED": "0", "env.LR": "1e-3"}, {"env.SEED": "0", "env.LR": "3e-4"}]
    assert {run["group"] for run in launched["runs"]} == {launched["group"]} and launched["group"].startswith("train-")
    wait_for(orch, running=2, queued=4)
    wait_until(
        lambda: (
            {getattr(read_state(run), "waiting_for", "") for run in runs(orch)[2:]}
            == {f"a place in {launched['group']} (at most 2 at once)"}
        ),
        what="the others to wait for a place",
    )
    orch.open("all")
    wait_for(orch, succeeded=6)
    assert [run["values"] for run in orch.json("status", launched["group"])["runs"]] == values
    synced = orch.json("sync", launched["group"])["runs"]
    assert len(synced) == 6 and all(run["whole"] for run in synced)


def test_places_are_taken_in_launch_order(seeded: Orch) -> None:
    seeded.launch("train", "--sweep", "env.SEED=0,1,2,3", "--at-once", "1")
    order = []
    for seed in range(4):
        wait_for(seeded, running=1)
        order += [(read_json(run.run) or {})["values"] for run in runs(seeded) if isinstance(read_state(run), Running)]
        seeded.open(str(seed))
        wait_for(seeded, succeeded=seed + 1)
    assert order == [{"env.SEED": str(seed)} for seed in range(4)]


def test_runs_start_in_launch_order_though_a_later_one_is_ready_first(seeded: Orch) -> None:
    gates = seeded.gates
    prepare = f"bash -c 'while [ ! -e {gates}/prepared-$SEED ] && [ ! -e {gates}/all ]; do sleep 0.05; done'"
    seeded.table(
        "train", command="python seeded.py", env={"GATES": str(gates), "SEED": "9"}, prepare={"command": prepare}
    )
    seeded.launch("train", "--sweep", "env.SEED=0,1", "--at-once", "1")
    first, second = runs(seeded)
    seeded.open("prepared-1")
    wait_until(lambda: "a place in" in getattr(read_state(second), "waiting_for", ""), 60, "the second run to wait")
    seeded.open("prepared-0")
    wait_until(lambda: isinstance(read_state(first), Running), 60, "the first run to start")
    assert isinstance(read_state(second), Queued)
    seeded.open("all")
    wait_for(seeded, succeeded=2)


def test_group_is_stopped_and_what_did_not_succeed_is_restarted(seeded: Orch) -> None:
    seeded.open("0")
    seeded.launch("train", "--sweep", "env.SEED=0,1,2", "--name", "seeds", "--at-once", "2")
    wait_for(seeded, succeeded=1, running=2)

    seeded.run("status")  # from now on, this machine knows that the first one has ended
    stopped = seeded.json("stop", "seeds")
    assert [run["state"] for run in stopped["runs"]] == ["stopped", "stopped"]
    again = seeded.json("stop", "se*")
    assert (again["runs"], again["notes"]) == ([], ["3 runs had already ended"])

    seeded.open("all")
    restarted = seeded.run("restart", "seeds", "--wait")
    assert "not restarted: 1 succeeded" in restarted.stderr
    wait_for(seeded, succeeded=3)
    assert "no run can be restarted: 3 succeeded" in seeded.run("restart", "seeds", code=4).stderr


def test_same_settings_are_launched_again_only_if_that_is_wanted(seeded: Orch) -> None:
    seeded.launch("train", "--sweep", "env.SEED=0,1")
    wait_for(seeded, running=2)

    refused = seeded.run("launch", "train", "--set", "env.SEED=1", code=4).stderr
    assert "train is already running with the same code and settings" in refused and "--again" in refused
    beside = seeded.run("launch", "train", "--set", "env.SEED=2").stderr
    assert "is still running; the new run starts beside it" in beside
    seeded.launch("train", "--set", "env.SEED=1", "--again")
    wait_for(seeded, running=4)

    seeded.open("all")
    wait_for(seeded, succeeded=4)
    refused = seeded.run("launch", "train", "--sweep", "env.SEED=0,1", code=4).stderr
    assert "3 runs with the same code and settings have already succeeded" in refused
    seeded.run("launch", "train", "--set", "env.SEED=3", "--wait")


def test_job_with_several_live_runs_means_all_of_them(seeded: Orch) -> None:
    seeded.launch("train", "--sweep", "env.SEED=0,1")
    wait_for(seeded, running=2)

    tail = seeded.run("tail", "train", "--no-follow")
    assert sorted(tail.stdout.splitlines()) == ["SEED=0 | seed 0", "SEED=1 | seed 1"]
    one = seeded.run("exec", "train", "--", "true", code=2).stderr
    assert all(run.run_id in one for run in runs(seeded))
    assert len(seeded.json("stop", "train")["runs"]) == 2
    assert in_state(seeded, Stopped) == 2


def test_tail_of_a_group_ends_with_its_runs(seeded: Orch) -> None:
    seeded.launch("train", "--sweep", "env.SEED=0,1,2", "--name", "seeds", "--at-once", "1")
    tail = seeded.start("tail", "seeds", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert tail.stdout is not None and tail.stdout.readline() == b"SEED=0 | seed 0\n"
    seeded.open("all")
    out, _ = tail.communicate(timeout=60)
    assert tail.returncode == 0
    assert [line for line in out.decode().splitlines() if "|" in line] == ["SEED=1 | seed 1", "SEED=2 | seed 2"]
    assert out.decode().count(": succeeded") == 3

    documents = [json.loads(line) for line in seeded.run("tail", "seeds", "--json").stdout.splitlines()]
    logs = {each["run_id"]: each["text"] for each in documents if each["kind"] == "log"}
    assert [logs[run.run_id] for run in runs(seeded)] == ["seed 0\n", "seed 1\n", "seed 2\n"]


def test_needed_job_is_the_one_with_the_same_values(seeded: Orch) -> None:
    seeded.open("all")
    (seeded.project / "second.py").write_text(
        "import json, os, pathlib\n"
        "needed = pathlib.Path(os.environ['ORCH_NEEDS_TRAIN'], 'run.json')\n"
        "print(os.environ['SEED'], json.loads(needed.read_text())['values']['env.SEED'])\n"
    )
    seeded.table("second", command="python second.py", needs=["train"])

    seeded.run("launch", "train", "second", "--sweep", "env.SEED=0,1,2", "--wait")

    assert [run.log.read_text() for run in runs(seeded) if run.job == "second"] == ["0 0\n", "1 1\n", "2 2\n"]


# --- crashes ----------------------------------------------------------------------------------------------------


def kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(pid, signal.SIGKILL)


def test_killed_supervisor_leaks_no_place_and_gives_none_away(seeded: Orch) -> None:
    seeded.launch("train", "--sweep", "env.SEED=0,1", "--at-once", "1")
    wait_for(seeded, running=1, queued=1)
    first, second = runs(seeded)
    before = read_json(first.supervisor) or {}

    kill(before["pid"])
    wait_until(lambda: (read_json(first.supervisor) or {}).get("pid") != before["pid"], what="the next supervisor")

    assert isinstance(read_state(second), Queued)  # the worker of the first run holds the place
    seeded.open("0")
    wait_until(lambda: isinstance(read_state(second), Running), what="the second run")
    seeded.open("1")
    wait_for(seeded, succeeded=2)


def test_group_continues_after_everything_was_killed(seeded: Orch) -> None:
    seeded.launch("train", "--sweep", "env.SEED=0,1,2", "--at-once", "1")
    wait_for(seeded, running=1, queued=2)
    for _ in range(50):  # until no process starts another one
        left = left_by([seeded.root])
        if not left:
            break
        kill(*left)
    wait_until(lambda: not left_by([seeded.root]), what="the end of all processes")

    command = [sys.executable, "-I", "-S", str(entry_script(seeded.gates)), "resume", str(seeded.root)]
    subprocess.run(command, check=True, timeout=60)  # what cron does after a reboot

    wait_for(seeded, running=1, queued=2)
    seeded.open("all")
    wait_for(seeded, succeeded=3)


@pytest.fixture
def small_disk(local_orch: Orch) -> Iterator[Orch]:
    """Give the root of the box a file system of its own, large enough for a launch."""
    disk = local_orch.root
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4g,mode=700", "none", str(disk)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield local_orch
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_queued_runs_wait_while_the_disk_is_full(small_disk: Orch) -> None:
    orch = small_disk
    (orch.project / "filling.py").write_text(FILLING)
    env = {"GATES": str(orch.gates), "DISK": str(orch.root), "SEED": "9"}
    orch.table("train", command="python filling.py", env=env, restarts=0)
    orch.launch("train", "--sweep", "env.SEED=0,1,2", "--at-once", "1")
    wait_for(orch, running=1, queued=2)
    subprocess.run(["mount", "-o", "remount,size=200m", str(orch.root)], check=True)  # full if less than 2 MB are free

    orch.open("fill")

    def waits_for_space() -> bool:
        states = map(read_state, runs(orch))
        return any(isinstance(state, Queued) and "the disk of the box is full" in state.waiting_for for state in states)

    wait_until(waits_for_space, 60, "a run to wait for space")
    assert (in_state(orch, Succeeded), in_state(orch, Queued)) == (1, 2)
    assert "the disk of the box is full" in orch.run("status").stdout
    (orch.root / "filler").unlink()
    wait_for(orch, succeeded=3)
