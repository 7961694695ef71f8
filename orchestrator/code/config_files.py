"""Read the values of a script's configuration files: YAML as far as it is simple, and Python with constants."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Sequence

from orchestrator.code.command_line import CommandLine, Option, values_of_words
from orchestrator.code.script_values import Value, argument, calls, constant, parse

_LINE = re.compile(r"( *)([A-Za-z_][\w.-]*):(?: +(.*))?$")
_DEFAULT = re.compile(r" *- *(?:override +)?/?([\w/-]+?)(?:@[\w.]+)?: *([\w.-]+) *$")
_LONGEST_LINE = 2000  # characters
_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*)(?:\.\d*)?(?:[eE][-+]?\d+)?")
_WORDS: dict[str, Value] = {"true": True, "false": False, "null": None, "~": None, "none": None, "": None}


def read_yaml(text: str) -> dict[str, Value]:
    """Return the scalars of nested mappings, by dotted keys. Lists and everything else of YAML are ignored."""
    found: dict[str, Value] = {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        matched = _LINE.match(line.rstrip()) if len(line) <= _LONGEST_LINE else None
        if not matched:
            continue
        indent = len(matched[1])
        above = [each for each in above if each[0] < indent]
        key = ".".join([*(name for _, name in above), matched[2]])
        value = re.sub(r"\s+#.*", "", matched[3] or "").strip()
        if not value or value.startswith("#"):
            above.append((indent, matched[2]))
        elif not value.startswith(("[", "{", "&", "*", "|", ">")):
            found[key] = _scalar(value)
    return found


def _scalar(text: str) -> Value:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _NUMBER.fullmatch(text):
        return float(text) if re.search(r"[.eE]", text) else int(text)
    return text.strip("'\"")


def read_assignments(text: str) -> dict[str, Value]:
    """Return the constants that a Python file assigns to names at its top level."""
    tree = parse(text) or ast.Module([], [])
    return {
        node.targets[0].id: value
        for node in tree.body
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
        if (value := constant(node.value)) is not None
    }


def hydra_command_line(trees: Sequence[ast.Module], folder: str, read: Callable[[str], str]) -> CommandLine | None:
    """Return the command line of a script with `@hydra.main`: the keys of its configuration; None for other scripts.

    Args:
        trees: Its own module, then those that it imports.
        folder: The folder of the script, "" for the top.
        read: Returns the text of a file of the repository, "" if there is none.
    """
    call = next((call for tree in trees for name, call in calls(tree) if name == "hydra.main"), None)
    if call is None:
        return None
    path, name = constant(argument(call, 0, "config_path")), constant(argument(call, 1, "config_name"))
    base = "/".join(part for part in (folder, str(path or "")) if part not in ("", "."))
    main = f"{base}/{name}".lstrip("/").removesuffix(".yaml") + ".yaml" if name else ""
    text = read(main) if main else ""
    values = read_yaml(text)
    for group, choice in _defaults(text):
        inner = read(f"{base}/{group}/{choice.removesuffix('.yaml')}.yaml")
        prefix = "" if "@package _global_" in inner else group.replace("/", ".") + "."
        values = {**{prefix + key: value for key, value in read_yaml(inner).items()}, **values}
    options = tuple(Option(key, key, value, separator="=") for key, value in values.items())
    return CommandLine("hydra", options)


def _defaults(text: str) -> list[tuple[str, str]]:
    """Return the groups of the list `defaults`, each with the choice."""
    return [(found[1], found[2]) for line in text.splitlines() if (found := _DEFAULT.match(line))]


def option_values(
    line: CommandLine, words: Sequence[str], files: Collection[str], read: Callable[[str], str]
) -> dict[str, Value]:
    """Return the values of options: their defaults, then those of configuration files, then those of the command.

    Args:
        line: The options.
        words: The command, which may name configuration files.
        files: The files of the repository.
        read: Returns the text of one of them.
    """
    values: dict[str, Value] = {option.key: option.default for option in line.options}
    for word in words:
        name = word.partition("=")[2] or word
        if name in files and name.endswith((".yaml", ".yml")):
            values.update(read_yaml(read(name)))
        elif name in files and name.endswith(".py") and line.kind == "globals":
            values.update(read_assignments(read(name)))
    values.update(values_of_words(words, line))
    return values
