"""`orch init` and `orch trust`: the first two things that a newcomer types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.spec_file import load
from tests.integration.conftest import Orch


def orch(*arguments: str, cwd: Path, code: int = 0, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, input=said, check=False)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done


def test_init_writes_a_spec_that_holds_and_launches(tmp_path: Path) -> None:
    project = tmp_path / "my first project"
    project.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    (project / ".gitignore").write_text("*.pt")

    orch("init", cwd=project)

    assert load(project / "jobs.toml").project.name == "my-first-project"
    assert (project / ".gitignore").read_text() == "*.pt\n.orch/\nresults/\n"
    (project / "train.py").write_text("print('trained')\n")
    orch("launch", "train", "--wait", cwd=project)
    assert orch("tail", "train", cwd=project).stdout.startswith("trained\n")


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text("mine")
    assert "there is one" in orch("init", cwd=tmp_path, code=2).stderr
    assert (tmp_path / "jobs.toml").read_text() == "mine"


def test_without_a_spec_the_way_to_one_is_named(tmp_path: Path) -> None:
    assert "`orch init` writes one" in orch("status", cwd=tmp_path, code=2).stderr


@pytest.fixture
def stranger(ssh_orch: Orch) -> Orch:
    """A box whose key is not known yet."""
    assert ssh_orch.box is not None
    ssh_orch.box.known_hosts.unlink()
    ssh_orch.job("worker1")
    return ssh_orch


def test_an_unknown_key_is_refused_and_pinned_by_trust(stranger: Orch) -> None:
    assert stranger.box is not None
    refused = stranger.run("launch", "worker1", code=3)
    assert stranger.box.fingerprint() in refused.stderr
    assert "orch trust HOST" in refused.stderr

    said = orch("trust", "gpu1", cwd=stranger.project, said="y\n")

    assert f"gpu1 shows the host key ssh-ed25519 {stranger.box.fingerprint()}" in said.stdout
    assert stranger.box.known_hosts.read_text() == stranger.box.known_line()
    stranger.run("launch", "worker1", "--wait")


@pytest.mark.parametrize("arguments", [(), ("--fingerprint", "SHA256:another")])
def test_a_key_that_is_not_the_right_one_is_not_pinned(stranger: Orch, arguments: tuple[str, ...]) -> None:
    assert stranger.box is not None
    orch("trust", "gpu1", *arguments, cwd=stranger.project, said="n\n", code=3)
    assert not stranger.box.known_hosts.exists()


def test_trust_asks_nothing_where_the_fingerprint_is_given(stranger: Orch) -> None:
    assert stranger.box is not None
    orch("trust", "gpu1", "--fingerprint", stranger.box.fingerprint(), cwd=stranger.project)
    assert stranger.box.known_hosts.read_text() == stranger.box.known_line()


def test_this_machine_has_no_key_to_trust(local_orch: Orch) -> None:
    local_orch.job("worker1")
    assert "it is this machine" in local_orch.run("trust", "local", code=2).stderr
