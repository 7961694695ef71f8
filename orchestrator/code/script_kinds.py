"""Tell what kind of program a Python script is: one that needs torchrun, one that mentions a name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from orchestrator.code.script_values import argument, calls, constant, name_of

_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def has_name(trees: Sequence[ast.Module], *names: str) -> bool:
    """Return whether one of `names` occurs in the modules as a name or attribute, or as a text."""
    return any(word in names for tree in trees for word in _words(tree))


def imported_libraries(trees: Sequence[ast.Module]) -> set[str]:
    """Return the names of the packages that the modules import, without their submodules."""
    found: set[str] = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def _words(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            yield name_of(node).rpartition(".")[2]
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def is_distributed(trees: Sequence[ast.Module]) -> bool:
    """Return whether the script starts a process group of torch."""
    return any(name.endswith("init_process_group") for tree in trees for name, _ in calls(tree))


def needs_torchrun(trees: Sequence[ast.Module]) -> bool:
    """Return whether the script works only under torchrun.

    It does if its process group takes the rank from the environment, and it has no other way: it does not start its
    processes itself, and never asks whether a rank is set.
    """
    groups = [call for tree in trees for name, call in calls(tree) if name.endswith("init_process_group")]
    if not groups or any(argument(call, 3, "rank") for call in groups) or has_name(trees, "spawn"):
        return False
    return not any(_asks_for_rank(node) for tree in trees for node in ast.walk(tree))


def _asks_for_rank(node: ast.AST) -> bool:
    """Return whether an expression is `environ.get("RANK")`, `getenv("RANK")`, `"RANK" in environ` or the like."""
    if isinstance(node, ast.Call):
        is_get = name_of(node.func).endswith(("environ.get", "getenv"))
        return is_get and constant(argument(node, 0, "key")) in _RANK
    return isinstance(node, ast.Compare) and constant(node.left) in _RANK
