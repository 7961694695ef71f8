"""Parse and check single values of jobs.toml: durations, GPU counts, names, paths.

Each function returns the value, or raises Invalid with what is wrong and what to write instead. A parse function
accepts any TOML value; a check function accepts text.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeGuard

from orchestrator.errors import SpecError
from orchestrator.spec.tables import Invalid, Require
from orchestrator.spec.wording import show
from orchestrator.text import parse_size
from remote.contract.files import MAX_INT
from remote.contract.goals import Goal
from remote.contract.protocol import (
    ENV_ATTEMPT,
    ENV_CODE_DIR,
    ENV_DATA_DIR,
    ENV_GOALS,
    ENV_NEEDS,
    ENV_PREPARED_DIR,
    ENV_REHEARSAL,
    ENV_RESUME,
    ENV_RUN_DIR,
)

if TYPE_CHECKING:
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_SECONDS = 3650 * _SECONDS["d"]
_DURATION_PART = re.compile(
    r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s(?:ec(?:onds?)?)?|m(?:in(?:utes?)?)?|h(?:ours?)?|d(?:ays?)?)\s*",
    re.IGNORECASE | re.ASCII,
)
_DURATION = re.compile(f"(?:{_DURATION_PART.pattern})+", re.IGNORECASE | re.ASCII)
_MAX_GPUS = 1024
SECRET_HINT = 'write { env = "VARIABLE" } or { command = ["pass", "show", "name"] }'
_SHARE_TOLERANCE = 0.005  # accepts 0.33, 0.17 and 0.08 as a third, a sixth and a twelfth
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN_ENV = frozenset(
    (ENV_ATTEMPT, ENV_CODE_DIR, ENV_DATA_DIR, ENV_GOALS, ENV_PREPARED_DIR, ENV_REHEARSAL, ENV_RESUME, ENV_RUN_DIR)
)
CUDA_DEVICES = "CUDA_VISIBLE_DEVICES"
_MOST_ITEMS = 20
_LONGEST_PATTERN = 1000  # characters
_NEW_SYNTAX = re.compile(r"(?<!\\)(?:\(\?>|[*+?}]\+)")  # atomic groups and possessive repeats
METRICS_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_SSH = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
)


def parse_duration(value: object) -> float:
    """Return the seconds of a number of seconds, or of text such as '90 s', '20m', '1h30m' or '2 days'."""
    hint = "write seconds or text such as '90 s', '20m', '8h', '1h30m' or '2 days'"
    seconds: float | None = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value
    elif isinstance(value, str) and _DURATION.fullmatch(value):
        seconds = sum(float(number) * _SECONDS[unit[0].lower()] for number, unit in _DURATION_PART.findall(value))
    if seconds is None:
        raise Invalid(f"{show(value)} is not a valid duration", hint)
    if not 0 < seconds <= _MAX_SECONDS:
        raise Invalid(f"{show(value)} must be more than 0 and at most 3650 days", hint)
    return float(seconds)


def parse_bytes(value: object) -> int:
    """Return the bytes of a number of bytes, or of text such as '500 MB' or '5 GB'."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    try:
        size = parse_size(value) if isinstance(value, str) else 0
    except SpecError:
        size = 0
    if size <= 0:
        raise Invalid(f"{show(value)} is not a valid size", "write bytes or text such as '500 MB', '5 GB'")
    return size


def parse_path(value: object) -> Path:
    """Return the path of a file on this machine."""
    if not isinstance(value, str):
        raise Invalid(f"expected text in quotes, got {show(value)}")
    if any(len(os.fsencode(part)) > 255 for part in check_text(value).split("/")):
        raise Invalid(f"{show(value)} is not a path: a name in it is longer than 255 bytes")
    return Path(value)


def check_links(links: Mapping[str, str]) -> None:
    """Require that no link is below another one, because it would be made where that one leads."""
    places = {name: PurePosixPath(name) for name in links}
    for name, place in places.items():
        above = next((other for other, path in places.items() if path in place.parents and other != name), None)
        if above is not None:
            raise Invalid(f"links: {name!r} is below {above!r}, which is a link itself", "leave out one of them")


def parse_secrets(value: object) -> object:
    """Convert the short form, a list of variables, to a table. An error does not show the value: it may be a secret."""
    if isinstance(value, dict):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        return {name: {"env": name} for name in map(check_env_name, value)}
    raise Invalid("expected a list of variables or a table", 'write secrets = ["HF_TOKEN"], or a table below the job')


def parse_share(value: object) -> float:
    """Return the GPUs of one job: a whole number, or 1/2, 1/3, 1/4, 1/6 or 1/12 of one GPU."""
    number = value
    if isinstance(value, str) and re.fullmatch(r"1\s*/\s*[1-9][0-9]?", value):
        number = 1 / int(value.partition("/")[2])
    if isinstance(number, (int, float)) and not isinstance(number, bool) and 0 <= number <= _MAX_GPUS:
        if number == int(number):
            return float(number)
        for parts in (2, 3, 4, 6, 12):
            if abs(number - 1 / parts) <= _SHARE_TOLERANCE:
                return 1 / parts
    hint = "write a whole number, or 1/2, 1/3, 1/4, 1/6 or 1/12 as 0.5 or '1/2'"
    raise Invalid(f"{show(value)} is not a valid GPU count", hint)


def parse_host_gpus(value: object) -> int | tuple[int, ...] | None:
    """Return the GPUs of a host: how many, or their indices. None stays None, which means to ask the box."""
    if value is None or _is_index(value):
        return value
    if isinstance(value, (list, tuple)) and value:
        indices = tuple(each for each in value if _is_index(each))
        if len(set(indices)) == len(value):
            return indices
    raise Invalid(f"expected a count or a list of GPU indices, got {show(value)}", "write gpus = 1 or gpus = [0, 2]")


def _is_index(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_INT


def parse_env_value(value: object) -> str:
    """Return the value of a variable: text, or a number as text."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and "\0" not in value:
        return value
    hint = 'write what the program expects in quotes, such as "1" or "true"'
    raise Invalid(f"expected text or a number, got {show(value)}", hint)


def check_text(value: str) -> str:
    """Require text that is not empty and has no NUL character."""
    if not value.strip():
        raise Invalid("must not be empty")
    if "\0" in value:
        raise Invalid("must not contain a NUL character")
    return value


def check_relative(value: str) -> str:
    """Require a relative path that stays below its directory."""
    if value.startswith(("/", "~")) or ".." in value.split("/") or "\\" in value:
        raise Invalid(f"{show(value)} is not a relative path with '/' and without '..'")
    return check_text(value)


def check_glob(value: str) -> str:
    """Require a pattern as in .gitignore."""
    compile_glob(value)
    return value


def compile_glob(value: str) -> GitIgnoreSpecPattern:
    """Compile a pattern as in .gitignore, where `./x` means `/x`. Raise Invalid if it is not one."""
    from pathspec.patterns.gitignore.base import GitIgnorePatternError  # imported here: few projects have patterns
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # `re` warns about a `[` within brackets
        try:
            return GitIgnoreSpecPattern(without_dot(value))
        except (GitIgnorePatternError, re.error):
            raise Invalid(f"{show(value)} is not a pattern", "write a glob as in .gitignore") from None


def without_dot(pattern: str) -> str:
    """Return the pattern with a leading `./` replaced by `/`."""
    mark, rest = ("!", pattern[1:]) if pattern.startswith("!") else ("", pattern)
    return mark + (rest[1:] if rest.startswith("./") else rest)


def check_env_name(value: str) -> str:
    """Require the name of a variable that orch does not set itself."""
    if value == CUDA_DEVICES:
        raise Invalid(
            f"{show(value)} is set by orch itself, to the GPUs that the job was given",
            "write `gpus = 1` in the job; `gpus = [1]` in [hosts.NAME] says which GPUs its jobs may use",
        )
    if value in OWN_ENV or value.startswith(ENV_NEEDS):
        raise Invalid(f"{show(value)} is set by orch itself")
    if not ENV_NAME.fullmatch(value):
        raise Invalid(
            f"{show(value)} is not a valid variable name", "use letters, digits and '_'; do not start with a digit"
        )
    return value


def check_env(value: dict[str, str]) -> dict[str, str]:
    """Require variables that agree with those that orch sets."""
    order = value.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if order != "PCI_BUS_ID":
        raise Invalid(
            f"CUDA_DEVICE_ORDER: {show(order)} would give the job other GPUs than those that orch reserved for it",
            "leave it out: orch sets PCI_BUS_ID, the order of nvidia-smi",
        )
    return value


def check_goal(value: str) -> str:
    """Require the condition of a goal, such as `>= 0.95`. Raise ValueError, not Invalid, if it is not one."""
    Goal.parse("", value)
    return value


def one_or_more(value: object) -> object:
    """Convert one text to a list of it. A list has at most 20 items, because the box tries all on each line."""
    if isinstance(value, (list, tuple)) and len(value) > _MOST_ITEMS:
        raise Invalid(f"{len(value)} items are too many", f"write at most {_MOST_ITEMS}")
    return [value] if isinstance(value, str) else value


def check_line_pattern(value: str) -> str:
    """Require a regular expression with a named group, for lines of output."""
    hint = r"write for example 'loss (?P<loss>\S+)', in single quotes, which keep a backslash"
    if len(value) > _LONGEST_PATTERN:
        raise Invalid(f"{show(value)} has more than {_LONGEST_PATTERN} characters", "write several shorter patterns")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of syntax that may change its meaning
            groups = re.compile(value).groupindex
    except (re.error, RecursionError, OverflowError) as error:
        raise Invalid(f"{show(value)} is not a regular expression: {error}", hint) from None
    if not groups:
        raise Invalid(f"{show(value)} has no named group, so there is nothing to read with it", hint)
    if _NEW_SYNTAX.search(value):
        raise Invalid(f"{show(value)} uses syntax that hosts with a Python older than 3.11 do not have", hint)
    return value


def check_metrics_file(value: str) -> str:
    """Require the path or glob of a file whose format can be read."""
    name = value.rpartition("/")[2].lower()
    if "tfevents" not in name and not name.endswith(METRICS_SUFFIXES):
        raise Invalid(
            f"{show(value)} is not a file of metrics that can be read",
            f"write a name that ends in {', '.join(METRICS_SUFFIXES)} or contains 'tfevents'",
        )
    if "**" in value and any("**" in part and part != "**" for part in value.split("/")):
        raise Invalid(f"{show(value)} is not a pattern", "write '**' between slashes")
    return value


def check_ssh(value: str) -> str:
    """Require an SSH destination: `user@host`, `user@host:port` or an alias of ~/.ssh/config."""
    match = _SSH.fullmatch(value)
    if not match or not 0 < int(match["port"] or 22) < 65536:
        hint = "write user@host, user@host:port or an alias of ~/.ssh/config"
        raise Invalid(f"{show(value)} is not a valid SSH destination", hint)
    return value


def looks_like(pattern: str, what: str, hint: str) -> Require:
    """Return the check of text that `pattern` matches completely.

    Args:
        pattern: A regular expression.
        what: What the text should be, for the error.
        hint: How to write it, for the error.
    """
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise Invalid(f"{show(value)} is not a valid {what}", hint)
        return value

    return Require(check)
