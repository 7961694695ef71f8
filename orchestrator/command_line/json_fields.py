"""The optional value of `--json`: `orch runs --json` prints documents, `orch runs --json job,state` these fields.

The parser knows only options with a value and options without one. So the fields are taken from the command line first.
"""

from __future__ import annotations

FLAG = "--json"


def taken(arguments: list[str], takes_single: bool) -> tuple[list[str], str]:
    """Return the command line with a plain `--json`, and the fields; these are empty if there are none.

    A word that follows `--json` has the fields if it has a comma or a period, which names of jobs and runs do not
    have, or is the name of a field. `--json=FIELDS` always has them.

    Args:
        arguments: The command line after the name of the command.
        takes_single: Whether a single field may follow without `=`. Else it is an argument of the command.
    """
    for index, word in enumerate(arguments):
        if word == "--":
            break
        if word.startswith(f"{FLAG}="):
            return [*arguments[:index], FLAG, *arguments[index + 1 :]], word.removeprefix(f"{FLAG}=")
        if word == FLAG and len(arguments) > index + 1 and _are_fields(arguments[index + 1], takes_single):
            return [*arguments[: index + 1], *arguments[index + 2 :]], arguments[index + 1]
    return arguments, ""


def _are_fields(word: str, takes_single: bool) -> bool:
    if "," in word or "." in word:
        return not word.startswith("-")
    if not takes_single:
        return False
    from orchestrator.ui.document_query import COPY_FIELDS

    return word in COPY_FIELDS
