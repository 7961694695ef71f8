from __future__ import annotations

import base64
import html
import json
import quopri
import re
import shlex
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from html.entities import codepoint2name
from itertools import pairwise
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remote.contract.masking import BREAKS, IGNORED, LONG, Mask, fold, mask_text
from remote.contract.secret_forms import SHORTEST, patterns

TOKEN = "hunter2-and+more/€"
LONG_TOKEN = "hf_" + "qLmZxkVjWrTbYcNpDsGhAeUoIfKzQwXtRv+and/more-of_it"
NAMES = st.sampled_from(["TOKEN", "KEY", "aa", "B", "PASSWORD"])
VALUES = st.text("ab*\n é", max_size=9) | st.text("aAbB*#~", max_size=9) | st.text(max_size=9)
SECRETS = st.dictionaries(NAMES, VALUES, max_size=3)


@st.composite
def streams(draw: st.DrawFn) -> tuple[dict[str, str], list[bytes]]:
    """Draw secrets, and chunks of a text that is likely to contain them, parts of them and their encodings."""
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


def forms_of(secrets: dict[str, str]) -> tuple[list[bytes], list[bytes]]:
    """Return the forms that are searched unchanged, and those that are searched folded."""
    forms = [*patterns(secrets)]
    return [form for form in forms if len(fold(form)) < LONG], [fold(form) for form in forms if len(fold(form)) >= LONG]


def first_kept(text: bytes, count: int) -> bytes:
    """Return the beginning of `text`, up to its `count`th byte that is not ignored."""
    at = 0
    while at < len(text) and count:
        count -= text[at] not in IGNORED
        at += 1
    return text[:at]


def holds(text: bytes, secrets: dict[str, str]) -> bool:
    """Return whether `text` contains a form, wrapped or not. A form with an early line break must begin a line."""
    short, long = forms_of(secrets)
    if any(form in text for form in short):
        return True
    for at in range(len(text)):
        if text[at] not in IGNORED and fold(text[at:]).startswith(tuple(long)):
            begins_line = not text[:at].strip(IGNORED) or re.search(rb"[\r\n][ \t\\\"'=\0\r\n]*\Z", text[:at])
            if begins_line or not re.search(rb"[\r\n]", first_kept(text[at:], 4)):
                return True
    return False


# --- any secrets, text and chunks -----------------------------------------------------------------------


@given(streams())
@example(({"A": "abcd", "B": "cdef", "C": "abcdefgh"}, [b"abc", b"def", b"abcd", b"efg"]))
@example(({"A": "abcd"}, [b"abcdab", b"cdabc"]))
@example(({"A": "aaaa"}, [b"aa", b"aaa", b"aaab"]))
@example(({"****": "****", "A": "####"}, [b"***", b"*", b"###*##"]))
@example(({"A": "abcdefghijkl"}, [b"abcdef\n", b"  ghi", b"jkl"]))
@example(({"A": "abcdefghijkl"}, [b"\na\n", b"b\nc\ndefghijk", b"\nlx"]))
@example(({"A": "abcdefghijklmn"}, [b"xab", b"\ncdef", b"ghijklmnx"]))
@settings(max_examples=100, deadline=None)
def test_secrets_are_masked_for_any_chunks(case: tuple[dict[str, str], list[bytes]]) -> None:
    secrets, chunks = case
    text = b"".join(chunks)
    whole = masked(secrets, text)
    assert masked(secrets, *chunks) == whole
    assert not holds(whole, secrets)
    for value in secrets.values():
        if len(value.strip()) >= SHORTEST and not re.search(r"[\r\n]", value.strip()[:8]):
            assert value.encode() not in whole


@given(streams())
@settings(max_examples=100, deadline=None)
def test_text_without_a_secret_is_unchanged(case: tuple[dict[str, str], list[bytes]]) -> None:
    secrets, chunks = case
    text = b"".join(chunks)
    short, long = forms_of(secrets)
    if not any(form in text for form in short) and not any(form[3:] in fold(text) for form in long):
        assert masked(secrets, *chunks) == text


@given(st.text("abcdefgh0123+/-", min_size=12, max_size=20), st.binary(max_size=20), st.binary(max_size=20))
def test_text_around_a_secret_is_unchanged(value: str, before: bytes, after: bytes) -> None:
    said = masked({"KEY": value}, before + b" <" + value.encode() + b"> " + after)
    assert said.startswith(before + b" <") and said.endswith(b"> " + after)
    assert said.count(b"KEY") == 1 + before.count(b"KEY") + after.count(b"KEY")


@given(streams())
@example(({"TOKEN": "aa\na"}, [b"aa\\na"]))  # an escaped line break between the first bytes of a form
@settings(deadline=None)
def test_only_possible_starts_of_secrets_are_held_back(case: tuple[dict[str, str], list[bytes]]) -> None:
    secrets, chunks = case
    short, long = forms_of(secrets)
    mask = Mask(secrets)
    text = b""
    for chunk in chunks:
        text += chunk
        mask.feed(chunk)
        held = text[len(text) - mask.held :]
        begins = tuple({form[skipped:] for form in long for skipped in range(4)})
        readings = (fold(held), fold(BREAKS.sub(b" ", held)))
        is_beginning = any(form.startswith(held) for form in short) or any(form.startswith(readings) for form in begins)
        assert not held or is_beginning


def test_complete_line_is_not_held_back() -> None:
    """Its last byte may be the first byte of some form, and the next line may come an hour later."""
    mask = Mask({"KEY": TOKEN})
    line = b"abcdefghijklmnopqrstuvwxyz0123456789"
    for end in range(1, len(line)):
        assert mask.feed(line[:end] + b" the end\n") == line[:end] + b" the end\n"
        assert mask.feed(b"so: " + line[end - 1 : end] + b"\r\n") == b"so: " + line[end - 1 : end] + b"\r\n"


def test_held_bytes_are_bounded() -> None:
    mask = Mask({"KEY": TOKEN})
    out = mask.feed(TOKEN[:12].encode())
    for _ in range(100):
        out += mask.feed(b" " * 1000 + b"\n" * 1000)
        assert mask.held < 20_000
    assert out + mask.flush() == TOKEN[:12].encode() + (b" " * 1000 + b"\n" * 1000) * 100


@pytest.mark.parametrize(
    "text", [b"a" * 300_000, b"-" * 300_000, b"aaab" * 70_000, b"\\" * 300_000, b"\x1b[" * 100_000]
)
def test_search_is_fast_for_any_text(text: bytes) -> None:
    """A search that is not linear would take minutes and exceed the time limit of a test."""
    secrets = {"A": "a" * 40 + "b", "B": "-----BEGIN KEY-----\n" + "aaab" * 16 + "\n-----END KEY-----\n"}
    chunks = [text[at : at + 65536] for at in range(0, len(text), 65536)]
    assert len(masked(secrets, *chunks)) > 0


# --- encodings, wrapped and cut ------------------------------------------------------------------------

LETTERS = st.sampled_from("abcdefghijklmnopqrstuvwxyzABCDXYZ0123456789-_.+/$&<>%@ \"'\\äéß€Ω日😀")
LONG_VALUES = st.text(LETTERS, min_size=14, max_size=40).filter(lambda value: len(value.strip()) == len(value))


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def per_char(write: Callable[[str], str]) -> Callable[[str], str]:
    return lambda value: "".join(char if char.isascii() else write(char) for char in value)


def _bash_quoted(value: str) -> str:
    done = subprocess.run(["bash", "-c", 'printf %q "$1"', "-", value], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "surrogateescape")


ENCODINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "composed": lambda value: unicodedata.normalize("NFC", value),
    "decomposed": lambda value: unicodedata.normalize("NFD", value),
    "base64": lambda value: _b64(value.encode()),
    "base64 inside": lambda value: _b64(f"user:{value}@host".encode()),
    "base64 for URLs": lambda value: base64.urlsafe_b64encode(value.encode()).decode(),
    "base64 of base64": lambda value: _b64(b"x" + base64.b64encode(value.encode())),
    "base32": lambda value: base64.b32encode(value.encode()).decode(),
    "base32 inside": lambda value: base64.b32encode(f"u:{value}".encode()).decode(),
    "hex": lambda value: value.encode().hex(),
    "HEX": lambda value: value.encode().hex().upper(),
    "hex with colons": lambda value: value.encode().hex(":"),
    "hex with spaces": lambda value: value.encode().hex(" "),
    "hex escapes": lambda value: "".join(f"\\x{byte:02X}" for byte in value.encode()),
    "JSON": json.dumps,
    "JSON in upper case": lambda value: re.sub(
        r"\\u....", lambda found: "\\u" + found[0][2:].upper(), json.dumps(value)
    ),
    "JSON, not only ASCII": lambda value: json.dumps(value, ensure_ascii=False),
    "JSON in JSON": lambda value: json.dumps(json.dumps({"key": value})),
    "JSON in JSON in JSON": lambda value: json.dumps(json.dumps(json.dumps(value))),
    "repr": repr,
    "ascii": ascii,
    "repr of bytes": lambda value: repr(value.encode()),
    "braces": per_char(lambda char: f"\\u{{{ord(char):X}}}"),
    "octal": lambda value: "".join(f"\\{byte:03o}" if byte > 127 else chr(byte) for byte in value.encode()),
    "percent": lambda value: quote(value, safe=""),
    "percent in lower case": lambda value: re.sub("%..", lambda found: found[0].lower(), quote(value, safe="")),
    "percent of a path": quote,
    "percent of a form": quote_plus,
    "percent of percent": lambda value: quote(quote(value, safe=""), safe=""),
    "encodeURIComponent": lambda value: quote(value, safe="-_.!~*'()"),
    "percent of every byte": lambda value: "".join(f"%{byte:02X}" for byte in value.encode()),
    "HTML": html.escape,
    "HTML by number": lambda value: html.escape(value).encode("ascii", "xmlcharrefreplace").decode(),
    "HTML by hex number": lambda value: per_char(lambda char: f"&#x{ord(char):X};")(html.escape(value)),
    "HTML by name": lambda value: per_char(
        lambda char: f"&{codepoint2name[ord(char)]};" if ord(char) in codepoint2name else char
    )(html.escape(value)),
    "quoted-printable": lambda value: quopri.encodestring(value.encode()).decode(),
    "shell": shlex.quote,
    "shell, printf %q": _bash_quoted,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(value=LONG_VALUES, cuts=st.lists(st.integers(0, 400), max_size=5))
@settings(max_examples=12, deadline=None)
def test_encoded_secrets_are_masked(encoding: str, value: str, cuts: list[int]) -> None:
    encoded = ENCODINGS[encoding](value)
    text = f"before {encoded} after".encode("utf-8", "surrogateescape")
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    said = masked({"KEY": value}, *(text[start:end] for start, end in pairwise(edges)))
    assert said == masked({"KEY": value}, text)
    assert b"KEY" in said
    assert encoded.strip("'\"=\\\n $").encode("utf-8", "surrogateescape") not in said


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\n    ", "\\n", "\\r\\n", "\\\\n"])
@pytest.mark.parametrize("encoding", ["as it is", "base64", "base64 inside", "base32", "hex", "percent", "JSON"])
@given(
    value=LONG_VALUES,
    width=st.sampled_from([1, 2, 3, 4, 5, 7, 16, 60, 64, 76]),
    before=st.integers(0, 5),
    cut=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_wrapped_encodings_are_masked(
    encoding: str, line_end: str, value: str, width: int, before: int, cut: int
) -> None:
    encoded = "".join(ENCODINGS[encoding](value).split())
    if "\\" in line_end and "\\" in encoded:
        return  # the line cannot be decoded in one way only
    text = "x" * before + encoded
    wrapped = line_end.join(text[at : at + width] for at in range(0, len(text), width)).encode()
    said = masked({"KEY": value}, b"so:\n" + wrapped[:cut], wrapped[cut:] + b"\nthe end")
    assert b"KEY" in said
    assert wrapped not in said
    kept = re.sub(rb"\\+(r\\+)?n", b"", said)
    assert fold(encoded.encode()) not in fold(kept)


@pytest.mark.parametrize(
    "command", ["base64 -w {width}", "xxd -p -c 20", "openssl base64", "base32 -w {width}", "od -An -v -tx1 -w{width}"]
)
@pytest.mark.parametrize("width", [1, 3, 16, 76])
def test_output_of_common_programs_is_masked(command: str, width: int) -> None:
    words = command.format(width=width).split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    printed = subprocess.run(words, input=LONG_TOKEN.encode(), capture_output=True, check=True).stdout
    said = masked({"TOKEN": LONG_TOKEN}, b"$ run\n" + printed + b"done\n")
    assert said.startswith(b"$ run\n") and said.endswith(b"\ndone\n")
    assert re.fullmatch(rb"\s*\*\*\*TOKEN\*\*\*[=\s]*\S{0,4}[=\s]*", said[6:-5])


def test_secret_with_colour_codes_in_it_is_found() -> None:
    assert (
        mask_text("so: \x1b[31mhunter2-\x1b[1;32mand+more/€\x1b[0m!", {"KEY": TOKEN}) == "so: \x1b[31m***KEY***\x1b[0m!"
    )
    cut = TOKEN[:7].encode() + b"\x1b[3", b"1m" + TOKEN[7:].encode()
    assert masked({"KEY": TOKEN}, *cut) == b"***KEY***"


@pytest.mark.parametrize("charset", ["latin-1", "utf-16-le", "utf-16-be", "utf-16"])
def test_secret_in_another_charset_is_found(charset: str) -> None:
    value = "pässword-of-mine"
    said = masked({"KEY": value}, b"<" + value.encode(charset) + b">")
    assert said.strip(b"<>\0\xff\xfe") == b"***KEY***"


# --- search patterns ------------------------------------------------------------------------------------


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
        json.dumps(TOKEN)[1:-1].replace("\\u20ac", "\\u20AC"),
        repr(TOKEN.encode())[2:-1],
    ],
)
def test_secret_is_found_in_any_spelling(shown: str) -> None:
    assert masked({"TOKEN": TOKEN}, f"x={shown};".encode()).replace(b"=", b"").rstrip(b";") == b"x***TOKEN***"


@pytest.mark.parametrize("user", ["u", "me", "you", "them"])
def test_secret_inside_longer_base64_is_found(user: str) -> None:
    said = masked({"TOKEN": TOKEN}, b"Basic " + base64.b64encode(f"{user}:{TOKEN}/x".encode()))
    assert b"***TOKEN***" in said
    assert TOKEN.encode()[3:-3] not in base64.b64decode(said.split(b"***")[-1] + b"==") or said.endswith(b"***")


@pytest.mark.parametrize(
    "value", ['a "quoted" one', "a\\back\\slash", "two\nlines of it", "it's", 'it\'s "both"', "tab\there"]
)
def test_escaped_secret_is_found(value: str) -> None:
    secrets = {"KEY": value}
    assert json.loads(mask_text(json.dumps({"key": value}), secrets))["key"].rstrip('"') == "***KEY***"
    assert mask_text(repr(ValueError(value)), secrets)[12:-2].rstrip("'\"\\") == "***KEY***"


def test_each_line_of_a_key_is_found() -> None:
    key = "-----BEGIN KEY-----\nMIIEowIBAAKCAQEA\nq83vEjRWeJCrze8S\n-----END KEY-----\n"
    assert mask_text("key: MIIEowIBAAKCAQEA!", {"KEY": key}) == "key: ***KEY***!"
    assert mask_text(f"[{key.strip()}]", {"KEY": key}) == "[***KEY***]"


@pytest.mark.timeout(60)
def test_patterns_of_a_long_value_take_linear_time() -> None:
    """If the work grew with each pair of forms, it would take minutes and exceed the time limit."""
    lines = [f"line {number:05d} of a value" for number in range(500)]
    assert mask_text(f"so: {lines[77]}!", {"KEY": "\n".join(lines)}) == "so: ***KEY***!"


def test_short_value_is_not_masked() -> None:
    assert mask_text("a yes and a 1 and   ", {"A": "yes", "B": "1", "C": "", "D": "    "}) == "a yes and a 1 and   "


def test_longer_of_two_overlapping_secrets_is_named() -> None:
    secrets = {"PASSWORD": "hunter2", "URL": "postgres://me:hunter2@db"}
    assert mask_text("hunter2 postgres://me:hunter2@db", secrets) == "***PASSWORD*** ***URL***"


def test_name_that_contains_a_secret_is_not_shown() -> None:
    assert mask_text("my TOKEN", {"TOKEN": "TOKEN"}) == "my ******"


def test_text_that_is_not_unicode_is_masked() -> None:
    assert mask_text("\udcff \ud800 hunter2", {"KEY": "hunter2", "ODD": "\ud800\ud800\ud800\ud800"}).endswith(
        "***KEY***"
    )
