"""Find the command lines in the text of a README."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

_LONGEST = 2000  # characters of a command
_LAUNCHERS = ("torchrun", "accelerate", "deepspeed")
_PYTHON = re.compile(r"python(?:3(?:\.\d+)?)?")
_PREFIXES = (("uv", "run"), ("poetry", "run"), ("pipenv", "run"), ("pdm", "run"), ("hatch", "run"), ("pixi", "run"))
_WRAPPERS = ("nohup", "time", "sudo", "exec")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
# What a reader has to replace.
_PLACEHOLDER = re.compile(r"[<>{}\[\]$|]|\.\.\.|(?i:path[/_]to|your|xxx|^/|^~|--?\w+=[/~]|^[A-Z_]*(?:DIR|PATH|FILE)$)")
_IN_BACKTICKS = re.compile(r"`([^`\n]{6,400})`")
_OPERATOR = re.compile(r"\s(?:\|\||&&|[|;&]|\d?>{1,2}|2>&1)(?=\s|$)|;(?=\s|$)")


@dataclass(frozen=True)
class ReadmeCommand:
    """A command line of a README that runs a Python program.

    Attributes:
        words: The program and its arguments, `python3` as `python`.
        target: The script (such as `train.py`) or module (such as `pkg.train`) that it runs.
        env: The variables that it sets.
        folder: Where the README changes to before.
        has_placeholder: A reader has to replace a part of it.
    """

    words: tuple[str, ...]
    target: str
    env: tuple[tuple[str, str], ...] = ()
    folder: str = ""
    has_placeholder: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return the words after the target."""
        after = next((n for n, word in enumerate(self.words) if word.removeprefix("./") == self.target), 0)
        return self.words[after + 1 :]


def find_commands(text: str, programs: Collection[str] = ()) -> list[ReadmeCommand]:
    """Return the commands that run Python programs, in their order, each once.

    Args:
        text: A README in Markdown, reStructuredText or plain text.
        programs: Names of the console scripts of the project.
    """
    found: dict[ReadmeCommand, None] = {}
    folder = ""
    for line in _lines(text):
        if line is None:
            folder = ""
            continue
        for part in _OPERATOR.split(line):
            command = _read(part.strip(), programs, folder)
            if command:
                found.setdefault(command)
            elif change := re.fullmatch(r"cd ([\w./-]+?)/?", part.strip()):
                folder = "" if change[1].startswith(("/", "..")) else change[1].removeprefix("./")
    return list(found)


def _lines(text: str) -> Iterator[str | None]:
    """Yield each line that may be a command, continued ones joined; None where a new block begins."""
    joined = re.sub(r"[ \t]{0,8}\\\r?\n[ \t]{0,80}", " ", text)
    for line in joined.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            yield None
        if len(line) <= _LONGEST:
            yield re.sub(r"^\s*(?:[$>%!]\s?|\(\w+\)\s?\$\s?)?", "", line)
            for found in _IN_BACKTICKS.finditer(line):
                yield found[1].lstrip("$ ")


def _read(text: str, programs: Collection[str], folder: str) -> ReadmeCommand | None:
    if not re.match(r"[A-Za-z_]", text) or not re.search(r"\bpython|\.py\b|torchrun|" + _any_of(programs), text):
        return None
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        return None
    env = []
    while words and (assigned := _ASSIGNMENT.fullmatch(words[0])):
        env.append((assigned[1], assigned[2]))
        words = words[1:]
    while words and words[0] in _WRAPPERS:
        words = words[1:]
    words = words[2:] if tuple(words[:2]) in _PREFIXES else words
    if words and words[0].endswith(".py"):
        words = ["python", *words]
    if not words:
        return None
    if _PYTHON.fullmatch(words[0]):
        words[0] = "python"
    elif words[0] not in _LAUNCHERS and words[0] not in programs:
        return None
    target = words[0] if words[0] in programs else _target(words)
    if target is None:
        return None
    has_placeholder = any(_PLACEHOLDER.search(word) for word in words[1:])
    return ReadmeCommand(tuple(words), target.removeprefix("./"), tuple(env), folder, has_placeholder)


def _any_of(programs: Collection[str]) -> str:
    return "|".join(rf"^{re.escape(name)}\b" for name in sorted(programs)) or "(?!)"


def _target(words: Sequence[str]) -> str | None:
    """Return the script or module that python or a launcher runs."""
    for number, word in enumerate(words[1:], 1):
        if word.endswith(".py") and not word.startswith("-"):
            return word
        if word in ("-m", "--module") and number + 1 < len(words):
            module = words[number + 1]
            if module.startswith(("torch.distributed", "accelerate")):
                continue
            return module if re.fullmatch(r"[A-Za-z_][\w.]*", module) else None
        if word == "-c":
            return None
    return None
