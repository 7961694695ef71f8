"""Every parser of other programs' output, on any input: a value or an error of orch, never a crash.

Reports, replies and frames are in test_untrusted.py, facts of a box in unit/orchestrator/box/test_probe.py, files of
a run in unit/remote/contract/.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.box.client import LaunchAnswer, LogPiece
from orchestrator.box.inventory import read_page
from orchestrator.checks.rehearsal import cause
from orchestrator.code.git import PATCH_LIMIT, readable_patch
from orchestrator.errors import AgentUnusable, SpecError
from orchestrator.spec.values import check_ssh
from orchestrator.ssh.command import last_line
from orchestrator.ssh.config import Destination
from orchestrator.ssh.endpoint import Endpoint, endpoint_of, parse_options, split_paths
from orchestrator.ssh.known_hosts import parse_known_keys
from remote.contract.launches import LaunchRequest, RunEntry
from remote.contract.protocol import Failed
from remote.contract.replies import InventoryReply
from remote.contract.run_record import CodeRecord, HostRecord, JobRecord
from remote.contract.schema import Malformed, from_json
from tests.canned_box import box_with
from tests.contract.test_untrusted import GOOD, values
from tests.unit.orchestrator.checks.test_rehearsal import ended

JOB, RUN_ID = GOOD["job"], GOOD["run_id"]


def launch(answer: dict[str, Any], rehearsed: dict[str, str]) -> LaunchAnswer:
    entry = RunEntry(RUN_ID, JobRecord(JOB))
    request = LaunchRequest(HostRecord(), CodeRecord("0" * 64), (entry,), rehearsed=rehearsed)
    return box_with(answer).launch(request)


# --- the inventory ---------------------------------------------------------------------------------------

names = st.text(st.sampled_from("./a\\-*\0\n\ud800"), max_size=8) | st.text(max_size=8)
files = st.lists(st.tuples(names, st.integers(-1, 10)).map(list) | values, max_size=4)


@given(files | values)
@example([["results/../../x", 1]])
@example([["a", True]])
@example([["a", -1]])
def test_any_listing_stays_inside_the_mirror_or_is_an_unusable_agent(said: Any) -> None:
    try:
        found, _ = read_page("box", from_json(InventoryReply, {"path": "/", "files": said}))
    except (AgentUnusable, Malformed) as error:
        assert isinstance(error, Malformed) or "invalid entry" in error.message
        return
    for name, size in found.items():
        path = PurePosixPath("/mirror") / name
        assert path.is_relative_to("/mirror") and ".." not in path.parts and "\0" not in name
        assert size >= 0


def test_page_keeps_regular_files_and_gives_reasons_for_the_others() -> None:
    page = InventoryReply(
        "/run",
        files=(["results/a", 1, 17], ["training.log", 0], ["results/x/.git/config", 3], ["supervisor.lock", 0]),
        left_out=(["results/link", "a symlink"], "results/pipe"),
    )

    files, left_out = read_page("box", page)

    assert files == {"results/a": 1, "training.log": 0}
    assert left_out == [
        ("results/x/.git/config", "a git repository: it could run programs here"),
        ("results/link", "a symlink"),
        ("results/pipe", "not a regular file"),
    ]


# --- a launch, and the log -------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from(["have_code", "unrehearsed", "runs"]), values))
@example({"have_code": True, "unrehearsed": 7})
@example({"have_code": True, "unrehearsed": ["another"]})
@example({"have_code": True, "runs": []})
@example({"have_code": True, "runs": [GOOD, GOOD]})
def test_any_answer_to_a_launch_is_about_its_runs_or_an_unusable_agent(result: dict[str, Any]) -> None:
    try:
        answer = launch(result, {JOB: "key"})
    except AgentUnusable:
        return
    assert answer.unrehearsed == (GOOD["job"],) or len(answer.runs) == 1


def test_valid_launch_answer_is_read() -> None:
    assert launch({"have_code": True, "unrehearsed": [JOB]}, {JOB: "key"}) == LaunchAnswer(unrehearsed=(JOB,))
    assert launch({"have_code": True, "runs": [GOOD]}, {}).runs[0].run_id == RUN_ID


@pytest.mark.parametrize("result", [{"have_code": False}, {"have_code": True, "unrehearsed": ["worker1"]}])
def test_repeated_demand_for_code_or_rehearsal_is_refused(result: dict[str, Any]) -> None:
    with pytest.raises(AgentUnusable):
        launch(result, {})


@given(st.dictionaries(st.sampled_from(["offset", "report"]), values), st.binary(max_size=4))
def test_any_log_frame_has_an_offset_or_is_an_unusable_agent(head: dict[str, Any], data: bytes) -> None:
    try:
        assert all(piece.offset >= 0 for piece in box_with(head, data).follow(JOB, RUN_ID))
    except AgentUnusable as error:
        assert len(error.message) < 300


def test_log_frame_becomes_a_log_piece() -> None:
    assert list(box_with({"offset": 7}, b"x").follow(JOB, None)) == [LogPiece(7, b"x")]


@given(
    st.text() | st.lists(st.sampled_from(["Traceback", "a.b: c", "ValueError", "Error", "", "\x1b[2J"])).map("\n".join)
)
def test_any_log_keeps_the_exit_code_in_the_cause(log: str) -> None:
    assert "exit code 1" in cause(ended(Failed(1.0, "exit", "exit code 1", 1)), log)


@given(st.binary(max_size=400))
@example(b"\xff\x00\x1b[2J" * 200)
def test_last_line_of_any_output_is_short_and_printable(said: bytes) -> None:
    line = last_line(said)
    assert 0 < len(line) <= 300
    assert not any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in line)


# --- ssh -G and known hosts ------------------------------------------------------------------------------

OPTIONS = [
    *("hostname", "port", "user", "proxyjump", "proxycommand", "identityfile", "identityagent", "identitiesonly"),
    *("userknownhostsfile", "globalknownhostsfile", "hostkeyalias", "connecttimeout", "serveraliveinterval"),
]
said_by_ssh = st.lists(
    st.tuples(st.sampled_from(OPTIONS), st.text(max_size=12) | st.sampled_from(["none", "22", "-1", "~/%h %d", "$X"]))
).map(lambda pairs: "\n".join(" ".join(pair) for pair in pairs))


@given(st.text() | said_by_ssh)
@example("port ten\nconnecttimeout none\nserveraliveinterval -1")
def test_any_ssh_configuration_output_is_an_endpoint(text: str) -> None:
    endpoint = endpoint_of("box", parse_options(text))
    assert isinstance(endpoint, Endpoint)
    assert endpoint.port > 0 and endpoint.silence_s >= 0
    assert str(endpoint)


@given(st.lists(st.text() | st.sampled_from(["@revoked * ssh-rsa AAAA", "@revoked", "h ssh-rsa AA=A", "# h", "h k é"])))
def test_any_known_hosts_line_is_a_key_or_skipped(lines: list[str]) -> None:
    found = parse_known_keys(("box",), lines)
    assert all(isinstance(key, bytes) for _, key in found.trusted)


@given(st.text(max_size=30))
def test_any_list_of_paths_keeps_its_words(text: str) -> None:
    assert " ".join(split_paths(text)).replace(" ", "") == text.replace(" ", "")


@given(st.text(max_size=30) | st.from_regex(r"(?:[a-z]{1,3}@)?[a-z\[\]:.%0-9]{1,12}(?::[0-9]{0,6})?", fullmatch=True))
def test_any_destination_is_valid_or_a_spec_error(text: str) -> None:
    try:
        found = Destination.parse(text)
    except SpecError:
        return
    assert found.host and not found.host.startswith("-")
    assert not (found.user or "").startswith("-")


@given(st.text(max_size=20))
def test_destination_accepted_by_jobs_toml_is_parsed(text: str) -> None:
    try:
        check_ssh(text)
    except ValueError:
        return
    assert Destination.parse(text).host


# --- git -------------------------------------------------------------------------------------------------

sections = st.lists(
    st.binary(max_size=40)
    | st.sampled_from([b"diff --git a/x b/x\n", b"-----BEGIN RSA PRIVATE KEY-----\n", b"+caf\xe9\n", b"\n"])
).map(b"".join)


@given(sections, st.lists(st.text(max_size=8), max_size=3))
def test_any_diff_fits_into_a_run_record(data: bytes, denied: list[str]) -> None:
    patch = readable_patch(data, denied)
    assert "PRIVATE KEY-----" not in patch.replace("".join(map(ascii, denied)), "")
    json.dumps(patch).encode("ascii")
    assert patch.count("# not in this patch, as it is withheld") >= len(denied)


def test_diff_that_is_too_long_is_reported() -> None:
    assert readable_patch(b"x" * (PATCH_LIMIT + 1), []).startswith("# no patch: it is longer than")
