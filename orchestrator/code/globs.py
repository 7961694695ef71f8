"""Match paths against a list of globs with the rules of .gitignore."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from orchestrator.spec.values import compile_glob, without_dot


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Return whether `patterns` name `path`, as the lines of a .gitignore file would.

    One difference: `./x` means `/x`, a path from the top; git matches nothing with it.

    Args:
        path: A path relative to the top, with `/`. The path of a folder ends in `/`.
        patterns: The last pattern that matches decides; `!x` takes `x` out again.

    Raises:
        Invalid: A pattern is malformed. Patterns of jobs.toml are checked when it is loaded.
    """
    return _compiled(tuple(patterns)).matches(path)


def from_top(patterns: Sequence[str]) -> tuple[str, ...]:
    """Return `patterns` anchored at the top, as those of `include` are: `x` becomes `/x`."""
    return tuple(_from_top(without_dot(pattern)) for pattern in patterns)


def _from_top(pattern: str) -> str:
    if _is_anchored(pattern):
        return pattern
    return f"!/{pattern[1:]}" if pattern.startswith("!") else f"/{pattern}"


def first_part(pattern: str) -> str:
    """Return the first part of an anchored pattern: `a` of `/a/*.py`."""
    return without_dot(pattern).removeprefix("/").partition("/")[0]


def may_hold(folder: str, patterns: Sequence[str]) -> bool:
    """Return whether `folder` may contain, at any depth, a file that `patterns` name. All must be anchored at the top.

    Each pattern is cut to the depth of the folder or after its `**`, and then compared with the folder: `/a/*/c.py`
    may be in `a/b`.
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
    """Compiled patterns, and the results for folders that were looked up before."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [(compile_glob(pattern), _is_anchored(pattern)) for pattern in reversed(patterns)]
        self._folders: dict[str, bool] = {"": False}

    def matches(self, path: str) -> bool:
        """Return whether the path or a folder above it matches. As in git, `!` takes no file out of such a folder."""
        above = path.rstrip("/").rpartition("/")[0]
        if above not in self._folders:
            self._folders[above] = self.matches(above + "/")
        return self._folders[above] or self._is_named(path)

    def _is_named(self, path: str) -> bool:
        """Return what the last pattern that matches `path` itself decides. `_patterns` is in reverse order."""
        name = path[path.rstrip("/").rfind("/") + 1 :]
        for pattern, is_anchored in self._patterns:
            text = path if is_anchored else name
            if pattern.include is not None and _is_hit(pattern, text):
                return pattern.include
        return False


def _is_hit(pattern: GitIgnoreSpecPattern, text: str) -> bool:
    """Return whether `text` itself matches, and not only a folder above it.

    pathspec's expressions have a group for the slash after the folder that matched. If that group took part, only a
    match of the whole `text`, or of `/` alone (the pattern `**/`, any folder), is a match of `text` itself.
    """
    found = pattern.match_file(text.rstrip("/"))
    if found is not None and found.match.lastgroup is None:
        return True
    found = pattern.match_file(text) if text.endswith("/") else None
    if found is None or found.match.lastgroup is None:
        return False
    return bool(found.match.end() == len(text) or found.match[0] == "/")


def _is_anchored(pattern: str) -> bool:
    """Return whether the pattern matches the whole path and not only its last part: it has a slash before its end."""
    return "/" in without_dot(pattern).removeprefix("!").rstrip("/")
