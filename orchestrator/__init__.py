"""The laptop side of orch: read jobs.toml, launch jobs on GPU boxes, show and download their runs.

`Project` and `Run` are the Python API (`orchestrator.api`). They are imported when they are used, because every command
imports this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import Project, Run

__all__ = ["Project", "Run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from orchestrator import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
