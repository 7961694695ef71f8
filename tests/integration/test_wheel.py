"""The built distributions, installed in a separate environment without the sources."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestrator", "remote", "workers")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = PROJECT["version"]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed, with no path to the sources; return its stdout."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def sources(package: Path) -> set[str]:
    """Return the files of a package that are shipped, relative to its parent."""
    found = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(package.parent).as_posix() for path in found}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    return folder / f"orch-{VERSION}.tar.gz"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the sdist with pip, as for a user, but with the installed hatchling."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-index", "--no-build-isolation"]
    run(sys.executable, "-m", "pip", "wheel", "-q", *options, "--wheel-dir", folder, sdist, cwd=folder)
    return folder / f"orch-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of an environment with the wheel; it shares the other packages of this one."""
    folder = tmp_path_factory.mktemp("clean") / "env"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    shared = [path for path in sys.path if Path(path).name == "site-packages"]
    (site_packages(folder) / "shared.pth").write_text("\n".join(shared) + "\n")
    return folder / "bin"


def site_packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def test_wheel_holds_only_the_packages_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = Parser().parsestr(archive.read(f"orch-{VERSION}.dist-info/METADATA").decode())

    expected = set().union(*(sources(ROOT / package) for package in PACKAGES))
    about = f"orch-{VERSION}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert f"{about}licenses/LICENSE" in names
    assert (metadata["Version"], metadata["License-Expression"]) == (VERSION, "MIT")


def test_sdist_holds_what_its_own_checks_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"LICENSE", "Makefile", "constraints.txt", "pyproject.toml", "jobs.toml"} <= names
    assert {"tests/conftest.py", ".ci/contain.py", "docs/security.md", "bench/train.py"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", "results", "build"))]


def test_installed_packages_are_those_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = f"import {', '.join(PACKAGES)}\nfor package in ({', '.join(PACKAGES)}): print(package.__file__)"
    found = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert found == [str(site_packages(installed.parent) / package / "__init__.py") for package in PACKAGES]


def test_version_is_printed(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "orch", "--version", cwd=tmp_path) == f"orch {VERSION}\n"
    assert "--version" in run(installed / "orch", "-h", cwd=tmp_path)


def test_installed_orch_checks_and_runs_a_job(installed: Path, tmp_path: Path, home: Path) -> None:
    orch = installed / "orch"
    (tmp_path / "train.py").write_text("print('trained')\n")

    run(orch, "init", cwd=tmp_path)
    run(orch, "check", "train", cwd=tmp_path)
    run(orch, "launch", "train", "--wait", cwd=tmp_path)

    assert run(orch, "tail", "train", "--no-follow", cwd=tmp_path).startswith("trained\n")
    (agent,) = home.rglob(f"agent-{'?' * 16}.pyz")  # the copy with bytecode has a longer name
    with zipfile.ZipFile(agent) as archive:
        code = {name for name in sources(ROOT / "remote") if name.endswith(".py")}
        assert set(archive.namelist()) == {"__main__.py", *code}
