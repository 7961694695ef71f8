"""Environments of jobs, built by the real uv and pip from wheels that the test makes, without a network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uv

from remote.contract.files import read_json
from remote.contract.paths import ProjectPaths
from tests.integration.conftest import Orch
from tests.remote_runs import in_private_mounts
from tests.support import make_wheel, path_with_t4, wait_until

UV = Path(uv.find_uv_bin())
SHOW = "import os, sys, tiny; print(tiny.VERSION, sys.prefix == os.environ['VIRTUAL_ENV'], sys.prefix)\n"


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put uv on the PATH, and nothing of the settings of this machine for pip and uv into the environment."""
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "uv").symlink_to(UV)
    monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    make_wheel(tmp_path / "wheels", "tiny")


def plain(orch: Orch, wheels: Path) -> Orch:
    """Make a project that knows nothing of orch, whose jobs find the wheels."""
    shutil.rmtree(orch.project / "remote")
    orch.defaults += f'[defaults.env]\nUV_OFFLINE = "1"\nUV_FIND_LINKS = "{wheels}"\n'
    for name, text in {"requirements.txt": "tiny\n", "show.py": SHOW}.items():
        (orch.project / name).write_text(text)
    return orch


@pytest.fixture
def project(local_orch: Orch, tmp_path: Path) -> Orch:
    return plain(local_orch, tmp_path / "wheels")


def job(
    orch: Orch, name: str, command: Any = ("python", "show.py"), environment: Any = "requirements.txt", **keys: Any
) -> None:
    orch.table(name, command=command, environment=environment, **keys)


def log(orch: Orch, name: str) -> str:
    return orch.on_box(name).log.read_text()


def built(orch: Orch) -> list[Path]:
    return sorted(ProjectPaths(orch.root, "test").environments.glob("*.json"))


def folders(orch: Orch) -> list[Path]:
    return [path for path in ProjectPaths(orch.root, "test").environments.iterdir() if path.is_dir()]


# --- one environment for all ------------------------------------------------------------------------------


def test_environment_is_built_once_for_jobs_rehearsals_and_prepare(
    project: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.defaults = 'rehearse = false\nsecrets = ["UV_FIND_LINKS"]\n[defaults.env]\nUV_OFFLINE = "1"\n'
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "wheels"))  # as for an index with a password
    make = "import os, tiny; open(os.environ['ORCH_PREPARED_DIR'] + '/made', 'w').write(tiny.VERSION)"
    shell = "python3 show.py; cat $ORCH_PREPARED_DIR/made"
    job(project, "shell", ["sh", "-c", shell], prepare=["python", "-c", make], rehearse=True)
    job(project, "script", ["tiny"])
    project.run("launch", "shell", "script", "--wait")
    (marker,) = built(project)
    prefix = marker.with_suffix("") / "env"
    assert log(project, "shell") == f"1.0 True {prefix}\n1.0"
    assert log(project, "script").endswith("1.0\n")
    (rehearsal,) = ProjectPaths(project.root, "test").rehearsing().all_runs()
    assert "tiny==1.0" in rehearsal.log.read_text()  # it built the environment
    assert str(tmp_path / "wheels") not in marker.read_text() + project.on_box("shell").run.read_text()


def test_run_keeps_its_environment_over_ssh(ssh_orch: Orch, tmp_path: Path) -> None:
    orch = plain(ssh_orch, tmp_path / "wheels")
    job(orch, "train", ["sh", "-c", f"python show.py; cat {orch.gates}/open"])
    orch.run("launch", "train", "--wait", code=1)
    (marker,) = built(orch)
    shown = f"1.0 True {marker.with_suffix('') / 'env'}\n"
    assert shown in log(orch, "train")
    (tmp_path / "programs" / "uv").unlink()  # so that a new run would use pip
    orch.open("open")
    orch.run("restart", "train")
    assert orch.wait_for("train", "succeeded", "failed")["state"] == "succeeded"
    assert log(orch, "train").count(shown) == 2 and built(orch) == [marker]


# --- files ------------------------------------------------------------------------------------------------

PROJECT_TOML = """\
[project]
name = "theproject"
version = "1"
requires-python = ">=3.8"
dependencies = ["tiny"]
[project.optional-dependencies]
more = ["extra-one"]
[build-system]
requires = ["a-backend-that-does-not-exist"]
build-backend = "none"
"""


def test_dependencies_of_a_project_are_installed_without_the_project(project: Orch, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "extra_one")
    (project.project / "pyproject.toml").write_text(PROJECT_TOML)
    offline = {"UV_OFFLINE": "1", "UV_FIND_LINKS": str(tmp_path / "wheels")}
    lock = [str(UV), "lock", "-q", "--python", sys.executable]
    subprocess.run(lock, cwd=project.project, env={**os.environ, **offline}, check=True, timeout=60)
    files = {"project": "pyproject.toml", "lock": "uv.lock"}
    for name, file in files.items():
        job(project, name, ["sh", "-c", "python show.py; extra_one"], {"file": file, "extras": ["more"]})
    project.run("launch", *files, "--wait")
    for name in files:
        assert log(project, name).endswith("env\n1.0\n")


def test_pip_adds_what_the_python_of_the_box_lacks(project: Orch, tmp_path: Path) -> None:
    """The only test of the real pip: it takes seconds to make an environment that contains pip."""
    make_wheel(tmp_path / "more", "base_one", code="print('base')\n")
    base = tmp_path / "base"
    subprocess.run([str(UV), "venv", "-q", "--python", sys.executable, str(base)], check=True, timeout=60)
    install = [str(UV), "pip", "install", "-q", "--no-index", "-f", str(tmp_path / "more"), "base-one"]
    subprocess.run([*install, "--python", str(base / "bin" / "python")], check=True, timeout=60)
    (project.project / "requirements.txt").write_text("base-one==1.0\ntiny\n")
    environment = {"file": "requirements.txt", "system_site_packages": True, "python": str(base / "bin" / "python")}
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    job(project, "train", ["python", "-c", "import base_one, tiny; print(base_one.__file__)"], environment, env=offline)
    project.run("launch", "train", "--wait")
    assert f"base\n{base}/lib/" in log(project, "train")
    assert "Successfully installed tiny-1.0\n" in log(project, "train")


def test_environment_yml_goes_to_a_program_with_the_options_of_micromamba(project: Orch, tmp_path: Path) -> None:
    """A script stands in for micromamba, which is not available here: it makes an environment with only a Python."""
    stand_in = tmp_path / "programs" / "micromamba"
    stand_in.write_text(
        '#!/bin/sh\necho "$@" "in" $(ls); [ "$1 $2 $3 $5" = "create --yes --prefix --file" ] || exit 3\n'
        f'mkdir -p "$4/bin" && ln -s {sys.executable} "$4/bin/python"\n'
    )
    stand_in.chmod(0o700)
    (project.project / "environment.yml").write_text("dependencies:\n  - python=3.11\n  - pip:\n    - -r pip.txt\n")
    (project.project / "pip.txt").write_text("tiny\n")
    job(project, "train", ["sh", "-c", "echo $CONDA_PREFIX; command -v python"], "environment.yml")
    project.run("launch", "train", "--wait")
    (marker,) = built(project)
    prefix = marker.with_suffix("") / "env"
    called = f"create --yes --prefix {prefix} --file environment.yml in environment.yml pip.txt"
    assert log(project, "train") == f"{called}\n{prefix}\n{prefix}/bin/python\n"


# --- the torch of an environment --------------------------------------------------------------------------


def test_torch_that_does_not_fit_the_driver_or_is_old_is_a_warning(
    project: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{path_with_t4(tmp_path / 'tools')}")
    version = "__version__ = '2.9.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"
    files = {"torch/__init__.py": "raise ImportError('it is not imported')\n", "torch/version.py": version}
    make_wheel(tmp_path / "wheels", "torch", "2.9.0+cu130", **files)
    (project.project / "requirements.txt").write_text("torch\n")
    project.host_table = "[hosts.local]\ngpus = 1\nsurvive_reboot = false\n"
    job(project, "train", ["python", "-c", ""], gpus=1, rehearse=True, checkpoints="out/*.pt")
    for _ in range(2):  # after the rehearsal that builds the environment, and before the next one
        checks = project.json("check", "train")["checks"]
        (torch,) = [check for check in checks if check["name"] == "torch"]
        assert torch["status"] == "warn" and torch["detail"].startswith("torch 2.9.0+cu130 of ")
        assert "needs driver >= 580, but local has 535.183.01" in torch["detail"]
        (old,) = [check for check in checks if check["name"] == "torch version"]
        assert old["status"] == "warn" and "CVE-2026-24747" in old["detail"]


# --- what goes wrong --------------------------------------------------------------------------------------


def test_failed_build_shows_the_words_of_uv_and_leaves_nothing(project: Orch) -> None:
    """It fails soon after the launch, although the job it needs has not ended."""
    (project.project / "requirements.txt").write_text("tiny==3\n")
    project.job("first", "gate")
    job(project, "train", needs=["first"], restarts=2)  # a restart would not help
    project.launch("first")
    project.run("launch", "train", "--wait", code=1)
    state = project.state("train")
    assert state["reason"] == "environment_failed" and project.state("first")["state"] == "running"
    assert state["detail"].startswith("building the environment from requirements.txt with uv failed (exit code 1): ")
    assert "no version of tiny==3" in state["detail"]
    assert not folders(project) and not built(project)


ON_A_SMALL_DISK = """
import json, os, pathlib, subprocess, sys
project = pathlib.Path(sys.argv[1])
done = subprocess.run([sys.executable, "-m", "orchestrator.cli", "launch", "train", "--wait"], cwd=project)
(path,) = project.glob(".orch/test/runs/train/*/state.json")
state = json.loads(path.read_text())
assert (done.returncode, state["reason"]) == (1, "disk_full"), state
assert "No space left on device" in state["detail"] and "has been removed" in state["detail"], state
left = [path.name for path in (project / ".orch/test/environments").iterdir()]
assert [os.path.splitext(name)[1] for name in left] == [".lock"], left
"""


def test_full_disk_is_the_reason_and_nothing_is_left(project: Orch, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "large", code="#" * (16 << 20))
    (project.project / "requirements.txt").write_text("large\n")
    job(project, "train")
    small = project.root / "test" / "environments"
    small.mkdir(parents=True, mode=0o700)
    in_private_mounts(f"mount -t tmpfs -o size=8m,mode=700 tmpfs '{small}'", ON_A_SMALL_DISK, project.project)


def test_environment_that_cannot_be_built_is_refused_before_the_launch(project: Orch) -> None:
    (project.project / "requirements.txt").write_text("-r base.txt\n")
    (project.project / "environment.yml").write_text("dependencies:\n  - python=3.11\n")
    job(project, "train")
    job(project, "conda", environment="environment.yml")
    refused = project.run("launch", "train", "conda", code=4).stderr
    assert "train: environment: requirements.txt includes base.txt, which is not in the code that was sent" in refused
    if not any(map(shutil.which, ("conda", "mamba", "micromamba"))) and not Path("/opt/conda").exists():
        assert "environment.yml needs conda, mamba or micromamba; none of them is on the box; install" in refused


# --- a build that takes its time --------------------------------------------------------------------------

BACKEND = """\
import os, time, zipfile

def build_wheel(folder, settings=None, metadata=None):
    with open({gates!r} + "/builds", "a") as file:
        file.write("x")
    print("a slow build", flush=True)
    while not os.path.exists({gates!r} + "/go"):
        time.sleep(0.02)
    name = "slow-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as archive:
        for path, text in FILES.items():
            archive.writestr("slow-1.0.dist-info/" + path, text)
    return name

FILES = {{
    "METADATA": "Metadata-Version: 2.1\\nName: slow\\nVersion: 1.0\\n",
    "WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    "RECORD": "",
}}
"""


@pytest.fixture
def slow(project: Orch) -> Iterator[Orch]:
    """Make a project whose environment contains a part of the code, which is built until the gate `go` opens."""
    package = project.project / "slow"
    package.mkdir()
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (package / "pyproject.toml").write_text(f'{build}[project]\nname = "slow"\nversion = "1.0"\n')
    (package / "backend.py").write_text(BACKEND.format(gates=str(project.gates)))
    (project.project / "requirements.txt").write_text("tiny\n./slow\n")
    job(project, "train")
    job(project, "second")  # now, because jobs.toml is a part of the code
    yield project
    project.open("go")


def wait_for_builds(orch: Orch, number: int) -> None:
    builds = orch.gates / "builds"
    wait_until(lambda: builds.exists() and builds.stat().st_size == number, 30, f"build {number}")


def test_run_waits_for_the_build_of_another_and_says_so(slow: Orch) -> None:
    slow.launch("train")
    wait_for_builds(slow, 1)
    slow.launch("second")
    assert "waiting for the environment (requirements.txt)" in " ".join(slow.run("status").stdout.split())
    slow.open("go")
    assert slow.wait_for("train", "succeeded", "failed")["state"] == "succeeded"
    assert slow.wait_for("second", "succeeded", "failed")["state"] == "succeeded"
    assert (slow.gates / "builds").stat().st_size == 1
    events = slow.on_box("second").events.read_text()
    assert "the environment (requirements.txt), which another run builds" in events


def test_build_starts_again_after_its_supervisor_was_killed(slow: Orch) -> None:
    slow.launch("train")
    wait_for_builds(slow, 1)
    os.kill((read_json(slow.on_box("train").supervisor) or {})["pid"], signal.SIGKILL)
    wait_for_builds(slow, 2)
    slow.open("go")
    assert slow.wait_for("train", "succeeded", "failed")["state"] == "succeeded"
    assert "1.0 True " in log(slow, "train")


def test_stop_during_the_build_leaves_nothing(slow: Orch) -> None:
    slow.launch("train")
    wait_for_builds(slow, 1)
    slow.run("stop", "train")
    state = slow.state("train")
    assert (state["state"], state["reason"]) == ("stopped", "asked")
    assert not folders(slow)
