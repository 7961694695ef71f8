"""What a script accepts on its command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.code.script_values import Value


@dataclass(frozen=True)
class Option:
    """An option of a script.

    Attributes:
        name: As it is typed, such as `--save`; the name alone for a positional argument, and for an option of Hydra.
        key: The name that the script uses for its value.
        default: None if there is no default, or not a constant one.
        is_flag: Takes no value.
        is_required: The script ends with an error without it.
        separator: What stands between the name and the value.
        other_names: Other spellings, such as `-e`.
    """

    name: str
    key: str
    default: Value = None
    is_flag: bool = False
    is_required: bool = False
    separator: str = " "
    other_names: tuple[str, ...] = ()

    @property
    def is_positional(self) -> bool:
        """Return whether the value is given without a name."""
        return not self.name.startswith("-") and self.separator == " "

    def given(self, value: str) -> tuple[str, ...]:
        """Return the words of a command line that set the option."""
        if self.is_flag:
            return (self.name,)
        if self.is_positional:
            return (value,)
        return (self.name, value) if self.separator == " " else (f"{self.name}{self.separator}{value}",)


@dataclass(frozen=True)
class CommandLine:
    """What a script accepts on its command line.

    Attributes:
        kind: What reads it: "argparse", "click", "typer", "absl", "fire", "dataclass", "hf", "lightning", "hydra",
            "globals", or "" for nothing.
        options: Those that were found.
        is_complete: Whether these are all options.
        subcommands: The first word must be one of them, if there are any.
    """

    kind: str = ""
    options: tuple[Option, ...] = ()
    is_complete: bool = False
    subcommands: tuple[str, ...] = ()

    def find(self, *keys: str) -> Option | None:
        """Return the option with the first of `keys` that exists: its whole key, or the part after its last dot."""
        by_key = {option.key.rpartition(".")[2].replace("-", "_").lower(): option for option in reversed(self.options)}
        by_key.update({option.key.replace("-", "_"): option for option in reversed(self.options)})
        return next((by_key[key] for key in keys if key in by_key), None)


def with_option(words: Sequence[str], option: Option, value: str) -> tuple[str, ...]:
    """Return a command with an option set to `value`, in place of the value that it has there."""
    names, rest = {option.name, *option.other_names}, list(words)
    kept: list[str] = []
    while rest:
        word = rest.pop(0)
        if word in names:
            if rest and not option.is_flag:
                rest.pop(0)  # its value
        elif word.partition("=")[0] not in names or "=" not in word:
            kept.append(word)
    return (*kept, *option.given(value))


def values_of_words(words: Sequence[str], line: CommandLine) -> dict[str, Value]:
    """Return the values that the words of a command give to the options, by key."""
    by_name = {name: option for option in line.options for name in (option.name, *option.other_names)}
    found: dict[str, Value] = {}
    for word, following in zip(words, (*words[1:], ""), strict=True):
        name, mark, value = word.partition("=")
        if option := by_name.get(name):
            found[option.key] = True if option.is_flag else value if mark else following
    return found
