"""Targets of the box's side: parsers of requests, files and output of workers, and output of programs."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from pathlib import Path

from remote.agent import code_store, main, passed_rehearsals
from remote.agent.status import live_report
from remote.agent.thinning import thin
from remote.contract import nvidia, states
from remote.contract.events import read_event
from remote.contract.files import parse_object, read_json, read_jsonl, read_jsonl_end
from remote.contract.goals import judge, parse_goals
from remote.contract.logs import LogReader, log_size
from remote.contract.masking import Mask
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import STATES, AgentError, state_from_json
from remote.contract.reported import FailureRecord
from remote.contract.run_record import JobRecord, MetricsRecord
from remote.contract.run_report import report
from remote.contract.schema import from_json, to_json
from remote.contract.states import recorded
from remote.contract.tracebacks import find_cause
from remote.contract.variables import MAX_LENGTH, Unresolved, expand, resolve, script_words, variables_in
from remote.host import run_state
from remote.host.interpreters import parse_torch
from remote.supervisor import history, signals
from remote.supervisor.environment_build import LONGEST, MAX_CHARS, last_line, reason_in
from remote.supervisor.environment_files import read_files
from remote.supervisor.environment_tools import project_requirements
from remote.supervisor.failures import ExitDetails, classify
from remote.supervisor.metric_files import MetricFiles
from remote.supervisor.output_reader import OutputReader
from remote.supervisor.rehearsing import Shell, final_traceback
from tests.fuzz.source import Source, Target, text_of

FOLDER = Path(tempfile.mkdtemp(prefix="orch-fuzz-"))
PATHS = ProjectPaths(FOLDER, "fuzz")
TREE = "0" * 64
SECRETS = {
    "TOKEN": "hunter2-and+more/of it",
    "SHORT": "pass",
    "KEY": "-----BEGIN X-----\nMIIEowIBAAKCAQEA\n-----END X-----",
}
KEYS = [
    *(*STATES, "schema", "op", "args", "root", "project", "rehearsal", "runs", "tree", "incoming", "offset", "lines"),
    *(
        "hello",
        "status",
        "inventory",
        "inventories",
        "launch",
        "stop",
        "restart",
        "code_begin",
        "code_commit",
        "fuzz",
        "worker1",
    ),
    *("20260126T210312-7f3a", "state", "since", "attempt", "pid", "identity", "boot", "reason", "detail", "not_before"),
    *(
        "time",
        "attempt_ended",
        "then",
        "restarted",
        "supervisor_error",
        "exit_code",
        "exception",
        "step",
        "job",
        "host",
    ),
    *("code", "entries", "files", "mode", "loss", "< 1", ">= 75 %", "env", "goals", "name", "keep", "confirm_s"),
]
ENVIRONMENT_FILES = ("requirements.txt", "environment.yml", "uv.lock")
LOOKS = ("hello", "status", "inventory", "inventories", "stop", "restart", "code_begin", "code_commit", "launch", "")


def _run() -> RunPaths:
    run = PATHS.run("worker1", "20260126T210312-7f3a")
    run.root.mkdir(parents=True, exist_ok=True)
    return run


def request_line(data: bytes) -> None:
    """Answer the request, unless it could act on a folder that is not ours."""
    request = parse_object(data)
    if request is None or not isinstance(request.get("args"), dict):
        _answered(data)


def request(data: bytes) -> None:
    source = Source(data, KEYS)
    op = LOOKS[source.byte() % len(LOOKS)]
    args = {**source.table(), "root": str(FOLDER / "asked"), "project": "fuzz", "confirm_s": 0}
    _answered(json.dumps({"schema": 1, "op": op, "args": args}).encode())


def _answered(line: bytes) -> None:
    output = io.BytesIO()
    main.answer(line, output)
    said = json.loads(output.getvalue())
    assert said["ok"] in (True, False)


def objects(data: bytes) -> None:
    path = FOLDER / "file.json"
    path.write_bytes(data)
    for found in (parse_object(data), read_json(path)):
        assert found is None or isinstance(found, dict)
    assert all(isinstance(line, dict) for line in (*read_jsonl(path), *read_jsonl_end(path, 64)))


def state(data: bytes) -> None:
    run = _run()
    run.state.write_bytes(data)
    run_state.read_state(run)
    run_state.has_ended(run)
    state_from_json({"state": [*STATES][data[0] % len(STATES)] if data else "", **Source(data, KEYS).table()})


def events(data: bytes) -> None:
    run = _run()
    source = Source(data, KEYS)
    lines = [json.dumps(source.table()) for _ in range(4)]
    run.events.write_bytes("\n".join(lines).encode() + source.rest())
    states.last_event(run)
    found = [event for event in map(read_event, read_jsonl(run.events)) if event]
    history.judged(found)
    history.last_failure(found)
    history.decided_end(found)
    assert history.restarts_used(found) >= 0
    assert history.supervisor_errors(found) >= 0


def run_files(data: bytes) -> None:
    """Parse run files that a worker may have overwritten."""
    run = _run()
    names = (run.run, run.state, run.heartbeat, run.latest_metrics, run.worker, run.supervisor, run.forecast)
    for path, text in zip(names, data.split(b"\xff"), strict=False):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text)
    for found in (to_json(report(run, recorded(run), supervised=False)), to_json(live_report(run))):
        json.dumps(found)
    signals.steps_done(run)


def goals(data: bytes) -> None:
    source = Source(data, KEYS)
    try:
        found = parse_goals({source.text(): source.text() for _ in range(3)})
    except ValueError as error:
        assert "is not a valid goal" in str(error)
        return
    judge(found, source.table())


def log(data: bytes) -> None:
    run = _run()
    run.log_parts.mkdir(exist_ok=True)
    for old in run.log_parts.iterdir():
        old.unlink()
    source = Source(data, KEYS)
    size = source.byte() * 4
    part = gzip.compress(bytes(size)) if source.byte() % 2 else source.rest()
    (run.log_parts / f"{0:015d}-{size:015d}.gz").write_bytes(part)
    name = (
        source.text()
        .replace("/", "")
        .replace("\0", "")
        .encode("utf-8", "replace")[:80]
        .decode("utf-8", "surrogateescape")
    )
    (run.log_parts / (f"x{name}")).touch()
    run.log.write_bytes(source.rest())
    reader = LogReader(run)
    try:
        start, said = reader.read(source.byte(), 100)
        assert start >= 0 and len(said) <= 100
    finally:
        reader.close()
    assert log_size(run) >= 0


def output(data: bytes) -> None:
    """Read the output of a worker, in two looks, and by a second supervisor: only well-formed files are written."""
    run = _run()
    for path in (run.heartbeat, run.metrics, run.latest_metrics, run.output):
        path.unlink(missing_ok=True)
    for part in run.log_parts.glob("*"):
        part.unlink()
    first, _, rest = data.partition(b"\xff")
    job = JobRecord("worker1", ("python", text_of(first[:50])), goals={"val_acc": "> 0.5"}, metrics=MetricsRecord())
    for number, piece in enumerate((first, first + rest)):
        run.log.write_bytes(piece)
        reader = OutputReader(run, job, (1, 0, 0.0), (), lambda problem: None)
        reader.look()
        if number:
            reader.finish()
    for line in read_jsonl(run.metrics):
        assert len(line) <= 100 and line["source"] == "output"
    json.dumps(to_json(report(run, recorded(run), supervised=False)))


def metric_files(data: bytes) -> None:
    folder = FOLDER / "metrics"
    folder.mkdir(exist_ok=True)
    for name in ("a.csv", "b.tsv", "c.jsonl", "events.out.tfevents.1"):
        (folder / name).write_bytes(data)
    files = MetricFiles(("*",), (folder,), 0.0, {})
    for _ in range(2):
        for row in files.read():
            assert all(isinstance(value, (int, float)) for value in row.values.values())
    for name, position in files.positions.items():
        assert 0 <= position.offset <= (folder / name).stat().st_size


def manifest(data: bytes) -> None:
    (PATHS.tree(TREE)).mkdir(parents=True, exist_ok=True)
    PATHS.tree(TREE).with_name(TREE + ".json").write_bytes(data)
    code_store.has(PATHS, TREE)
    code_store.newest_tree(PATHS.code)


def last_words(data: bytes) -> None:
    source = Source(data, KEYS)
    code = (None, 0, 1, -9, -11, 137, 139, 255, -200)[source.byte() % 9]
    said = from_json(FailureRecord, {**source.table(), "attempt": 1}, []) if source.byte() % 2 else None
    text = text_of(source.rest())
    found = classify(code, ExitDetails(text, said, text, source.byte() % 2))
    assert len(found.detail) < 20_000
    json.dumps(vars(found))


def tracebacks(data: bytes) -> None:
    text = text_of(data)
    cause = find_cause(text)
    for each in cause.chain:
        assert each.exception and 0 <= each.begin < len(text)
    for shell in (None, Shell(keeps_order=True), Shell(keeps_order=False)):
        final_traceback(text, shell)


def variables(data: bytes) -> None:
    """Expand a command and the values of `env`: scripts for shells stay as they are, and values are bounded."""
    words = text_of(data).split(" ")
    expanded = expand(words, {"A": "$B", "B": "x"})
    assert all(expanded[index] == words[index] for index in script_words(words))
    variables_in(words)
    own = dict(zip("ABCDEFGH", words, strict=False))
    try:
        found = resolve(own, {"B": "x", "HOME": "/root"})
    except Unresolved:
        return
    assert all(len(value) < MAX_LENGTH or value == own[name] for name, value in found.items())


def environment(data: bytes) -> None:
    """Read the files of an environment, the output of a failed build, and the version.py of a torch."""
    code = FOLDER / "environment"
    code.mkdir(exist_ok=True)
    for name in (*ENVIRONMENT_FILES, "pyproject.toml"):
        (code / name).write_bytes(data)
    for name in ENVIRONMENT_FILES:
        try:
            assert name in read_files(code, name).contents
        except AgentError:  # it includes a file that does not exist
            continue
    text = text_of(data)
    assert len(reason_in(text)) <= MAX_CHARS and len(last_line(text)) <= LONGEST
    parse_torch("python3", text)
    try:
        project_requirements(data, ["gpu"])
    except ValueError:
        pass  # it is no pyproject.toml


def gpus(data: bytes) -> None:
    text = text_of(data)
    nvidia.parse_utilization(text)
    nvidia.parse_cards(text)


def masking(data: bytes) -> None:
    """Mask a log in chunks: the result does not depend on the chunks and contains no secret."""
    pieces = data.split(b"\xff")
    data = b"".join(pieces)
    mask = Mask(SECRETS)
    whole = mask.feed(data) + mask.flush()
    by_pieces = b"".join([*map(mask.feed, pieces), mask.flush()])
    assert not [value for value in SECRETS.values() if value.encode() in whole + b"\n\n" + by_pieces]
    if b"\x1b" not in data and b"\\" not in data:
        assert whole == by_pieces


def rehearsed(data: bytes) -> None:
    source = Source(data, KEYS)
    key = "a" * 64
    (PATHS.passed).mkdir(parents=True, exist_ok=True)
    (PATHS.passed / f"{key}.json").write_bytes(source.rest())
    passed_rehearsals.missing(PATHS, {source.text(): key}, "x")
    passed_rehearsals.forecast(PATHS, "worker1", key)
    passed_rehearsals.forecast(PATHS, source.text(), source.value())


def thinned(data: bytes) -> None:
    """The ranges are in order and reach to the end. Plain lines are sent in full."""
    ranges = thin(data)
    assert [edge for one in ranges for edge in one] == sorted(edge for one in ranges for edge in one)
    assert (ranges[-1][1] if ranges else 0) == len(data)
    plain = data.replace(b"\r", b"").replace(b"\x1b", b"")
    assert thin(plain) == ([(0, len(plain))] if plain else [])


TARGETS: list[Target] = [
    *(request_line, request, objects, state, events, run_files, goals, log, manifest, last_words, gpus, masking),
    *(rehearsed, output, metric_files, tracebacks, variables, environment, thinned),
]
PROPER = (AgentError,)
SAMPLES = {
    "thinned": "tests/unit/recorded/output/*.log",
    "request_line": "tests/contract/v1/requests.jsonl",
    "objects": "tests/contract/v*/runs/**/*.json*",
    "state": "tests/contract/v1/states/*",
    "run_files": "tests/contract/v*/runs/**/run.json",
    "output": "tests/unit/recorded/output/*.log",
    "metric_files": "tests/unit/recorded/output/[!ht]*",
    "gpus": "tests/unit/recorded/gpu*",
    "last_words": "tests/unit/recorded/failed-*",
    "tracebacks": "tests/unit/recorded/failed-*",
}
