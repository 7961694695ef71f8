"""The files of a run in pages: each once and in order, with any name, and the reasons for files that are not copied."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remote.agent import run_files
from remote.contract.files import write_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import PAGE_ENTRIES, AgentError, Starting
from remote.contract.requests import InventoriesRequest, InventoryRequest
from remote.contract.schema import to_json
from tests.remote_runs import nested
from tests.support import ROOT

RUN_ID = "20260126T210312-7f3a"


@pytest.fixture
def run(paths: ProjectPaths) -> RunPaths:
    run = paths.run("worker1", RUN_ID)
    run.results.mkdir(parents=True)
    write_json(run.run, {})
    write_json(run.state, to_json(Starting(1.0, 1)))
    return run


def page(paths: ProjectPaths, **args: Any) -> dict[str, Any]:
    shown: dict[str, Any] = to_json(run_files.inventory(paths, InventoryRequest("worker1", RUN_ID, **args)))
    return shown


def pages(paths: ProjectPaths, limit: int) -> list[dict[str, Any]]:
    found = [page(paths, limit=limit)]
    while found[-1]["next"] is not None:
        found.append(page(paths, limit=limit, after=found[-1]["next"]))
    return found


def files(found: list[dict[str, Any]]) -> list[str]:
    return [name for one in found for name, _, _ in one["files"]]


def left_out(found: list[dict[str, Any]]) -> dict[str, str]:
    return {name: reason for one in found for name, reason in one["left_out"]}


def make(run: RunPaths, *names: str) -> None:
    for name in names:
        path = run.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"123")


NAMES = ["a", "a-b", "a.txt", "a/1", "a/b/c", "a0", "b/.hidden", "b/x y", "é", "z/\udcff\udcfe", "z/\n", 'z/"\\', "Z"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_pages_list_every_file_once_and_in_one_order(paths: ProjectPaths, run: RunPaths, limit: int) -> None:
    make(run, *(f"results/{name}" for name in NAMES if name != "a"))
    os.symlink("a0", run.results / "link")
    found = pages(paths, limit)
    assert all(len(one["files"]) + len(one["left_out"]) <= limit for one in found)
    expected = {f"results/{name}" for name in NAMES if name != "a"} | {"run.json", "state.json"}
    assert sorted(files(found)) == sorted(expected)
    assert files(found) == sorted(files(found), key=lambda name: os.fsencode(name).split(b"/"))
    assert left_out(found) == {"results/link": "a symlink"}
    assert all(one["path"] == str(run.root) and one["report"]["run_id"] == RUN_ID for one in found)
    sizes = {name: (size, mtime) for one in found for name, size, mtime in one["files"]}
    stat = (run.results / "a0").stat()
    assert sizes["results/a0"] == (stat.st_size, stat.st_mtime_ns)


def test_page_size_is_limited(paths: ProjectPaths, run: RunPaths) -> None:
    folder = "results/" + "/".join(["x" * 250] * 12)
    make(run, *(f"{folder}/{number:04d}" + "\udcff" * 200 for number in range(1200)))
    found = pages(paths, PAGE_ENTRIES)
    assert len(found) > 1
    assert all(len(json.dumps(one)) < run_files.PAGE_BYTES + (1 << 16) for one in found)
    assert len(files(found)) == len(set(files(found))) == 1202


def test_file_created_or_removed_between_pages_affects_no_other(paths: ProjectPaths, run: RunPaths) -> None:
    make(run, *(f"results/{number}" for number in range(10)))
    first = page(paths, limit=5)
    assert first["next"] == "results/4"
    (run.results / "4").unlink()
    (run.results / "7").unlink()
    make(run, "results/05", "results/8a")
    rest = page(paths, limit=100, after=first["next"])
    assert files([rest]) == [f"results/{name}" for name in ("5", "6", "8", "8a", "9")] + ["run.json", "state.json"]


def test_names_arrive_byte_exact_whatever_the_locale(paths: ProjectPaths, run: RunPaths) -> None:
    raw = b"results/\xff\xe9\xc3\xa9"
    os.close(os.open(os.path.join(os.fsencode(run.root), raw), os.O_CREAT | os.O_WRONLY))
    args = {"root": str(paths.box), "project": "persistence", "job": "worker1", "run_id": RUN_ID, "limit": 10}
    request = json.dumps({"schema": 1, "op": "inventory", "args": args}).encode()
    argv = [sys.executable, "-S", "-c", "from remote.agent.main import main; main()"]
    for locale in ("C", "C.UTF-8", "en_US.ISO-8859-1"):
        env = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        done = subprocess.run(argv, input=request, capture_output=True, cwd=ROOT, env=env, check=True, timeout=60)
        names = [name for name, _, _ in json.loads(done.stdout)["result"]["files"]]
        assert raw in [name.encode("utf-8", "surrogateescape") for name in names], locale


def test_files_that_are_not_copied_are_listed_once_with_the_reason(paths: ProjectPaths, run: RunPaths) -> None:
    make(run, "results/data/.git/config", "results/data/.git/objects/00/1", "results/data/kept", "jobs.toml")
    make(run, "results/.envrc", "results/.ORCH/x", ".hg/hgrc", "results/.vscode/tasks.json")
    os.mkfifo(run.results / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(run.results)
        listener.bind("socket")
        os.chdir(here)
    (run.results / "zero").symlink_to("/dev/zero")
    (run.results / "up").symlink_to("..")
    found = pages(paths, 3)
    assert files(found) == ["results/data/kept", "run.json", "state.json"]
    said = left_out(found)
    assert set(said) == {
        ".hg",
        "jobs.toml",
        *(f"results/{name}" for name in (".ORCH", ".envrc", ".vscode", "data/.git", "pipe", "socket", "up", "zero")),
    }
    assert said["results/data/.git"].startswith("a git repository")
    assert [said[f"results/{name}"] for name in ("pipe", "socket", "up")] == ["a FIFO", "a socket", "a symlink"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes devices")
def test_device_is_left_out(paths: ProjectPaths, run: RunPaths) -> None:
    os.mknod(run.results / "null", 0o600 | 0o020000, os.makedev(1, 3))
    assert left_out(pages(paths, 9)) == {"results/null": "a device"}


def test_only_the_runs_own_locks_and_temporary_files_are_omitted(paths: ProjectPaths, run: RunPaths) -> None:
    ours = ("supervisor.lock", "keeper.lock", ".tmp-reserve", ".tmp-0123456789abcdef", "checkpoints/.tmp-1")
    make(run, *ours)
    theirs = ["results/.tmp-x/a", "results/x.lock/a", "results/y.lock", "x.lock/b"]
    make(run, *theirs)
    found = pages(paths, 100)
    assert [name for name in files(found) if name not in ("run.json", "state.json")] == theirs
    assert left_out(found) == {}


@pytest.mark.parametrize(("name", "times"), [("d", 1200), ("d", 3000), ("x" * 255, 20)])
def test_only_files_nested_too_deeply_are_left_out(paths: ProjectPaths, run: RunPaths, name: str, times: int) -> None:
    make(run, "results/z")
    with nested(run.results, name, times):
        found = pages(paths, 100)
    assert files(found)[-3:] == ["results/z", "run.json", "state.json"]
    if times == 1200:
        assert len(files(found)) == 4 and left_out(found) == {}
    else:
        ((path, reason),) = left_out(found).items()
        assert len(path) > 3500 and ("longer than" in reason or "too long" in reason)


@pytest.mark.skipif(os.getuid() != 0, reason="root alone can become another user, and may read everything itself")
def test_unreadable_files_are_left_out_and_others_listed(paths: ProjectPaths, run: RunPaths) -> None:
    make(run, "results/closed/file", "results/file", "results/open/file", "results/unlisted/file")
    (run.results / "closed").chmod(0)
    (run.results / "file").chmod(0)
    (run.results / "unlisted").chmod(0o100)
    code = f"""
import json, os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from remote.agent import run_files
from remote.contract.paths import RunPaths
print(json.dumps([list(entry) for entry in run_files.entries(RunPaths(Path(sys.argv[1])))]))
"""
    for path in (run.root, *run.root.parents):
        if path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o055)
    argv = ["/usr/bin/env", "python3", "-S", "-c", code, str(run.root)]
    env = {**os.environ, "PATH": "/usr/bin:/bin"}  # that user may have no access to this environment's Python
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=60)
    if "Permission denied" in done.stderr or "No module named 'remote" in done.stderr:
        pytest.skip("this checkout lies where another user cannot read it")
    assert done.returncode == 0, done.stderr
    listed = {path: why for path, _, _, why in json.loads(done.stdout)}
    denied = "cannot be read: Permission denied"
    assert listed["results/open/file"] == ""
    assert [listed[f"results/{name}"] for name in ("closed", "file", "unlisted")] == [denied] * 3


@pytest.mark.parametrize("after", ["", "/etc/passwd", "..", "a/../b", "a//b", "\ud800"])
def test_invalid_cursor_is_refused(paths: ProjectPaths, run: RunPaths, after: str) -> None:
    with pytest.raises(AgentError) as refusal:
        page(paths, limit=10, after=after)
    assert refusal.value.code == "bad_request"


# --- an older laptop --------------------------------------------------------------------------------------


def test_request_without_a_limit_gets_one_reply_in_the_old_format(paths: ProjectPaths, run: RunPaths) -> None:
    make(run, "results/a", "results/.tmp-half", "results/x.lock")
    os.mkfifo(run.results / "pipe")
    whole = page(paths)
    assert whole["files"] == [["results/a", 3], ["run.json", 3], ["state.json", 56]]
    assert whole["left_out"] == ["results/pipe"]
    assert whole["next"] is None


def test_too_many_files_for_one_reply_are_refused(
    paths: ProjectPaths, run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_files, "WHOLE_BYTES", 1000)
    make(run, *(f"results/{number}" for number in range(50)))
    with pytest.raises(AgentError) as refusal:
        page(paths)
    assert refusal.value.code == "too_many_files"


# --- several runs -----------------------------------------------------------------------------------------

OTHERS = ("20260126T210313-0000", "20260126T210314-0000")


def listings(paths: ProjectPaths, *run_ids: str, **args: Any) -> list[dict[str, Any]]:
    request = InventoriesRequest(tuple(("worker1", run_id) for run_id in run_ids), **args)
    shown: list[dict[str, Any]] = to_json(run_files.inventories(paths, request))["runs"]
    return shown


def other_runs(paths: ProjectPaths) -> None:
    for run_id in OTHERS:
        other = paths.run("worker1", run_id)
        other.results.mkdir(parents=True)
        make(other, "results/a", "results/b")


def test_one_reply_lists_several_runs(paths: ProjectPaths, run: RunPaths) -> None:
    other_runs(paths)
    found = listings(paths, RUN_ID, *OTHERS)
    assert [files([one["page"]]) for one in found] == [["run.json", "state.json"], *[["results/a", "results/b"]] * 2]
    assert [one["page"]["report"]["run_id"] for one in found] == [RUN_ID, *OTHERS]


def test_full_page_ends_within_a_run_and_continues_there(paths: ProjectPaths, run: RunPaths) -> None:
    other_runs(paths)
    found = listings(paths, *OTHERS, RUN_ID, limit=3)
    assert [files([one["page"]]) for one in found] == [["results/a", "results/b"], ["results/a"]]
    assert [one["page"]["next"] for one in found] == [None, "results/a"]
    rest = listings(paths, OTHERS[1], RUN_ID, after="results/a", limit=3)
    assert [files([one["page"]]) for one in rest] == [["results/b"], ["run.json", "state.json"]]


def test_slow_page_has_one_run(paths: ProjectPaths, run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_files, "PAGE_S", -1.0)
    other_runs(paths)
    assert len(listings(paths, *OTHERS)) == 1


def test_run_that_cannot_be_listed_does_not_hide_the_others(paths: ProjectPaths, run: RunPaths) -> None:
    other_runs(paths)
    gone, valid = listings(paths, "20260126T210311-0000", OTHERS[0])
    assert gone["error"]["code"] == "no_run" and "page" not in gone
    assert files([valid["page"]]) == ["results/a", "results/b"]
    refused, valid = listings(paths, RUN_ID, OTHERS[0], after="../x")
    assert refused["error"]["code"] == "bad_request"
    assert files([valid["page"]]) == ["results/a", "results/b"]
