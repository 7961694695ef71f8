from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.box.agent_bundle import agent_bundle
from remote.agent import code_store
from remote.agent.main import OPERATIONS, answer
from remote.agent.status import find_run
from remote.contract import trees
from remote.contract.files import read_jsonl, write_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import SCHEMA, AgentError, Queued, Running, Starting
from remote.contract.schema import to_json
from tests.support import ROOT, wait_until

RUN_ID = "20260126T210312-7f3a"
HOST = {"name": "box", "launcher": "nohup"}
SHIPPED = {"train.py": trees.TreeEntry("file", sha256(b"pass\n").hexdigest())}
TREE = trees.tree_hash(SHIPPED)


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    """A box with one tree and one run."""
    paths = ProjectPaths(tmp_path / "box", "persistence")
    run = paths.run("worker1", RUN_ID)
    run.root.mkdir(parents=True)
    write_json(run.run, {"job": {"name": "worker1"}})
    write_json(run.state, to_json(Queued(1.0, "its supervisor")))
    run.log.touch()
    incoming = Path(str(code_store.begin(paths, TREE).incoming))
    (incoming / "train.py").write_bytes(b"pass\n")
    code_store.finish(paths, TREE, str(incoming))
    return paths


def reply_to(line: bytes) -> dict[str, Any]:
    output = io.BytesIO()
    answer(line, output)
    assert output.getvalue().count(b"\n") == 1
    reply: dict[str, Any] = json.loads(output.getvalue())
    assert reply["schema"] == SCHEMA
    return reply


def ask(op: Any, args: Any, schema: Any = SCHEMA) -> dict[str, Any]:
    return reply_to(json.dumps({"schema": schema, "op": op, "args": args}).encode() + b"\n")


def ask_in(paths: ProjectPaths, op: str, **args: Any) -> dict[str, Any]:
    return ask(op, {"root": str(paths.box), "project": paths.root.name, **args})


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


# --- malformed requests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{",
        b"[]",
        b"null",
        b'"hello"',
        b"\xff\xfe",
        b"GET / HTTP/1.1\r\n",
        b"{}",
        b'{"op":"hello"}',
        b'{"schema":2,"op":"hello","args":{}}',
        b'{"schema":"1","op":"hello","args":{}}',
        b'{"schema":1,"op":"hello"',
        b'{"schema":1}',
        b'{"schema":1,"op":"format","args":{}}',
        b'{"schema":1,"op":"main","args":{}}',
        b'{"schema":1,"op":"__class__","args":{}}',
        b'{"schema":1,"op":["hello"],"args":{}}',
        b'{"a":' * 100_000,
    ],
    ids=lambda line: line[:40].decode("ascii", "replace"),
)
def test_malformed_request_is_refused(line: bytes) -> None:
    reply = reply_to(line)
    assert reply["ok"] is False
    assert reply["error"]["code"] == "bad_request"
    assert set(reply["error"]) == {"code", "message", "hint"}


@given(st.binary())
@settings(deadline=None)
def test_any_bytes_get_a_reply(line: bytes) -> None:
    assert reply_to(line)["ok"] is False


def test_hello_needs_only_the_schema() -> None:
    reply = reply_to(b'{"schema":1,"op":"hello"}')
    assert reply["ok"] is True
    assert reply["result"]["pid"] == os.getpid()
    assert reply["result"]["home"] == os.environ["HOME"]


# --- links out of the project -------------------------------------------------------------------------

NO_PROJECT: list[Any] = ["", None, ".", "..", "../x", "a/b", "/etc", "a b", "a\n", "-rf", "x" * 65, 7.5, ["a", "b"], {}]


@pytest.mark.parametrize("op", sorted(set(OPERATIONS) - {"hello", "digests"} | {"follow"}))
def test_invalid_project_name_is_refused(tmp_path: Path, op: str) -> None:
    for project in NO_PROJECT:
        reply = ask(op, {"root": str(tmp_path / "box"), "project": project})
        assert reply["error"]["code"] == "bad_request", project
    assert listing(tmp_path) == []


@pytest.mark.parametrize("op", sorted(set(OPERATIONS) - {"hello", "digests"} | {"follow"}))
def test_request_without_a_project_is_refused(op: str) -> None:
    nameless: list[Any] = [{}, {"root": ""}, {"root": None, "project": "a"}, {"project": "a"}, None, [], 0]
    for args in nameless:
        assert ask(op, args)["error"]["code"] == "bad_request", args


NO_NAMES: list[Any] = ["../x", "../../x", "/etc", ".", "", "a b", "a\0b", "worker1\n", None, 7, ["worker1"], {}]


@pytest.mark.parametrize("op", ["inventory", "follow", "stop"])
def test_invalid_job_name_is_refused(paths: ProjectPaths, tmp_path: Path, op: str) -> None:
    before = listing(tmp_path)
    for job in NO_NAMES:
        args = {"runs": [[job, RUN_ID]]} if op == "stop" else {"job": job, "run_id": RUN_ID}
        assert ask_in(paths, op, **args)["error"]["code"] == "bad_request", job
    assert listing(tmp_path) == before


NO_RUN_IDS: list[Any] = [f"../worker1/{RUN_ID}", "..", "", "latest", f"{RUN_ID}/", f"{RUN_ID}\n"]


@pytest.mark.parametrize("op", ["inventory", "follow", "stop"])
def test_invalid_run_id_is_refused(paths: ProjectPaths, tmp_path: Path, op: str) -> None:
    before = listing(tmp_path)
    for run_id in NO_RUN_IDS:
        args = {"runs": [["worker1", run_id]]} if op == "stop" else {"job": "worker1", "run_id": run_id}
        assert ask_in(paths, op, **args)["error"]["code"] == "no_run", run_id
    assert listing(tmp_path) == before


NO_TREES: list[Any] = ["", "../x", "/etc", TREE[:-1], TREE + "0", "F" * 64, f"{TREE}\n", f"../{TREE}", None, 7, [TREE]]


@pytest.mark.parametrize("op", ["launch", "code_begin", "code_commit"])
def test_invalid_tree_hash_is_refused(paths: ProjectPaths, tmp_path: Path, op: str) -> None:
    before = listing(tmp_path)
    for tree in NO_TREES:
        reply = ask_in(paths, op, tree=tree, code={"tree": tree}, incoming=str(tmp_path), runs=[])
        assert reply["error"]["code"] == "bad_request", tree
    assert listing(tmp_path) == before


@pytest.mark.parametrize("incoming", ["", "/etc", ".", "../..", f"{TREE}-x/../..", None, "a\0b"], ids=repr)
def test_upload_from_another_directory_is_refused(paths: ProjectPaths, tmp_path: Path, incoming: Any) -> None:
    before = listing(tmp_path)
    assert ask_in(paths, "code_commit", tree=TREE, incoming=incoming)["error"]["code"] == "bad_request"
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("job", "run_id"),
    [("../x", RUN_ID), ("worker1", "../x"), ("worker1", f"../../../{RUN_ID}"), ("", RUN_ID), ("a/b", RUN_ID)],
)
def test_launch_with_an_invalid_name_starts_nothing(paths: ProjectPaths, tmp_path: Path, job: str, run_id: str) -> None:
    before = listing(tmp_path)
    good = {"run_id": "20260126T210313-0000", "job": {"name": "worker2", "needs": []}}
    bad = {"run_id": run_id, "job": {"name": job, "needs": []}}
    reply = ask_in(
        paths, "launch", code={"tree": TREE}, host={"name": "box", "launcher": "nohup"}, runs=[good, bad], by="a"
    )
    assert reply["error"]["code"] == "bad_request"
    assert listing(tmp_path) == before


def test_system_error_becomes_a_reply(paths: ProjectPaths, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reply = ask_in(paths, "code_begin", root=str(tmp_path / "file"), tree=TREE)
    assert (reply["ok"], reply["error"]["code"]) == (False, "os_error")


# --- every failure becomes a reply ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "args", "named"),
    [
        ("status", {"which": 7}, "which"),
        ("status", {"which": "each"}, "which"),
        ("status", {"also": {"a": "b"}}, "also"),
        ("status", {"also": [["worker1"]]}, "also.0"),
        ("inventory", {"job": "worker1", "limit": "1"}, "limit"),
        ("inventory", {"job": "worker1", "limit": -1}, "limit"),
        ("inventory", {"job": "worker1", "limit": True}, "limit"),
        ("inventory", {"job": "worker1", "after": 7}, "after"),
        ("inventory", {"job": ["worker1"]}, "job"),
        ("inventory", {"job": "worker1", "run_id": 7}, "run_id"),
        ("follow", {"job": "worker1", "run_id": [RUN_ID]}, "run_id"),
        ("follow", {"job": "worker1", "once": True, "lines": "many"}, "lines"),
        ("follow", {"job": "worker1", "once": True, "lines": -1}, "lines"),
        ("follow", {"job": "worker1", "once": True, "lines": 1.5}, "lines"),
        ("follow", {"job": "worker1", "once": True, "offset": "0"}, "offset"),
        ("follow", {"job": "worker1", "once": True, "offset": [0]}, "offset"),
        ("follow", {"job": "worker1", "once": "yes"}, "once"),
        ("facts", {"jobs": {}}, "jobs"),
        ("facts", {"jobs": ["worker1"]}, "jobs.0"),
        ("facts", {"python": 7}, "python"),
        ("facts", {"rehearsed": []}, "rehearsed"),
        ("stop", {}, "runs"),
        ("stop", {"runs": [7]}, "runs.0"),
        ("stop", {"runs": [["worker1"]]}, "runs.0"),
        ("stop", {"runs": [["worker1", 7]]}, "runs.0.1"),
        ("restart", {"runs": [["worker1", RUN_ID]], "secrets": {"worker1": {"TOKEN": 7}}}, "secrets.worker1.TOKEN"),
        ("restart", {"runs": [["worker1", RUN_ID]], "confirm_s": "5"}, "confirm_s"),
        ("launch", {"code": {"tree": TREE}, "runs": []}, "host"),
        ("launch", {"code": {"tree": TREE}, "runs": [], "host": {"launcher": "screen"}}, "host.launcher"),
        ("launch", {"code": "x", "runs": [], "host": HOST}, "code"),
        ("launch", {"code": {"tree": TREE}, "host": HOST}, "runs"),
        ("launch", {"code": {"tree": TREE}, "host": HOST, "runs": [{"run_id": RUN_ID}]}, "runs.0.job"),
        ("launch", {"code": {"tree": TREE}, "host": HOST, "runs": [{"run_id": RUN_ID, "job": {}}]}, "runs.0.job.name"),
        ("launch", {"code": {"tree": TREE}, "host": HOST, "runs": [], "passed": "x"}, "passed"),
        ("code_begin", {"tree": 7}, "tree"),
        ("code_commit", {"tree": TREE}, "incoming"),
    ],
)
def test_argument_of_a_wrong_type_is_refused_and_named(
    paths: ProjectPaths, tmp_path: Path, op: str, args: Any, named: str
) -> None:
    before = listing(tmp_path)
    error = ask_in(paths, op, **args)["error"]
    assert (error["code"], error["message"].partition(" must be ")[0]) == ("bad_request", f"`{named}`")
    assert listing(tmp_path) == before


def test_refusal_does_not_contain_the_value(paths: ProjectPaths) -> None:
    """The value may be a secret."""
    entry = {"run_id": RUN_ID, "job": {"name": "worker1", "needs": 7}, "secrets": {"TOKEN": "hunter2"}}
    reply = ask_in(paths, "launch", code={"tree": TREE}, host=HOST, runs=[entry])
    assert reply["error"]["code"] == "bad_request" and "hunter2" not in json.dumps(reply)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        pytest.param("status", {"root": "~no-such-user/orch"}, id="a home that nobody has"),
        pytest.param("code_begin", {"tree": TREE, "root": "/tmp/\0"}, id="a NUL in the root"),
    ],
)
def test_request_with_malformed_arguments_is_refused(paths: ProjectPaths, op: str, args: Any) -> None:
    assert ask_in(paths, op, **args)["error"]["code"] == "bad_request"


@pytest.mark.parametrize(
    "args",
    [
        pytest.param([1], id="a list"),
        pytest.param("x", id="a text"),
        pytest.param(7, id="a number"),
    ],
)
def test_arguments_that_are_not_an_object_are_refused(args: Any) -> None:
    assert ask("status", args)["error"]["code"] == "bad_request"


# --- a bad file does not hide other runs -----------------------------------------------------------------


def spoil(run: RunPaths, name: str, text: str) -> None:
    (run.root / name).write_text(text)


@pytest.mark.parametrize("name", ["run.json", "state.json", "heartbeat.json", "latest_metrics.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"state":"asleep"}', '{"monotonic":"x","goals":null,"job":null}']
)
def test_malformed_file_counts_as_missing(paths: ProjectPaths, name: str, text: str) -> None:
    spoil(paths.run("worker1", RUN_ID), name, text)
    (report,) = ask_in(paths, "status")["result"]["runs"]
    assert (report["job"], report["run_id"], report["supervised"]) == ("worker1", RUN_ID, False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("run.json", '{"job":"worker1"}', id="a job that is a text"),
        pytest.param("run.json", '{"host":["a"]}', id="a host that is a list"),
        pytest.param("heartbeat.json", '{"monotonic":1' + "0" * 400 + "}", id="a heartbeat without bound"),
        pytest.param("latest_metrics.json", '{"a":' * 800 + "1" + "}" * 800, id="metrics without bottom"),
    ],
)
def test_malformed_files_of_a_run_do_not_hide_other_runs(paths: ProjectPaths, name: str, text: str) -> None:
    spoil(paths.run("worker1", RUN_ID), name, text)
    assert ask_in(paths, "status")["ok"] is True


def test_invalid_pid_is_not_a_process(paths: ProjectPaths) -> None:
    for pid in (-1, 0, 2**40, "../self", [1], None):
        record = {**to_json(Running(1.0, 1, 1, "1")), "pid": pid}
        write_json(paths.run("worker1", RUN_ID).state, record)
        (report,) = ask_in(paths, "status")["result"]["runs"]
        assert report["supervised"] is False


# --- answers ------------------------------------------------------------------------------------------


def test_status_reports_the_newest_run_of_each_job_or_all_runs(paths: ProjectPaths) -> None:
    for job, run_id in (("worker1", "20260126T210313-0000"), ("worker2", RUN_ID)):
        run = paths.run(job, run_id)
        run.root.mkdir(parents=True)
        write_json(run.run, {})
        write_json(run.state, to_json(Starting(1.0, 1)))
    current = [(run["job"], run["run_id"]) for run in ask_in(paths, "status")["result"]["runs"]]
    assert current == [("worker1", "20260126T210313-0000"), ("worker2", RUN_ID)]
    assert len(ask_in(paths, "status", which="all")["result"]["runs"]) == 3


def test_project_without_runs_is_not_an_error_and_is_not_created(tmp_path: Path) -> None:
    reply = ask("status", {"root": str(tmp_path / "box"), "project": "persistence"})
    assert reply["result"] == {"runs": []}
    assert listing(tmp_path) == []


def test_inventory_lists_only_regular_files(paths: ProjectPaths, tmp_path: Path) -> None:
    run = paths.run("worker1", RUN_ID)
    run.results.mkdir()
    (run.results / "plot.svg").write_bytes(b"123")
    (run.results / ".tmp-half").touch()
    (run.results / "secret").symlink_to("/etc/passwd")
    (run.results / "all").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(run.results / "pipe")
    result = ask_in(paths, "inventory", job="worker1", run_id=RUN_ID)["result"]
    assert result["path"] == str(run.root)
    sizes = dict(result["files"])
    assert set(sizes) == {"run.json", "state.json", "training.log", "results/plot.svg"}
    assert sizes["results/plot.svg"] == 3
    assert result["left_out"] == ["results/all", "results/pipe", "results/secret"]


def test_newest_run_is_found_without_a_run_id(paths: ProjectPaths) -> None:
    newer = paths.run("worker1", "20260127T000000-0000")
    newer.root.mkdir()
    write_json(newer.run, {})
    assert find_run(paths, "worker1", None).root == newer.root
    with pytest.raises(AgentError) as refusal:
        find_run(paths, "worker2", None)
    assert refusal.value.code == "no_run"
    assert refusal.value.hint


def test_stop_ends_an_unsupervised_run(paths: ProjectPaths) -> None:
    run = paths.run("worker1", RUN_ID)
    reply = ask_in(paths, "stop", runs=[["worker1", RUN_ID]], by="a@b")
    (report,) = reply["result"]["runs"]
    assert report["state"]["state"] == "stopped"
    assert json.loads(run.stop.read_text())["by"] == "a@b"


def test_stop_of_an_unsupervised_run_uses_the_stop_signal_of_its_job(paths: ProjectPaths, tmp_path: Path) -> None:
    """The worker is known by the run directory in its environment."""
    run = paths.run("worker1", RUN_ID)
    record = json.loads(run.run.read_text())
    job = {**record["job"], "stop_signal": "SIGINT"}
    write_json(
        run.run, {**record, "run_id": RUN_ID, "project": "p", "job": job, "host": {}, "code": {"tree": "0" * 64}}
    )
    code = "trap 'echo saved > $SAVED; exit' INT; trap 'exit 1' TERM; echo ready > $READY; while :; do sleep 0.05; done"
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    env = {**os.environ, "ORCH_RUN_DIR": str(run.root), "READY": str(ready), "SAVED": str(saved)}
    with subprocess.Popen(["bash", "-c", code], env=env, start_new_session=True) as worker:
        wait_until(ready.exists, what="the worker to be ready")
        ask_in(paths, "stop", runs=[["worker1", RUN_ID]], by="a@b")
        assert worker.wait(10) == 0
    assert saved.exists()


def test_stop_of_an_unsupervised_run_writes_an_event(paths: ProjectPaths) -> None:
    ask_in(paths, "stop", runs=[["worker1", RUN_ID]], by="a@b")
    assert [event["state"] for event in read_jsonl(paths.run("worker1", RUN_ID).events)] == ["stopped"]


def test_stop_removes_the_secrets(paths: ProjectPaths) -> None:
    secrets = paths.secrets_of(paths.run("worker1", RUN_ID))
    secrets.parent.mkdir()
    write_json(secrets, {"TOKEN": "x"})
    ask_in(paths, "stop", runs=[["worker1", RUN_ID]], by="a@b")
    assert not secrets.exists()


def test_run_ended_by_stop_is_not_supervised(paths: ProjectPaths) -> None:
    (report,) = ask_in(paths, "stop", runs=[["worker1", RUN_ID]], by="a@b")["result"]["runs"]
    assert report["supervised"] is False


def test_agent_answers_as_a_separate_program(paths: ProjectPaths, tmp_path: Path) -> None:
    bundle = tmp_path / agent_bundle().name
    bundle.write_bytes(agent_bundle().data)
    request = {"schema": SCHEMA, "op": "status", "args": {"root": str(paths.box), "project": "persistence"}}
    argv = [sys.executable, "-I", "-S", str(bundle)]
    done = subprocess.run(argv, input=json.dumps(request).encode(), capture_output=True, check=True, cwd="/")
    assert done.stderr == b""
    assert [run["run_id"] for run in json.loads(done.stdout)["result"]["runs"]] == [RUN_ID]


def test_agent_without_a_reader_ends_quietly(paths: ProjectPaths) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    request = {
        "schema": 1,
        "op": "follow",
        "args": {"root": str(paths.box), "project": "persistence", "job": "worker1"},
    }
    argv = [sys.executable, "-S", "-c", "from remote.agent.main import main; main()"]
    try:
        done = subprocess.run(
            argv, input=json.dumps(request).encode(), stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
