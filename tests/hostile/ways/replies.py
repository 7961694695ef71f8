"""Replies that are none, or never end."""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.hostile.agent import Talk, Way, endless, raw, reports, result
from tests.hostile.ways.text import ESCAPES, numbers

EVERY = ("status", "runs", "tail", "sync", "stop", "restart", "launch", "check", "doctor")
SOME = ("status", "tail", "sync", "launch")
REFUSED = (3, 4)  # 4 by `doctor` alone
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
    """The right answer to a question that nobody asked."""
    talk.reply({"python": "3.8.0", "home": "/root", "now": 1.0, "pid": 1})


def number(value: Any, name: str) -> Way:
    def change(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
        return numbers(said, value)

    return Way(f"every number is {name}", result(change), (*SOME, "doctor"))


WAYS = (
    Way("no JSON", raw(b"Welcome to Ubuntu\n" + ESCAPES.encode() + b"\n"), EVERY, REFUSED, over="ssh"),
    Way("another schema", raw(b'{"schema":7,"ok":true,"result":{"runs":[]}}\n'), SOME, REFUSED),
    Way("a list", raw(b"[]\n"), SOME, REFUSED),
    Way("a result that is a list", raw(b'{"schema":1,"ok":true,"result":[]}\n'), SOME, REFUSED),
    Way("neither result nor error", raw(b'{"schema":1,"ok":true}\n'), SOME, REFUSED),
    Way("nested 10,000 levels deep", raw(DEEP), SOME, REFUSED),
    Way("a line of 90 MiB", large, ("status", "tail", "sync"), REFUSED, over="ssh"),
    Way("a line without an end", endless(b"x" * 100_000), ("status", "tail", "launch"), REFUSED, over="ssh"),
    Way("lines without an end", endless(b"x" * 999 + b"\n"), ("status", "tail", "launch"), REFUSED, over="ssh"),
    Way("lines without an end, here", endless(b"x" * 999 + b"\n"), ("status", "tail"), REFUSED),
    Way("an end at once", raw(b""), ("status", "tail", "launch"), REFUSED, over="ssh"),
    Way("an end at once, here", raw(b""), EVERY, REFUSED),
    Way("last words with escapes", last_words, ("status", "tail", "sync"), REFUSED, over="ssh"),
    Way("last words with escapes, here", last_words, SOME, REFUSED),
    Way("a key twice", raw(TWICE), SOME, REFUSED),
    Way("half surrogates", raw(SURROGATES), SOME),
    Way("NUL bytes", raw(b"\0" * 5000 + b"\n"), SOME, REFUSED),
    Way("no UTF-8", raw(b'{"schema":1,"ok":true,"result":{"runs":"\xff\xfe\x9b31m"}}\n'), SOME, REFUSED),
    Way("the answer to another question", another_answer, EVERY, (2, *REFUSED)),
    number(json.loads("NaN"), "NaN"),
    number(json.loads("Infinity"), "Infinity"),
    number(10**400, "10**400"),
    number(-1, "negative"),
    number(1e300, "1e300"),
    number(True, "a boolean"),
    Way("reports that are numbers", reports(lambda talk, said: 7), SOME),
)
