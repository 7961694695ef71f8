"""The `python` of a hostile box: it asks the real agent, and corrupts the answer in the way that the test chose.

`install` writes the program. Next to it, the file `way` names the chosen entry of WAYS (empty: honest), `facts`
holds what the test knows (run ids, folders), and `heard` collects every byte that the laptop sends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import ROOT

PYTHON = os.path.realpath(sys.executable)
PROGRAM = """\
#!{python} -S
import sys
sys.path.insert(0, {root!r})
from tests.hostile.agent import main
main({folder!r}, sys.argv[1:])
"""


def install(folder: Path) -> Path:
    """Install the program; it is honest until `way` says otherwise."""
    program = folder / "python"
    program.write_text(PROGRAM.format(python=PYTHON, root=str(ROOT), folder=str(folder)))
    program.chmod(0o700)
    (folder / "way").write_text("")
    (folder / "facts").write_text("{}")
    (folder / "heard").touch()
    return program


@dataclass
class Frame:
    head: dict[str, Any]
    data: bytes = b""

    def encode(self) -> bytes:
        return json.dumps(self.head).encode() + b"\n" + self.data


@dataclass
class Talk:
    """One request and its answer."""

    command: list[str]  # starts the real agent
    line: bytes
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.request: dict[str, Any] = json.loads(self.line)
        self.op: str = self.request["op"]
        self.args: dict[str, Any] = self.request["args"]

    def honest(self) -> bytes:
        """Return the answer of the real agent."""
        return subprocess.run(self.command, input=self.line, stdout=subprocess.PIPE, check=True).stdout

    def result(self) -> dict[str, Any]:
        """Return the honest result; empty for a refusal or a stream."""
        result = {} if self.op == "follow" else json.loads(self.honest()).get("result")
        return result if isinstance(result, dict) else {}

    def frames(self) -> list[Frame]:
        """The honest stream."""
        rest, found = self.honest(), []
        while rest:
            line, _, rest = rest.partition(b"\n")
            head = json.loads(line)
            size = head.get("bytes", 0)
            found.append(Frame(head, rest[:size]))
            rest = rest[size:]
        return found

    def say(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def reply(self, result: Any) -> None:
        self.say(json.dumps({"schema": 1, "ok": True, "result": result}).encode() + b"\n")

    def refuse(self, **error: Any) -> None:
        self.say(json.dumps({"schema": 1, "ok": False, "error": error}).encode() + b"\n")


Answer = Callable[[Talk], None]


@dataclass(frozen=True)
class Way:
    """One way to answer wrongly, and how `orch` must react."""

    name: str
    answer: Answer
    codes: Mapping[str, int]  # command -> exit code; 130: it does not end by itself, so the test presses Ctrl-C
    says: str = ""  # regular expression that must match the output of each command
    never: str = ""  # regular expression that must not match
    over: str = "local"  # or "ssh"
    columns: int = 100
    most: int = 8000  # most bytes of output


def main(folder: str, arguments: list[str]) -> None:
    here = Path(folder)
    command = [PYTHON, *arguments]
    name = (here / "way").read_text()
    if not name or not arguments[-1].endswith(".pyz"):  # a supervisor, or the agent's installation
        os.execv(PYTHON, command)
    line = sys.stdin.buffer.readline()
    with (here / "heard").open("ab") as heard:
        heard.write(line)
    from tests.hostile.ways import WAYS

    way = next(way for way in WAYS if way.name == name)
    try:
        way.answer(Talk(command, line, json.loads((here / "facts").read_text())))
    except BrokenPipeError:
        os._exit(0)  # the laptop closed the connection


# --- changes of an answer -------------------------------------------------------------------------------


def raw(data: bytes) -> Answer:
    """Answer every request with these bytes."""
    return lambda talk: talk.say(data)


def endless(piece: bytes, before: bytes = b"") -> Answer:
    def answer(talk: Talk) -> None:
        talk.say(before)
        while True:
            talk.say(piece)

    return answer


def result(change: Callable[[Talk, dict[str, Any]], Any], *ops: str) -> Answer:
    """Change the honest result of the operations `ops`; everything else is answered honestly."""

    def answer(talk: Talk) -> None:
        if ops and talk.op not in ops or talk.op == "follow":
            talk.say(talk.honest())
        else:
            talk.reply(change(talk, talk.result()))

    return answer


def frames(change: Callable[[Talk, list[Frame]], Iterable[Frame | bytes]]) -> Answer:
    """Change the honest stream."""

    def answer(talk: Talk) -> None:
        if talk.op != "follow":
            talk.say(talk.honest())
            return
        for frame in change(talk, talk.frames()):
            talk.say(frame if isinstance(frame, bytes) else frame.encode())

    return answer


def reports(change: Callable[[Talk, dict[str, Any]], Any]) -> Answer:
    """Change every report in any answer."""

    def changed(talk: Talk, run: Any) -> Any:
        """Change a report, or the one in a listing of the run's files."""
        if not isinstance(run, dict) or "page" not in run:
            return change(talk, run)
        return {**run, "page": {**run["page"], "report": change(talk, run["page"]["report"])}}

    def in_result(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
        if isinstance(said.get("runs"), list):
            said["runs"] = [changed(talk, run) for run in said["runs"]]
        if isinstance(said.get("report"), dict):
            said["report"] = change(talk, said["report"])
        return said

    def in_frames(talk: Talk, stream: list[Frame]) -> Iterator[Frame]:
        for frame in stream:
            yield Frame(in_result(talk, frame.head), frame.data)

    def answer(talk: Talk) -> None:
        (frames(in_frames) if talk.op == "follow" else result(in_result))(talk)

    return answer


def report(**changes: Any) -> Answer:
    return reports(lambda talk, said: {**said, **changes})


def more_runs(make: Callable[[Talk, dict[str, Any]], list[dict[str, Any]]]) -> Answer:
    """List more runs in addition to the honest ones, each made from an honest report."""

    def change(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
        model = talk.facts["report"]
        return {**said, "runs": [*said.get("runs", []), *make(talk, dict(model))]}

    return result(change, "status")
