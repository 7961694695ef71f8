"""How errors about jobs.toml name places, show values and suggest names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

Loc = tuple[int | str, ...]  # where in a table: ("env", "EPOCHS"), ("expects", 0)

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_VALUE = 80  # characters of a wrong value that an error repeats


def header(kind: str, name: str) -> str:
    """Return the header of a table, `[jobs.worker1]`, with the name quoted if TOML requires it."""
    return f"[{kind}.{toml_key(name)}]"


def toml_key(key: str) -> str:
    """Return the key as TOML writes it, quoted if needed."""
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key)


def show(value: object) -> str:
    """Return a value of the file as one short line that its author recognises."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4300 digits, which 0x... in TOML can be
        return "a number too long to show"
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 3] + "..."


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that `name` most likely means; None if none is similar."""
    import difflib  # only for a mistake

    return next(iter(difflib.get_close_matches(name, list(valid), n=1)), None)


def suggestion(name: str, valid: Iterable[str], kind: str) -> str:
    """Return the hint for an unknown name: the nearest valid name, or else all of them.

    Args:
        name: The unknown name.
        valid: The valid names.
        kind: What they are, in the plural: "jobs", "hosts".
    """
    names = list(valid)
    near = nearest(name, names)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"the {kind} are: {', '.join(names)}" if names else f"no {kind} are defined"


def dotted(loc: Loc) -> str:
    """Return a Loc as text: `data.path`, `expects[0]`."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{toml_key(part)}" if text else toml_key(part)
    return text
