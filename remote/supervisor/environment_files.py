"""The files that an environment is made from: the one that jobs.toml names, and those that it includes.

They are read only to find out what the environment depends on. uv, pip or conda decide what they mean.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Dict, FrozenSet, Iterator, List, NamedTuple, Set, Tuple

from remote.contract.files import open_to_read
from remote.contract.protocol import AgentError

FAILED = "environment_failed"  # the reason of a run whose environment cannot be built
MAX_BYTES = 16 << 20  # of one file
MAX_FILES = 100
LOCK, PROJECT, UV_SETTINGS = "uv.lock", "pyproject.toml", "uv.toml"

_INCLUDE = re.compile(r"(?:-[rc]\s*=?|--(?:requirement|constraint)(?:\s+|=))\s*(\S.*)")
_EDITABLE = re.compile(r"(?:-e\s*=?|--editable(?:\s+|=))\s*(\S.*)")
_LINKS = re.compile(r"(?:-f\s*=?|--find-links(?:\s+|=))\s*(\S.*)")
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tar.bz2", ".tgz")
_LOCKED_FOLDER = re.compile(r'source = \{ (?:editable|directory|path|virtual) = "([^"\n]*)" \}')
_PROJECT_FOLDER = re.compile(r"\b(?:path\s*=\s*[\"']|workspace\s*=\s*true)|@\s*file:")
_DYNAMIC = re.compile(r"^dynamic[ \t]*=[ \t]*\[[^\]]{0,1000}[\"'](?:optional-)?dependencies[\"']", re.MULTILINE)
_HAS_PROJECT = re.compile(r"^[ \t]*\[[ \t]*project[ \t]*\]", re.MULTILINE)


class EnvironmentFiles(NamedTuple):
    """What an environment depends on."""

    contents: Dict[str, bytes]  # by path, relative to the code
    uses_code: bool  # whether it also installs something from the code itself, such as `-e .`
    variables: FrozenSet[str]  # that the files name as ${NAME}


def kind_of(file: str) -> str:
    """Return the kind of a file: "lock", "project", "conda" or "requirements"."""
    name = file.rpartition("/")[2]
    if name in (LOCK, PROJECT):
        return "lock" if name == LOCK else "project"
    return "conda" if name.endswith((".yml", ".yaml")) else "requirements"


def read_files(code: Path, file: str) -> EnvironmentFiles:
    """Read a file and those that it includes.

    Args:
        code: The snapshot.
        file: The path of the file in it.

    Raises:
        AgentError: A file is not in the snapshot, cannot be read or is too large.
    """
    kind = kind_of(file)
    contents: Dict[str, bytes] = {}
    variables: Set[str] = set()
    waiting = [(file, "")]
    if kind != "conda":  # uv looks for its settings there
        settings = {UV_SETTINGS, _beside(file, UV_SETTINGS)}
        waiting += [(name, "") for name in sorted(settings) if (code / name).is_file()]
    uses_code = False
    while waiting:
        name, by = waiting.pop()
        if name in contents:
            continue
        if len(contents) >= MAX_FILES:
            raise AgentError(FAILED, f"{file} includes more than {MAX_FILES} files")
        contents[name] = _read(code, name, by)
        text = contents[name].decode("utf-8", "replace")
        variables.update(_VARIABLE.findall(text))
        if name == file and kind in ("lock", "project"):
            uses_code = _locks_folder(text) if kind == "lock" else _names_folder(text)
            waiting += [(_beside(name, PROJECT), name)] if kind == "lock" else []
            continue
        if kind in ("lock", "project") or name.endswith(UV_SETTINGS):
            continue
        for line in _lines(text, is_list=name == file and kind == "conda"):
            included, is_local = _meaning(line)
            uses_code = uses_code or is_local
            if included:
                waiting.append((_beside(name, included), name))
    return EnvironmentFiles(contents, uses_code, frozenset(variables))


def _read(code: Path, name: str, by: str) -> bytes:
    where = f"{by} includes {name}, which" if by else name
    if name.startswith(("../", "/")):
        raise AgentError(FAILED, f"{where} is not in the code")
    try:
        with open_to_read(code / name, follow=True) as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        hint = "if git ignores the file, list it in [project] include"
        raise AgentError(FAILED, f"{where} is not in the code that was sent", hint) from None
    except (OSError, ValueError) as error:
        raise AgentError(FAILED, f"{where} cannot be read: {error}") from None
    if len(content) > MAX_BYTES:
        raise AgentError(FAILED, f"{where} is larger than {MAX_BYTES >> 20} MiB")
    return content


def _beside(name: str, other: str) -> str:
    """Return the path of `other`, which the file `name` names relative to itself."""
    return os.path.normpath(os.path.join(os.path.dirname(name), other))


def _lines(text: str, is_list: bool) -> Iterator[str]:
    """Yield the requirements and options, without comments.

    Args:
        text: The content of a requirements file, or of an environment.yml.
        is_list: Whether it is an environment.yml: only options and folders in its lists are yielded.
    """
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        line = _COMMENT.sub("", line).strip()
        if is_list:
            line = line[1:].strip().strip("\"'") if line.startswith("- ") else ""
            line = line if line.startswith(("-", ".")) else ""
        if line:
            yield line


def _meaning(line: str) -> Tuple[str, bool]:
    """Return the file of the code that a line includes, or "", and whether the line installs something of the code."""
    found = _INCLUDE.fullmatch(line)
    if found:
        path = found[1].strip("\"'")
        return ("", False) if "://" in path or os.path.isabs(path) else (path, False)
    found = _EDITABLE.fullmatch(line) or _LINKS.fullmatch(line)
    if found:
        return "", _is_of_code(found[1])
    return "", not line.startswith("-") and _is_path(line)


def _is_path(requirement: str) -> bool:
    """Return whether a requirement is a relative path, by the rules of pip: it has a slash, or is an archive."""
    before, at, url = requirement.partition(";")[0].partition("@")
    if at and not before.strip().startswith(".") and "/" not in before:
        return url.strip().startswith("file:") and not url.strip().startswith("file:/")
    words: List[str] = requirement.split()
    return _is_of_code(words[0]) and (words[0].startswith(".") or "/" in words[0] or words[0].endswith(_ARCHIVES))


def _is_of_code(place: str) -> bool:
    return "://" not in place and not os.path.isabs(place.strip("\"'")) and not place.startswith("~")


def _locks_folder(lock: str) -> bool:
    return any(folder != "." for folder in _LOCKED_FOLDER.findall(lock))


def _names_folder(project: str) -> bool:
    """Return whether the dependencies of a pyproject.toml can be computed only with the code, or are part of it."""
    return bool(_DYNAMIC.search(project) or not _HAS_PROJECT.search(project) or _PROJECT_FOLDER.search(project))
