"""A run belongs to the host that it was launched on: no other can report it, get its secrets or use its name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from remote.contract.paths import RunPaths
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
    """Add a host `evil` whose agent is a program of the test; `asked` holds what it was sent."""

    def begin(body: str) -> None:
        program = tmp_path / "evil"
        head = textwrap.dedent(HEAD).replace("LOG", repr(str(tmp_path / "asked")))
        program.write_text(head + textwrap.dedent(body))
        program.chmod(0o700)

    begin("reply(runs=[])")
    local_orch.host_table += f'[hosts.evil]\nroot = "evil"\npython = "{tmp_path / "evil"}"\n'
    return begin


def finished(orch: Orch, job: str = "train", **keys: object) -> RunPaths:
    """Return an ended run of `job` on the honest host, with its results synced."""
    orch.job(job, "metrics", **keys)
    orch.table("decoy", command=["true"], host="evil")
    orch.run("launch", job, "--wait")
    orch.run("sync", job)
    return orch.on_box(job)


def copied(run: RunPaths, orch: Orch) -> RunPaths:
    return RunPaths(orch.project / "results" / run.job / run.run_id)


def test_host_cannot_change_a_run_of_another_host_by_listing_it(local_orch: Orch, evil: Evil) -> None:
    run = finished(local_orch)
    evil(f"reply(runs=[report('train', {run.run_id!r})], path='/tmp', files=[['training.log', 1]], left_out=[])")
    before = copied(run, local_orch).log.read_bytes()

    status = local_orch.run("status", "train")
    synced = local_orch.run("sync")

    assert f"evil reports train {run.run_id}, which was launched on local: ignored" in status.stderr + synced.stderr
    assert "succeeded" in status.stdout and "running" not in status.stdout
    assert copied(run, local_orch).log.read_bytes() == before


def test_host_cannot_replace_the_newest_run_of_a_job(local_orch: Orch, evil: Evil) -> None:
    run = finished(local_orch)
    evil(f"reply(runs=[report('train', {FAR!r}, 'succeeded'), report('decoy', {FAR!r})])")

    seen = local_orch.json("status")
    named = local_orch.json("status", "--on", "evil")  # shown if this host is named

    assert [(run["job"], run["run_id"]) for run in seen["runs"]] == [("train", run.run_id)]
    assert "dated in the future" in json.dumps(seen["hosts"])
    assert {run["run_id"] for run in named["runs"]} == {FAR}
    assert local_orch.mirror("train").root.resolve().name == run.run_id
    assert local_orch.json("status", "train")["runs"][0]["run_id"] == run.run_id
    assert f"train {run.run_id}" in local_orch.run("restart", "train", code=4).stderr


def test_host_cannot_invent_jobs(local_orch: Orch, evil: Evil) -> None:
    finished(local_orch)
    evil("reply(runs=[report('mine', '20260101T000000-0001', 'succeeded')])")

    seen = local_orch.run("status")

    assert "mine" not in seen.stdout
    assert "jobs.toml has no job 'mine'" in seen.stderr


def test_restart_sends_no_secret_to_a_host_not_chosen_for_the_job(
    local_orch: Orch, evil: Evil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    planted = "20260101T000000-0001"
    finished(local_orch, secrets=["TOKEN"])
    evil(f"reply(runs=[report('train', {planted!r}, 'succeeded')])")

    refused = local_orch.run("restart", "train", "--on", "evil", code=4)

    assert "evil is not given its secrets (TOKEN)" in refused.stderr
    assert SECRET not in (tmp_path / "asked").read_text()


def test_answer_about_another_run_is_refused(local_orch: Orch, evil: Evil) -> None:
    run = finished(local_orch)
    evil(f"reply(runs=[report('train', {run.run_id!r}, 'succeeded')], had_ended=[])")

    refused = local_orch.run("stop", "decoy", "--on", "evil", code=3)

    assert "asking evil about decoy: the reply is about train" in refused.stderr


def test_host_of_a_run_comes_from_the_local_record_not_from_the_copy(local_orch: Orch, evil: Evil) -> None:
    run = finished(local_orch)
    here = copied(run, local_orch).run
    here.write_text(json.dumps({**json.loads(here.read_text()), "host": {"name": "\x1b]52;c;AAAA\x07[/x]\u202e"}}))

    seen = local_orch.run("status", "train")

    assert "local" in seen.stdout and "]52" not in seen.stdout
    assert local_orch.json("status", "train")["runs"][0]["host"] == "local"


def test_markers_written_by_a_worker_are_ignored(local_orch: Orch, evil: Evil) -> None:
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


def test_run_restarted_after_a_sync_is_synced_again(local_orch: Orch) -> None:
    local_orch.job("train", "exit=1")
    local_orch.run("launch", "train", "--wait", code=1)
    assert local_orch.json("sync")["runs"][0]["whole"] is True
    assert local_orch.json("sync")["runs"] == []

    local_orch.run("restart", "train", "--wait", code=1)

    assert len(local_orch.json("sync")["runs"]) == 1
    assert local_orch.mirror("train").log.read_text().count("train: exit=1") == 2


def test_files_that_could_run_programs_here_are_skipped_and_reported(local_orch: Orch) -> None:
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


# --- a bad host or run does not delay others -----------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "runs"])
def test_answers_of_other_hosts_are_shown_while_one_does_not_answer(
    local_orch: Orch, evil: Evil, tmp_path: Path, command: str
) -> None:
    run = finished(local_orch)
    gate = tmp_path / "gate"
    evil(f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.05)\nreply(runs=[])")

    client = local_orch.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert client.stdout is not None
        assert client.stdout.readline().startswith(b"JOB")
        assert run.run_id.encode() in client.stdout.readline()  # shown while the other host is still silent
        gate.touch()
        rest, _ = client.communicate(timeout=60)
        assert (client.returncode, rest) == (0, b"outputs: no files\n")
    finally:
        client.kill()


def test_results_of_other_hosts_are_synced_while_one_does_not_answer(
    local_orch: Orch, evil: Evil, tmp_path: Path
) -> None:
    finished(local_orch)
    local_orch.run("launch", "train", "--wait")
    gate = tmp_path / "gate"
    evil(f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.05)\nreply(runs=[])")
    shutil.rmtree(local_orch.project / "results/.mirror/.hosts")  # so that it is asked

    client = local_orch.start("sync", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert client.stdout is not None
        assert f"train {local_orch.on_box('train').run_id}".encode() in client.stdout.readline()
        gate.touch()
        client.communicate(timeout=60)
        assert client.returncode == 0
    finally:
        client.kill()


def test_slow_host_that_fails_is_reported_after_the_others(local_orch: Orch, evil: Evil) -> None:
    run = finished(local_orch)
    evil("print('no reply')")
    shutil.rmtree(local_orch.project / "results/.mirror/.hosts")

    seen = local_orch.run("status", code=3)

    assert run.run_id in seen.stdout
    assert "evil" in seen.stderr


def test_run_that_cannot_be_copied_does_not_stop_others(local_orch: Orch, evil: Evil) -> None:
    runs = []
    for job in ("a", "b", "c"):
        local_orch.job(job, "metrics")
        local_orch.run("launch", job, "--wait")
        runs.append(local_orch.on_box(job))
    blocked = copied(runs[1], local_orch).log
    blocked.parent.mkdir(parents=True, exist_ok=True)
    (blocked / "in the way").mkdir(parents=True)

    synced = local_orch.run("sync", code=3)

    assert f"a {runs[0].run_id}: " in synced.stdout and f"c {runs[2].run_id}: " in synced.stdout
    assert "training.log" in synced.stderr and runs[1].run_id in synced.stderr
    assert len(local_orch.json("sync", code=3)["errors"]) == 1
    (blocked / "in the way").rmdir()
    blocked.rmdir()
    assert [run["job"] for run in local_orch.json("sync")["runs"]] == ["b"]


def test_run_that_a_box_cannot_report_is_listed_with_its_problem(local_orch: Orch, evil: Evil) -> None:
    run = finished(local_orch)
    listed = "[report('decoy', '20260101T000000-0001'), {'job': 'decoy', 'run_id': '20260102T000000-0001',"
    evil(f"reply(runs={listed} 'problem': 'run.json is a list'}}, 7, {{'job': '../x', 'run_id': 1}}])")

    seen = local_orch.run("runs", code=3)
    document = local_orch.json("runs", code=3)

    assert "evil cannot report it: run.json is a list" in seen.stdout
    assert run.run_id in seen.stdout and "20260101T000000-0001" in seen.stdout
    assert len(next(host for host in document["hosts"] if host["host"] == "evil")["problems"]) == 2


@pytest.mark.parametrize(
    ("size", "said"),
    [(1 << 60, "over the limit of 100.0 GB"), (99 * 10**9, "to copy, but")],
    ids=["larger than the limit", "larger than the disk"],
)
def test_run_that_is_too_large_is_refused_before_any_transfer(
    local_orch: Orch, evil: Evil, size: int, said: str
) -> None:
    if size < 10**12 and shutil.disk_usage(local_orch.project).free > 98 * 10**9:
        size, said = 1 << 60, "1152921.5 TB"
    finished(local_orch)
    evil(
        f"run = report('decoy', '20260101T000000-0001')\n"
        "page = dict(report=run, path='/tmp/decoy/' + run['run_id'], left_out=[], next=None)\n"
        f"page['files'] = [['results/sparse', {size}]]\n"
        "reply(runs=[run] if op == 'status' else [dict(page=page)])"
    )
    shutil.rmtree(local_orch.project / "results/.mirror/.hosts")

    refused = local_orch.run("sync", code=4)

    assert said in refused.stderr
    assert "hint: " in refused.stderr
    assert not (local_orch.project / "results/decoy/20260101T000000-0001/results").exists()


@pytest.mark.parametrize("command", ["stop", "restart"])
def test_failing_host_does_not_prevent_asking_others(local_orch: Orch, evil: Evil, command: str) -> None:
    finished(local_orch)
    evil("reply(runs=[report('decoy', '20260101T000000-0001', 'succeeded')])")
    local_orch.run("status", "--on", "evil")
    local_orch.job("train", "exit=1" if command == "restart" else "never")
    local_orch.run("launch", "train", *(["--wait"] if command == "restart" else []), code=int(command == "restart"))
    evil("print('no reply')")

    done = local_orch.run(command, "decoy", "train", code=3)

    assert "evil" in done.stderr
    assert f"train {local_orch.on_box('train').run_id}: " in done.stdout
    if command == "stop":
        assert local_orch.state("train")["state"] == "stopped"
    else:
        events = local_orch.on_box("train").events.read_text()
        assert "restarted_by" in events


def test_run_named_twice_is_stopped_once(local_orch: Orch) -> None:
    local_orch.job("train", "never")
    local_orch.launch("train")
    run_id = local_orch.on_box("train").run_id

    stopped = local_orch.run("stop", "train", run_id, "train")

    assert "stopped" in stopped.stdout
    assert local_orch.state("train")["state"] == "stopped"


def test_run_that_cannot_be_stopped_does_not_delay_others(local_orch: Orch) -> None:
    for job in ("a", "b"):
        local_orch.job(job, "never")
    local_orch.launch("a", "b")
    unsafe = local_orch.on_box("b").root
    unsafe.chmod(0o777)

    stopped = local_orch.run("stop", "b", "a", code=4)

    assert f"a {local_orch.on_box('a').run_id}: stopped" in stopped.stdout
    assert str(unsafe) in stopped.stderr and "chmod" in stopped.stderr
    unsafe.chmod(0o700)
    local_orch.run("stop", "b")


def test_bare_repository_in_the_results_is_not_copied(local_orch: Orch, tmp_path: Path) -> None:
    """git treats any folder with HEAD, objects/ and refs/ as a repository, and runs what its configuration names."""
    local_orch.job("train", "end")
    local_orch.launch("train")
    bare = local_orch.on_box("train").results / "bare"
    for name in ("objects/x", "refs/x"):
        (bare / name).parent.mkdir(parents=True)
        (bare / name).write_text("x")
    (bare / "HEAD").write_text("ref: refs/heads/main\n")
    config = f"[core]\n\trepositoryformatversion = 0\n\tworktree = .\n\tfsmonitor = touch {tmp_path}/ran\n"
    (bare / "config").write_text(config)
    here = local_orch.mirror("train").results / "bare"
    subprocess.run(["git", "status"], cwd=bare, capture_output=True, check=False)
    assert (tmp_path / "ran").exists()  # it would have run there
    (tmp_path / "ran").unlink()

    synced = local_orch.run("sync")
    subprocess.run(["git", "status"], cwd=here, capture_output=True, check=False)

    assert "not copied: results/bare/HEAD (a part of a git repository" in synced.stderr
    assert not (tmp_path / "ran").exists()
    local_orch.run("stop", "train")


@pytest.mark.parametrize("command", ["stop", "tail", "status"])
def test_host_cannot_claim_a_job_that_runs_elsewhere(local_orch: Orch, evil: Evil, command: str) -> None:
    local_orch.job("train", "never")
    local_orch.table("decoy", command=["true"], host="evil")
    local_orch.launch("train")
    real = local_orch.on_box("train").run_id
    planted = f"{int(real[:8]) + 1}T235000-ffff"  # tomorrow
    evil(
        f"both = [report('decoy', '20260101T000000-0001'), report('train', {planted!r})]\n"
        f"reply(runs=both) if op != 'follow' else print(json.dumps({{'offset': 0, 'report': both[1]}}), flush=True)"
    )
    arguments = ["status", "--on", "evil"] if command == "status" else [command, "decoy"]
    subprocess.run(local_orch.command(*arguments), cwd=local_orch.project, capture_output=True, check=False, timeout=60)

    stopped = local_orch.run("stop", "train")

    assert f"train {real}: stopped" in stopped.stdout
    assert local_orch.state("train")["state"] == "stopped"
    assert local_orch.mirror("train").root.resolve().name == real


def test_run_restarted_by_another_laptop_is_synced_again(local_orch: Orch) -> None:
    local_orch.job("train", "exit=1")
    local_orch.run("launch", "train", "--wait", code=1)
    local_orch.run("sync")
    results, aside = local_orch.project / "results", local_orch.project / "aside"
    shutil.copytree(results, aside, symlinks=True)
    local_orch.run("restart", "train", "--wait", code=1)
    shutil.rmtree(results)
    aside.rename(results)  # like another laptop, which does not know of the restart

    assert len(local_orch.json("sync")["runs"]) == 1
    assert local_orch.mirror("train").log.read_text().count("train: exit=1") == 2


def test_links_in_place_of_result_folders_are_not_followed(local_orch: Orch, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (local_orch.project / "results").mkdir()
    (local_orch.project / "results/train").symlink_to(outside)
    local_orch.job("train", "metrics")

    launched = local_orch.run("launch", "train")

    assert "is a symlink, which may lead anywhere" in launched.stderr
    assert list(outside.iterdir()) == []
