"""The JSON Schema of jobs.toml, made from the classes of its tables, for editors that complete and check the file.

It is wider than what orch accepts: it has the keys, their types and choices, not what the functions of `values` check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from orchestrator.spec.command_words import parse_arguments, parse_command, parse_rehearse
from orchestrator.spec.job_environment import JobEnvironment
from orchestrator.spec.models import SWITCHES, Host, Job, Notify, Prepare, ProjectSettings, Secret
from orchestrator.spec.sweep_table import parse_sweep_table
from orchestrator.spec.tables import Expand, Parse, Require, Table, Within
from orchestrator.spec.values import (
    one_or_more,
    parse_bytes,
    parse_duration,
    parse_env_value,
    parse_host_gpus,
    parse_path,
    parse_secrets,
    parse_share,
)
from remote.contract.files import MAX_INT

Schema = Any  # a JSON object
DIALECT = "http://json-schema.org/draft-07/schema#"
FOLDER, NAME = ".orch", "jobs.schema.json"  # where `orch init` writes it, beside jobs.toml
TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}
COMMAND = {"anyOf": [{"type": "string", "minLength": 1}, {**TEXTS, "minItems": 1}]}
VALUES = {"type": "array", "minItems": 1}
VALUES_BY_KEY = {"type": "object", "additionalProperties": VALUES}  # `env.SEED = [0, 1]` without quotes
# What each function that reads a value by itself accepts.
PARSED: dict[Callable[..., object], Schema] = {
    parse_arguments: COMMAND,
    parse_bytes: {"type": ["integer", "string"]},
    parse_command: COMMAND,
    parse_duration: {"type": ["number", "string"]},
    parse_env_value: {"type": ["string", "number"]},
    parse_host_gpus: {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "array", "items": {"type": "integer"}}]},
    parse_path: TEXT,
    parse_rehearse: {"anyOf": [{"type": "boolean"}, *COMMAND["anyOf"]]},
    parse_share: {"type": ["number", "string"]},
    parse_sweep_table: {"type": "object", "additionalProperties": {"anyOf": [VALUES, VALUES_BY_KEY]}},
}
PLAIN: dict[Any, str] = {str: "string", Path: "string", int: "integer", float: "number", bool: "boolean"}


def jobs_schema() -> Schema:
    """Return the schema."""
    of_job = _properties(Job)
    named = {"type": "object", "propertyNames": {"pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"}}
    job = {**_table(Job), "required": []}  # a key may be in [defaults]
    defaults = {key: schema for key, schema in of_job.items() if key != "needs"}
    return {
        "$schema": DIALECT,
        "title": "jobs.toml",
        "description": "What to run, and where: docs/jobs-toml.md describes every key.",
        "type": "object",
        "additionalProperties": False,
        "required": ["project"],
        "properties": {
            "project": _table(ProjectSettings),
            "hosts": {**named, "additionalProperties": {**_table(Host), "required": []}},
            "defaults": {**_table(Job), "description": "Keys for all jobs.", "properties": defaults, "required": []},
            "jobs": {**named, "additionalProperties": job},
            "notify": _table(Notify),
        },
    }


def _table(kind: type[Table]) -> Schema:
    required = [_key(each) for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
    return {
        "description": (kind.__doc__ or "").splitlines()[0],
        "type": "object",
        "additionalProperties": False,
        "properties": _properties(kind),
        "required": [key for key in required if not (key == "name" and kind.name_is_header)],
    }


def _properties(kind: type[Table]) -> dict[str, Schema]:
    hints = get_type_hints(kind, include_extras=True)
    found = {_key(each): _field(each, hints[each.name]) for each in fields(kind)}
    if kind.name_is_header:
        del found["name"]
    if kind is Job:
        found.update({key: {"anyOf": [found[key], {"const": False}]} for key in SWITCHES})  # `false` cancels a default
    return found


def _key(each: Field[Any]) -> str:
    return str(each.metadata.get("key", each.name))


def _field(each: Field[Any], annotation: Any) -> Schema:
    schema = _value(annotation)
    if isinstance(each.default, (str, int, float)):
        return {**schema, "default": each.default}
    return schema


def _value(annotation: Any) -> Schema:
    if get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        return _annotated(annotation, extras)
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind in (UnionType, Union):  # only X | None; TOML has no null
        return _value(arguments[0])
    if kind is Literal:
        return {"enum": list(arguments)}
    if kind is tuple:
        return {"type": "array", "items": _value(arguments[0])}
    if kind is dict:
        return {"type": "object", "additionalProperties": _value(arguments[1])}
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return _short_or_long(annotation)
    return {"type": PLAIN[annotation]}


def _annotated(annotation: Any, extras: list[Any]) -> Schema:
    for extra in extras:
        if isinstance(extra, Parse) or (isinstance(extra, Expand) and extra.function in PARSED):
            return PARSED[extra.function]
        if isinstance(extra, Expand):
            return _expanded(extra, _value(annotation))
    schema = dict(_value(annotation))
    for extra in extras:
        if isinstance(extra, Within):
            schema["minimum"] = extra.least
            schema.update({"maximum": extra.most} if extra.most < MAX_INT else {})
        elif isinstance(extra, Require) and extra.pattern:
            schema["pattern"] = f"^(?:{extra.pattern})$"
    return schema


def _expanded(extra: Expand, long: Schema) -> Schema:
    """Return the schema of a value that has a short form."""
    short: dict[Callable[..., object], Schema] = {one_or_more: long.get("items"), parse_secrets: TEXTS}
    return {"anyOf": [short[extra.function], long]}


def _short_or_long(kind: type[Table]) -> Schema:
    """Return the schema of a table, or of the short form that is accepted for it."""
    short: dict[type[Table], list[Schema]] = {
        Prepare: COMMAND["anyOf"],
        JobEnvironment: [TEXT],
        Secret: [{"const": "dotenv"}],
    }
    return {"anyOf": [*short[kind], _table(kind)]} if kind in short else _table(kind)
