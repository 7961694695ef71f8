"""Checksums that a box reports are read strictly, and requested until all files are answered."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.box import checksums
from orchestrator.box.checksums import Checksum
from orchestrator.box.client import Box
from orchestrator.errors import AgentUnusable
from remote.contract.requests import Request, Where
from tests.canned_box import CannedTransport, box_with

FILES = [("train", "20260101T000000-0001", name) for name in "abc"]
GOOD = [1, 2, "0" * 64]


class Replies(CannedTransport):
    def __init__(self, *replies: list[Any]) -> None:
        self.replies, self.asked = list(replies), []  # type: ignore[var-annotated]

    def call(self, request: Request) -> dict[str, Any]:
        self.asked.append([name for _, _, name in request.what.files])
        return {"files": self.replies.pop(0)}


def test_files_are_requested_until_all_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "MOST_FILES", 2)
    box = Replies([GOOD], [None, GOOD])
    found = Box(box, Where("r", "p")).checksums(FILES)
    assert found == {FILES[0]: Checksum(1, 2, "0" * 64), FILES[2]: Checksum(1, 2, "0" * 64)}
    assert box.asked == [["a", "b"], ["b", "c"]]


@pytest.mark.parametrize("entry", [7, [], [1, 2], [True, 2, "0" * 64], [1, 2.0, "0" * 64], [1, 2, "0" * 63 + "G"]])
def test_malformed_entry_is_an_error(entry: Any) -> None:
    with pytest.raises(AgentUnusable, match="malformed entry"):
        box_with({"files": [entry]}).checksums(FILES)


@pytest.mark.parametrize("count", [0, 4])
def test_reply_about_no_file_or_too_many_is_an_error(count: int) -> None:
    with pytest.raises(AgentUnusable, match=f"about {count} files"):
        box_with({"files": [GOOD] * count}).checksums(FILES)
