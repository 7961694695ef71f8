"""Run the real `orch` on a terminal against a hostile box, and check what must hold for every answer.

A command ends with the expected exit code and no traceback; the terminal gets a limited amount of plain
text; files change only in the folders of the box's own runs; the honest host is still reported; and
the box gets no secret of another host's job.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import pytest

from remote.contract.paths import CHECKSUMS
from tests.hostile.agent import Way
from tests.hostile.laptop import Laptop
from tests.hostile.screen import Shown

ARGUMENTS = {
    "tail": ["tail", "train", "--from", "0"],
    "stop": ["stop", "train", "--no-wait"],
    "restart": ["restart", "train"],
    "launch": ["launch", "train"],
    "check": ["check", "rehearsed"],
    "doctor": ["doctor", "evil"],
}
SHOWS_ALL = ("status", "runs")


def cases(ways: Iterable[Way]) -> list[Any]:
    """Return each way with each of its commands."""
    return [
        pytest.param(way, command, id=f"{way.name}, {command}".replace(" ", "-"))
        for way in ways
        for command in way.codes
    ]


def check(request: pytest.FixtureRequest, way: Way, command: str) -> None:
    laptop: Laptop = request.getfixturevalue("far" if way.over == "ssh" else "near")
    laptop.begin(way.name, with_honest_copy=command != "sync")
    before = laptop.state()
    arguments = ARGUMENTS.get(command, command.split())

    shown = laptop.run(*arguments, columns=way.columns, interrupt_at=way.says if way.codes[command] == 130 else "")

    wrong = problems(laptop, way, command, shown, before)
    assert not wrong, f"orch {' '.join(arguments)}: {shown.code}\n" + "\n".join([*wrong, shown.text[:3000]])


def problems(laptop: Laptop, way: Way, command: str, shown: Shown, before: dict[str, str]) -> list[str]:
    """Return the problems in what was shown, written, and sent to the box."""
    found = []
    # A run that fails at once may have ended before the command that starts it returns, and then the code is 1.
    may_have_ended = command in ("launch", "restart") and way.codes[command] == 0 and shown.code == 1
    if shown.code != way.codes[command] and not may_have_ended:
        found.append(f"exit code {shown.code}, not {way.codes[command]}")
    if "Traceback" in shown.text:
        found.append("a traceback")
    found += [f"the terminal is given {character}" for character in shown.harm("\r" if command == "tail" else "")]
    if len(shown.output) > way.most:
        found.append(f"{len(shown.output)} bytes of output")
    if way.says and shown.code != 130 and not re.search(way.says, shown.text):
        found.append(f"nothing matches {way.says}")
    if way.never and re.search(way.never, shown.output.decode("utf-8", "replace")):
        found.append(f"something matches {way.never}")
    if command in SHOWS_ALL:
        found += honest_is_missing(laptop, shown, way.columns)
    if command == "sync":
        found += honest_copy_problems(laptop, way)
    found += [f"changed: {path}" for path in changes(laptop, before, command)]
    if b"honest-" in laptop.heard:
        found.append("the secret of another host's job was sent to the box")
    return found


def honest_is_missing(laptop: Laptop, shown: Shown, columns: int) -> list[str]:
    rows = [line for line in shown.text.splitlines() if line.startswith("honest ")]
    wanted = [laptop.honest.run_id, *(["good", "succeeded"] if columns >= 100 else [])]
    if len(rows) == 1 and all(word in rows[0] for word in wanted):
        return []
    return [f"the honest host's run is shown as {rows}"]


def honest_copy_problems(laptop: Laptop, way: Way) -> list[str]:
    """Return the problems in copy and record of the honest host's run after a sync that started without them."""
    results, there = laptop.project / "results", laptop.honest.root
    here = results / "honest" / laptop.honest.run_id
    names = {path.relative_to(top) for top in (here, there) for path in top.rglob("*") if path.is_file()}
    names = {name for name in names if name.suffix not in (".lock", ".fifo") and name.parts[0] != "work"}  # the code
    names = {name for name in names if str(name) != CHECKSUMS}
    found = [
        f"of the honest host's run, {name} is not here as it is there"
        for name in sorted(names)
        if not (here / name).is_file() or (here / name).read_bytes() != (there / name).read_bytes()
    ]
    record = json.loads((results / ".mirror" / "honest" / f"{laptop.honest.run_id}.json").read_bytes())
    said = (record["host"], record["root"], record["state"]["state"])
    if said != ("good", str(laptop.folder / "good"), "succeeded"):
        found.append(f"the record of the honest host's run is {record}")
    return found


def changes(laptop: Laptop, before: dict[str, str], command: str) -> list[str]:
    """Return changed paths that no box may change: all except copies and records of its own runs.

    The honest host's run may change only in a sync, which copies it and records that.
    """
    now = laptop.state()
    changed = [path for path in sorted({*before, *now}) if before.get(path) != now.get(path)]
    launched = set(re.findall(r'"run_id": "([^"]{20})"', laptop.heard.decode("utf-8", "replace")))
    own = [f"results/train/{run_id}" for run_id in {laptop.train.run_id, *launched}]
    records = [f"results/.mirror/train/{run_id}" for run_id in {laptop.train.run_id, *launched}]
    own += ["results/train/latest", "results/.mirror/.hosts/evil.json"]
    if command == "sync":
        own += [f"results/honest/{laptop.honest.run_id}", "results/honest/latest", "results/honest"]
        records.append(f"results/.mirror/honest/{laptop.honest.run_id}")
    own += [record + suffix for record in records for suffix in (".json", ".files", ".incoming")]
    allowed = [f"project/{path}" for path in own] + ["laptop/.cache"]
    return [path for path in changed if not any(path == top or path.startswith(top + "/") for top in allowed)]
