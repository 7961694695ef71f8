"""Check the code of a project before it is uploaded: whether it is large by accident, and whether it is complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.checks.check import Check, warn
from orchestrator.code.code_survey import Survey
from orchestrator.code.globs import from_top, matches
from orchestrator.text import clean, size_text

LARGE = 200 * 10**6  # bytes in total; data and checkpoints are rarely meant to be copied into every run
LARGE_UNTRACKED = 50 * 10**6  # bytes that git does not track, so nobody has said that they belong to the code
MAX_NAMED = 3


def check_code(survey: Survey, include: Sequence[str] = ()) -> Iterator[Check]:
    """Yield a warning for each problem; nothing if there is none.

    Args:
        survey: The files that would be uploaded.
        include: The globs of [project] include, whose files are meant to be uploaded.
    """
    wanted = from_top(include)
    names = [name for name in survey.sizes if not (wanted and matches(name, wanted))]
    untracked = [name for name in names if name in survey.untracked]
    for chosen, limit in ((untracked, LARGE_UNTRACKED), (names, LARGE)):
        total = sum(survey.sizes[name] for name in chosen)
        if total > limit:
            yield _large(survey, chosen, total, survey.has_git and chosen is untracked)
            break
    if survey.pointers:
        detail = f"pointers of Git LFS instead of the files themselves: {_first(survey.pointers)}"
        yield warn("git lfs", detail, "to fetch the files: git lfs pull")
    if survey.dangling:
        links = [f"{name} to {target}" for name, target in survey.dangling]
        hint = "to upload it, list it in [project] include; for a path on the box, see `links` of a job"
        yield warn("links", f"they lead to what is not uploaded: {_first(links)}", hint)


def _large(survey: Survey, names: Sequence[str], total: int, is_untracked: bool) -> Check:
    largest = ", ".join(f"{clean(name)} ({size_text(size)})" for name, size in survey.largest_folders(names, MAX_NAMED))
    what = " that git does not track" if is_untracked else ""
    detail = f"{size_text(total)} in {len(names)} files{what}, which every run gets a copy of; the largest: {largest}"
    hint = "leave out what is not code: .gitignore, or [project] exclude; if it belongs to the code: [project] include"
    return warn("size", detail, hint)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(map(clean, names[:MAX_NAMED])) + more
