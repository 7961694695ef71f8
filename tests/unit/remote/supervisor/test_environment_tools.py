from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from remote.contract.protocol import AgentError
from remote.contract.run_record import EnvironmentRecord
from remote.supervisor import environment_tools as tools
from remote.supervisor.environment_tools import Tool, choose

TARGET = Path("/box/env")
BASE = "/usr/bin/python3"


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder of programs, in which no program is yet."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tools, "CONDA_FOLDERS", tuple(each for each in tools.CONDA_FOLDERS if each.startswith("~")))
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def program(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o700)


def chosen(box: Path, kind: str = "requirements", env: dict[str, str] | None = None, **keys: Any) -> str:
    record = EnvironmentRecord(**{"file": "the-file", **keys})
    return choose(record, kind, {"PATH": str(box), **(env or {})}).name


# --- which program --------------------------------------------------------------------------------------


def test_uv_is_preferred_where_it_is(box: Path) -> None:
    assert chosen(box) == "pip"
    program(box, "uv")
    assert chosen(box) == "uv"
    assert chosen(box, tool="pip") == "pip"


def test_uv_is_found_where_its_installer_puts_it(box: Path) -> None:
    program(box.parent / "home" / ".local" / "bin", "uv")
    assert chosen(box) == "uv"


@pytest.mark.parametrize("name", ["PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"])
def test_settings_of_pip_mean_pip(box: Path, name: str) -> None:
    program(box, "uv")
    assert chosen(box, env={name: "1"}) == "pip"
    assert chosen(box, env={name: "1"}, tool="uv") == "uv"
    assert chosen(box, "lock", env={name: "1"}) == "uv"


def test_system_site_packages_mean_pip(box: Path) -> None:
    program(box, "uv")
    assert chosen(box, system_site_packages=True) == "pip"


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("lock", {}, "the-file needs uv, which is not on the box"),
        ("requirements", {"tool": "uv"}, 'the environment has tool = "uv", which is not on the box'),
        ("conda", {}, "the-file needs conda, mamba or micromamba; none of them is on the box"),
    ],
)
def test_missing_program_is_named_with_a_hint(box: Path, kind: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(AgentError) as caught:
        chosen(box, kind, **keys)
    assert (caught.value.code, caught.value.message) == ("environment_failed", message)
    assert "install" in caught.value.hint


def test_fastest_of_the_condas_is_used(box: Path) -> None:
    program(box, "conda")
    assert chosen(box, "conda") == "conda"
    program(box, "mamba", "micromamba")
    assert chosen(box, "conda") == "micromamba"


@pytest.mark.parametrize("folder", ["miniforge3/bin", "miniconda3/bin", ".local/bin"])
def test_conda_is_found_in_its_usual_places(box: Path, folder: str) -> None:
    program(box.parent / "home" / folder, "mamba", "conda")
    assert chosen(box, "conda") == "mamba"


def test_conda_of_the_shell_is_used_first(box: Path) -> None:
    program(box, "micromamba")
    program(box.parent / "elsewhere", "conda")
    assert chosen(box, "conda", env={"CONDA_EXE": str(box.parent / "elsewhere" / "conda")}) == "conda"
    assert chosen(box, "conda", env={"CONDA_EXE": "/gone/conda"}) == "micromamba"


# --- its commands -----------------------------------------------------------------------------------------


def install(tool: str, kind: str, file: str, **keys: Any) -> str:
    record = EnvironmentRecord(**{"file": file, **keys})
    return " ".join(tools.install(Tool(tool, tool), kind, record, BASE, TARGET, file))


@pytest.mark.parametrize(
    ("tool", "command"),
    [
        ("micromamba", "micromamba create --yes --prefix /box/env --file environment.yml"),
        ("mamba", "mamba env create --prefix /box/env --file environment.yml"),
        ("conda", "conda env create --prefix /box/env --file environment.yml"),
    ],
)
def test_command_of_conda(tool: str, command: str) -> None:
    assert install(tool, "conda", "environment.yml") == command


def test_lock_file_is_used_as_it_is_without_the_project() -> None:
    command = install("uv", "lock", "sub/uv.lock", extras=("gpu",))
    assert command.startswith("uv sync --frozen --no-install-project --no-install-workspace --project sub ")
    assert command.endswith(f"--python {BASE} --extra gpu")


def test_project_is_installed_with_its_extras() -> None:
    command = install("uv", "project", "pyproject.toml", extras=("gpu", "log"))
    assert command == "uv pip install --python /box/env/bin/python --extra gpu --extra log -r pyproject.toml"


def test_variables_of_another_environment_are_left_out() -> None:
    env = {"PYTHONPATH": "/x", "VIRTUAL_ENV": "/y", "CONDA_PREFIX": "/z", "HOME": "/root", "PIP_USER": "1"}
    found = tools.build_environment(env, {"PIP_INDEX_URL": "https://example.org"}, TARGET)
    assert {"PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX"}.isdisjoint(found)
    assert (found["HOME"], found["PIP_USER"], found["PIP_INDEX_URL"]) == ("/root", "0", "https://example.org")


# --- a project for pip ------------------------------------------------------------------------------------


def test_dependencies_of_a_project_are_read_for_pip() -> None:
    text = b'[project]\ndependencies = ["a>1", "b"]\n[project.optional-dependencies]\ngpu = ["c"]\nlog = ["d"]\n'
    assert tools.project_requirements(text, ["gpu"]) == ["a>1", "b", "c"]
    assert tools.project_requirements(b'[project]\nname = "x"\n', []) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[tool.poetry]\n", "no table \\[project\\]"),
        (b'[project]\ndynamic = ["dependencies"]\n', "dynamic"),
        (b"[project]\n", "no extra 'gpu'"),
        (b"[project\n", "line 1"),
        (b"[project]\ndependencies = [1]\n[project.optional-dependencies]\ngpu = []\n", "not texts"),
    ],
)
def test_project_that_pip_cannot_use_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tools.project_requirements(text, ["gpu"])


def test_program_of_the_box_is_executable(box: Path) -> None:
    (box / "uv").write_text("not a program")
    assert not os.access(box / "uv", os.X_OK)
    assert chosen(box) == "pip"
