"""Collect all mistakes in a jobs.toml into one SpecError, one line for each mistake."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.errors import SpecError

Loc = tuple[int | str, ...]  # where in a table: ("env", "EPOCHS"), ("expects", 0)
Checked = TypeVar("Checked", bound="Table")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_VALUE = 80  # characters of a wrong value that an error repeats
_EXPECTED = {
    "string_type": "text in quotes",
    "path_type": "text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": 'a list such as ["a", "b"]',
    "dict_type": "a table",
    "model_type": "a table",
}


class Table(BaseModel):
    """A table of jobs.toml. If `name_is_header`, its field `name` is the NAME in [jobs.NAME], not one of its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name_is_header: ClassVar[bool] = False


class Invalid(ValueError):
    """Raised by a validator with what is wrong with one value, and what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@dataclass(frozen=True)
class Problem:
    """One mistake, as one line of the error message, and how to correct it."""

    text: str
    hint: str


class Report:
    """Collects mistakes, so that one error names all of them. `source` is a file name or `--set`."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []

    def add(self, table: str, text: str, hint: str = "") -> None:
        """Add a mistake in `table`, such as `[jobs.train]`; "" for the top level."""
        problem = Problem(f"{self.source}: {table} {text}" if table else f"{self.source}: {text}", hint)
        if problem not in self.problems:  # a wrong default is found again in every job that has it
            self.problems.append(problem)

    def check(self, model: type[Checked], values: Mapping[str, Any], table_of: Callable[[Loc], str]) -> Checked | None:
        """Return the model of a table, or add every mistake in its values and return None.

        Args:
            model: The class of the model.
            values: The values of the table, defaults included.
            table_of: Returns the header of the table that sets the value at a Loc.
        """
        try:
            return model.model_validate(dict(values))
        except ValidationError as failed:
            errors = failed.errors(include_url=False)
        unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
        meant = {(*loc[:-1], nearest(str(loc[-1]), _keys(model, loc[:-1]))) for loc in unknown}
        for error in errors:
            if error["type"] == "missing" and error["loc"] in meant:
                continue  # the key is present but misspelt, which is reported as another error
            self.add(table_of(error["loc"]), *_describe(model, error))
        return None

    def error(self) -> SpecError:
        """Return the error that names all mistakes, of which there is at least one."""
        if len(self.problems) == 1:
            return SpecError(self.problems[0].text, self.problems[0].hint)
        return SpecError("\n".join(f"{each.text}; {each.hint}" if each.hint else each.text for each in self.problems))

    def raise_if_any(self) -> None:
        """Raise the error if there are mistakes."""
        if self.problems:
            raise self.error()


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


def _describe(model: type[Table], error: Any) -> tuple[str, str]:
    """Return the text and the hint for one error of pydantic."""
    kind, loc, value = error["type"], error["loc"], error["input"]
    key = _dotted(loc)
    if kind == "extra_forbidden":
        return f"unknown key {key!r}", suggestion(str(loc[-1]), _keys(model, loc[:-1]), "keys")
    if kind == "missing":
        return f"missing key {key!r}", ""
    if kind == "value_error" and isinstance(error["ctx"]["error"], ValueError):
        raised = error["ctx"]["error"]
        return f"{key}: {raised}" if key else str(raised), raised.hint if isinstance(raised, Invalid) else ""
    if kind == "literal_error":
        expected = error["ctx"]["expected"]
        near = nearest(str(value), re.findall(r"'([^']*)'", expected))
        return f"{key}: expected {expected}, got {show(value)}", f"did you mean {near!r}?" if near else ""
    if kind == "greater_than_equal":
        return f"{key}: must be at least {error['ctx']['ge']:g}, got {show(value)}", ""
    if kind == "less_than_equal":
        return f"{key}: must be at most {error['ctx']['le']}, got {show(value)}", ""
    if kind in _EXPECTED:
        return f"{key}: expected {_EXPECTED[kind]}, got {show(value)}", ""
    return f"{key}: {show(value)} cannot be used here", ""


def _dotted(loc: Loc) -> str:
    """Return a Loc as text: `data.path`, `expects[0]`. Drops the `[key]` that pydantic adds for the key of a dict."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]":
            text += f".{toml_key(part)}" if text else toml_key(part)
    return text


def _keys(model: type[Table], path: Loc) -> list[str]:
    """Return the valid keys of the table at `path` inside `model`."""
    for part in path:
        if str(part) not in model.model_fields:
            continue  # the key of a dict, whose values have the model that is already found
        annotation = model.model_fields[str(part)].annotation
        nested = [each for each in (annotation, *get_args(annotation)) if isinstance(each, type)]
        model = next((each for each in nested if issubclass(each, Table)), model)
    return [key for key in model.model_fields if not (key == "name" and model.name_is_header)]
