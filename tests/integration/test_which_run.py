"""Which runs a command selects: with wrong clocks, after a rename, on a fresh clone or a second laptop."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.box.known_runs import KnownRuns
from tests.chaos.box import FAKETIME, remove_left_clocks
from tests.integration.conftest import Orch
from tests.support import wait_until


def orch_a_day_ahead(orch: Orch, *arguments: str) -> str:
    """Run `orch` on a machine whose clock is a day ahead."""
    library = next((path for folder in FAKETIME if (path := Path(folder, "libfaketime.so.1")).exists()), None)
    if library is None:
        pytest.skip("faketime is not installed: apt install faketime")
    remove_left_clocks()
    env = {**os.environ, "LD_PRELOAD": str(library), "FAKETIME": "+86400s"}
    command = orch.command(*arguments)
    done = subprocess.run(command, cwd=orch.project, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def second_laptop(orch: Orch, tmp_path: Path) -> Orch:
    """Make the same project in another directory, without records of earlier runs."""
    other = tmp_path / "second"
    shutil.copytree(orch.project, other, ignore=shutil.ignore_patterns("results", ".orch"))
    return Orch(other, orch.gates, orch.root, orch.host, orch.host_table, orch.box, orch.defaults, dict(orch.jobs))


# --- order ------------------------------------------------------------------------------------------------


def test_live_run_comes_first_even_if_a_laptop_clock_is_ahead(local_orch: Orch) -> None:
    local_orch.job("b")
    orch_a_day_ahead(local_orch, "launch", "b", "--wait")
    ahead = local_orch.on_box("b").run_id
    local_orch.job("b", "never")

    launched = local_orch.run("launch", "b")

    live = local_orch.json("status", "b")["runs"]
    assert [run["state"] for run in live] == ["running"]
    assert live[0]["run_id"] > ahead
    assert f"run {ahead} is dated 24 h" in launched.stderr
    stopped = local_orch.run("stop", "b")
    assert "stopped" in stopped.stdout and live[0]["run_id"] in stopped.stdout


def test_live_run_is_chosen_over_an_ended_one_with_a_later_id(local_orch: Orch) -> None:
    local_orch.job("b")
    local_orch.run("launch", "b", "--wait")
    ended = local_orch.on_box("b")
    local_orch.job("b", "never")
    local_orch.launch("b")
    live = local_orch.on_box("b").run_id
    later = ended.root.with_name(f"{int(live[:8]) + 1}{live[8:]}")  # an id of an earlier version
    ended.root.rename(later)

    stopped = local_orch.run("stop", "b")

    assert f"b {live}: stopped" in stopped.stdout


def test_stop_reports_that_a_run_had_already_ended(local_orch: Orch) -> None:
    local_orch.job("b")
    local_orch.run("launch", "b", "--wait")

    stopped = local_orch.run("stop", "b")

    assert "had already ended; nothing to stop" in stopped.stderr
    assert "succeeded" in stopped.stdout


# --- renames, clones, laptops ------------------------------------------------------------------------------


def rename(orch: Orch, old: str, new: str) -> None:
    spec = orch.project / "jobs.toml"
    text = spec.read_text()
    assert old in text
    spec.write_text(text.replace(old, new))


def test_runs_are_followed_after_their_host_was_renamed(ssh_orch: Orch) -> None:
    ssh_orch.job("b", "end")
    ssh_orch.launch("b")
    rename(ssh_orch, "gpu1", "trainer")

    seen = ssh_orch.json("status")["runs"]
    ssh_orch.open("end")
    ssh_orch.wait_for("b", "succeeded")
    synced = ssh_orch.json("sync")["runs"]

    assert [(run["host"], run["state"]) for run in seen] == [("trainer", "running")]
    assert [run["whole"] for run in synced] == [True]


def test_runs_of_a_host_that_jobs_toml_no_longer_has_are_explained(ssh_orch: Orch) -> None:
    ssh_orch.job("b", "end")
    ssh_orch.launch("b")
    spec = ssh_orch.project / "jobs.toml"
    table = ssh_orch.host_table
    spec.write_text(spec.read_text().replace(table, "").replace('host = "gpu1"', 'host = "local"'))

    seen = ssh_orch.run("status")

    assert "1 known run was launched on 'gpu1', which is no longer in jobs.toml" in seen.stderr
    assert "unreachable" in seen.stdout


@pytest.mark.parametrize(("old", "new"), [('name = "test"', 'name = "renamed"'), ("~/orch", "~/elsewhere")])
def test_runs_are_followed_after_the_project_or_its_root_was_renamed(ssh_orch: Orch, old: str, new: str) -> None:
    ssh_orch.job("b", "end")
    ssh_orch.launch("b")
    rename(ssh_orch, old, new)

    seen = ssh_orch.json("status")["runs"]
    ssh_orch.run("tail", "b", "--no-follow")
    ssh_orch.open("end")
    ssh_orch.wait_for("b", "succeeded")
    synced = ssh_orch.json("sync")["runs"]

    assert [run["state"] for run in seen] == ["running"]
    assert [run["whole"] for run in synced] == [True]


def test_run_is_missing_if_its_host_now_names_another_machine(local_orch: Orch) -> None:
    local_orch.job("b", "never")
    local_orch.launch("b")
    live = local_orch.on_box("b")
    moved = live.root.parent.with_name("moved")
    live.root.parent.rename(moved)
    try:
        seen = local_orch.run("status")
        assert "missing" in seen.stdout
        assert "not on local: its directory was removed" in seen.stdout
    finally:
        moved.rename(live.root.parent)
        local_orch.run("stop", "b")


@pytest.mark.parametrize("command", ["status", "runs", "tail", "sync", "stop"])
def test_fresh_clone_finds_the_runs_on_its_boxes(ssh_orch: Orch, tmp_path: Path, command: str) -> None:
    ssh_orch.job("b", "end")
    ssh_orch.launch("b")
    run_id = ssh_orch.on_box("b").run_id
    clone = second_laptop(ssh_orch, tmp_path)

    if command == "tail":
        assert "running" in clone.run("tail", "b", "--no-follow").stderr
    elif command == "stop":
        assert run_id in clone.run("stop", "b").stdout
    elif command == "sync":
        assert [run["run_id"] for run in clone.json("sync")["runs"]] == [run_id]
    else:
        assert [run["run_id"] for run in clone.json(command)["runs"]] == [run_id]


def test_second_laptop_shows_which_hosts_were_not_asked(ssh_orch: Orch, tmp_path: Path) -> None:
    ssh_orch.job("b", "end")
    other = second_laptop(ssh_orch, tmp_path)
    assert other.json("status")["runs"] == []  # asked once
    ssh_orch.launch("b")

    for command, said in (("status", "no runs"), ("sync", "nothing new to copy")):
        done = other.run(command)
        assert said in done.stdout
        assert "not asked: gpu1" in done.stderr
        assert "orch status --on gpu1" in done.stderr
    assert [run["state"] for run in other.json("status", "--on", "gpu1")["runs"]] == ["running"]
    assert [run["state"] for run in other.json("status")["runs"]] == ["running"]  # known from now on


def test_interrupted_launch_is_found_by_its_record(ssh_orch: Orch) -> None:
    assert ssh_orch.box is not None
    ssh_orch.job("b", "end")
    ssh_orch.launch("b")
    known = KnownRuns(ssh_orch.project / "results")
    (run,) = known.all()
    shutil.rmtree(ssh_orch.project / "results")
    known.update(run, confirmed=False, state=None)

    assert [run["state"] for run in ssh_orch.json("status")["runs"]] == ["running"]
    ((confirmed),) = known.all()
    assert confirmed.confirmed


def test_copies_of_an_earlier_version_are_imported(local_orch: Orch) -> None:
    local_orch.job("b")
    local_orch.run("launch", "b", "--wait")
    local_orch.run("sync")
    (local_orch.mirror("b").root / "mirror.json").write_text("{}")
    shutil.rmtree(local_orch.project / "results" / ".mirror")
    shutil.rmtree(local_orch.root / "test" / "runs")

    assert [run["state"] for run in local_orch.json("status")["runs"]] == ["succeeded"]
    assert local_orch.json("sync")["runs"] == []


def test_runs_are_known_after_the_project_was_moved(local_orch: Orch, tmp_path: Path) -> None:
    local_orch.job("b")
    local_orch.run("launch", "b", "--wait")
    moved = tmp_path / "moved"
    local_orch.project.rename(moved)
    local_orch.project = moved

    assert [run["state"] for run in local_orch.json("status")["runs"]] == ["succeeded"]
    wait_until(lambda: local_orch.json("sync")["runs"][0]["whole"], what="the copy")


def test_deleted_results_are_synced_again(local_orch: Orch) -> None:
    local_orch.job("b", "metrics")
    local_orch.run("launch", "b", "--wait")
    local_orch.run("sync")
    log = local_orch.mirror("b").log
    before = log.read_bytes()

    log.unlink()
    local_orch.run("sync", "b")  # a named run is compared file by file
    assert log.read_bytes() == before
    shutil.rmtree(local_orch.project / "results" / "b")
    local_orch.run("sync")
    assert log.read_bytes() == before


def test_host_without_a_job_is_listed_as_not_asked(ssh_orch: Orch) -> None:
    ssh_orch.host = "local"
    ssh_orch.host_table += "[hosts.local]\ngpus = 0\nsurvive_reboot = false\n"
    ssh_orch.job("b", "metrics")

    assert "not asked: gpu1" in ssh_orch.run("status").stderr
    assert "not asked" not in ssh_orch.run("status", "--on", "gpu1").stderr
