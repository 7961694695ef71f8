"""Inventories with hostile names, sizes and locations."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.hostile.agent import Answer, Talk, Way, result
from tests.hostile.ways.text import CAME_THROUGH, ESCAPES, HARMFUL

COPIED = {"sync": 0}  # the run, except files that are skipped and reported
UNUSABLE = {"sync": 3}
INCOMPLETE = {"sync": 1}
REFUSED = {"sync": 4}
Change = Callable[[Talk, dict[str, Any]], dict[str, Any]]
EXBIBYTE = 1 << 60


def inventory(change: Change) -> Answer:
    """Change the listing of each run."""

    def changed(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
        return {**said, "runs": [{**one, "page": change(talk, one["page"])} for one in said["runs"]]}

    return result(changed, "inventories")


def listed(*files: tuple[Any, Any], instead: bool = False) -> Answer:
    """List these names and sizes in addition to the honest ones, or `instead` of them."""

    def change(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
        more = [_entry(said, name, size) for name, size in files]
        return {**said, "files": more if instead else [*said.get("files", []), *more]}

    return inventory(change)


def _entry(said: dict[str, Any], name: Any, size: Any) -> list[Any]:
    """Return an entry as the honest agent lists it, with the other fields of its first one."""
    model = (said.get("files") or [["x", 0]])[0]
    return [name, size, *model[2:]]


def again_and_again(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    """Answer with the same page forever."""
    request = {**talk.request, "args": {**talk.args, "after": None}}
    first = Talk(talk.command, json.dumps(request).encode() + b"\n").result()["runs"][0]["page"]
    return {**first, "next": first["files"][0][0]}


def new_pages(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    """Answer with endless full pages of invented names."""
    start = int(str(talk.args.get("after") or "0").rpartition("-")[2] or 0)
    names = [f"results/{start + 1:012d}/a-{start + number}" for number in range(10_000)]
    return {**said, "files": [_entry(said, name, 0) for name in names], "next": names[-1]}


def not_there(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    return {**said, "files": [_entry(said, f"results/{number:05d}", 0) for number in range(20_000)], "next": None}


def left_out(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    names = [HARMFUL, "../" * 100, "x" * 100_000]
    return {**said, "left_out": [[name, HARMFUL] for name in names]}


def many_left_out(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    names = [f"results/{number}" for number in range(100_000)]
    return {**said, "left_out": [[name, "no plain file"] for name in names]}


def place(path: Any) -> Answer:
    return inventory(lambda talk, said: {**said, "path": path})


def other_run(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    return {**said, "report": {**said["report"], "job": "honest", "run_id": talk.facts["honest"]}}


def name(text: str, codes: dict[str, int], **facts: Any) -> Way:
    return Way(f"a file named {ascii(text)[:40]}", listed((text, 1)), codes, **facts)


WAYS = (
    *(name(text, UNUSABLE) for text in ("../../honest/escaped", "results/../../../escaped", "/tmp/escaped", "..")),
    *(name(text, UNUSABLE) for text in ("", ".")),
    *(name(text, INCOMPLETE) for text in ("a//b", "./run.json", "results/", "a/./b")),
    name("results/a\0b", UNUSABLE),
    name("results/two\nlines", INCOMPLETE),
    name("results/" + ESCAPES.replace("\0", ""), INCOMPLETE, never=CAME_THROUGH),
    name("results/" + "n" * 5000, COPIED, says="not copied"),
    name("d/" * 3000 + "f", COPIED, says="not copied"),
    name("results/\ud800", COPIED, says="not copied"),
    name("jobs.toml", COPIED),
    name("results/.git/config", COPIED),
    name(".orch/x", COPIED),
    name("latest", INCOMPLETE),
    Way("run.json twice", listed(("run.json", 1), ("run.json", 2)), INCOMPLETE),
    Way("a file that is also a folder", listed(("results/a", 1), ("results/a/b", 1)), INCOMPLETE),
    Way("names that differ by case alone", listed(("results/A", 1), ("results/a", 1)), INCOMPLETE),
    Way("a size of -1", listed(("results/a", -1)), UNUSABLE),
    Way("a size of true", listed(("results/a", True)), UNUSABLE),
    Way("a size of text", listed(("results/a", "1")), UNUSABLE),
    Way("an exbibyte", listed(("results/a", EXBIBYTE)), REFUSED, says="(?i)room|free|limit"),
    Way("sizes whose sum no disk holds", listed(*((f"results/{n}", 2**62) for n in range(9))), REFUSED),
    Way("malformed entries", listed((None, None), instead=True), UNUSABLE),
    Way("files that are a number", inventory(lambda talk, said: {**said, "files": 7}), UNUSABLE),
    Way("files that are words", inventory(lambda talk, said: {**said, "files": ["run.json"]}), UNUSABLE),
    Way("the same page forever", inventory(again_and_again), UNUSABLE),
    Way("new pages forever", inventory(new_pages), {"sync": 130}, "files.*complete"),
    Way("20,000 files that are not there", inventory(not_there), INCOMPLETE),
    Way("the place has a NUL, here", place("/x\0y"), UNUSABLE),
    Way("the place is a number", place(7), UNUSABLE),
    Way("the place is the honest box's", place("../good"), UNUSABLE),
    Way("left out, with escapes", inventory(left_out), COPIED, never=CAME_THROUGH),
    Way("100,000 left out", inventory(many_left_out), COPIED),
    Way("the inventory of another run", inventory(other_run), UNUSABLE),
)
OVER_SSH = (
    Way("the place is /etc", place("/etc"), UNUSABLE, over="ssh"),
    Way("the place is on another host", place("good:/etc"), UNUSABLE, over="ssh"),
    Way("the place looks like an option", place("--rsh=touch canary"), UNUSABLE, over="ssh"),
    Way("the place looks like a command", place("/$(touch canary)`touch canary`;touch canary"), UNUSABLE, over="ssh"),
    Way("the place has escapes", place("/x" + ESCAPES.replace("\0", "")), UNUSABLE, over="ssh", never=CAME_THROUGH),
    Way("the place has a NUL", place("/x\0y"), UNUSABLE, over="ssh"),
)
