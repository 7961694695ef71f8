"""Files such as `.env`, from which jobs take secrets: their values, and who can read them."""

from __future__ import annotations

import os
import stat
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import SpecError

if TYPE_CHECKING:
    from orchestrator.spec.models import Spec

MAX_BYTES = 1 << 20  # size of one file


def path_of(directory: Path, name: str) -> Path:
    """Return the path of a file that jobs.toml names, relative to the project's directory."""
    return Path(os.path.abspath(directory / os.path.expanduser(name)))


def paths(spec: Spec) -> list[Path]:
    """Return the files from which the jobs take secrets."""
    named = [secret.dotenv for job in spec.jobs.values() for secret in job.secrets.values() if secret.dotenv]
    return [path_of(spec.directory, name) for name in dict.fromkeys(named)]


def read(path: Path, where: str) -> dict[str, str | None]:
    """Return the values of a file by name; None for a name without `=`. `${NAME}` in a value is replaced.

    Args:
        path: The file.
        where: The key of jobs.toml that names the file, for errors.

    Raises:
        SpecError: The file cannot be read. The message never contains a value.
    """
    from dotenv import dotenv_values  # takes a while to import

    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        hint = "write NAME=value into it, or name another source"
        raise SpecError(f"{where}: {path}: {error.strerror}", hint) from None
    except UnicodeDecodeError:
        raise SpecError(f"{where}: {path} is not UTF-8 text", "save it as UTF-8") from None
    if len(data) > MAX_BYTES:
        raise SpecError(f"{where}: {path} is larger than {MAX_BYTES >> 20} MiB")
    return dotenv_values(stream=StringIO(text))


def exposed(files: list[Path]) -> list[Path]:
    """Return the files that every user of this machine can read."""
    return [path for path in files if _is_exposed(path)]


def _is_exposed(path: Path) -> bool:
    try:
        real = path.resolve()
        mode = real.stat().st_mode
        folders = all(parent.stat().st_mode & stat.S_IXOTH for parent in real.parents)
        return folders and stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)
    except OSError:
        return False
