"""Replies that are malformed or never end."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from tests.hostile.agent import Talk, Way, endless, raw, reports, result
from tests.hostile.ways.text import CAME_THROUGH, ESCAPES, numbers

# Shown while the slow box is still silent.
HONEST_ROW = r"(?s)honest +\S+ +good +succeeded.*waiting for evil"
HONEST_COPY = r"honest \S+: \d+ files, [^\n]+, complete"
ASKING = ("status", "runs", "tail", "sync", "stop", "restart", "launch", "check")
# Exit codes for an unusable answer. Failed checks of `doctor` are a refusal.
EVERY = {**dict.fromkeys(ASKING, 3), "doctor": 4}
STATUS, SYNC, TAIL = {"status": 3}, {"sync": 3}, {"tail": 3}
DEEP = b'{"schema":1,"ok":true,"result":{"runs":' + b"[" * 10_000 + b"]" * 10_000 + b"}}\n"
TWICE = b'{"schema":1,"ok":true,"result":{"runs":[]},"result":{"runs":7,"now":"7"},"schema":1}\n'
SURROGATES = b'{"schema":1,"ok":true,"result":{"runs":[{"job":"\\ud800"}],"host":"\\udfff"}}\n'


def last_words(talk: Talk) -> None:
    sys.stderr.buffer.write(ESCAPES.encode() + b"\xff\xfe" + b"x" * 100_000 + ESCAPES.encode())
    sys.exit(9)


def large(talk: Talk) -> None:
    talk.say(b'{"schema":1,"ok":true,"result":{"runs":[],"more":"')
    for _ in range(90):
        talk.say(b"x" * (1 << 20))
    talk.say(b'"}}\n')


def another_answer(talk: Talk) -> None:
    """Answer another request correctly."""
    talk.reply({"python": "3.8.0", "home": "/root", "now": 1.0, "pid": 1})


def dribble(talk: Talk) -> None:
    """Send a byte every five seconds: no silence is long, but the answer never ends."""
    for byte in b'{"schema":1,"ok":true,"result":{"runs":[]}}' + b" " * 1_000_000:
        talk.say(bytes([byte]))
        time.sleep(5)


def silence(talk: Talk) -> None:
    time.sleep(3600)


def number(value: Any, name: str, **more: int) -> Way:
    """Replace every number by `value`: the run is shown with the problem, and its files cannot be copied."""

    def change(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = numbers(said, value)
        return changed

    return Way(f"every number is {name}", result(change), {"status": 0, "sync": 3, **more})


WAYS = (
    Way("another schema", raw(b'{"schema":7,"ok":true,"result":{"runs":[]}}\n'), STATUS, "schema"),
    Way("a list", raw(b"[]\n"), SYNC),
    Way("a result that is a list", raw(b'{"schema":1,"ok":true,"result":[]}\n'), STATUS),
    Way("neither result nor error", raw(b'{"schema":1,"ok":true}\n'), SYNC),
    Way("nested 10,000 levels deep", raw(DEEP), STATUS | TAIL),
    Way("lines without an end, here", endless(b"x" * 999 + b"\n"), STATUS),
    Way("an end at once, here", raw(b""), EVERY, "evil"),
    Way("last words with escapes, here", last_words, STATUS, never=CAME_THROUGH),
    Way("a key twice", raw(TWICE), STATUS | {"launch": 4}),
    Way("half surrogates", raw(SURROGATES), STATUS | SYNC),
    Way("NUL bytes", raw(b"\0" * 5000 + b"\n"), SYNC),
    Way("no UTF-8", raw(b'{"schema":1,"ok":true,"result":{"runs":"\xff\xfe\x9b31m"}}\n'), STATUS | TAIL),
    Way("the answer to another question", another_answer, EVERY | {"launch": 4, "check": 4}, "evil"),
    number(json.loads("NaN"), "NaN", tail=1, launch=4, doctor=4),
    number(json.loads("Infinity"), "Infinity"),
    number(10**400, "10**400", tail=1, doctor=4),
    number(-1, "negative"),
    number(1e300, "1e300", launch=4),
    number(True, "a boolean"),
    Way("reports that are numbers", reports(lambda talk, said: 7), STATUS | SYNC | TAIL | {"runs": 3}, "evil"),
)
OVER_SSH = (
    Way("no JSON", raw(b"Welcome to Ubuntu\n" + ESCAPES.encode() + b"\n"), STATUS | SYNC, "evil", over="ssh"),
    Way("a line of 90 MiB", large, STATUS, over="ssh"),
    Way("a line without an end", endless(b"x" * 100_000), TAIL, over="ssh"),
    Way("lines without an end", endless(b"x" * 999 + b"\n"), STATUS | {"launch": 3}, over="ssh"),
    Way("an end at once", raw(b""), STATUS, over="ssh"),
    Way("last words with escapes", last_words, SYNC, never=CAME_THROUGH, over="ssh"),
    Way("a byte every five seconds", dribble, {"status": 130}, HONEST_ROW, over="ssh"),
    Way("silence", silence, {"status": 130}, HONEST_ROW, over="ssh"),
    Way("silence while others are copied", silence, {"sync": 130}, HONEST_COPY, over="ssh"),
)
