"""Globs as in .gitignore, compared with real git."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.code.globs import from_top, matches, may_hold


@pytest.mark.parametrize(
    ("patterns", "hits", "misses"),
    [
        (["*.md"], ["a.md", "x/y/a.md", "a.md/inner"], ["a.mdx"]),
        (["docs"], ["docs", "docs/a", "x/docs/a"], ["docs2", "mydocs/a"]),
        (["docs/"], ["docs/a", "x/docs/a"], ["docs2", "docs", "x/docs"]),
        (["/docs"], ["docs", "docs/a/b"], ["x/docs"]),
        (["./docs/a"], ["docs/a"], ["docs/b", "x/docs/a"]),
        (["./docs"], ["docs/a"], ["x/docs/a"]),
        (["x/*.py"], ["x/a.py"], ["x/y/a.py", "a.py"]),
        (["x/**/a"], ["x/a", "x/y/z/a", "x/y/a/b"], ["a", "y/x/b"]),
        (["**/cache/*.bin"], ["cache/a.bin", "x/y/cache/a.bin"], ["cache/x/a.bin"]),
        (["x/**"], ["x/a", "x/y/z"], ["x", "y/x"]),
        (["[ab].py"], ["a.py", "x/b.py"], ["c.py"]),
        (["[!ab].py"], ["c.py"], ["a.py"]),
        (["#notes", "\\#x"], ["#x"], ["#notes"]),
        (["*.bin", "!keep.bin"], ["a.bin"], ["keep.bin", "x/keep.bin"]),
        (["data/", "!data/keep.bin"], ["data/keep.bin"], []),  # its folder is excluded
        (["data/*", "!data/keep.bin"], ["data/a.bin"], ["data/keep.bin"]),
        (["x/a/**", "!x", "!b"], ["x/a/c"], ["x/a/b", "x/b"]),
        (["cache/", "!src"], ["src/cache/a", "cache/a"], ["src/a"]),
        ([""], [], ["a", "x/y"]),
        ([], [], ["a", "x/y"]),
    ],
)
def test_glob_matches_as_documented(patterns: Sequence[str], hits: Sequence[str], misses: Sequence[str]) -> None:
    assert [path for path in hits if not matches(path, patterns)] == []
    assert [path for path in misses if matches(path, patterns)] == []


# Left out is what pathspec reads differently than git: `**` next to other characters or before the last slash, and
# classes such as [[:alpha:]].
PARTS = st.sampled_from(
    [
        "a",
        "b",
        "c",
        "ab",
        "B",
        "a.py",
        ".x",
        "*",
        "**",
        "a*",
        "*.py",
        "*b",
        "?",
        "[ab]",
        "[!a]",
        "[^a]",
        "\\#a",
        "\\!a",
        "#a",
        "\\[a\\]",
    ]
    + ["a b"]
)
PATTERNS = st.builds(
    lambda not_, top, parts, end: not_ + top + "/".join(parts) + end,
    st.sampled_from(["", "", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(PARTS, min_size=1, max_size=3),
    st.sampled_from(["", "", "/", " "]),
).filter(lambda pattern: not pattern.endswith("**/"))
NAMES = st.sampled_from(["a", "b", "c", "ab", "B", "a.py", "b.md", ".x", "a b", "[a]", "#a", "!a"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("globs")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


def ignored(repository: Path, patterns: Sequence[str], paths: Sequence[str]) -> set[str]:
    """Ask git which of `paths` it ignores; they need not exist."""
    (repository / ".git" / "info" / "exclude").write_text("".join(f"{pattern}\n" for pattern in patterns))
    command = ["git", "-C", str(repository), "check-ignore", "--no-index", "--stdin", "-z"]
    done = subprocess.run(command, input="\0".join(paths), capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    return set(filter(None, done.stdout.split("\0")))


@given(st.lists(PATTERNS, min_size=1, max_size=4), st.lists(PATHS, min_size=1, max_size=30, unique=True))
@settings(max_examples=150, deadline=None)
def test_git_matches_the_same_paths(repository: Path, patterns: list[str], paths: list[str]) -> None:
    assert {path for path in paths if matches(path, patterns)} == ignored(repository, patterns, paths)


# --- include --------------------------------------------------------------------------------------------


def test_include_patterns_start_at_the_top() -> None:
    patterns = ["data", "./data", "/data", "a/b", "x/", "./x/*", "!data", "!./data", "!a/b"]
    expected = ("/data", "/data", "/data", "a/b", "/x/", "/x/*", "!/data", "!/data", "!a/b")
    assert from_top(patterns) == expected


@pytest.mark.parametrize(
    ("pattern", "entered", "passed"),
    [
        ("/data/*/x.bin", ["data", "data/a"], ["other", "data/a/b", "x/data"]),
        ("/data", ["data", "data/a/b"], ["other"]),
        ("a/**/x", ["a", "a/b/c/d"], ["b"]),
        ("**/x", ["a", "a/b"], []),
        ("!/data/x", [], ["data"]),
    ],
)
def test_only_folders_that_can_hold_an_included_file_are_entered(
    pattern: str, entered: list[str], passed: list[str]
) -> None:
    assert [folder for folder in entered if not may_hold(folder, [pattern])] == []
    assert [folder for folder in passed if may_hold(folder, [pattern])] == []


@given(st.lists(PATTERNS, min_size=1, max_size=3).map(from_top), PATHS)
@settings(deadline=None)
def test_included_file_lies_in_entered_folders(patterns: tuple[str, ...], path: str) -> None:
    folders = ["/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 1)]
    if matches(path, patterns):
        assert all(may_hold(folder, patterns) for folder in folders)
