"""Replace `$NAME` and `${NAME}` in the words of a command and in the values of variables.

No shell runs a command, so this is done here, before the command starts. `$$` stands for `$`. A script that is passed
to a shell (the word after `bash -c`) is left as it is, because the shell itself replaces variables in it.
"""

from __future__ import annotations

import os
import re
from typing import Dict, FrozenSet, Iterable, List, Mapping, Sequence, Set, Tuple

SHELLS = frozenset(("sh", "bash", "dash", "zsh", "ksh", "mksh", "ash", "rbash", "fish", "csh", "tcsh"))
RUN_SHELL_TEXT = frozenset(("su", "runuser", "sg", "flock", "script"))  # they pass the word after `-c` to a shell
_LONG_WITH_VALUE = frozenset(("--rcfile", "--init-file"))  # long options of shells that take a word
MAX_LENGTH = 128 * 1024  # characters of one value: Linux accepts no longer variable
MAX_NESTED = 50  # variables that refer to each other, one after the other

_REFERENCE = re.compile(r"\$(?:(\$)|\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_IN_SCRIPT = re.compile(r"\$\{?[#!]?([A-Za-z_][A-Za-z0-9_]*)")  # `${NAME:-default}` too


class Unresolved(ValueError):
    """A value refers to a variable that is not set, or cannot be computed."""


def expand(argv: Sequence[str], env: Mapping[str, str]) -> List[str]:
    """Replace variables in the words of a command. A name that is not set stays, and so does a script for a shell."""
    scripts = script_words(argv)
    return [word if index in scripts else _expand_word(word, env) for index, word in enumerate(argv)]


def _expand_word(word: str, env: Mapping[str, str]) -> str:
    return _REFERENCE.sub(lambda match: match[1] or env.get(match[2] or match[3], match[0]), word)


def references(text: str) -> Set[str]:
    """Return the NAME of every `$NAME` and `${NAME}` in a word or a value."""
    return {match[2] or match[3] for match in _REFERENCE.finditer(text) if not match[1]}


def with_references(names: Iterable[str], env: Mapping[str, str]) -> Set[str]:
    """Return `names`, and the names that the values of these variables in `env` refer to."""
    found = set(names)
    while True:
        more = {other for name in found if name in env for other in references(env[name])} - found
        if not more:
            return found
        found |= more


def variables_in(argv: Sequence[str]) -> Set[str]:
    """Return the names that a command refers to, in a script for a shell too."""
    scripts = script_words(argv)
    return named_outside(argv) | {name for index in scripts for name in _IN_SCRIPT.findall(argv[index])}


def named_outside(argv: Sequence[str]) -> Set[str]:
    """Return the names that `expand` would replace: those in all words that are not a script for a shell."""
    scripts = script_words(argv)
    return {name for index, word in enumerate(argv) if index not in scripts for name in references(word)}


def script_words(argv: Sequence[str]) -> FrozenSet[int]:
    """Return the indices of the words that a shell will run as its script.

    The shell may stand anywhere (`env A=1 nice bash -lc "..."`), and options may stand around its `-c`.
    """
    found = set()
    for index, word in enumerate(argv):
        program = os.path.basename(word)
        if program in SHELLS:
            found.update(_script_of_shell(argv, index + 1))
        elif program in RUN_SHELL_TEXT:
            found.update(at + 1 for at in range(index + 1, len(argv) - 1) if _has_c(argv[at]))
    return frozenset(found)


def _script_of_shell(argv: Sequence[str], at: int) -> List[int]:
    """Return the index of the script among the arguments of a shell that begin at `at`, in a list; [] for none."""
    has_c = False
    while at < len(argv):
        word = argv[at]
        if word in ("-", "--"):  # the end of the options
            return [at + 1] if has_c and at + 1 < len(argv) else []
        if word[:1] not in ("-", "+") or len(word) == 1:
            return [at] if has_c else []
        if word.startswith("--"):
            has_c = has_c or word == "--command"
            at += 1 if word in _LONG_WITH_VALUE else 0
        else:
            has_c = has_c or _has_c(word)
            at += sum(letter in "oO" for letter in word[1:])  # each takes the name of an option
        at += 1
    return []


def _has_c(word: str) -> bool:
    return word == "--command" or (word[:1] == "-" and word[:2] != "--" and "c" in word)


def resolve(own: Mapping[str, str], base: Mapping[str, str]) -> Dict[str, str]:
    """Return the variables of a job with the references in their values replaced.

    A value may refer to the others, and to `base`. A value that names itself (`PATH = "/opt/bin:$PATH"`) means the one
    in `base`.

    Args:
        own: The variables of the job.
        base: The environment that they are added to.

    Raises:
        Unresolved: A variable is not set, two refer to each other in a circle, or a value becomes too long.
    """
    done: Dict[str, str] = {}
    for name in own:
        _resolve(name, own, base, done, ())
    return {name: done[name] for name in own}


def _resolve(
    name: str, own: Mapping[str, str], base: Mapping[str, str], done: Dict[str, str], within: Tuple[str, ...]
) -> None:
    if name in done:
        return
    if name in within or len(within) >= MAX_NESTED:
        raise Unresolved(f"env.{name} refers to itself through {', '.join((*within[-3:], name))}")
    others = {other for other in references(own[name]) if other in own and other != name}
    for other in sorted(others):
        _resolve(other, own, base, done, (*within, name))
    done[name] = expand_value(own[name], {**base, **{other: done[other] for other in others}}, f"env.{name}")


def expand_value(text: str, env: Mapping[str, str], what: str) -> str:
    """Return a value with its variables replaced.

    Args:
        text: The value.
        env: The variables that it may refer to.
        what: The key of jobs.toml that sets it, for the error.

    Raises:
        Unresolved: A variable is not set, or the value becomes too long.
    """
    unset = sorted(references(text) - set(env))
    if unset:
        raise Unresolved(f"{what} uses ${unset[0]}, which is not set; for the text itself write $${unset[0]}")
    used = (env.get(match[2] or match[3], "") for match in _REFERENCE.finditer(text))
    if len(text) + sum(map(len, used)) >= MAX_LENGTH:
        raise Unresolved(f"{what} is longer than {MAX_LENGTH // 1024} KiB once its variables are replaced")
    return _expand_word(text, env)
