from __future__ import annotations

import base64
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from remote.masking import SHORTEST, WITHHELD, Mask, mask_text, patterns
from tests.support import wait_until

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


# --- the process before the log -------------------------------------------------------------------------

Start = Callable[..., "subprocess.Popen[bytes]"]
CODE = f"""
import os, resource, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from remote.masking import pump
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
pump(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "training.log"


@pytest.fixture
def start(tmp_path: Path, log: Path) -> Iterator[Start]:
    secrets = tmp_path / "secrets.json"
    secrets.write_text(json.dumps({"TOKEN": TOKEN}))
    pumps: list[subprocess.Popen[bytes]] = []

    def begin(limit: int = 0, log: Path = log, secrets: Path = secrets) -> subprocess.Popen[bytes]:
        """A pump at work; it cannot make the log longer than `limit` bytes."""
        argv = [sys.executable, "-I", "-S", "-c", CODE, str(log), str(secrets), str(limit)]
        pumps.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True))
        return pumps[-1]

    yield begin
    for process in pumps:
        process.kill()
        process.communicate()


def say(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def finish(process: subprocess.Popen[bytes]) -> None:
    assert process.communicate(timeout=30) == (None, b"")
    assert process.returncode == 0


def test_the_pump_appends_what_it_reads_and_masks_secrets(start: Start, log: Path) -> None:
    log.write_bytes(b"before\n")
    process = start()
    say(process, b"token: " + TOKEN.encode()[:7])
    wait_until(lambda: log.read_bytes() == b"before\ntoken: ", what="what is no secret")
    say(process, TOKEN.encode()[7:] + b"\nnext \xff\x00 line\n")
    wait_until(lambda: log.read_bytes().endswith(b"line\n"), what="a line at once")
    say(process, b"unfinished " + TOKEN.encode()[:7])
    finish(process)
    assert log.read_bytes() == b"before\ntoken: ***TOKEN***\nnext \xff\x00 line\nunfinished hunter2"


def test_a_request_to_end_does_not_end_the_pump(start: Start, log: Path) -> None:
    process = start()
    say(process, b"one\n")
    wait_until(lambda: log.exists() and log.read_bytes() == b"one\n", what="the first line")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.killpg(process.pid, number)
    say(process, b"two\n")
    wait_until(lambda: log.read_bytes() == b"one\ntwo\n", what="the second line")
    finish(process)


def test_the_pump_ends_with_the_last_writer(start: Start, log: Path) -> None:
    process = start()
    assert process.stdin is not None
    last = os.dup(process.stdin.fileno())
    say(process, b"one\n")
    process.stdin.close()
    wait_until(lambda: log.exists() and log.read_bytes() == b"one\n", what="the first line")
    assert process.poll() is None
    os.write(last, b"two\n")
    os.close(last)
    process.stdin = None
    finish(process)
    assert log.read_bytes() == b"one\ntwo\n"


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="nothing here can lift another process's limit")
def test_a_full_disk_does_not_block_the_worker_and_is_told_once_there_is_room(start: Start, log: Path) -> None:
    process = start(limit=1000)
    for _ in range(40):
        say(process, b"x" * 99_999 + b"\n")  # far more than a pipe holds
    wait_until(lambda: log.stat().st_size == 1000, what="a full log")
    # A disk with room again: the limit goes.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    say(process, b"the end\n")
    finish(process)
    said = log.read_bytes()
    assert said.endswith(b"\nthe end\n") or b"the end" not in said
    assert said.startswith(b"x" * 1000)
    assert b"bytes of output are missing here: File too large\n" in said


def test_a_log_that_cannot_be_opened_does_not_block_the_worker(start: Start, tmp_path: Path) -> None:
    process = start(log=tmp_path / "gone" / "training.log")
    say(process, b"x" * 1_000_000)
    finish(process)


@pytest.mark.parametrize("text", [None, "", "[]", '{"TOKEN": "hun'])
def test_without_readable_secrets_nothing_is_shown(start: Start, log: Path, tmp_path: Path, text: str | None) -> None:
    secrets = tmp_path / "other.json"
    if text is not None:
        secrets.write_text(text)
    process = start(secrets=secrets)
    say(process, b"my secret is hunter2" * 10_000)
    finish(process)
    assert log.read_bytes() == WITHHELD
