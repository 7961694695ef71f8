"""What a project has stored on a box, and its removal: real directories, locks and links."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from remote.agent import removal
from remote.agent.removal import remove
from remote.agent.stored import Count, stored
from remote.contract.files import write_json
from remote.contract.locks import try_lock
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Failed, Running, Succeeded
from remote.contract.removals import (
    ENVIRONMENT,
    PREPARED,
    REHEARSAL,
    RUN,
    SNAPSHOT,
    RemoveRequest,
    StoredItem,
    StoredRequest,
)
from remote.contract.trees import manifest_path
from tests.remote_runs import TREE, nested, new_run

KEY, OTHER_KEY = "a" * 32, "b" * 32
ENVIRONMENT_OF_JOB = {"file": "requirements.txt"}
OLD = time.time() - 86400.0


def ended(paths: ProjectPaths, number: int = 1, failed: bool = False, **job: Any) -> RunPaths:
    state = Failed(OLD, "exit", "exit code 1", 1) if failed else Succeeded(OLD)
    run = new_run(paths, state=state, run_id=f"20260126T21031{number}-7f3a", **job)
    old(paths.tree(TREE))
    return run


def name(run: RunPaths) -> str:
    return f"{run.job}/{run.run_id}"


def old(*places: Path) -> None:
    for place in places:
        os.utime(place, (OLD, OLD))


def environment(paths: ProjectPaths, key: str = KEY) -> Path:
    directory, marker = paths.environments / key, paths.environments / f"{key}.json"
    (directory / "env").mkdir(parents=True)
    (directory / "env" / "file").write_bytes(b"x" * 10_000)
    write_json(marker, {"time": OLD})
    old(directory, marker)
    return directory


def items(paths: ProjectPaths) -> dict[tuple[str, str], StoredItem]:
    return {(item.kind, item.name): item for item in stored(paths, StoredRequest()).items}


def removed(paths: ProjectPaths, *wanted: tuple[str, str]) -> list[str]:
    """Remove items, and return the messages for those that were not removed."""
    reply = remove(paths, RemoveRequest(wanted))
    assert sorted([*reply.removed, *((each.kind, each.name) for each in reply.errors)]) == sorted(wanted)
    return [each.error.message for each in reply.errors]


def test_everything_of_a_project_is_counted_once(paths: ProjectPaths) -> None:
    run = ended(paths)
    (run.checkpoints / "epoch-0001.pt").write_bytes(b"x" * 100_000)
    other = paths.tree("1" * 64)
    other.mkdir()
    os.link(paths.tree(TREE) / "train.py", other / "train.py")
    (paths.data / "mnist").mkdir(parents=True)
    (paths.data / "mnist" / "file").write_bytes(b"x" * 50_000)
    environment(paths)
    reply = stored(paths, StoredRequest())
    found = {(item.kind, item.name): item for item in reply.items}
    assert set(found) == {(RUN, name(run)), (SNAPSHOT, TREE), (SNAPSHOT, "1" * 64), (ENVIRONMENT, KEY)}
    assert found[RUN, name(run)].checkpoints >= 100_000
    assert found[RUN, name(run)].bytes > found[RUN, name(run)].checkpoints
    assert reply.other["data"] >= 50_000
    assert reply.total == sum(item.counted for item in reply.items) + sum(reply.other.values())
    assert reply.is_complete and reply.free > 0 and reply.disk > reply.free
    shared = (other / "train.py").stat().st_blocks * 512
    assert found[SNAPSHOT, TREE].counted - found[SNAPSHOT, TREE].bytes == shared  # it has a second link


def test_only_named_runs_are_counted_on_request(paths: ProjectPaths) -> None:
    first, _ = ended(paths, 1), ended(paths, 2)
    reply = stored(paths, StoredRequest(((first.job, first.run_id), (first.job, "20270101T000000-0000"))))
    assert [item.name for item in reply.items] == [name(first)]


def test_counting_stops_when_its_time_is_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    count = Count(seconds=-1.0)
    count.add(tmp_path)
    assert not count.is_complete


def test_run_that_has_ended_is_removed(paths: ProjectPaths) -> None:
    run, other = ended(paths, 1), ended(paths, 2)
    (run.work / "deep").mkdir(parents=True)
    (run.work / "deep" / "file").write_text("x")
    (run.work / "deep").chmod(0o500)  # a job made it read-only
    (run.work / "link").symlink_to(other.root)
    paths.secrets.mkdir()
    write_json(paths.secrets_of(run), {"TOKEN": "x"})
    assert removed(paths, (RUN, name(run))) == []
    assert os.listdir(run.root.parent) == [other.run_id]
    assert other.run.exists()
    assert os.listdir(paths.secrets) == []
    assert removed(paths, (RUN, name(run))) == []  # again, as after a lost reply


def test_live_run_is_not_removed(paths: ProjectPaths) -> None:
    run = new_run(paths, state=Running(OLD, 1, os.getpid()))
    assert removed(paths, (RUN, name(run))) == [f"run {name(run)} is not removed: it has not ended"]
    done = ended(paths, 3)
    lock = try_lock(done.supervisor_lock)
    assert lock is not None
    said = removed(paths, (RUN, name(done)))
    os.close(lock)
    assert len(said) == 1
    assert run.run.exists() and done.run.exists()


def test_run_that_another_one_needs_stays(paths: ProjectPaths) -> None:
    run, waiting = ended(paths, 1), ended(paths, 2)
    record = {"job": run.job, "run_id": run.run_id}
    source = {"path": str(run.root / "x"), "run": record}
    for number, (field, value) in enumerate((("needs", [record]), ("resume_from", source))):
        needy = new_run(paths, state=Running(OLD, 1, os.getpid()), run_id=f"20260126T21032{number}-7f3a")
        write_json(needy.run, {**json_of(needy), field: value})
        assert removed(paths, (RUN, name(run))) == [f"run {name(run)} is not removed: {name(needy)} needs it"]
        write_json(needy.run, {**json_of(needy), field: [] if field == "needs" else None})
    assert removed(paths, (RUN, name(run)), (RUN, name(waiting))) == []


def json_of(run: RunPaths) -> dict[str, object]:
    import json

    content: dict[str, object] = json.loads(run.run.read_text())
    return content


def test_snapshot_stays_while_a_run_has_it(paths: ProjectPaths) -> None:
    run = ended(paths)
    manifest_path(paths.tree(TREE)).write_text("{}")
    needed = f"snapshot {TREE} is not removed: {name(run)} needs it"
    assert removed(paths, (SNAPSHOT, TREE)) == [needed]
    assert items(paths)[SNAPSHOT, TREE].users == (name(run),)
    assert removed(paths, (SNAPSHOT, TREE), (RUN, name(run))) == []  # the run goes first
    assert os.listdir(paths.code) == []


def test_snapshot_that_was_just_used_stays(paths: ProjectPaths) -> None:
    paths.tree(TREE).mkdir(parents=True)
    assert removed(paths, (SNAPSHOT, TREE)) == [f"snapshot {TREE} is not removed: it was used a few minutes ago"]


def test_environment_stays_while_a_run_may_need_it(paths: ProjectPaths) -> None:
    for key in (KEY, OTHER_KEY):
        environment(paths, key)
    run = ended(paths, failed=True, environment=ENVIRONMENT_OF_JOB)
    write_json(run.environment, {"key": KEY})
    assert removed(paths, (ENVIRONMENT, KEY), (ENVIRONMENT, OTHER_KEY)) == [
        f"environment {KEY} is not removed: {name(run)} needs it"
    ]
    assert not (paths.environments / OTHER_KEY).exists() and not (paths.environments / f"{OTHER_KEY}.json").exists()
    run.environment.unlink()  # it has not chosen one yet
    assert len(removed(paths, (ENVIRONMENT, KEY))) == 1
    ended(paths, 2, environment=ENVIRONMENT_OF_JOB)  # it has succeeded
    assert removed(paths, (RUN, name(run)), (ENVIRONMENT, KEY)) == []


def test_environment_that_is_being_built_stays(paths: ProjectPaths) -> None:
    environment(paths)
    lock = try_lock(paths.environments / f"{KEY}.lock")
    assert lock is not None
    assert removed(paths, (ENVIRONMENT, KEY)) == [f"environment {KEY} is not removed: a process uses it"]
    os.close(lock)
    assert removed(paths, (ENVIRONMENT, KEY)) == []


def test_prepared_data_stays_while_a_run_may_need_it(paths: ProjectPaths) -> None:
    run = ended(paths, failed=True, prepare={"command": ["true"]})
    directory = paths.prepared / KEY
    directory.mkdir(parents=True)
    write_json(paths.prepared / f"{KEY}.json", {"time": OLD})
    old(directory, paths.prepared / f"{KEY}.json")
    write_json(run.workspace, {"tree": TREE, "prepared": KEY})
    assert len(removed(paths, (PREPARED, KEY))) == 1
    assert removed(paths, (RUN, name(run)), (PREPARED, KEY)) == []
    assert [path for path in os.listdir(paths.prepared) if not path.endswith(".lock")] == []


def test_ended_rehearsal_is_removed(paths: ProjectPaths) -> None:
    rehearsal = ended(paths.rehearsing())
    assert removed(paths, (REHEARSAL, name(rehearsal))) == []
    assert not rehearsal.root.exists()


def test_links_are_never_followed(paths: ProjectPaths, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "env").mkdir(parents=True)
    paths.environments.mkdir(parents=True)
    (paths.environments / KEY).symlink_to(precious)
    (paths.environments / f"{OTHER_KEY}.json").symlink_to(precious)
    (paths.environments / OTHER_KEY).mkdir()
    old(paths.environments / OTHER_KEY, precious)
    os.utime(paths.environments / f"{OTHER_KEY}.json", (OLD, OLD), follow_symlinks=False)
    said = removed(paths, (ENVIRONMENT, KEY), (ENVIRONMENT, OTHER_KEY), (RUN, "../../precious"), ("data", "x"))
    assert len(said) == 1 and "it is a link" in said[0]
    assert (precious / "env").is_dir()


def test_interrupted_removal_is_finished_by_the_next_one(paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = ended(paths, 1), ended(paths, 2)
    with monkeypatch.context() as patched:
        patched.setattr(removal, "delete", lambda path: None)  # it was killed before
        removed(paths, (RUN, name(run)))
    left = [path for path in os.listdir(run.root.parent) if path != other.run_id]
    assert len(left) == 1 and left[0].startswith(removal.REMOVED)
    assert list(items(paths)) == [(RUN, name(other)), (SNAPSHOT, TREE)]
    removed(paths)
    assert os.listdir(run.root.parent) == [other.run_id]


def test_deeply_nested_directories_are_removed(paths: ProjectPaths) -> None:
    run = ended(paths)
    run.work.mkdir()
    with nested(run.work, "d", 2000):
        assert removed(paths, (RUN, name(run))) == []
        assert os.listdir(run.root.parent) == []
        run.work.mkdir(parents=True)  # for the clean-up
