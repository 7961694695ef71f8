"""Parsers of a box's answers, on recorded output and on garbage."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.box import probe
from orchestrator.box.host_facts import BoxFacts, Clock, parse_job, read_clock, read_facts
from orchestrator.box.probe import Gpus, RsyncProgram
from remote.contract.answers import Answer, read_answers
from remote.contract.job_facts import CommandFacts, DataFacts, DataSample, JobFacts
from remote.contract.launches import FactsReply
from remote.contract.meminfo import Memory
from remote.contract.reboot_method import RebootMethod
from remote.contract.run_report import Forecast
from remote.contract.schema import Malformed, from_json, to_json
from tests.support import RECORDED

PARSERS = [found for found in vars(probe).values() if isinstance(found, probe.Probe)]


def recorded(name: str, code: int = 0) -> Answer:
    return Answer(out=(RECORDED / f"{name}.txt").read_text(), code=code)


# --- GPUs -----------------------------------------------------------------------------------------------


def test_cards_and_processes_are_read() -> None:
    gpus = probe.parse_gpus(recorded("gpus-h100"))
    assert [(card.name, card.total) for card in gpus.cards] == [("NVIDIA H100 80GB HBM3", 81559)]
    assert gpus.problem == "" and gpus.has_tool
    assert [process.pid for process in probe.parse_gpu_processes(recorded("gpu-apps-t4-held"))] == [21784]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (recorded("gpus-no-driver", 9), "exit code 9: NVIDIA-SMI has failed because it couldn't communicate"),
        (recorded("gpus-mismatch", 18), "exit code 18: Failed to initialize NVML: Driver/library version mismatch"),
        (recorded("gpus-none", 6), "exit code 6: No devices were found"),
        (Answer(error="nvidia-smi gave no answer within 5 s"), "no answer within 5 s"),
        (Answer(code=0), "lists no GPU"),
    ],
)
def test_broken_driver_is_reported(answer: Answer, said: str) -> None:
    gpus = probe.parse_gpus(answer)
    assert said in gpus.problem
    assert gpus.cards == () and gpus.has_tool


def test_missing_nvidia_smi_is_reported() -> None:
    absent = Answer(error="nvidia-smi is not installed", absent=True)
    assert probe.parse_gpus(absent) == Gpus((), "nvidia-smi is not installed", has_tool=False)


def test_owner_of_a_process_is_read() -> None:
    ended = {"pid": 1, "owner": "ubuntu", "run": "worker1 20260126T210312-7f3a", "run_ended": True}
    live = {**ended, "pid": 2, "run_ended": False}
    other = {"pid": 3, "owner": "eve", "run": None, "run_ended": None}
    owners = probe.parse_gpu_owners(Answer(value=[ended, live, other, {"pid": "no"}, 7]))
    assert [owners[pid].is_orphan for pid in (1, 2, 3)] == [True, False, False]
    assert [owners[pid].is_of_live_run for pid in (1, 2, 3)] == [False, True, False]
    assert set(owners) == {1, 2, 3}


# --- the machine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rsync-gnu-3.2.7", RsyncProgram("GNU", "3.2.7")),
        ("rsync-gnu-3.4.1", RsyncProgram("GNU", "3.4.1")),
        ("rsync-openrsync", RsyncProgram("openrsync", "protocol 29")),
    ],
)
def test_rsync_version_is_read(name: str, expected: RsyncProgram) -> None:
    assert probe.parse_rsync(recorded(name)) == expected


@pytest.mark.parametrize(
    ("out", "version"),
    [("tmux 3.3a\n", "3.3a"), ("tmux next-3.5\n", "next-3.5"), ("tmux openbsd-7.4\n", "openbsd-7.4"), ("", None)],
)
def test_tmux_version_is_read(out: str, version: str | None) -> None:
    assert probe.parse_tmux(Answer(out=out, code=0)) == version


def test_memory_is_read() -> None:
    text = (RECORDED / "meminfo-g4dn.txt").read_text()
    assert probe.parse_memory(Answer(value=text)) == Memory(15988236 * 1024, 14876120 * 1024)
    assert probe.parse_memory(Answer(error="no such file")) is None


def test_python_of_a_job_is_read() -> None:
    hook = "a site hook says hello\n"
    said = '{"version": "3.10.12", "executable": "/opt/pytorch/bin/python", "torch": "2.6.0", "cuda": true}\n'
    python = probe.parse_job_python(Answer(out=hook + said, code=0))
    assert (python.version, python.torch, python.cuda, python.problem) == ("3.10.12", "2.6.0", True, "")
    assert probe.parse_job_python(Answer(error="x is not installed")).problem == "x is not installed"
    assert probe.parse_job_python(Answer(out="Illegal instruction", code=0)).problem


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"name": "cron", "why": ""}, RebootMethod("cron")),
        ({"name": "none", "why": "no_linger", "new": 1}, RebootMethod("none", "no_linger")),
        ({"name": "systemd", "why": 7}, RebootMethod("systemd")),
        ({"name": "at"}, None),
        (None, None),
    ],
)
def test_reboot_method_is_read(value: object, expected: RebootMethod | None) -> None:
    assert probe.parse_reboot(Answer(value=value)) == expected


# --- requests and replies -------------------------------------------------------------------------------


def test_box_clock_is_compared_at_half_the_round_trip() -> None:
    # Asked at 1000, answered 3.2 s later, 3 s of which the box worked: it read its clock at 1000.1.
    clock = read_clock(FactsReply(1060.1, 3.0), asked=1000.0, elapsed=3.2)
    assert clock is not None
    assert (round(clock.ahead, 6), round(clock.uncertainty, 6)) == (60.0, 0.1)
    assert read_clock(FactsReply(), 1000.0, 0.1) is None


def test_reply_is_read_completely() -> None:
    answers = {
        "gpus": {"out": (RECORDED / "gpus-h100.txt").read_text(), "err": "", "code": 0},
        "python": {"value": "3.8.10"},
    }
    jobs = {"worker1": {"error": "no answer within 20 s"}}
    facts = read_facts(from_json(FactsReply, {"answers": answers, "jobs": jobs}), Clock(0.0, 0.1))
    assert (facts.python, len(facts.gpus.cards), facts.disk) == ("3.8.10", 1, None)
    assert facts.jobs["worker1"].problem == "no answer within 20 s"


def test_job_facts_with_binary_data_are_read_as_sent() -> None:
    data = DataFacts("/data", True, 1, (DataSample("a.npy", 3, "\x00\x93\xff"),), (("*.json", 2),))
    sent = JobFacts(
        True, None, "", (CommandFacts("command", "python", unset=("HOME",)),), data, None, Forecast(epochs=3)
    )
    assert parse_job(Answer(value=json.loads(json.dumps(to_json(sent))))) == sent


@pytest.mark.parametrize(
    "value",
    [
        *(None, 7, [], {"has_code": "x"}, {"commands": [7]}, {"commands": {}}, {"data": {"matches": -(2**70)}}),
        *({"data": {"samples": [{"head": 7}]}}, {"data": {"instead": [["x"]]}}, {"live_run": ["x"]}),
    ],
)
def test_malformed_job_facts_are_a_problem(value: Any) -> None:
    assert parse_job(Answer(value=value)) == JobFacts(problem="malformed reply")
    assert parse_job(Answer(value=value, error="no answer")) == JobFacts(problem="no answer")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
LINES = st.text(alphabet='0123456789,. [N/A]{}":-abcxyz\n', max_size=200)
ANSWERS = st.fixed_dictionaries(
    {},
    optional={"out": LINES | JSON, "err": LINES | JSON, "code": JSON, "value": JSON, "error": JSON, "absent": JSON},
)


@given(ANSWERS | JSON)
def test_parsers_never_raise(record: Any) -> None:
    for found in PARSERS:
        found.read(read_answers({found.question: record}))
    parse_job(read_answers({"train": record})["train"])


@given(st.dictionaries(st.sampled_from(["answers", "jobs", "now", "took_s"]), JSON))
def test_any_reply_is_read_or_malformed(result: dict[str, Any]) -> None:
    try:
        reply = from_json(FactsReply, result, longest=None)
    except Malformed:
        return
    assert isinstance(read_facts(reply, read_clock(reply, 0.0, 1.0)), BoxFacts)
