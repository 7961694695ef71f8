"""A request as a word of a command line."""

from __future__ import annotations

import re

import pytest

from remote.contract.entering import EnterRequest
from remote.contract.protocol import AgentError
from remote.contract.requests import Request, Where


@pytest.mark.parametrize("word", ["", "-l", "$HOME 'x' \"y\" `z` \\ \n", "\u00e9\U0001f600", "x" * 1000])
def test_word_has_only_characters_that_no_shell_changes(word: str) -> None:
    request = Request(EnterRequest("train", None, (word, "--", word)), Where("~/a b", "p"))
    assert re.fullmatch("[A-Za-z0-9_-]+", request.to_word())
    assert Request.from_word(request.to_word()) == request


@pytest.mark.parametrize("word", ["", "-", "enter", "e30", "a", "\u00e9", "bnVsbA", "W10"])
def test_word_without_a_request_is_refused(word: str) -> None:
    with pytest.raises(AgentError) as refused:
        Request.from_word(word)
    assert refused.value.code == "bad_request"
