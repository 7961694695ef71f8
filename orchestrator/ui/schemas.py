"""`orch schema`: the JSON Schemas of jobs.toml and of the documents that `--json` prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.jobs_schema import jobs_schema
from orchestrator.ui.document_schema import documents_schema

SCHEMAS: dict[str, Callable[[], Any]] = {"jobs": jobs_schema, "documents": documents_schema}


def schema(of: str) -> Any:
    """Return a schema. Raise SpecError if there is none of this name."""
    if of not in SCHEMAS:
        raise SpecError(f"there is no schema {of!r}", f"one of: {', '.join(SCHEMAS)}")
    return SCHEMAS[of]()
