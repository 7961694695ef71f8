"""Which parts of a document are data of a box: text that a job, its log or whoever owns the box has chosen.

An agent must not follow what stands there. So each document names these parts, in `untrusted`, before they come.
"""

from __future__ import annotations

# Of a run, everything but its names, times, counts and its state, which are checked. `reason` of a state is one word
# of the box; `attach`, a command, is text of the box too.
_RUN_PARTS = ("detail", "heartbeat", "metrics", "goals", "verdict", "code", "outputs", "attach", "note", "values")
_RUNS = tuple(f"runs[].{part}" for part in _RUN_PARTS)
_COPIES = tuple(f"runs[].{part}" for part in ("left_out", "reasons", "kept"))
EVERYTHING = ("*",)  # of a kind of document that is not listed here

UNTRUSTED: dict[str, tuple[str, ...]] = {
    "status": ("hosts", *_RUNS, "notes"),
    "launch": ("checks", "rehearsals", *_RUNS, "notes"),
    "check": ("checks", "rehearsals", "notes"),
    "plan": ("checks", "jobs[].forecast"),
    "doctor": ("checks",),
    "push": ("path",),
    "sync": (*_RUNS, *_COPIES, "errors", "notes"),
    "stop": (*_RUNS, "errors"),
    "restart": (*_RUNS, "errors"),
    "ended": _RUNS,
    "wait": ("runs", "unreachable"),
    "df": ("hosts",),
    "rm": ("there", "kept", "errors"),
    "prune": ("there", "kept", "errors"),
    "log": ("text",),
    "error": ("error.message", "error.hint"),
}


def untrusted(kind: str) -> list[str]:
    """Return the paths of the parts of a document of this kind; everything below such a path is untrusted too."""
    return list(UNTRUSTED.get(kind, EVERYTHING))
