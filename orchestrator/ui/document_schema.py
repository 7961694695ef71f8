"""The JSON Schemas of the documents that `--json` prints, made from the types in `serialize`.

A document may have more keys than its schema: new ones are added from version to version.
"""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, NotRequired, Required, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from orchestrator.ui.look_objects import (
    BestObject,
    ComparisonObject,
    ContentObject,
    ListingObject,
    OpenedObject,
    ShownObject,
)
from orchestrator.ui.plan_text import PlanObject
from orchestrator.ui.serialize import (
    CheckObject,
    CopyObject,
    ErrorObject,
    HostObject,
    LaunchObject,
    NotCopiedObject,
    PushedObject,
    RunObject,
    ShippedObject,
    WaitObject,
)
from orchestrator.ui.tidy_objects import DisksObject, RemovalObject

Schema = Any  # a JSON object
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class StatusDocument(TypedDict):
    """Of `orch status`, `orch runs` and `orch watch`."""

    hosts: list[HostObject]
    runs: list[RunObject]
    notes: list[str]


class LaunchDocument(LaunchObject):
    """Of `orch launch`."""

    runs: list[RunObject]


class ChecksDocument(TypedDict):
    """Of `orch doctor`."""

    checks: list[CheckObject]


class CopiedRun(RunObject, CopyObject):
    """A run, and its copy on this machine."""


class SyncDocument(TypedDict, total=False):
    """Of `orch sync`, which has `code` with --code, else the other keys."""

    runs: list[CopiedRun]
    errors: list[NotCopiedObject]
    notes: list[str]
    code: list[ShippedObject]


class ChangeDocument(TypedDict):
    """Of `orch stop` and `orch restart`. `had_ended` lists job and run id of runs that needed no stop.

    `notes` say which runs of a group or pattern were left out.
    """

    runs: list[RunObject]
    errors: list[ErrorObject]
    notes: list[str]
    had_ended: NotRequired[list[list[str]]]


class EndedDocument(TypedDict):
    """The last document of commands that follow runs to their end."""

    runs: list[RunObject]


class LogDocument(TypedDict):
    """A piece of a log: its first byte is at `offset`, and it has that many bytes.

    If several runs are followed, it names the run; null if its host has not named it yet.
    """

    job: NotRequired[str | None]
    run_id: NotRequired[str | None]
    offset: int
    bytes: int
    text: str


class ErrorDocument(TypedDict):
    """The error that ended the command."""

    error: ErrorObject


DOCUMENTS: dict[str, type] = {
    "status": StatusDocument,
    "launch": LaunchDocument,
    "check": LaunchObject,
    "doctor": ChecksDocument,
    "push": PushedObject,
    "sync": SyncDocument,
    "stop": ChangeDocument,
    "restart": ChangeDocument,
    "ended": EndedDocument,
    "wait": WaitObject,
    "log": LogDocument,
    "show": ShownObject,
    "compare": ComparisonObject,
    "best": BestObject,
    "plan": PlanObject,
    "ls": ListingObject,
    "cat": ContentObject,
    "open": OpenedObject,
    "df": DisksObject,
    "rm": RemovalObject,
    "prune": RemovalObject,
    "error": ErrorDocument,
}
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def documents_schema() -> Schema:
    """Return one schema for all kinds of documents: the key `kind` chooses among them."""
    shared: dict[str, Schema] = {}
    kinds = [_document(kind, DOCUMENTS[kind], shared) for kind in DOCUMENTS]
    return {
        "$schema": DIALECT,
        "title": "The documents of orch --json",
        "type": "object",
        "required": ["schema", "kind", "untrusted"],
        "properties": {
            "schema": {"const": 1},
            "kind": {"enum": list(DOCUMENTS)},
            "untrusted": {"type": "array", "items": {"type": "string"}, "description": "docs/automation.md"},
        },
        "allOf": kinds,
        "$defs": shared,
    }


def _document(kind: str, of: Any, shared: dict[str, Schema]) -> Schema:
    return {"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": _object(of, shared)}


def _object(kind: Any, shared: dict[str, Schema]) -> Schema:
    hints = get_type_hints(kind, include_extras=True)
    return {
        "description": " ".join((kind.__doc__ or "").split()),
        "type": "object",
        "properties": {key: _value(hint, shared) for key, hint in hints.items()},
        # `__required_keys__` does not know of NotRequired where annotations are not evaluated.
        "required": sorted(key for key in kind.__required_keys__ if get_origin(hints[key]) is not NotRequired),
    }


def _value(hint: Any, shared: dict[str, Schema]) -> Schema:
    kind, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if kind in (NotRequired, Required):
        return _value(arguments[0], shared)
    if kind in (UnionType, Union):
        return {"anyOf": [_value(argument, shared) for argument in arguments]}
    if kind is list:
        return {"type": "array", "items": _value(arguments[0], shared)}
    if kind is dict:
        return {"type": "object", "additionalProperties": _value(arguments[1], shared)}
    if is_typeddict(hint):
        if hint.__name__ not in shared:
            shared[hint.__name__] = {}  # a type may contain itself
            shared[hint.__name__] = _object(hint, shared)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return {"type": _PLAIN[hint]}
