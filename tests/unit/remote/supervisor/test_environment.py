from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from remote.contract.paths import ProjectPaths
from remote.contract.protocol import AgentError
from remote.contract.run_record import EnvironmentRecord, JobRecord
from remote.supervisor.environment import Environment
from remote.supervisor.environment_build import NETWORK_HINT, failure, last_line, reason_in

TREE, OTHER_TREE = "0" * 64, "1" * 64


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    paths = ProjectPaths(tmp_path / "box", "persistence")
    for tree in (TREE, OTHER_TREE):
        paths.tree(tree).mkdir(parents=True)
        (paths.tree(tree) / "requirements.txt").write_text("numpy\n-r base.txt\n")
        (paths.tree(tree) / "base.txt").write_text("torch\n")
    return paths


def environment(
    paths: ProjectPaths, tree: str = TREE, env: dict[str, str] | None = None, secrets: tuple[str, ...] = (), **keys: Any
) -> Environment:
    record = EnvironmentRecord(**{"file": "requirements.txt", "tool": "pip", **keys})
    job = JobRecord("train", env=env or {}, secrets=secrets, environment=record)
    return Environment(paths, paths.tree(tree), job, sys.executable, dict(os.environ))


# --- the key ----------------------------------------------------------------------------------------------


def test_same_files_have_the_same_key(paths: ProjectPaths) -> None:
    first = environment(paths, env={"SEED": "1"})
    assert first.key == environment(paths, OTHER_TREE, env={"SEED": "2"}).key
    assert first.directory.parent == paths.environments and not first.is_done()


def test_key_depends_on_files_settings_and_interpreter(paths: ProjectPaths, tmp_path: Path) -> None:
    keys = [environment(paths).key, environment(paths, system_site_packages=True).key]
    keys.append(environment(paths, env={"PIP_INDEX_URL": "https://example.org"}).key)
    keys.append(environment(paths, env={"PIP_INDEX_URL": "$A", "A": "https://example.org"}).key)
    keys.append(environment(paths, env={"PIP_INDEX_URL": "$A", "A": "https://example.net"}).key)
    elsewhere = tmp_path / "python3"
    elsewhere.symlink_to(sys.executable)
    keys.append(environment(paths, python=str(elsewhere)).key)
    (paths.tree(TREE) / "base.txt").write_text("torch==2.9\n")
    keys.append(environment(paths).key)
    assert len(set(keys)) == len(keys)


def test_key_depends_on_the_code_if_a_part_of_it_is_installed(paths: ProjectPaths) -> None:
    for tree in (TREE, OTHER_TREE):
        (paths.tree(tree) / "base.txt").write_text("-e .\n")
    assert environment(paths).key != environment(paths, OTHER_TREE).key


def test_build_gets_what_concerns_packages(paths: ProjectPaths) -> None:
    (paths.tree(TREE) / "base.txt").write_text("--extra-index-url https://${NAME}:${TOKEN}@example.org\n")
    env = {"PIP_PRE": "1", "SEED": "1", "NAME": "$USER_NAME", "USER_NAME": "ann", "LD_LIBRARY_PATH": "$ORCH_DATA_DIR"}
    found = environment(paths, env=env, secrets=("TOKEN", "HF_TOKEN", "PIP_INDEX_URL"))
    assert found.own_env == {"PIP_PRE": "1", "NAME": "$USER_NAME", "USER_NAME": "ann"}
    assert sorted(found.secrets) == ["PIP_INDEX_URL", "TOKEN"]


def test_secrets_of_the_index_mean_pip(paths: ProjectPaths) -> None:
    assert environment(paths, tool=None, secrets=("PIP_INDEX_URL",)).tool.name == "pip"


def test_interpreter_that_is_not_there_is_named(paths: ProjectPaths, tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"^python2\.2, from which the environment would be made, is not on the box$"):
        environment(paths, python="python2.2")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no libpython >&2\nexit 127\n")
    broken.chmod(0o700)
    with pytest.raises(AgentError, match="broken does not run: no libpython"):
        environment(paths, python=str(broken))


# --- the directory ----------------------------------------------------------------------------------------


def test_incomplete_environment_is_removed_by_the_next_build(paths: ProjectPaths) -> None:
    left = environment(paths)
    (left.target / "bin").mkdir(parents=True)
    (left.target / "bin" / "python").symlink_to(sys.executable)  # killed before the marker was written
    assert not left.is_done()
    assert left.try_begin() and not left.directory.exists()
    assert not environment(paths).try_begin()
    left.release()
    assert environment(paths).try_begin()


def test_environment_whose_interpreter_is_gone_is_not_complete(paths: ProjectPaths) -> None:
    found = environment(paths)
    (found.target / "bin").mkdir(parents=True)
    python = Path(found.python)
    python.symlink_to(sys.executable)
    found.finish(1.0)
    assert found.is_done()
    python.unlink()
    python.symlink_to("/usr/bin/python2.2")
    assert not found.is_done()


def test_use_is_noted(paths: ProjectPaths) -> None:
    found = environment(paths)
    found.directory.mkdir(parents=True)
    found.finish(1.0)
    marker = paths.environments / f"{found.key}.json"
    os.utime(marker, (1, 1))
    found.note_use()
    assert marker.stat().st_mtime > 1


def test_active_environment_comes_first(paths: ProjectPaths) -> None:
    found = environment(paths)
    env = found.activate({"PATH": "/usr/bin", "CONDA_PREFIX": "/opt/conda", "PYTHONHOME": "/x", "PYTHONPATH": "/mine"})
    assert env == {"PATH": f"{found.target}/bin:/usr/bin", "VIRTUAL_ENV": str(found.target), "PYTHONPATH": "/mine"}


def test_commands_see_only_the_files_that_they_need(paths: ProjectPaths) -> None:
    (paths.tree(TREE) / "train.py").touch()
    found = environment(paths)
    create, *_ = list(zip(found.commands(), range(1), strict=False))
    assert create[0][1:3] == ["-m", "venv"]
    assert sorted(path.name for path in found.source.iterdir()) == ["base.txt", "requirements.txt"]


# --- why a build failed -----------------------------------------------------------------------------------

PIP = """\
Looking in indexes: https://no-such-host.invalid/simple
WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError('...: Failed to \
establish a new connection: [Errno -2] Name or service not known')': /simple/six-no/
ERROR: Could not find a version that satisfies the requirement six-no (from versions: none)
ERROR: No matching distribution found for six-no

[notice] A new release of pip is available: 23.2.1 -> 26.1
"""
UV = """\
Using Python 3.11.7 environment at: env
Resolved 1 package in 1ms
warning: Failed to hardlink files; falling back to full copy. This may lead to degraded performance.
error: Failed to install: big_one-1.0-py3-none-any.whl (big-one==1.0)
  cause: failed to copy file from a to b: No space left on device (os error 28)
"""
OLDER_UV = """\
Using Python 3.11.7 environment at: env
  × No solution found when resolving dependencies:
  ╰─▶ Because nope was not found in the package registry and you require nope, we can conclude that your
      requirements are unsatisfiable.
"""


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (PIP, "Could not find a version that satisfies the requirement six-no (from versions: none); No matching"),
        (UV, "error: Failed to install: big_one-1.0-py3-none-any.whl (big-one==1.0) cause: failed to copy file from"),
        (OLDER_UV, "× No solution found when resolving dependencies: ╰─▶ Because nope was not found"),
        ("Solving\nenvironment: failed\n", "Solving environment: failed"),
        ("", ""),
    ],
)
def test_reason_is_in_the_words_of_the_program(log: str, reason: str) -> None:
    assert reason_in(log).startswith(reason)
    assert len(reason_in(log * 1000)) <= 700


def test_build_without_a_network_has_a_hint() -> None:
    error = failure("requirements.txt with pip", 1, PIP)
    assert (error.code, error.hint) == ("environment_failed", NETWORK_HINT)
    said = "building the environment from requirements.txt with pip failed (exit code 1): Could not find a version"
    assert error.message.startswith(said)
    assert failure("uv.lock with uv", 1, OLDER_UV).hint == ""


def test_build_on_a_full_disk_is_disk_full() -> None:
    for log in (UV, "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"):
        error = failure("uv.lock with uv", 2, log)
        assert error.code == "disk_full" and error.message.endswith("; what was built of it has been removed")


def test_killed_build_says_so() -> None:
    error = failure("uv.lock with uv", -9, "")
    assert error.message == "building the environment from uv.lock with uv failed (killed): no output; see training.log"


def test_last_line_of_a_bar_is_shown() -> None:
    assert last_line("Collecting torch\n  Downloading 1%\r  Downloading 50%\r\n\n") == "Downloading 50%"
    assert last_line("\n") == ""
