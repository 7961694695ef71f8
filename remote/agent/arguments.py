"""The arguments of each request, checked before anything is done: a wrong type is refused by the argument's name.

Only the types are looked at here. What a value means (a run that is not there, a tree that is no hash) is for the
operation to say. A refusal never quotes the value: it may be a secret.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Tuple

from remote.contract.protocol import AgentError

Test = Callable[[Any], bool]
Arguments = Dict[str, Tuple[str, Test]]  # by name: what is expected, in words and as a test
LAUNCHERS = ("nohup", "tmux")


def check(op: str, args: Mapping[str, Any]) -> None:
    """Raise AgentError `bad_request` for an argument of `op` that is missing or of a wrong type."""
    for name in ("root", "project"):
        if op != "hello" and not _is_text(args.get(name)):
            raise AgentError("bad_request", f"`{name}` must be a text")
    for name, (expected, test) in ARGUMENTS.get(op, {}).items():
        if not test(args.get(name)):
            raise AgentError("bad_request", f"`{name}` must be {expected}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _list_of(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _object_of(test: Test) -> Test:
    return lambda value: isinstance(value, dict) and all(map(test, value.values()))


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_text(value[0]) and _or_none(_is_text)(value[1])


def _is_host(value: Any) -> bool:
    return _is_object(value) and value.get("launcher") in LAUNCHERS and _or_none(_is_text)(value.get("python"))


def _is_entry(value: Any) -> bool:
    """One run of a launch, as far as the launch itself reads it; its supervisor reads the rest."""
    job = value.get("job") if isinstance(value, dict) else None
    return (
        isinstance(job, dict)
        and _is_text(value.get("run_id"))
        and _is_text(job.get("name"))
        and _list_of(_is_text)(job.get("needs"))
        and _or_none(_is_number)(job.get("gpus"))
        and _or_none(_object_of(_is_text))(value.get("secrets"))
    )


_TEXT = ("a text, or null", _or_none(_is_text))
_FLAG = ("true or false", _or_none(_is_flag))
_COUNT = ("a whole number of 0 or more, or null", _or_none(_is_count))
_SECONDS = ("a number of seconds", _or_none(_is_number))
_PAIRS = ("a list of [job, run id]", _list_of(_is_pair))
_RUN: Arguments = {"job": ("a text", _is_text), "run_id": _TEXT}
_TREE: Arguments = {"tree": ("a text", _is_text)}
_KEYS = ("an object of job and key", _or_none(_object_of(_or_none(_is_text))))
_BY: Arguments = {"by": _TEXT, "confirm_s": _SECONDS}

ARGUMENTS: Dict[str, Arguments] = {
    "status": {
        "which": ("`current`, `all` or `none`", lambda value: value in (None, "current", "all", "none")),
        "also": (_PAIRS[0], _or_none(_PAIRS[1])),
    },
    "inventory": {**_RUN, "after": _TEXT, "limit": _COUNT},
    "follow": {**_RUN, "once": _FLAG, "offset": _COUNT, "lines": _COUNT},
    "facts": {
        "python": _TEXT,
        "torch": _FLAG,
        "tree": _TEXT,
        "jobs": ("a list of jobs", _or_none(_list_of(_is_object))),
        "rehearsed": _KEYS,
    },
    "launch": {
        "host": ("an object with a `launcher`, nohup or tmux", _is_host),
        "code": ("an object", _is_object),
        "runs": ("a list of runs, each with a `run_id` and a `job`", _list_of(_is_entry)),
        "passed": ("a list of texts", _or_none(_list_of(_is_text))),
        "rehearsed": _KEYS,
        "rehearsal": _FLAG,
        "versions": ("an object", _or_none(_is_object)),
        **_BY,
    },
    "stop": {"runs": _PAIRS, **_BY},
    "restart": {
        "runs": _PAIRS,
        "secrets": ("an object of jobs", _or_none(_object_of(_or_none(_object_of(_is_text))))),
        **_BY,
    },
    "code_begin": _TREE,
    "code_commit": {**_TREE, "incoming": ("a text", _is_text)},
}
