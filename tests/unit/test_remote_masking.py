from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from remote.masking import SHORTEST, Mask, mask_text, patterns

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hunter2-and+more/€"
NAMES = st.sampled_from(["TOKEN", "KEY", "aa", "B", "PASSWORD"])
VALUES = st.text("ab*\n é", max_size=9) | st.text("aAbB*#~", max_size=9) | st.text(max_size=9)
MARK = rb"[^\w\s]{3}[A-Za-z]*[^\w\s]{3}"
SECRETS = st.dictionaries(NAMES, VALUES, max_size=3)


@st.composite
def streams(draw: st.DrawFn) -> tuple[dict[str, str], list[bytes]]:
    """Secrets, and chunks of a text that is likely to hold them, parts of them, and their encodings."""
    secrets = draw(SECRETS)
    forms = [*patterns(secrets)]
    pieces = st.binary(max_size=4) | st.sampled_from([b"a", b"b", b"*", b"\n"])
    if forms:
        whole = st.sampled_from(forms)
        pieces |= whole | st.builds(lambda form, cut: form[:cut], whole, st.integers(1, 8))
        pieces |= st.builds(lambda form, cut: form[cut:], whole, st.integers(1, 8))
    text = b"".join(draw(st.lists(pieces, max_size=8)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return secrets, [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def masked(secrets: dict[str, str], *chunks: bytes) -> bytes:
    mask = Mask(secrets)
    return b"".join([*map(mask.feed, chunks), mask.flush()])


def runs_of(text: bytes, forms: list[bytes]) -> list[bytes]:
    """What is left of `text` between the secrets in it, found byte by byte."""
    hidden = [False] * (len(text) + 1)
    joined = [False] * (len(text) + 1)  # to the byte before, by one and the same secret
    for at in range(len(text)):
        for form in forms:
            if text.startswith(form, at):
                for place in range(at, at + len(form)):
                    hidden[place] = True
                    joined[place] = joined[place] or place > at
    runs, start = [], 0
    for at in range(len(text)):
        if hidden[at] and not joined[at]:
            runs.append(text[start:at])
        if hidden[at]:
            start = at + 1
    return [*runs, text[start:]]


# --- for any secrets, text and chunks -------------------------------------------------------------------


@given(streams())
@example(({"A": "abcd", "B": "cdef", "C": "abcdefgh"}, [b"abc", b"def", b"abcd", b"efg"]))
@example(({"A": "abcd"}, [b"abcdab", b"cdabc"]))
@example(({"A": "aaaa"}, [b"aa", b"aaa", b"aaab"]))
@example(({"****": "****", "A": "####"}, [b"***", b"*", b"###*##"]))
def test_chunks_change_nothing_and_no_secret_comes_through(case: tuple[dict[str, str], list[bytes]]) -> None:
    secrets, chunks = case
    text = b"".join(chunks)
    whole = masked(secrets, text)
    assert masked(secrets, *chunks) == whole
    for form in patterns(secrets):
        assert form not in whole
    for value in secrets.values():
        if len(value.strip()) >= SHORTEST:
            assert value.encode() not in whole


@given(streams())
@example(({"A": "abcd", "B": "cdef"}, [b"xabcdefabcdabcdx"]))
@example(({"A": "abcdefgh", "B": "cdef"}, [b"xabcdefghx"]))
def test_what_is_no_secret_comes_through_unchanged(case: tuple[dict[str, str], list[bytes]]) -> None:
    secrets, chunks = case
    runs = runs_of(b"".join(chunks), [*patterns(secrets)])
    assert re.fullmatch(MARK.join(map(re.escape, runs)), masked(secrets, *chunks))


@given(streams())
def test_nothing_is_held_back_that_cannot_begin_a_secret(case: tuple[dict[str, str], list[bytes]]) -> None:
    secrets, chunks = case
    forms = [*patterns(secrets)]
    mask = Mask(secrets)
    text = out = b""
    for chunk in chunks:
        text += chunk
        out += mask.feed(chunk)
        begun = max((size for form in forms for size in range(len(form)) if text.endswith(form[:size])), default=0)
        assert mask.held <= begun < max(map(len, forms), default=1)
        if not any(form in text for form in forms):
            assert text[: len(text) - begun] == out


# --- what is looked for ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    [
        TOKEN,
        base64.b64encode(TOKEN.encode()).decode(),
        base64.b64encode(TOKEN.encode()).decode().rstrip("="),
        base64.urlsafe_b64encode(TOKEN.encode()).decode(),
        quote(TOKEN),
        quote(TOKEN, safe=""),
        quote_plus(TOKEN),
        quote(TOKEN, safe="").replace("%2F", "%2f").replace("%2B", "%2b").replace("%E2%82%AC", "%e2%82%ac"),
        json.dumps(TOKEN)[1:-1],
        repr(TOKEN.encode())[2:-1],
    ],
)
def test_a_secret_is_found_however_it_is_written(shown: str) -> None:
    assert masked({"TOKEN": TOKEN}, f"x={shown};".encode()).replace(b"=", b"").rstrip(b";") == b"x***TOKEN***"


@pytest.mark.parametrize("user", ["u", "me", "you", "them"])
def test_a_secret_is_found_inside_a_longer_base64(user: str) -> None:
    said = masked({"TOKEN": TOKEN}, b"Basic " + base64.b64encode(f"{user}:{TOKEN}/x".encode()))
    assert b"***TOKEN***" in said
    assert TOKEN.encode()[3:-3] not in base64.b64decode(said.split(b"***")[-1] + b"==") or said.endswith(b"***")


@pytest.mark.parametrize(
    "value", ['a "quoted" one', "a\\back\\slash", "two\nlines of it", "it's", 'it\'s "both"', "tab\there"]
)
def test_an_escaped_secret_is_found(value: str) -> None:
    secrets = {"KEY": value}
    assert mask_text(json.dumps({"key": value}), secrets) == '{"key": "***KEY***"}'
    assert mask_text(repr(ValueError(value)), secrets)[12:-2] == "***KEY***"


def test_each_line_of_a_key_is_found() -> None:
    key = "-----BEGIN KEY-----\nMIIEowIBAAKCAQEA\nq83vEjRWeJCrze8S\n-----END KEY-----\n"
    assert mask_text("key: MIIEowIBAAKCAQEA!", {"KEY": key}) == "key: ***KEY***!"
    assert mask_text(f"[{key.strip()}]", {"KEY": key}) == "[***KEY***]"


def test_a_value_that_is_too_short_is_left_alone() -> None:
    assert mask_text("a yes and a 1 and   ", {"A": "yes", "B": "1", "C": "", "D": "    "}) == "a yes and a 1 and   "


def test_the_longer_of_two_is_named() -> None:
    secrets = {"PASSWORD": "hunter2", "URL": "postgres://me:hunter2@db"}
    assert mask_text("hunter2 postgres://me:hunter2@db", secrets) == "***PASSWORD*** ***URL***"


def test_a_name_that_is_a_secret_is_not_said() -> None:
    assert mask_text("my TOKEN", {"TOKEN": "TOKEN"}) == "my ******"


def test_text_that_is_no_unicode_is_masked() -> None:
    assert mask_text("\udcff \ud800 hunter2", {"KEY": "hunter2", "ODD": "\ud800\ud800\ud800\ud800"}).endswith(
        "***KEY***"
    )
