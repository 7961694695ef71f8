"""The files of a run are requested in pages; an endless list is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.box.client import Box
from orchestrator.box.inventory import MAX_LEFT_OUT, Inventory
from orchestrator.errors import AgentUnusable, OrchError
from remote.contract.requests import Request, Where
from tests.canned_box import CannedTransport

RUN_ID = "20260101T000000-0001"
PATH = f"/there/train/{RUN_ID}"
REPORT = {"job": "train", "run_id": RUN_ID}


class Pages(CannedTransport):
    """A box that answers each request with the next of `pages`, then always with the last."""

    def __init__(self, *pages: Mapping[str, Any]) -> None:
        self.pages, self.asked = list(pages), []  # type: ignore[var-annotated]

    def call(self, request: Request) -> dict[str, Any]:
        self.asked.append(request.what.after)
        page = self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]
        return {"runs": [{"page": {"path": PATH, "report": REPORT, "left_out": [], "next": None, **page}}]}


def listed(*pages: Mapping[str, Any]) -> Inventory:
    return inventory_of(Pages(*pages))


def inventory_of(pages: Pages) -> Inventory:
    [(name, found)] = Box(pages, Where("r", "p")).inventories([("train", RUN_ID)])
    assert name == ("train", RUN_ID)
    if isinstance(found, OrchError):
        raise found
    return found


def test_pages_are_requested_until_the_last() -> None:
    box = Pages({"files": [["a", 1]], "next": "a"}, {"files": [["b", 2]], "left_out": [["c", "a FIFO"]]})

    found = inventory_of(box)

    assert box.asked == [None, "a"]
    assert (found.path, dict(found.files), found.left_out) == (PATH, {"a": 1, "b": 2}, (("c", "a FIFO"),))


@pytest.mark.parametrize(
    "page",
    [
        {"files": [["a", 1]], "next": "a"},  # the same page forever
        {"files": [], "next": "z"},
        {"files": [], "left_out": [["x", "y"]] * 10, "next": "z"},
    ],
)
def test_list_that_never_ends_is_an_error(page: Mapping[str, Any]) -> None:
    with pytest.raises(AgentUnusable, match="does not end"):
        listed(page)


@pytest.mark.parametrize("path", ["", "/there", PATH[1:], "/x\x1b[2J" + PATH, "/x\ny" + PATH, f"{PATH}/"])
def test_location_that_is_not_a_plain_path_is_an_error(path: Any) -> None:
    with pytest.raises(AgentUnusable, match="no valid directory of the run"):
        listed({"files": [], "path": path})


@pytest.mark.parametrize(("key", "value"), [("path", None), ("path", 7), ("next", 7), ("files", {})])
def test_malformed_page_is_an_error_that_names_the_field(key: str, value: Any) -> None:
    with pytest.raises(AgentUnusable, match=f"malformed reply: `{key}` must be"):
        listed({"files": [], key: value})


def test_answer_about_another_run_is_an_error() -> None:
    with pytest.raises(AgentUnusable, match="the reply is about other"):
        listed({"files": [], "report": {"job": "other", "run_id": RUN_ID}})


def test_list_of_skipped_files_is_limited() -> None:
    found = listed({"files": [["a", 1]], "left_out": [["x" * 10_000, "\x1b[2J" * 1000]] * 2000})

    assert len(found.left_out) == MAX_LEFT_OUT
    assert all(len(name) <= 4096 and len(reason) <= 200 and reason.isprintable() for name, reason in found.left_out)


def test_run_that_ends_between_two_pages_is_not_complete() -> None:
    running = {**REPORT, "state": {"state": "running", "since": 1.0, "attempt": 1, "pid": 2}}
    ended = {**REPORT, "state": {"state": "succeeded", "since": 2.0}}

    found = listed({"files": [["a", 1]], "next": "a", "report": running}, {"files": [["b", 1]], "report": ended})

    assert not found.report.has_ended  # a file made after the first page may be in neither


# --- several runs -----------------------------------------------------------------------------------------

RUNS = [("train", f"20260101T000000-000{number}") for number in range(4)]


def entry(run: tuple[str, str], *names: str, **page: Any) -> dict[str, Any]:
    path, report = "/there/" + "/".join(run), {"job": run[0], "run_id": run[1]}
    return {"page": {"path": path, "report": report, "files": [[name, 1] for name in names], **page}}


class Replies(CannedTransport):
    """A box that answers each request with the next of `replies`, each a list of entries."""

    def __init__(self, *replies: list[Any]) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[list[str], str | None]] = []

    def call(self, request: Request) -> dict[str, Any]:
        self.asked.append(([run_id[-1] for _, run_id in request.what.runs], request.what.after))
        return {"runs": self.replies.pop(0)}

    def found(self) -> dict[str, Any]:
        listed = Box(self, Where("r", "p")).inventories(RUNS)
        return {name[1][-1]: one if isinstance(one, OrchError) else sorted(one.files) for name, one in listed}


def test_runs_that_do_not_fit_into_a_reply_are_requested_again() -> None:
    first = [entry(RUNS[0], "a"), entry(RUNS[1], "b", next="b")]
    box = Replies(first, [entry(RUNS[1], "c"), entry(RUNS[2])], [entry(RUNS[3], "d")])
    assert box.found() == {"0": ["a"], "1": ["b", "c"], "2": [], "3": ["d"]}
    assert box.asked == [(["0", "1", "2", "3"], None), (["1", "2", "3"], "b"), (["3"], None)]


def test_error_of_one_run_does_not_hide_the_others() -> None:
    refused = {"error": {"code": "no_run", "message": "gone", "hint": "none"}}
    box = Replies([refused, {"page": 7}, entry(RUNS[3], "not its own"), entry(RUNS[3], "d")])
    found = box.found()
    assert found["0"].message == "box: gone"
    assert "malformed reply" in found["1"].message
    assert f"the reply is about train {RUNS[3][1]}" in found["2"].message
    assert found["3"] == ["d"]


@pytest.mark.parametrize("count", [0, 5])
def test_reply_about_no_run_or_too_many_is_an_error(count: int) -> None:
    with pytest.raises(AgentUnusable, match=f"the reply lists {count} runs"):
        Replies([entry(RUNS[0])] * count).found()


def test_runs_are_requested_only_when_they_are_needed() -> None:
    box = Replies([entry(RUNS[0], "a")], [entry(RUNS[1], "b")])
    listed = Box(box, Where("r", "p")).inventories(RUNS)
    next(listed)
    assert len(box.asked) == 1
