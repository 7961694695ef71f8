"""What is shown of runs while their host does not answer, and what `orch watch` judges."""

from __future__ import annotations

import subprocess

from tests.integration.conftest import Orch
from tests.support import wait_until


def test_all_that_was_seen_is_shown_with_its_age_while_the_box_is_off(ssh_orch: Orch) -> None:
    assert ssh_orch.box is not None
    ssh_orch.job("train", "metrics", "end", goals={"val_accuracy": ">= 0.9", "consistency": ">= 0.7"})
    ssh_orch.launch("train")
    wait_until(lambda: "val_accuracy 0.97 met" in ssh_orch.run("status").stdout, 60, "the metrics")
    ssh_orch.box.kill_connections()
    ssh_orch.box.stop()

    gone = ssh_orch.run("status", code=3).stdout

    for text in ("unreachable", "seen ", "step 1/1 · val_accuracy 0.97 met, consistency 0.44 missed", "1/2"):
        assert text in gone, text
    assert ssh_orch.json("status", code=3)["runs"][0]["metrics"]["val_accuracy"] == 0.97
    ssh_orch.box.start()
    ssh_orch.open("end")


def test_watch_judges_only_runs_that_it_saw_unfinished_or_that_were_named(local_orch: Orch) -> None:
    local_orch.job("old", "exit=3")
    local_orch.job("new", "end")
    local_orch.run("launch", "old", "--wait", code=1)
    local_orch.launch("new")
    local_orch.open("end")

    watched = local_orch.run("watch")

    assert "old" in watched.stdout and "failed" in watched.stdout
    local_orch.run("watch", "old", code=1)


def test_watch_counts_a_run_that_fails_while_a_newer_one_of_its_job_goes_on(local_orch: Orch) -> None:
    local_orch.job("train", "first", "exit=3")
    local_orch.launch("train")
    failing = local_orch.on_box("train")
    local_orch.job("train", "second")
    local_orch.launch("train")
    watch = local_orch.start("watch", stdout=subprocess.PIPE)
    assert watch.stdout is not None
    assert {watch.stdout.readline().split()[0] for _ in range(2)} == {b"train"}
    local_orch.open("first")
    wait_until(lambda: b"failed" in failing.state.read_bytes(), what="the failure")
    local_orch.open("second")

    watch.communicate(timeout=60)
    assert watch.returncode == 1
