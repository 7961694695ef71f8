"""Inventories whose names, sizes and places mean harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.hostile.agent import Answer, Talk, Way, result
from tests.hostile.ways.text import CAME_THROUGH, ESCAPES, HARMFUL

SYNC = ("sync",)
Change = Callable[[Talk, dict[str, Any]], dict[str, Any]]
EXBIBYTE = 1 << 60


def inventory(change: Change) -> Answer:
    return result(change, "inventory")


def listed(*files: tuple[Any, Any], instead: bool = False) -> Answer:
    """These names and sizes beside the honest ones, or `instead` of them."""

    def change(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
        more = [_entry(said, name, size) for name, size in files]
        return {**said, "files": more if instead else [*said.get("files", []), *more]}

    return inventory(change)


def _entry(said: dict[str, Any], name: Any, size: Any) -> list[Any]:
    """An entry of the kind that the honest agent lists: what else it says of a file is taken from its first one."""
    model = (said.get("files") or [["x", 0]])[0]
    return [name, size, *model[2:]]


def again_and_again(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    """The same page for ever."""
    return {**said, "next": said["files"][0][0]}


def new_pages(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    """Page after page of names that never were, each page full."""
    start = int(str(talk.args.get("after") or "0").rpartition("-")[2] or 0)
    names = [f"results/{start + 1:012d}/a-{start + number}" for number in range(10_000)]
    return {**said, "files": [_entry(said, name, 0) for name in names], "next": names[-1]}


def not_there(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    return {**said, "files": [_entry(said, f"results/{number:05d}", 0) for number in range(50_000)], "next": None}


def left_out(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    names = [HARMFUL, "../" * 100, "x" * 100_000]
    in_pages = "limit" in talk.args
    return {**said, "left_out": [[name, HARMFUL] if in_pages else name for name in names]}


def many_left_out(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    names = [f"results/{number}" for number in range(100_000)]
    return {**said, "left_out": [[name, "no plain file"] if "limit" in talk.args else name for name in names]}


def place(path: Any) -> Answer:
    return inventory(lambda talk, said: {**said, "path": path})


def other_run(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    return {**said, "report": {**said["report"], "job": "honest", "run_id": talk.facts["honest"]}}


def name(text: str, **facts: Any) -> Way:
    return Way(f"a file named {ascii(text)[:40]}", listed((text, 1)), SYNC, **facts)


WAYS = (
    *(name(text, codes=(1, 3)) for text in ("../../honest/escaped", "results/../../../escaped", "/tmp/escaped", "..")),
    *(name(text, codes=(1, 3)) for text in ("", ".", "a//b", "./run.json", "results/", "a/./b")),
    name("results/a\0b", codes=(1, 3)),
    name("results/two\nlines", codes=(1, 3)),
    name("results/" + ESCAPES.replace("\0", ""), codes=(1, 3), never=CAME_THROUGH),
    name("results/" + "n" * 5000, says="not copied"),
    name("d/" * 3000 + "f", says="not copied"),
    name("results/\ud800", says="not copied"),
    name("jobs.toml"),
    name("results/.git/config"),
    name(".orch/x"),
    name("latest"),
    Way("run.json twice", listed(("run.json", 1), ("run.json", 2)), SYNC),
    Way("a file that is also a folder", listed(("results/a", 1), ("results/a/b", 1)), SYNC, (1, 3)),
    Way("names that differ by case alone", listed(("results/A", 1), ("results/a", 1)), SYNC, (1, 3)),
    Way("a size of -1", listed(("results/a", -1)), SYNC, (1, 3)),
    Way("a size of true", listed(("results/a", True)), SYNC, (1, 3)),
    Way("a size of text", listed(("results/a", "1")), SYNC, (1, 3)),
    Way("an exbibyte", listed(("results/a", EXBIBYTE)), SYNC, (4,), says="(?i)room|free|limit"),
    Way("sizes whose sum no disk holds", listed(*((f"results/{n}", 2**62) for n in range(9))), SYNC, (4,)),
    Way("entries that are none", listed((None, None), instead=True), SYNC, (1, 3)),
    Way("files that are a number", inventory(lambda talk, said: {**said, "files": 7}), SYNC, (1, 3)),
    Way("files that are words", inventory(lambda talk, said: {**said, "files": ["run.json"]}), SYNC, (1, 3)),
    Way("the same page for ever", inventory(again_and_again), SYNC),
    Way("new pages for ever", inventory(new_pages), SYNC, endless=True, says="files.*complete"),
    Way("50,000 files that are not there", inventory(not_there), SYNC, (1, 3)),
    Way("the place is /etc", place("/etc"), SYNC, (0, 1, 3), over="ssh"),
    Way("the place is on another host", place("good:/etc"), SYNC, over="ssh"),
    Way("the place looks like an option", place("--rsh=touch canary"), SYNC, over="ssh"),
    Way("the place looks like a command", place("/$(touch canary)`touch canary`;touch canary"), SYNC, over="ssh"),
    Way("the place has escapes", place("/x" + ESCAPES.replace("\0", "")), SYNC, over="ssh", never=CAME_THROUGH),
    Way("the place has a NUL", place("/x\0y"), SYNC, over="ssh"),
    Way("the place has a NUL, here", place("/x\0y"), SYNC),
    Way("the place is a number", place(7), SYNC),
    Way("the place is the honest box's", place("../good"), SYNC),
    Way("left out, with escapes", inventory(left_out), SYNC, never=CAME_THROUGH),
    Way("100,000 left out", inventory(many_left_out), SYNC),
    Way("the inventory of another run", inventory(other_run), SYNC),
)
