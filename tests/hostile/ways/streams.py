"""Streams of `follow` with malformed frames or a hostile log."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.agent import Answer, Frame, Talk, Way, endless, frames, raw
from tests.hostile.ways.text import CAME_THROUGH, HARMFUL

UNUSABLE = {"tail": 3}
REFUSED = {"tail": 4}
ENDED = {"tail": 1}  # the run has failed
ENDLESS = {"tail": 130}
LOG = HARMFUL.encode() * 3 + b"\xff\xfe\xc2\x9b\n"


def other_run(talk: Talk, stream: list[Frame]) -> list[Frame]:
    said = {**talk.facts["report"], "job": "honest", "run_id": talk.facts["honest"]}
    return [
        Frame({**frame.head, **({"report": said} if "report" in frame.head else {})}, frame.data) for frame in stream
    ]


def split(talk: Talk, stream: list[Frame]) -> Iterator[Frame]:
    """Send one byte of the log per frame."""
    yield stream[0]
    for at, byte in enumerate(LOG):
        yield Frame({"offset": at, "bytes": 1}, bytes([byte]))
    yield from stream[-2:]


def offset(*offsets: object) -> Answer:
    def change(talk: Talk, stream: list[Frame]) -> Iterator[Frame]:
        yield stream[0]
        for at in offsets:
            yield Frame({"offset": at, "bytes": 5}, b"line\n")
        yield from stream[-2:]

    return frames(change)


def without_end(talk: Talk, stream: list[Frame]) -> Iterator[Frame]:
    yield from stream[:-1]
    at = 0
    while True:
        yield Frame({"offset": at, "bytes": 1000}, b"z" * 999 + b"\n")
        at += 1000


def inside(line: bytes) -> Answer:
    """Insert this line into an honest stream."""
    return frames(lambda talk, stream: [stream[0], line + b"\n", *stream[1:]])


WAYS = (
    Way("a frame that claims more than comes", raw(b'{"offset":0,"bytes":100}\nxx'), UNUSABLE),
    Way("a frame of a gigabyte", endless(b"x" * 10_000, b'{"offset":0,"bytes":1000000000}\n'), UNUSABLE),
    Way("a frame of -1 bytes", inside(b'{"offset":0,"bytes":-1}'), UNUSABLE),
    Way("a frame of true bytes", inside(b'{"offset":0,"bytes":true}'), UNUSABLE),
    Way("a frame of text bytes", inside(b'{"offset":0,"bytes":"1"}'), UNUSABLE),
    Way("a line that is not a frame", inside(HARMFUL.encode()), UNUSABLE, never=CAME_THROUGH),
    Way("a frame with unknown keys", inside(b'{"mood":"good"}'), UNUSABLE),
    Way("a success within a stream", inside(b'{"schema":1,"ok":true,"result":{}}'), UNUSABLE),
    Way("a refusal within a stream", inside(b'{"schema":1,"ok":false,"error":{"message":"m"}}'), REFUSED),
    Way("a stream that is cut off", frames(lambda talk, stream: stream[:1]), ENDLESS, "trying again"),
    Way("a stream without a report", frames(lambda talk, stream: stream[-1:]), {"tail": 0}),
    Way("offsets that go backwards", offset(100, 50, 0), ENDED),
    Way("an offset of 2**62", offset(2**62), ENDED),
    Way("an offset of 10**400", offset(10**400), UNUSABLE),
    Way("an offset of -1", offset(-1), UNUSABLE),
    Way("the report of another run", frames(other_run), UNUSABLE, never="succeeded"),
    Way("a log with escapes, a byte a frame", frames(split), ENDED, never=CAME_THROUGH, most=30_000),  # redrawn
    Way("a log without an end", frames(without_end), ENDLESS, "zzz", most=2 << 20),
)
OVER_SSH = (Way("a log without an end, over ssh", frames(without_end), ENDLESS, "zzz", most=2 << 20, over="ssh"),)
