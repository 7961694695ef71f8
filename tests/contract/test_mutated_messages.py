"""Every field of every message from a box, replaced by a wrong value: a result or an error of orch, never a crash.

The same for this machine's own records of runs: damage to them never gives a box a right to secrets.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.box.client import Box
from orchestrator.box.known_runs import Address, KnownRun, KnownRuns
from orchestrator.box.transport import Frame, read_frames, read_reply
from orchestrator.checks import gpu_memory, preflight, rehearsal
from orchestrator.commands.doctor import check_reboot
from orchestrator.commands.project import Project
from orchestrator.errors import OrchError
from orchestrator.spec.load import load
from orchestrator.spec.models import Host, Job
from orchestrator.ui import run_text, serialize
from remote.contract.launches import LaunchRequest, RunEntry
from remote.contract.protocol import Running
from remote.contract.requests import Request, Where
from remote.contract.run_record import CodeRecord, HostRecord, JobRecord
from remote.contract.run_report import RunReport
from remote.contract.schema import to_json
from remote.contract.uploads import DataBeginRequest, DataCommitRequest
from tests.canned_box import CannedTransport
from tests.contract.test_recorded import REPLIES, V1
from tests.support import RECORDED, checked

JOB, RUN_ID, TREE = "worker1", "20260126T210312-7f3a", "5f" * 32


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else 0


WRONG: list[Any] = [
    *(None, True, False, 0, -1, 2**63 - 1, 2**63, 10**400, 1e308, -1e308, 5e-324, math.nan, math.inf),
    *("", "x", "\0", "\ud800", "\x1b[2J\u202e", "a" * 70_000, "../x", "/"),
    *([], {}, [None], {"a": None}, [1, 2], ["a", "b"], [["a", -1]], [["a"]], {"state": "running"}, nested(40)),
]


def mutations(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield `value` with each part in turn replaced by each of WRONG, removed, or with an unknown key added."""
    for wrong in WRONG:
        yield repr(wrong)[:30], wrong
    if isinstance(value, dict):
        yield "more", {**value, "newer": {"x": [1]}, "": None}
        for key, inner in value.items():
            yield f"{key} removed", {name: item for name, item in value.items() if name != key}
            for place, changed in mutations(inner):
                yield f"{key}.{place}", {**value, key: changed}
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            for place, changed in mutations(inner):
                yield f"{at}.{place}", [*value[:at], changed, *value[at + 1 :]]


# --- messages of a box ----------------------------------------------------------------------------------


class Saying(CannedTransport):
    """A box that sends these bytes, whatever it is asked."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def call(self, request: Request) -> Any:
        return read_reply("box", self._data)

    def stream(self, request: Request) -> Iterator[Frame]:
        yield from read_frames("box", io.BytesIO(self._data))


HOST = checked(Host, name="box", ssh="user@box", gpus=1, launcher="tmux")
WORK = checked(Job, name=JOB, command="python x.py", host="box", data={"path": "/d"}, goals={"loss": "< 1"})
FORECAST = {
    "seconds_per_epoch": 1.0,
    "seconds_total": 30.0,
    "epochs": 30,
    "peak_host_bytes": 1 << 30,
    "token_bytes_in_run": 5,
    "peak_gpu_bytes": 1 << 30,
    "checkpoint_bytes": 10,
    "checkpoints": 3,
}
[SAID] = next(record["reply"]["result"]["runs"] for record in REPLIES if record["op"] == "status")
REPORT = {**SAID, "forecast": FORECAST, "disk_free": 10**9, "started": 1769461394.0, "problem": "", "note": ""}


def show(run: RunReport) -> None:
    """Show and judge a run in every way."""
    assert run_text.line(run).isprintable()
    json.dumps(serialize.run_to_json(run), allow_nan=False)
    outcome = rehearsal.judge(WORK, run, "log", price=30.0)
    rehearsal.forecast_problems(WORK, outcome)
    rehearsal.memory_problem([outcome], 10**9)
    run_text.rehearsed(outcome)
    json.dumps(serialize.outcome_to_json(outcome), allow_nan=False)


def show_status(box: Box) -> None:
    status = box.status("all")
    json.dumps(serialize.host_to_json(status), allow_nan=False)
    for run in status.runs:
        show(run)


def launch(box: Box) -> None:
    entry = RunEntry(RUN_ID, JobRecord(JOB))
    request = LaunchRequest(HostRecord(), CodeRecord(TREE), (entry,), rehearsed={JOB: "key"})
    for run in box.launch(request).runs:
        show(run)


def stop(box: Box) -> None:
    answer = box.stop([(JOB, RUN_ID)], "someone")
    assert all(len(pair) == 2 for pair in answer.had_ended)
    for error in answer.errors:
        assert error.message
    for run in answer.runs:
        show(run)


def examine(box: Box) -> None:
    facts = box.facts(HOST, [WORK], TREE)
    checks = [*preflight.check_host(facts, HOST, 1.0, 10**9), *preflight.check_job(facts, WORK, ())]
    checks += [check_reboot(facts.reboot), *gpu_memory.check_forecast(facts, HOST, [gpu_memory.Need(JOB, 1.0, 10**9)])]
    assert all(f"{check.detail}{check.hint}".isprintable() for check in checks)


def list_files(box: Box) -> None:
    for _, listed in box.inventories([(JOB, RUN_ID)]):
        if isinstance(listed, OrchError):
            raise listed
        assert all(size >= 0 for size in listed.files.values())
        show(listed.report)


def follow(box: Box) -> None:
    for piece in box.follow(JOB, RUN_ID):
        assert piece.offset >= 0
        if piece.report:
            show(piece.report)


def reply(result: Any) -> dict[str, Any]:
    return {"schema": 1, "ok": True, "result": result}


FACTS = {
    "now": 1769463001.0,
    "took_s": 0.1,
    "newest_run": RUN_ID,
    "answers": {
        "python": {"value": "3.10.12"},
        "gpus": {"out": (RECORDED / "gpus-t4-held.txt").read_text(), "code": 0},
        "gpu_processes": {"out": (RECORDED / "gpu-apps-t4-held.txt").read_text(), "code": 0},
        "gpu_owners": {"value": [{"pid": 4711, "owner": "user", "command": "x", "run": "j r", "run_ended": True}]},
        "disk": {"value": {"path": "/", "free": 1, "total": 2, "inodes_free": 1, "inodes_total": 2, "writable": True}},
        "memory": {"value": "MemTotal: 16 kB\nMemAvailable: 8 kB\n"},
        "tmux": {"out": "tmux 3.3a", "code": 0},
        "job_python": {"out": '{"version": "3.10", "executable": "/p", "devices": []}', "code": 0},
        "reboot": {"value": {"name": "cron", "why": ""}},
    },
    "jobs": {
        JOB: {
            "value": {
                "has_code": True,
                "prepared": False,
                "prepare_error": "",
                "live_run": None,
                "forecast": FORECAST,
                "commands": [{"of": "command", "program": "python", "found": "/p", "kind": "script", "unset": ["A"]}],
                "data": {
                    "directory": "/d",
                    "exists": True,
                    "matches": 2,
                    "instead": [["*.x", 3]],
                    "samples": [{"path": "a", "size": 1, "head": "abc", "error": ""}],
                },
            }
        }
    },
}
ERROR = {"code": "busy", "message": "m", "hint": "h"}
FILES = {"files": [["a", 1, 2]], "left_out": [["l", "a symlink"]], "next": None}
LISTING = {"runs": [{"page": {"path": f"/{JOB}/{RUN_ID}", "report": REPORT, **FILES}}]}
STOPPED = {"runs": [], "had_ended": [[JOB, RUN_ID]], "errors": [{"job": JOB, "run_id": RUN_ID, **ERROR}]}
IN_STATES = [
    pytest.param(
        reply({"runs": [{"job": JOB, "run_id": RUN_ID, "created": 0.5, "state": json.loads(path.read_text())}]}),
        show_status,
        id=path.stem,
    )
    for path in sorted((V1 / "states").iterdir())
]


@pytest.mark.parametrize(
    ("message", "use"),
    [
        *IN_STATES,
        pytest.param(reply({"python": "3.10", "home": "/h", "now": 1.0, "pid": 2}), Box.hello, id="hello"),
        pytest.param(reply({"runs": [REPORT]}), show_status, id="status"),
        pytest.param(reply({"have_code": True, "unrehearsed": [], "runs": [REPORT]}), launch, id="launch"),
        pytest.param(reply({"have_code": True, "unrehearsed": [JOB], "runs": []}), launch, id="unrehearsed"),
        pytest.param(reply(STOPPED), stop, id="stop"),
        pytest.param(reply({"runs": [SAID]}), lambda box: box.restart([(JOB, RUN_ID)], "a", {}), id="restart"),
        pytest.param(reply(LISTING), list_files, id="inventories"),
        pytest.param(reply(FACTS), examine, id="facts"),
        pytest.param(
            reply({"have": False, "incoming": "/x", "link_to": "/y"}), lambda box: box.begin_code(TREE), id="code_begin"
        ),
        pytest.param(reply({}), lambda box: box.commit_code(TREE, "/x"), id="code_commit"),
        pytest.param(
            reply({"path": "/x", "state": "absent", "incoming": "/y", "received": 1}),
            lambda box: box.begin_data(DataBeginRequest("x", TREE)),
            id="data_begin",
        ),
        pytest.param(
            reply({"files": 1, "bytes": 2}),
            lambda box: box.commit_data(DataCommitRequest("x", TREE)),
            id="data_commit",
        ),
        pytest.param({"schema": 1, "ok": False, "error": ERROR}, Box.hello, id="error"),
    ],
)
def test_reply_with_any_wrong_field_is_used_or_an_orch_error(message: Any, use: Callable[[Box], Any]) -> None:
    for place, changed in mutations(message):
        _use(use, json.dumps(changed).encode() + b"\n", place)


def test_stream_with_any_wrong_field_is_used_or_an_orch_error() -> None:
    frames = [
        {"offset": 0, "report": {"job": JOB, "run_id": RUN_ID}},
        {"offset": 0, "bytes": 3},
        {"offset": 3, "end": True},
    ]
    data = [b"", b"abc", b""]
    for place, changed in mutations(frames):
        if isinstance(changed, list) and len(changed) == len(frames):
            lines = [json.dumps(head).encode() + b"\n" + raw for head, raw in zip(changed, data, strict=True)]
            _use(follow, b"".join(lines), place)


def _use(use: Callable[[Box], Any], data: bytes, place: str) -> None:
    try:
        use(Box(Saying(data), Where("/box", "project")))
    except OrchError as error:
        assert error.message
    except Exception as error:
        raise AssertionError(f"on {place}") from error


# --- records of this machine ----------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Make a project with one known run that was launched from another laptop."""
    (tmp_path / "jobs.toml").write_text(
        f'[project]\nname = "p"\n[jobs.{JOB}]\nhost = "local"\ncommand = ["x"]\nrehearse = false\n'
    )
    project = Project(load(tmp_path / "jobs.toml"))
    run = KnownRun(JOB, RUN_ID, "local", Address(None, str(tmp_path), "p"), state=Running(1.0, 1, 2))
    project.known.save(run)
    return project


def test_damaged_record_of_a_run_gives_no_right_to_secrets(project: Project, tmp_path: Path) -> None:
    file = tmp_path / "results/.mirror" / JOB / f"{RUN_ID}.json"
    whole = file.read_bytes()
    bits = (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole)))
    cut = (whole[:at] for at in range(len(whole)))
    told = (json.dumps(changed).encode() for place, changed in mutations(json.loads(whole)) if "True" not in place)
    for data in (*told, *cut, *bits):
        file.write_bytes(data)
        for run in project.known.all():
            assert not run.launched_here, data
            project.host_of(run), project.address_of_run(run), project.is_foreign(run)
            assert run_text.line(project.mirror.report(run)).isprintable()
    file.write_bytes(whole.replace(b'"launched_here":false', b'"launched_here":true'))
    assert [run.launched_here for run in project.known.all()] == [True]


def test_damaged_record_of_a_host_is_written_again(tmp_path: Path) -> None:
    known, address = KnownRuns(tmp_path), Address("user@box", "~/orch", "p")
    known.note_asked("box", address)
    file = tmp_path / ".mirror/.hosts/box.json"
    for _, changed in mutations(to_json(address)):
        file.write_text(json.dumps(changed))
        known.note_asked("box", address)
        assert known.was_asked("box", address)
