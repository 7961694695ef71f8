"""The programs that build environments: uv, pip, and conda or its relatives. Which one is used, and its commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from shutil import which
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence

from remote.contract.protocol import AgentError
from remote.contract.run_record import EnvironmentRecord
from remote.host.interpreters import Interpreter
from remote.supervisor.environment_files import FAILED

UV_FOLDERS = ("~/.local/bin", "~/.cargo/bin")  # of uv's installer; not on the PATH of an SSH command
CONDA_NAMES = ("micromamba", "mamba", "conda")  # the fastest first
CONDA_FOLDERS = (
    *("~/.local/bin", "~/bin", "~/micromamba/bin", "~/miniforge3/bin", "~/mambaforge/bin", "~/miniconda3/bin"),
    *("~/anaconda3/bin", "/opt/conda/bin", "/opt/miniforge3/bin", "/opt/miniconda3/bin", "/opt/anaconda3/bin"),
)
# Settings of pip for the index. uv does not know them, so a job that has one is meant to use pip.
PIP_INDEX = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONFIG_FILE")
GET_CONDA = "install micromamba into ~/.local/bin on the box, or name a requirements file"
GET_UV = "install uv on the box (python3 -m pip install --user uv)"

# Of the job's variables, those that change how packages are found and built, besides these prefixes.
BUILD_PREFIXES = ("PIP_", "UV_", "CONDA_", "MAMBA_")
BUILD_VARIABLES = (
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC", "CC", "CXX", "CFLAGS"),
    *("CXXFLAGS", "LDFLAGS", "CPATH", "LIBRARY_PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST"),
    *("MAX_JOBS", "CMAKE_ARGS"),
)
UNWANTED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV")  # of another environment
QUIET = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_PROGRESS_BAR": "off",
    "PIP_USER": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "UV_NO_PROGRESS": "1",
    "UV_PYTHON_DOWNLOADS": "never",
    "CONDA_ALWAYS_YES": "true",
    "MAMBA_ALWAYS_YES": "true",
}


class Tool(NamedTuple):
    """A program that builds environments."""

    name: str  # "uv", "pip", "micromamba", "mamba" or "conda"
    path: str = ""  # empty for pip, which comes with the environment

    @property
    def is_conda(self) -> bool:
        """Whether it brings its own Python."""
        return self.name in CONDA_NAMES


def choose(record: EnvironmentRecord, kind: str, env: Mapping[str, str]) -> Tool:
    """Return the program that builds the environment.

    Args:
        record: The environment.
        kind: The kind of its file, see `kind_of`.
        env: The variables of the build.

    Raises:
        AgentError: The box does not have the program that the file needs.
    """
    if kind == "conda":
        return _conda(record.file, env)
    uv = _find(("uv",), UV_FOLDERS, env)
    wants_pip = record.tool == "pip" or record.system_site_packages or any(map(env.get, PIP_INDEX))
    if kind == "lock":
        if uv is None:
            raise AgentError(FAILED, f"{record.file} needs uv, which is not on the box", GET_UV)
        return uv
    if record.tool == "uv" and uv is None:
        raise AgentError(FAILED, 'the environment has tool = "uv", which is not on the box', GET_UV)
    if uv is not None and (record.tool == "uv" or not wants_pip):
        return uv
    if kind == "project" and sys.version_info < (3, 11):
        message = f"without uv, {record.file} needs Python 3.11 as `python` of the host, to be read"
        raise AgentError(FAILED, message, f"{GET_UV}, or name a requirements file")
    return Tool("pip")


def _conda(file: str, env: Mapping[str, str]) -> Tool:
    for variable in ("MAMBA_EXE", "CONDA_EXE"):
        path = env.get(variable, "")
        if os.path.basename(path) in CONDA_NAMES and os.access(path, os.X_OK):
            return Tool(os.path.basename(path), path)
    found = _find(CONDA_NAMES, CONDA_FOLDERS, env)
    if found is None:
        message = f"{file} needs conda, mamba or micromamba; none of them is on the box"
        raise AgentError(FAILED, message, GET_CONDA)
    return found


def _find(names: Sequence[str], folders: Sequence[str], env: Mapping[str, str]) -> Optional[Tool]:
    places = [env.get("PATH", os.defpath), os.pathsep.join(map(os.path.expanduser, folders))]
    found = ((name, which(name, path=place)) for name in names for place in places)
    return next((Tool(name, path) for name, path in found if path), None)


def create(tool: Tool, record: EnvironmentRecord, base: str, target: Path) -> List[str]:
    """Return the command that makes an environment without packages at `target`, from the interpreter `base`."""
    if tool.name == "uv":
        return [tool.path, "venv", "--no-project", "--python", base, str(target)]
    return [base, "-m", "venv", *(["--system-site-packages"] if record.system_site_packages else []), str(target)]


def install(tool: Tool, kind: str, record: EnvironmentRecord, base: str, target: Path, file: str) -> List[str]:
    """Return the command that installs the packages.

    Args:
        tool: The program.
        kind: The kind of `file`, see `kind_of`.
        record: The environment.
        base: The interpreter that it is made from; "" with conda.
        target: Its directory. conda makes it.
        file: The file with the packages.
    """
    extras = [word for extra in record.extras for word in ("--extra", extra)]
    if tool.name == "micromamba":
        return [tool.path, "create", "--yes", "--prefix", str(target), "--file", file]
    if tool.is_conda:
        return [tool.path, "env", "create", "--prefix", str(target), "--file", file]
    if kind == "lock":
        # The lock file as it is. The project itself and its workspace are in the code, which the job imports.
        packages = ["--frozen", "--no-install-project", "--no-install-workspace"]
        project = ["--project", os.path.dirname(file) or "."]
        return [tool.path, "sync", *packages, *project, "--python", base, *extras]
    python = str(target / "bin" / "python")
    if tool.name == "uv":
        return [tool.path, "pip", "install", "--python", python, *extras, "-r", file]
    return [python, "-m", "pip", "install", "-r", file]


def build_environment(env: Mapping[str, str], own: Mapping[str, str], target: Path) -> Dict[str, str]:
    """Return the environment of the commands.

    Args:
        env: That of the run, without the variables of the job.
        own: The job's variables for the build.
        target: The directory of the environment.
    """
    kept = {name: value for name, value in env.items() if name not in UNWANTED}
    return {**kept, **QUIET, "UV_PROJECT_ENVIRONMENT": str(target), **own}


def project_requirements(content: bytes, extras: Sequence[str]) -> List[str]:
    """Return the dependencies of a pyproject.toml, for pip, which cannot install them without the project.

    Raises:
        ValueError: It is not valid, has no dependencies of its own, or not these extras.
    """
    import tomllib  # novm - of Python 3.11, as `choose` has checked

    project = tomllib.loads(content.decode()).get("project")
    if not isinstance(project, dict):
        raise ValueError("it has no table [project]")
    if "dependencies" in (project.get("dynamic") or ()):
        raise ValueError("its dependencies are dynamic, which only uv can compute")
    optional = project.get("optional-dependencies") or {}
    unknown = [extra for extra in extras if extra not in optional]
    if unknown:
        raise ValueError(f"it has no extra {unknown[0]!r}")
    found = [*(project.get("dependencies") or ()), *(item for extra in extras for item in optional[extra])]
    if not all(isinstance(item, str) and "\n" not in item for item in found):
        raise ValueError("its dependencies are not texts")
    return found


def is_build_variable(name: str) -> bool:
    """Return whether a variable of the job is one that changes how packages are found and built."""
    return name.startswith(BUILD_PREFIXES) or name in BUILD_VARIABLES


def why_no_venv(python: str, base: Interpreter) -> str:
    """Return why pip cannot make an environment from an interpreter; empty if it can."""
    if base.has_venv:
        return ""
    return f"{python} (Python {base.version}) cannot make virtual environments: it has no `venv` or no `ensurepip`"
