"""A worker that removes its run's directory or files: everything ends, and the cause is reported if possible."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from remote.contract.files import read_json, write_json
from remote.contract.locks import is_held
from remote.contract.paths import ProjectPaths
from remote.host import launchers
from remote.host.process import PROC
from tests.integration.conftest import Stage
from tests.remote_runs import new_run
from tests.support import ROOT, left_by, wait_until

pytestmark = pytest.mark.skipif(not PROC.joinpath("self").exists(), reason="processes are searched by /proc alone")

TAKE_AWAY = {
    "removed": "shutil.rmtree(run)",
    "moved away": "os.rename(run, run + '.away')",
    "emptied": "[shutil.rmtree(x) if x.is_dir() else x.unlink() for x in pathlib.Path(run).iterdir()]",
    "replaced by a file": "a = gone + '2'; open(a, 'w').write('mine'); os.rename(run, gone); os.rename(a, run)",
    "replaced by a link": "os.rename(run, run + '.away'); os.symlink(run + '.away', run)",
    "replaced by a directory": "os.rename(run, run + '.away'); os.mkdir(run); open(run + '/mine', 'w').write('mine')",
    "replaced by a copy": "os.rename(run, run + '.away'); shutil.copytree(run + '.away', run)",
    "removed with its project": "above = pathlib.Path(run).parents[2]; above.rename(gone); shutil.rmtree(gone)",
    "removed with its root": "above = pathlib.Path(run).parents[3]; above.rename(gone); shutil.rmtree(gone)",
}
TOLD = ("removed", "moved away", "emptied", "replaced by a directory", "replaced by a copy")  # its folder exists


@pytest.mark.parametrize("how", TAKE_AWAY)
def test_run_ends_when_its_directory_disappears(how: str, stage: Stage) -> None:
    gone = f"gone = {str(stage.tmp_path / 'gone')!r}"  # in one step, because a quick supervisor recreates a directory
    run = stage.begin(f"{gone}\n{TAKE_AWAY[how]}\ntime.sleep(600)", restarts=3, stop_grace=60.0)

    stage.go.touch()
    stage.wait_until_nothing_is_left()

    assert not any(is_held(lock) for lock in stage.paths.slots.glob("*.lock"))
    assert not stage.paths.secrets_of(run).exists()
    if how in TOLD:
        assert stage.outcome() == ("failed", "run_dir_gone")
        assert str(run.root) in (read_json(run.state) or {})["detail"]
        assert (read_json(run.run) or {})["job"]["name"] == "worker1"
        assert '"reason":"run_dir_gone"' in run.events.read_text()
        assert (run.root / "mine").exists() == (how == "replaced by a directory")
    elif how == "replaced by a file":
        assert run.root.read_text() == "mine"
    elif "with its" in how:
        assert not stage.paths.root.exists()


@pytest.mark.parametrize("ending", ["sys.exit(0)", "sys.exit(1)", "os.kill(os.getpid(), 9)"])
def test_worker_that_removes_the_directory_and_ends_has_failed(ending: str, stage: Stage) -> None:
    stage.begin(f"shutil.rmtree(run)\n{ending}", restarts=3)

    stage.go.touch()
    stage.wait_until_nothing_is_left()

    assert stage.outcome() == ("failed", "run_dir_gone")


@pytest.mark.parametrize("victims", [("supervisor",), ("loop", "supervisor"), ("supervisor", "shim")])
def test_run_without_directory_ends_even_if_its_processes_were_killed(victims: tuple[str, ...], stage: Stage) -> None:
    run = stage.begin("time.sleep(600)")
    moved = run.root.with_name("away")

    stage.kill(*victims)
    run.root.rename(moved)

    wait_until(lambda: not left_by([stage.paths.box]), 60, "the end of every process of the run")


def test_queued_run_ends_with_its_directory(stage: Stage, paths: ProjectPaths) -> None:
    first = stage.begin("time.sleep(600)")
    waiting = new_run(paths, run_id="20260126T210312-7f3b", command=["./train.py"], gpus=1.0)
    loop = stage.supervise(waiting)
    wait_until(lambda: "of cpu" in str((read_json(waiting.state) or {}).get("waiting_for")), what="it to wait")

    shutil.rmtree(waiting.root.rename(waiting.root.with_name("gone")))  # in one step, while its supervisor writes

    assert loop.wait(30) == 0
    assert (read_json(waiting.state) or {})["reason"] == "run_dir_gone"
    write_json(first.stop, {"by": "the test"})
    assert stage.loop.wait(30) == 0


# --- parts of a split -------------------------------------------------------------------------------------


def test_run_continues_to_its_end_after_lock_files_were_removed(stage: Stage) -> None:
    remove = "[os.unlink(os.path.join(run, name)) for name in ('supervisor.lock', 'keeper.lock')]"
    stage.begin(f"{remove}\ntime.sleep(3)\nsys.exit(7)")

    stage.go.touch()
    stage.wait_until_nothing_is_left()

    assert stage.outcome() == ("failed", "exit")
    assert (read_json(stage.run.state) or {})["exit_code"] == 7


def test_removed_snapshot_is_reported_at_the_next_attempt(stage: Stage) -> None:
    stage.begin("sys.exit(1)", restarts=3)

    shutil.rmtree(stage.paths.code)
    stage.go.touch()
    stage.wait_until_nothing_is_left()

    assert stage.outcome() == ("failed", "no_code")
    assert str(stage.paths.code) in (read_json(stage.run.state) or {})["detail"]


def test_output_is_logged_after_pipe_was_removed_and_shim_killed(stage: Stage) -> None:
    stage.begin("print('after', flush=True)\nsys.exit(1)")

    stage.paths.pipe_of(stage.run).unlink()
    stage.kill("shim")
    stage.go.touch()
    stage.wait_until_nothing_is_left()

    assert stage.run.log.read_text() == "after\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user that permissions count for")
def test_read_only_directory_becomes_writable_again(tmp_path: Path) -> None:
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin")
    if python is None:
        pytest.skip("no Python that every user can run")
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path; from remote.contract.paths import RunPaths\n"
        "from remote.host.presence import Presence\n"
        "run = RunPaths(Path(sys.argv[1])); run.root.mkdir(); run.run.touch(); run.root.chmod(0o500)\n"
        "print(repr(Presence(run, run.supervisor_lock).why_gone()), oct(run.root.stat().st_mode))"
    )
    folder = tmp_path / "open"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    argv = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f"mount --bind {folder} /mnt && exec setpriv --reuid 65534 {python} -S -c",
    ]
    argv = [*argv[:-1], argv[-1] + ' "$@"', "sh", code, "/mnt/run"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if "mount" in done.stderr or "setpriv" in done.stderr:
        pytest.skip(f"a mount namespace cannot be created here: {done.stderr}")

    assert done.stdout.split() == ["''", "0o40700"], done.stderr


# --- the respawn loop -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["the agent", "its Python"])
def test_respawn_loop_gives_up_without_an_agent(gone: str, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    sleep = tmp_path / "bin" / "sleep"
    sleep.parent.mkdir()
    sleep.write_text(f"#!/bin/sh\necho $1 >> {tries}\n")
    sleep.chmod(0o755)
    python = sys.executable if gone == "the agent" else str(tmp_path / "none")
    agent = tmp_path / "agent.py"
    if gone != "the agent":
        agent.touch()
    argv = launchers.respawn_argv([python, "-I", "-S", str(agent), "supervise", str(tmp_path)])
    env = {"PATH": f"{sleep.parent}:/usr/bin:/bin"}

    done = subprocess.run(argv, env=env, capture_output=True, timeout=60, check=False)

    assert done.returncode == 1
    assert tries.read_text().split() == ["1", "2", "4", "8", "16", "32", "64", "64", "64"]
