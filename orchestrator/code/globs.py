"""Globs as in .gitignore: which files a list of them names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from orchestrator.spec.values import compile_glob, without_dot


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Return whether `patterns` name `path`, as the lines of a .gitignore file would.

    One difference: `./x` counts from the top, as `/x` does; to git it names nothing.

    Args:
        path: relative to the top, with `/`; that of a folder ends in `/`.
        patterns: in order: the last one that matches a path decides, and `!x` takes `x` out again.

    Raises:
        Invalid: one of them is not a pattern. jobs.toml is checked for that when it is loaded.
    """
    return _compiled(tuple(patterns)).matches(path)


def from_top(patterns: Sequence[str]) -> tuple[str, ...]:
    """Return `patterns` such that each counts from the top, as those of `include` do."""
    return tuple(_from_top(without_dot(pattern)) for pattern in patterns)


def _from_top(pattern: str) -> str:
    if _is_anchored(pattern):
        return pattern
    return f"!/{pattern[1:]}" if pattern.startswith("!") else f"/{pattern}"


def first_part(pattern: str) -> str:
    """Return the first part of a pattern that counts from the top: `a` of `/a/*.py`."""
    return without_dot(pattern).removeprefix("/").partition("/")[0]


def may_hold(folder: str, patterns: Sequence[str]) -> bool:
    """Return whether a file that `patterns` name may lie in `folder` or below it. Each has to count from the top.

    Each pattern is cut to the depth of the folder, or to what stands before its `**`: `/a/*/c.py` may lie in `a/b`.
    """
    depth = folder.rstrip("/").count("/") + 1
    cut = (_cut(pattern, depth) for pattern in patterns if not pattern.startswith("!"))
    return matches(folder.rstrip("/") + "/", tuple(cut))


def _cut(pattern: str, depth: int) -> str:
    parts = pattern.strip("/").split("/")[:depth]
    return "/" + "/".join(parts[: parts.index("**") + 1] if "**" in parts else parts)


@lru_cache(maxsize=64)
def _compiled(patterns: tuple[str, ...]) -> _Globs:
    return _Globs(patterns)


class _Globs:
    """Compiled patterns, and what they say of the folders that were asked about."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [(compile_glob(pattern), _is_anchored(pattern)) for pattern in reversed(patterns)]
        self._folders: dict[str, bool] = {"": False}

    def matches(self, path: str) -> bool:
        """As git: what lies in a folder that matches does too, whatever a later `!` says of it."""
        above = path.rstrip("/").rpartition("/")[0]
        if above not in self._folders:
            self._folders[above] = self.matches(above + "/")
        return self._folders[above] or self._is_named(path)

    def _is_named(self, path: str) -> bool:
        """Whether the last pattern that matches `path` itself names it. The first here is the last of the list."""
        name = path[path.rstrip("/").rfind("/") + 1 :]
        for pattern, is_anchored in self._patterns:
            text = path if is_anchored else name
            if pattern.include is not None and _is_hit(pattern, text):
                return pattern.include
        return False


def _is_hit(pattern: GitIgnoreSpecPattern, text: str) -> bool:
    """Whether `text` itself matches, and not only a folder above it.

    In pathspec's expressions a group marks the slash after a folder that matched, here or above; that of `**/`, which
    means any folder, is nothing else.
    """
    found = pattern.match_file(text.rstrip("/"))
    if found is not None and found.match.lastgroup is None:
        return True
    found = pattern.match_file(text) if text.endswith("/") else None
    if found is None or found.match.lastgroup is None:
        return False
    return bool(found.match.end() == len(text) or found.match[0] == "/")


def _is_anchored(pattern: str) -> bool:
    """Whether it counts from the top: it has a slash before its end."""
    return "/" in without_dot(pattern).removeprefix("!").rstrip("/")
