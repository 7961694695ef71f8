"""`environment`: install a job's packages once, for all jobs with the same file, Python and settings.

environments/<key>/env/      the environment; it cannot be moved, so it is built where it stays
environments/<key>/source/   the files that it was built from; the complete code if it installs a part of that
environments/<key>.json      written when it is complete; its modification time is that of the last use
environments/<key>.lock      held by the run that builds it
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

from remote.contract.files import read_json, to_json, write_atomic, write_json
from remote.contract.locks import try_lock
from remote.contract.paths import ProjectPaths
from remote.contract.protocol import AgentError
from remote.contract.run_record import EnvironmentRecord, JobRecord
from remote.contract.schema import to_json as as_json
from remote.contract.variables import with_references
from remote.host import interpreters
from remote.host.interpreters import Interpreter
from remote.supervisor import environment_tools as tools
from remote.supervisor.environment_files import FAILED, kind_of, read_files
from remote.supervisor.workspace import copy_snapshot, remove_tree

KEY = re.compile(r"[0-9a-f]{32}")
DEBIAN = "on the box: sudo apt-get install python3-venv, or install uv"


@dataclass(frozen=True)
class EnvironmentUse:
    """The content of environment.json: the environment of a run, for all its attempts."""

    key: str = field(metadata={"pattern": KEY})
    file: str = ""
    tool: str = ""
    python: Optional[str] = None  # the version of the interpreter that it was made from; None with conda


class NamedEnvironment:
    """An environment, as far as its key tells.

    Attributes:
        directory: All that belongs to it.
        target: The environment itself.
        python: Its interpreter, which exists when it is built.
    """

    def __init__(self, paths: ProjectPaths, key: str, tool: str) -> None:
        self.key, self._is_conda = key, tool in tools.CONDA_NAMES
        self.directory = paths.environments / key
        self.target = self.directory / "env"
        self.python = str(self.target / "bin" / "python")
        self._marker = paths.environments / (key + ".json")

    def is_done(self) -> bool:
        """Return whether the environment is complete."""
        return read_json(self._marker) is not None and os.access(self.python, os.X_OK)

    def note_use(self) -> None:
        """Set the modification time of its marker, so that a user can tell which environments are unused."""
        try:
            os.utime(str(self._marker))
        except OSError:
            pass  # only for information

    def activate(self, env: Mapping[str, str]) -> Dict[str, str]:
        """Return `env` with this environment as the active one."""
        kept = {name: value for name, value in env.items() if name not in tools.UNWANTED or name == "PYTHONPATH"}
        path = f"{self.target / 'bin'}{os.pathsep}{env.get('PATH', os.defpath)}"
        return {**kept, "PATH": path, "CONDA_PREFIX" if self._is_conda else "VIRTUAL_ENV": str(self.target)}


class Environment(NamedEnvironment):
    """The environment of one job, and how it is built.

    Attributes:
        record: The environment as jobs.toml has it.
        tool: What builds it.
        base: The interpreter that it is made from; None with conda.
        uses_code: Whether it depends on the complete code.
        own_env: Of the variables of the job, those that the build gets, as in jobs.toml.
        secrets: The names of the secrets that the build gets.
        source: The working directory of the commands that build it.
    """

    def __init__(self, paths: ProjectPaths, code: Path, job: JobRecord, python: str, env: Mapping[str, str]) -> None:
        """Find out what the environment depends on, and what would build it.

        Args:
            paths: The project.
            code: The snapshot.
            job: The job.
            python: The interpreter of the host.
            env: The environment of the run, without the variables of the job.

        Raises:
            AgentError: The environment cannot be built on this box.
        """
        assert job.environment is not None
        self.record: EnvironmentRecord = job.environment
        self._code, self.kind = code, kind_of(self.record.file)
        self._files = read_files(code, self.record.file)
        self.uses_code = self._files.uses_code
        named = {name for name in {*job.env, *job.secrets} if tools.is_build_variable(name)} | self._files.variables
        needed = {name: with_references([name], job.env) for name in named}
        # What orch sets is not known yet, such as the data directory.
        named = {more for names in needed.values() if not any(map(_is_set_by_orch, names)) for more in names}
        self.own_env = {name: value for name, value in job.env.items() if name in named}
        self.secrets = [name for name in job.secrets if name in named]
        settings = {**env, **self.own_env, **dict.fromkeys(self.secrets, "secret")}
        self.tool = tools.choose(self.record, self.kind, {**settings, "PATH": env.get("PATH", os.defpath)})
        self.base: Optional[Interpreter] = None
        self._base_path = ""
        if not self.tool.is_conda:
            self._base_path, self.base = _find_base(self.record.python or python, env)
            no_venv = tools.why_no_venv(self._base_path, self.base) if self.tool.name == "pip" else ""
            if no_venv:
                raise AgentError(FAILED, no_venv, DEBIAN)
        super().__init__(paths, self._make_key(), self.tool.name)
        self.source = self.directory / "source"
        self._lock_path = paths.environments / (self.key + ".lock")
        self._lock: Optional[int] = None

    def _make_key(self) -> str:
        base, record = self.base, self.record
        what = {
            "file": record.file,
            "files": {name: sha256(content).hexdigest() for name, content in sorted(self._files.contents.items())},
            "code": self._code.name if self.uses_code else None,
            "tool": "conda" if self.tool.is_conda else self.tool.name,
            "python": [self._base_path, base.version, base.prefix, base.platform] if base else os.uname().machine,
            "system_site_packages": record.system_site_packages,
            "extras": sorted(record.extras),
            "env": sorted(self.own_env.items()),
        }
        return sha256(to_json(what)).hexdigest()[:32]

    def try_begin(self) -> bool:
        """Take the lock, and remove an incomplete environment. Return False while another run builds it."""
        self._lock_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = try_lock(self._lock_path)
        if self._lock is None:
            return False
        if not self.is_done():
            self.discard()
        return True

    @property
    def descriptors(self) -> List[int]:
        """The descriptor of the lock, for the processes that build: the lock is held while they live."""
        return [] if self._lock is None else [self._lock]

    def discard(self) -> None:
        """Remove the environment."""
        if os.path.lexists(str(self._marker)):
            self._marker.unlink()  # first: without it, the rest counts as incomplete
        remove_tree(self.directory)

    def commands(self) -> Iterator[List[str]]:
        """Yield the commands that build the environment. Each must have succeeded before the next one is asked for.

        They run in `source`.

        Raises:
            AgentError: The file of the environment cannot be used.
            OSError: A file cannot be written.
        """
        self._copy_source()
        file = self._requirements()
        if self.base is not None:
            yield tools.create(self.tool, self.record, self._base_path, self.target)
            self._add_base_packages(self.base)
        yield tools.install(self.tool, self.kind, self.record, self._base_path, self.target, file)
        if not os.access(self.python, os.X_OK):
            raise AgentError(FAILED, f"{self.record.file} installs no Python", "add python to its dependencies")

    def _copy_source(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True)
        if self.uses_code:
            copy_snapshot(self._code, self.source)
            return
        self.source.mkdir(mode=0o700)
        for name, content in self._files.contents.items():
            (self.source / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self.source / name, content)

    def _requirements(self) -> str:
        """Return the file that the tool reads: that of the job, or one with the dependencies of a pyproject.toml."""
        file = self.record.file
        if self.kind != "project" or self.tool.name != "pip":
            return file
        try:
            found = tools.project_requirements(self._files.contents[file], self.record.extras)
        except ValueError as error:
            raise AgentError(FAILED, f"{file}: {error}", f"correct {file}, or {tools.GET_UV}") from None
        place = self.directory / "requirements.txt"
        write_atomic(place, "".join(f"{line}\n" for line in found).encode())
        return str(place)

    def _add_base_packages(self, base: Interpreter) -> None:
        """Make the packages of a virtual environment importable: the new one would see those of its base only."""
        if not (self.record.system_site_packages and base.is_virtual):
            return
        lines = [f"import site; site.addsitedir({path!r})\n" for path in base.packages]
        for folder in self.target.glob("lib/python3*/site-packages"):
            write_atomic(folder / "orch-base.pth", "".join(lines).encode())

    @property
    def use(self) -> EnvironmentUse:
        """What a run that uses the environment records."""
        return EnvironmentUse(self.key, self.record.file, self.tool.name, self.base.version if self.base else None)

    def finish(self, took_s: float) -> None:
        """Mark the environment as complete."""
        write_json(self._marker, {"time": time.time(), "took_s": round(took_s, 1), **as_json(self.use)}, durable=True)

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _is_set_by_orch(name: str) -> bool:
    return name.startswith("ORCH_")


def _find_base(python: str, env: Mapping[str, str]) -> Tuple[str, Interpreter]:
    path = interpreters.find(python, env)
    hint = "set `python` of the environment, or of the host, to an interpreter of the box"
    if path is None:
        raise AgentError(FAILED, f"{python}, from which the environment would be made, is not on the box", hint)
    try:
        return os.path.abspath(path), interpreters.ask(path)
    except ValueError as error:
        raise AgentError(FAILED, str(error), hint) from None
