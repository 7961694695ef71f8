"""Text from a box is cleaned before it is shown: it cannot move the cursor, reverse a line or hide in it."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.text import clean, duration, log_text

TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
UNSEEN = "\u00ad\u034f\u115f\u1160\u180e\u200b\u200c\u200d\u2028\u2029\u2060\u2064\u206f\u3164\ufeff\uffa0\ufffb"
TAGS = "\U000e0001\U000e0041\U000e007f"
HOSTILE = TURNING + UNSEEN + TAGS + "\x00\x07\x1b\x7f\x85\x9b\ud800\udcff"
PLAIN = "loss 0.5 \t 75 % é ß € 漢字 かな עברית عربي 👍 ⚠️ █▉▊ a\u0301 \u00a0\u3000"

some_text = st.text() | st.text(st.sampled_from(HOSTILE + "ab \n\t\r"))


def hidden(text: str) -> str:
    """Return the characters of `text` that a reader cannot see as they are."""
    turned = [one for one in text if unicodedata.bidirectional(one) in {"LRE", "RLE", "LRO", "RLO", "PDF"}]
    return "".join(turned + [one for one in text if unicodedata.category(one) in {"Cc", "Cf", "Cs", "Zl", "Zp"}])


@given(some_text)
def test_cleaned_line_is_one_line_without_hidden_characters(text: str) -> None:
    shown = clean(text)
    assert hidden(shown.replace("\t", "")) == ""
    shown.encode()  # can be encoded
    assert clean(shown) == shown


@given(st.text(st.characters(categories=["Lu", "Ll", "Mc", "Nd", "P", "S", "Zs"])))
def test_visible_text_is_unchanged(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize("character", list(HOSTILE), ids=[f"{ord(one):04x}" for one in HOSTILE])
def test_hidden_character_becomes_its_code_point(character: str) -> None:
    code = ord(character)
    number = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    assert clean(f"a{character}b") == f"a{number}b"


def test_name_that_imitates_another_is_made_visible() -> None:
    assert clean("model\u202etp.exe") == "model\\u202etp.exe"
    assert clean("pass\u200bed") == "pass\\u200bed"


def test_text_of_any_language_is_unchanged() -> None:
    assert clean(PLAIN) == PLAIN
    assert log_text(PLAIN.encode()) == PLAIN


@given(st.binary(max_size=100) | some_text.map(lambda text: text.encode("utf-8", "replace")))
def test_log_on_a_terminal_has_no_hidden_characters_but_newlines_and_tabs(lines: bytes) -> None:
    assert hidden(re.sub(r"[\n\t]", "", log_text(lines))) == ""


def test_colours_of_a_log_are_removed_and_other_sequences_are_shown() -> None:
    lines = b"\x1b[1;32mok\x1b[0m\x1b[K\r\n\x1b[?25l\x1b[2J\x1b]0;title\x07 \xff"
    assert log_text(lines) == "ok\n\\x1b[2J\\x1b]0;title\\x07 \\xff"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (42.4, "42 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (12 * 60, "12 min"),
        (3569, "59 min"),
        (3571, "1 h"),
        (3600, "1 h"),
        (3900, "1 h 5 min"),
        (2 * 3600, "2 h"),
        (24 * 3600, "24 h"),
        (72 * 3600 - 31, "71 h 59 min"),
        (72 * 3600, "3 days"),
        (76.4 * 3600, "3 days 4 h"),
        (10**7, "115 days 18 h"),
    ],
)
def test_duration_names_each_unit(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
