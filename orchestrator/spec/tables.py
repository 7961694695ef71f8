"""Read tables of jobs.toml as frozen dataclasses. All mistakes of a table are found, not only the first.

The annotation of a field says which values it accepts. `Annotated` adds to that:

    Parse(function)    reads the value by itself, whatever the annotation says
    Expand(function)   turns a short form into the long one, which is then read
    Require(function)    checks what was read, and returns what to use instead
    Within(...)        the limits of a number

These functions raise ValueError, or Invalid with a hint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from orchestrator.spec.wording import Loc, dotted, nearest, show, suggestion

T = TypeVar("T", bound="Table")


class Invalid(ValueError):
    """Raised for a value, with what is wrong with it and what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class Mistake(NamedTuple):
    """One mistake in a table: where it is, and how to correct it."""

    loc: Loc
    text: str
    hint: str = ""


class Parse(NamedTuple):
    """See the module."""

    function: Callable[[Any], Any]


class Expand(NamedTuple):
    """See the module."""

    function: Callable[[Any], Any]


class Require(NamedTuple):
    """See the module."""

    function: Callable[[Any], Any]


class Within(NamedTuple):
    """See the module."""

    least: float
    most: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of jobs.toml.

    A field whose key has another name says so in its metadata, under `key`. If `name_is_header`, the field `name` is
    the NAME in [jobs.NAME], not one of the keys.
    """

    name_is_header: ClassVar[bool] = False

    @classmethod
    def expanded(cls, values: Any) -> Any:
        """Return the values of the table with short forms replaced by long ones. Raise Invalid if it is no table."""
        return values

    def check(self) -> None:
        """Raise Invalid if the values of the table do not fit together."""

    @classmethod
    def toml_keys(cls) -> list[str]:
        """Return the keys that the table may have."""
        return [each.key for each in _fields(cls) if not (each.key == "name" and cls.name_is_header)]


def read_table(kind: type[T], values: Any, mistakes: list[Mistake], loc: Loc = ()) -> T | None:
    """Return the table `kind` with `values`, or None if `mistakes` were added.

    Args:
        kind: The class of the table.
        values: What jobs.toml has there, of any type.
        mistakes: Each mistake is appended to it.
        loc: Where the table is, for the mistakes.
    """
    before = len(mistakes)
    values = _converted(kind.expanded, values, mistakes, loc)
    if len(mistakes) > before:
        return None
    if not isinstance(values, Mapping):
        mistakes.append(Mistake(loc, f"{dotted(loc)}: expected a table, got {show(values)}"))
        return None
    known = _fields(kind)
    unknown = [key for key in values if key not in {each.key for each in known}]
    meant = {nearest(key, kind.toml_keys()) for key in unknown}
    found = {}
    for each in known:
        if each.key in values:
            found[each.name] = _read(each.annotation, values[each.key], mistakes, (*loc, each.key))
        elif each.is_required and each.key not in meant:  # a misspelt key is reported as unknown
            mistakes.append(Mistake((*loc, each.key), f"missing key {dotted((*loc, each.key))!r}"))
    for key in unknown:
        at = (*loc, key)
        mistakes.append(Mistake(at, f"unknown key {dotted(at)!r}", suggestion(key, kind.toml_keys(), "keys")))
    if len(mistakes) > before:
        return None
    table = kind(**found)
    try:
        table.check()
    except ValueError as error:
        mistakes.append(_mistake(loc, error))
        return None
    return table


def to_toml(value: Any) -> Any:
    """Return a table as a file would have it, without the keys that have their defaults; any other value as it is."""
    if isinstance(value, Table):
        hidden = ("name",) if value.name_is_header else ()
        found = {each: getattr(value, each.name) for each in fields(value) if each.name not in hidden}
        return {
            each.metadata.get("key", each.name): to_toml(held)
            for each, held in found.items()
            if held != (each.default if each.default_factory is MISSING else each.default_factory())
        }
    if isinstance(value, dict):
        return {key: to_toml(item) for key, item in value.items()}
    return [to_toml(item) for item in value] if isinstance(value, tuple) else value


class _Field(NamedTuple):
    name: str
    key: str
    is_required: bool
    annotation: Any


_known_fields: dict[type[Table], list[_Field]] = {}


def _fields(kind: type[Table]) -> list[_Field]:
    if kind not in _known_fields:
        _known_fields[kind] = _fields_of(kind)
    return _known_fields[kind]


def _fields_of(kind: type[Table]) -> list[_Field]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        _Field(
            each.name,
            each.metadata.get("key", each.name),
            each.default is MISSING and each.default_factory is MISSING,
            hints[each.name],
        )
        for each in fields(kind)
    ]


def _mistake(loc: Loc, error: ValueError) -> Mistake:
    place = f"{dotted(loc)}: " if loc else ""
    return Mistake(loc, f"{place}{error}", error.hint if isinstance(error, Invalid) else "")


def _converted(function: Callable[[Any], Any], value: Any, mistakes: list[Mistake], loc: Loc) -> Any:
    try:
        return function(value)
    except ValueError as error:
        mistakes.append(_mistake(loc, error))


def _read(annotation: Any, value: Any, mistakes: list[Mistake], loc: Loc) -> Any:
    """Return `value` as the annotation wants it; anything if `mistakes` were added."""
    before = len(mistakes)
    if get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        for extra in extras:
            if isinstance(extra, Parse):
                return _converted(extra.function, value, mistakes, loc)
            if isinstance(extra, Expand):
                value = _converted(extra.function, value, mistakes, loc)
        value = _read(annotation, value, mistakes, loc) if len(mistakes) == before else None
        for extra in extras:
            if len(mistakes) == before and isinstance(extra, Require):
                value = _converted(extra.function, value, mistakes, loc)
            elif len(mistakes) == before and isinstance(extra, Within):
                _check_limits(extra, value, mistakes, loc)
        return value
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind in (UnionType, Union):  # only X | None
        return None if value is None else _read(arguments[0], value, mistakes, loc)
    if kind is Literal:
        return _choice(arguments, value, mistakes, loc)
    if kind is tuple and isinstance(value, (list, tuple)):
        return tuple(_read(arguments[0], item, mistakes, (*loc, place)) for place, item in enumerate(value))
    if kind is dict and isinstance(value, dict):
        return {
            _read(arguments[0], key, mistakes, (*loc, key)): _read(arguments[1], item, mistakes, (*loc, key))
            for key, item in value.items()
        }
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return read_table(annotation, value, mistakes, loc)
    accepted, convert, words = _PLAIN[kind or annotation]
    if not isinstance(value, accepted) or (isinstance(value, bool) and annotation is not bool):
        mistakes.append(Mistake(loc, f"{dotted(loc)}: expected {words}, got {show(value)}"))
        return None
    return _converted(convert, value, mistakes, loc)


def _check_limits(limits: Within, value: Any, mistakes: list[Mistake], loc: Loc) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        mistakes.append(Mistake(loc, f"{dotted(loc)}: expected a finite number, got {show(value)}"))
    elif value < limits.least:
        mistakes.append(Mistake(loc, f"{dotted(loc)}: must be at least {limits.least:g}, got {show(value)}"))
    elif value > limits.most:
        mistakes.append(Mistake(loc, f"{dotted(loc)}: must be at most {limits.most}, got {show(value)}"))


def _choice(choices: tuple[str, ...], value: Any, mistakes: list[Mistake], loc: Loc) -> Any:
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        near = nearest(value, choices) if isinstance(value, str) else None
        text = f"{dotted(loc)}: expected {', '.join(others)} or {last}, got {show(value)}"
        mistakes.append(Mistake(loc, text, f"did you mean {near!r}?" if near else ""))
    return value


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise Invalid(f"{show(value)} is too large") from None


# For each annotation: the types that it accepts, what makes its value of them, and the words for it in an error.
_PLAIN: dict[Any, tuple[tuple[type, ...], Callable[[Any], Any], str]] = {
    str: ((str,), str, "text in quotes"),
    Path: ((str,), Path, "text in quotes"),
    int: ((int,), int, "a whole number"),
    float: ((int, float), _number, "a number"),
    bool: ((bool,), bool, "true or false"),
    tuple: ((), tuple, 'a list such as ["a", "b"]'),
    dict: ((), dict, "a table"),
}
