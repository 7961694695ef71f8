"""A run belongs to the host that it was launched on: no other speaks for it, gets its secrets or takes its name."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.known_runs import KnownRuns
from remote.paths import RunPaths
from tests.integration.conftest import Orch

SECRET = "s3cret-value-of-the-job"
FAR = "20991231T235959-ffff"
HEAD = f"""\
    #!{sys.executable} -S
    import json, sys
    asked = json.loads(sys.stdin.readline())
    op, args = asked["op"], asked["args"]
    with open(LOG, "a") as log:
        log.write(json.dumps(asked) + "\\n")
    def reply(**result):
        print(json.dumps({{"schema": 1, "ok": True, "result": result}}), flush=True)
    def report(job, run_id, state="running", **more):
        states = {{"running": {{"attempt": 1, "pid": 2}}, "succeeded": {{}}}}
        said = {{"state": state, "since": 1.0, **states[state]}}
        return {{"job": job, "run_id": run_id, "now": 2.0, "supervised": True, "state": said, **more}}
    """

Evil = Callable[[str], None]


@pytest.fixture
def evil(local_orch: Orch, tmp_path: Path) -> Evil:
    """A second host, `evil`, whose agent is a program of the test's own; `asked` holds what it was sent."""

    def begin(body: str) -> None:
        program = tmp_path / "evil"
        head = textwrap.dedent(HEAD).replace("LOG", repr(str(tmp_path / "asked")))
        program.write_text(head + textwrap.dedent(body))
        program.chmod(0o700)

    begin("reply(runs=[])")
    local_orch.host_table += f'[hosts.evil]\nroot = "evil"\npython = "{tmp_path / "evil"}"\n'
    return begin


def finished(orch: Orch, job: str = "train", **keys: object) -> RunPaths:
    """A run of `job` on the honest host that has ended, with its results copied."""
    orch.job(job, "metrics", **keys)
    orch.table("decoy", command=["true"], host="evil")
    orch.run("launch", job, "--wait")
    orch.run("sync", job)
    return orch.on_box(job)


def copied(run: RunPaths, orch: Orch) -> RunPaths:
    return RunPaths(orch.project / "results" / run.job / run.run_id)


def test_a_host_that_lists_a_run_of_another_host_changes_nothing_of_it(local_orch: Orch, evil: Evil) -> None:
    run = finished(local_orch)
    evil(f"reply(runs=[report('train', {run.run_id!r})], path='/tmp', files=[['training.log', 1]], left_out=[])")
    before = copied(run, local_orch).log.read_bytes()

    status = local_orch.run("status", "train")
    synced = local_orch.run("sync")

    assert (
        f"evil reports train {run.run_id}, which was launched on local: not believed" in status.stderr + synced.stderr
    )
    assert "succeeded" in status.stdout and "running" not in status.stdout
    assert copied(run, local_orch).log.read_bytes() == before


def test_a_host_cannot_put_a_run_of_its_own_before_those_of_a_job(local_orch: Orch, evil: Evil) -> None:
    run = finished(local_orch)
    evil(f"reply(runs=[report('train', {FAR!r}), report('decoy', {FAR!r})])")

    seen = local_orch.json("status", "--on", "evil")

    assert seen["runs"] == []
    assert "dated in the future" in json.dumps(seen["hosts"])
    assert local_orch.mirror("train").root.resolve().name == run.run_id
    assert KnownRuns(local_orch.project / "results").get("train", FAR) is None


def test_a_host_cannot_invent_jobs(local_orch: Orch, evil: Evil) -> None:
    finished(local_orch)
    evil("reply(runs=[report('mine', '20260101T000000-0001', 'succeeded')])")

    seen = local_orch.run("status")

    assert "mine" not in seen.stdout
    assert "jobs.toml has no job 'mine'" in seen.stderr


def test_a_restart_gives_no_secret_to_a_host_that_was_not_chosen_for_the_job(
    local_orch: Orch, evil: Evil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    planted = "20260101T000000-0001"
    finished(local_orch, secrets=["TOKEN"])
    evil(f"reply(runs=[report('train', {planted!r}, 'succeeded')])")

    refused = local_orch.run("restart", "train", "--on", "evil", code=4)

    assert "evil is not given its secrets (TOKEN)" in refused.stderr
    assert SECRET not in (tmp_path / "asked").read_text()


def test_a_host_that_answers_about_another_run_than_it_was_asked_for_is_refused(local_orch: Orch, evil: Evil) -> None:
    run = finished(local_orch)
    evil(f"reply(runs=[report('train', {run.run_id!r}, 'succeeded')], had_ended=[])")

    refused = local_orch.run("stop", "decoy", "--on", "evil", code=3)

    assert "it answers about other runs" in refused.stderr


def test_the_host_of_a_run_is_this_machines_record_and_not_what_was_copied(local_orch: Orch, evil: Evil) -> None:
    run = finished(local_orch)
    here = copied(run, local_orch).run
    here.write_text(json.dumps({**json.loads(here.read_text()), "host": {"name": "\x1b]52;c;AAAA\x07[/x]\u202e"}}))

    seen = local_orch.run("status", "train")

    assert "local" in seen.stdout and "]52" not in seen.stdout
    assert local_orch.json("status", "train")["runs"][0]["host"] == "local"


def test_markers_that_a_worker_writes_are_not_believed(local_orch: Orch, evil: Evil) -> None:
    code = (
        "import os, pathlib, time; run = pathlib.Path(os.environ['ORCH_RUN_DIR']); "
        "(run / 'mirror.json').write_text('{}'); (run / 'results' / 'late').write_text('1'); "
        "(run / '.mirror').mkdir(); time.sleep(float(os.environ['PAUSE']))"
    )
    local_orch.table("train", command=["python", "-c", code], env={"PAUSE": "30"})
    local_orch.launch("train")

    first = local_orch.json("sync")["runs"]
    (local_orch.on_box("train").results / "later").write_text("2")
    second = local_orch.json("sync")["runs"]

    assert [run["whole"] for run in first + second] == [False, False]
    assert (local_orch.mirror("train").results / "later").read_text() == "2"


def test_a_run_that_is_restarted_after_it_was_copied_is_copied_again(local_orch: Orch) -> None:
    local_orch.job("train", "exit=1")
    local_orch.run("launch", "train", "--wait", code=1)
    assert local_orch.json("sync")["runs"][0]["whole"] is True
    assert local_orch.json("sync")["runs"] == []

    local_orch.run("restart", "train", "--wait", code=1)

    assert len(local_orch.json("sync")["runs"]) == 1
    assert local_orch.mirror("train").log.read_text().count("train: exit=1") == 2


def test_what_could_run_programs_here_is_not_copied_and_is_named(local_orch: Orch) -> None:
    local_orch.job("train", "end")
    local_orch.launch("train")
    there = local_orch.on_box("train").results
    for name in (".git/config", "data/.git/hooks/post-checkout", "jobs.toml", ".envrc", "x.lock/kept", ".tmp-x/kept"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("x")
    (there.parent / "jobs.toml").write_text("x")

    synced = local_orch.run("sync")

    home = local_orch.mirror("train").root
    assert {path.name for path in home.rglob("*")} & {".git", "jobs.toml", ".envrc"} == set()
    for name in ("results/data/.git", "jobs.toml", "results/jobs.toml", "results/.envrc"):
        assert f"not copied: {name}" in synced.stderr
    assert (home / "results/x.lock/kept").read_text() == (home / "results/.tmp-x/kept").read_text() == "x"
