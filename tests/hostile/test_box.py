"""A box that answers wrongly in every way that we could think of, and the real `orch` on a terminal before it.

Whatever the box says, for every command: it ends, with a documented exit code and no traceback; the terminal is shown
text and nothing else, and not too much of it; files change only where the box's own runs are kept; the honest host is
answered for; and no secret of another host's job is sent to it.
"""

from __future__ import annotations

import re

import pytest

from tests.hostile.agent import Way
from tests.hostile.laptop import Laptop, Shown
from tests.hostile.ways import WAYS

ARGUMENTS = {
    "tail": ["tail", "train", "--from", "0"],
    "stop": ["stop", "train", "--no-wait"],
    "restart": ["restart", "train"],
    "launch": ["launch", "train"],
    "check": ["check", "rehearsed"],
    "doctor": ["doctor", "evil"],
}
SHOWS_ALL = ("status", "runs")


CASES = [
    pytest.param(way, command, id=f"{way.name}, {command}".replace(" ", "-"))
    for way in WAYS
    for command in way.commands
]


def problems(laptop: Laptop, way: Way, command: str, shown: Shown, before: dict[str, str]) -> list[str]:
    """All that is wrong with what was shown, written, and sent to the box."""
    found = []
    expected = (130,) if way.endless else way.codes
    if shown.code not in expected:
        found.append(f"exit code {shown.code}, not one of {expected}")
    if "Traceback" in shown.text:
        found.append("a traceback")
    found += [f"the terminal is given {character}" for character in shown.harm()]
    if len(shown.output) > way.most:
        found.append(f"{len(shown.output)} bytes of output")
    if way.says and not re.search(way.says, shown.text) and command in (*SHOWS_ALL, *way.commands[:1]):
        found.append(f"nothing matches {way.says}")
    if way.never and re.search(way.never, shown.output.decode("utf-8", "replace")):
        found.append(f"something matches {way.never}")
    if command in SHOWS_ALL and not way.endless:
        found += honest_is_missing(laptop, shown, way.columns)
    if command == "sync":
        found += honest_is_not_here(laptop)
    found += [f"changed: {path}" for path in changes(laptop, before)]
    if b"honest-" in laptop.heard:
        found.append("the secret of another host's job was sent to the box")
    return found


def honest_is_missing(laptop: Laptop, shown: Shown, columns: int) -> list[str]:
    line = next((line for line in shown.text.splitlines() if line.startswith("honest ")), "")
    wanted = [laptop.honest.run_id, *(["good", "succeeded"] if columns >= 100 else [])]
    return [f"the honest host's run is shown as {line!r}"] if not all(word in line for word in wanted) else []


def honest_is_not_here(laptop: Laptop) -> list[str]:
    here = laptop.project / "results" / "honest" / laptop.honest.run_id
    wrong = [
        path.name
        for path in (laptop.honest.log, laptop.honest.run, laptop.honest.state)
        if not (here / path.name).is_file() or (here / path.name).read_bytes() != path.read_bytes()
    ]
    return [f"of the honest host's run, these are not here as they are there: {wrong}"] if wrong else []


def changes(laptop: Laptop, before: dict[str, str]) -> list[str]:
    """Paths that no box has a right to change: all but the copies of its own runs, and what orch notes of them."""
    now = laptop.state()
    changed = [path for path in sorted({*before, *now}) if before.get(path) != now.get(path)]
    launched = set(re.findall(r'"run_id": "([^"]{20})"', laptop.heard.decode("utf-8", "replace")))
    own = [f"results/train/{run_id}" for run_id in {laptop.train.run_id, *launched}]
    own += [f"results/honest/{laptop.honest.run_id}", "results/train/latest", "results/honest/latest"]
    own += ["results/.mirror", "results/.launching", "results/rehearsed"]
    allowed = [f"project/{path}" for path in own] + ["laptop/.cache", "laptop/.ssh"]
    return [path for path in changed if not any(path == top or path.startswith(top + "/") for top in allowed)]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "command"), CASES)
def test_a_box_that_answers_wrongly_harms_nobody(request: pytest.FixtureRequest, way: Way, command: str) -> None:
    laptop: Laptop = request.getfixturevalue("far" if way.over == "ssh" else "near")
    laptop.begin(way.name)
    before = laptop.state()
    arguments = ARGUMENTS.get(command, command.split())

    shown = laptop.run(*arguments, columns=way.columns, interrupt_at=way.says if way.endless else "")

    wrong = problems(laptop, way, command, shown, before)
    assert not wrong, f"orch {' '.join(arguments)}: {shown.code}\n" + "\n".join([*wrong, shown.text[:3000]])
