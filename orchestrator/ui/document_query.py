"""Select from JSON documents: `--json FIELDS` picks fields of runs, `--query` evaluates a JMESPath expression.

JMESPath is the language of `aws --query` and `az --query`. Its library is pure Python; one for jq is a compiled one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.wording import nearest
from orchestrator.text import clean, shortened
from orchestrator.ui.look_objects import CandidateObject, SeenObject
from orchestrator.ui.serialize import CopyObject, RunObject

RUN_FIELDS = tuple(RunObject.__annotations__)
COPY_FIELDS = (*RUN_FIELDS, *CopyObject.__annotations__)  # of the documents of `orch sync`
FIELDS_OF = {  # of the runs in the documents of other commands than `status` and the like
    "sync": COPY_FIELDS,
    "compare": tuple(SeenObject.__annotations__),
    "best": tuple(CandidateObject.__annotations__),
}


class DocumentQuery:
    """What to print of each document."""

    def __init__(self, fields: str, expression: str, known: Sequence[str] = RUN_FIELDS) -> None:
        """Check the fields and the expression.

        Args:
            fields: Names of fields with commas between them, such as `job,metrics.acc`; empty for complete documents.
            expression: In JMESPath; empty for none.
            known: The fields that there are.

        Raises:
            SpecError: A field does not exist, or the expression is malformed.
        """
        self._fields = [field.strip() for field in fields.split(",")] if fields else []
        for field in self._fields:
            if field.split(".")[0] not in known:
                near = nearest(field, known)
                hint = f"did you mean {near!r}? " if near else ""
                hint += f"the fields are: {', '.join(known)}"
                raise SpecError(f"--json has no field {shortened(field, 80)!r}", hint)
        self._expression = _compiled(expression) if expression else None

    def line(self, document: Any) -> str:
        """Return the line to print for a document. One without runs is complete even if fields are selected.

        Raises:
            SpecError: The expression does not fit the document.
        """
        found: Any = document
        if self._fields and isinstance(document.get("runs"), list):
            found = [{field: _value(run, field) for field in self._fields} for run in document["runs"]]
        if self._expression is None:
            return json.dumps(found, separators=(",", ":") if self._fields else None)
        found = _search(self._expression, found)
        return clean(found) if isinstance(found, str) else json.dumps(found, separators=(",", ":"))


def _value(value: Any, path: str) -> Any:
    """Return what is at a path such as `metrics.val.acc`, where `val.acc` may be one key; None if there is nothing."""
    if not isinstance(value, Mapping):
        return None
    if path in value:
        return value[path]
    first, dot, rest = path.partition(".")
    return _value(value.get(first), rest) if dot else None


def _compiled(expression: str) -> Any:
    import jmespath

    try:
        return jmespath.compile(expression)
    except jmespath.exceptions.JMESPathError as error:
        raise _wrong(expression, error) from None


def _search(compiled: Any, value: Any) -> Any:
    from jmespath.exceptions import JMESPathError

    try:
        return compiled.search(value)
    except JMESPathError as error:
        raise _wrong(compiled.expression, error) from None


def _wrong(expression: str, error: Exception) -> SpecError:
    why = str(error).splitlines()[0].rstrip(":")
    return SpecError(f"--query {shortened(expression, 200)!r}: {why}", "see https://jmespath.org for the language")
