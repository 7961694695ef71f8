"""The environment of a job: the file with its packages, and what it is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from orchestrator.spec.tables import Invalid, Require, Table
from orchestrator.spec.values import check_relative, check_text
from orchestrator.spec.wording import show
from remote.contract.choices import Tool

if TYPE_CHECKING:
    from remote.contract.run_record import EnvironmentRecord

Text = Annotated[str, Require(check_text)]


def check_environment_file(value: str) -> str:
    """Require a file that uv, pip or conda can make an environment from."""
    name = value.rpartition("/")[2]
    if name not in ("uv.lock", "pyproject.toml") and not name.endswith((".txt", ".in", ".yml", ".yaml")):
        raise Invalid(
            f"{show(value)} is not a file that an environment can be made from",
            "write a requirements file (*.txt), 'uv.lock', 'pyproject.toml' or 'environment.yml'",
        )
    return value


@dataclass(frozen=True, kw_only=True)
class JobEnvironment(Table):
    """The packages that a job needs, installed on the box, the table [jobs.NAME.environment]."""

    file: Annotated[str, Require(check_relative), Require(check_environment_file)]
    python: Text | None = None  # None: that of the host
    system_site_packages: bool = False
    extras: tuple[Text, ...] = ()
    tool: Tool | None = None  # None: uv if the box has it

    def record(self) -> EnvironmentRecord:
        """Return what the box needs to build it."""
        from remote.contract.run_record import EnvironmentRecord

        return EnvironmentRecord(self.file, self.python, self.system_site_packages, self.extras, self.tool)

    def check(self) -> None:
        """Require keys that can be used with the file."""
        name = self.file.rpartition("/")[2]
        is_conda, is_lock = name.endswith((".yml", ".yaml")), name == "uv.lock"
        wrong = {
            "python": self.python is not None and is_conda,
            "tool": self.tool is not None and (is_conda or (is_lock and self.tool == "pip")),
            "system_site_packages": self.system_site_packages and (is_conda or is_lock or self.tool == "uv"),
            "extras": bool(self.extras) and name not in ("uv.lock", "pyproject.toml"),
        }
        reasons = {
            "python": "the file names its own Python",
            "tool": "only uv reads this file" if is_lock else "only conda and its relatives read this file",
            "system_site_packages": "only pip takes them into account, from a requirements file or pyproject.toml",
            "extras": "only pyproject.toml and uv.lock have extras",
        }
        for key, is_wrong in wrong.items():
            if is_wrong:
                raise Invalid(f"{key!r} cannot be used with {show(self.file)}: {reasons[key]}", f"leave out {key!r}")
