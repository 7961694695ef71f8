"""`orch init` and `orch trust`: the first commands of a new user."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import HostUnreachable
from orchestrator.spec.load import load
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.rsync import Rsync
from tests.example_projects import LFS_POINTER, SRC_LAYOUT, make_project
from tests.integration.conftest import Orch


def orch(*arguments: str, cwd: Path, code: int = 0, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, input=said, check=False)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done


def test_init_writes_a_valid_spec_that_launches(tmp_path: Path) -> None:
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


def test_init_writes_gitignore_below_the_top_of_a_repository(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    project = tmp_path / "research" / "project"
    project.mkdir(parents=True)
    orch("init", cwd=project)
    assert (project / ".gitignore").read_text() == ".orch/\nresults/\n"


def test_init_writes_a_spec_that_passes_its_check(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", {**SRC_LAYOUT, "weights.bin": LFS_POINTER}, with_git=True)
    make_project(project, {".venv/pyvenv.cfg": "", ".venv/lib/x.py": "print(1)\n"})

    said = orch("init", cwd=project)

    assert "command: python -m tinynet.train\n" in said.stderr
    assert "not uploaded: .venv/ (a Python environment)" in said.stderr
    assert "weights.bin" in said.stdout
    done = orch("check", "train", cwd=project)
    assert done.stdout.count("warn  code: git lfs: ") == 1
    assert done.stdout.index("git lfs") < done.stdout.index("ok    train: command: module tinynet.train")
    checks = json.loads(orch("check", "train", "--json", cwd=project).stdout)["checks"]
    assert [check["name"] for check in checks if check["about"] == "code"] == ["git lfs"]


def test_prepare_of_the_readme_runs_before_the_first_run(tmp_path: Path) -> None:
    train = "data = 'wiki'\nmax_iters = 9\nexec(open('configurator.py').read())\nprint(open(f'data/{data}/x').read())\n"
    files = {
        "README.md": "    python data/wiki/prepare.py\n    python data/big/prepare.py\n\nThen: `python train.py`\n",
        "train.py": train + "print(f'iter 1: loss {1 / max_iters}')\n",
        "configurator.py": "import sys\nfor word in sys.argv[1:]:\n    print(word)\n",
        "data/wiki/prepare.py": "open('data/wiki/x', 'w').write('prepared data')\n",
        "data/big/prepare.py": "raise SystemExit(1)\n",
    }
    project = make_project(tmp_path / "p", files)
    orch("init", cwd=project)
    orch("launch", "train", "--wait", cwd=project)
    assert "prepared data\n" in orch("tail", "train", cwd=project).stdout


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text("mine")
    assert "already has one" in orch("init", cwd=tmp_path, code=2).stderr
    assert (tmp_path / "jobs.toml").read_text() == "mine"


def test_missing_spec_is_answered_with_orch_init(tmp_path: Path) -> None:
    assert "to write one: orch init" in orch("status", cwd=tmp_path, code=2).stderr


@pytest.fixture
def unknown_box(ssh_orch: Orch) -> Orch:
    """Make a box whose key is not known yet."""
    assert ssh_orch.box is not None
    ssh_orch.box.known_hosts.unlink()
    ssh_orch.job("worker1")
    return ssh_orch


def test_unknown_key_is_refused_until_trust_pins_it(unknown_box: Orch) -> None:
    assert unknown_box.box is not None
    refused = unknown_box.run("launch", "worker1", code=3)
    assert unknown_box.box.fingerprint() in refused.stderr
    assert "orch trust gpu1" in refused.stderr

    said = orch("trust", "gpu1", cwd=unknown_box.project, said="y\n")

    assert f"gpu1 shows the host key ssh-ed25519 {unknown_box.box.fingerprint()}" in said.stdout
    assert unknown_box.box.known_hosts.read_text() == unknown_box.box.known_line()
    unknown_box.run("launch", "worker1", "--wait")


@pytest.mark.parametrize("arguments", [(), ("--fingerprint", "SHA256:another")])
def test_key_with_another_fingerprint_is_not_pinned(unknown_box: Orch, arguments: tuple[str, ...]) -> None:
    assert unknown_box.box is not None
    orch("trust", "gpu1", *arguments, cwd=unknown_box.project, said="n\n", code=3)
    assert not unknown_box.box.known_hosts.exists()


def test_trust_does_not_prompt_if_a_fingerprint_is_given(unknown_box: Orch) -> None:
    assert unknown_box.box is not None
    orch("trust", "gpu1", "--fingerprint", unknown_box.box.fingerprint(), cwd=unknown_box.project)
    assert unknown_box.box.known_hosts.read_text() == unknown_box.box.known_line()


def test_trust_does_not_prompt_if_the_key_is_already_pinned(unknown_box: Orch) -> None:
    assert unknown_box.box is not None
    unknown_box.box.known_hosts.write_text(unknown_box.box.known_line())

    done = orch("trust", "gpu1", cwd=unknown_box.project)

    assert "Trust this host key?" not in done.stdout
    assert "already has this key" in done.stderr
    assert unknown_box.box.known_hosts.read_text() == unknown_box.box.known_line()
    another = ("--fingerprint", "SHA256:another")
    orch("trust", "gpu1", *another, cwd=unknown_box.project, code=3)


# --- the known hosts of a project -------------------------------------------------------------------------


@pytest.fixture
def pinning(ssh_orch: Orch) -> Orch:
    """Make a project with its own known hosts, in a folder with a space; only the user's file knows the box."""
    ssh_orch.job("worker1")
    spec = ssh_orch.project / "jobs.toml"
    spec.write_text(spec.read_text().replace("[project]\n", '[project]\nknown_hosts = "my keys/known_hosts"\n'))
    return ssh_orch


def test_key_in_the_users_known_hosts_is_unknown_to_the_project(pinning: Orch) -> None:
    assert pinning.box is not None
    refused = pinning.run("launch", "worker1", code=3)
    assert f"is unknown: {pinning.project}/my keys/known_hosts (" in refused.stderr
    assert pinning.box.fingerprint() in refused.stderr


def test_key_pinned_for_the_project_works_for_every_command(pinning: Orch) -> None:
    assert pinning.box is not None
    pinning.box.known_hosts.write_text("")

    orch("trust", "gpu1", cwd=pinning.project, said="y\n")

    own = pinning.project / "my keys" / "known_hosts"
    assert own.read_text() == pinning.box.known_line()
    assert pinning.box.known_hosts.read_text() == ""
    pinning.run("launch", "worker1", "--wait")  # uploads the code with rsync and OpenSSH
    pinning.run("sync")
    assert pinning.mirror("worker1").state.is_file()
    assert own.read_text() == pinning.box.known_line()
    assert pinning.box.known_hosts.read_text() == ""


def test_rsync_uses_only_the_known_hosts_of_the_project(pinning: Orch) -> None:
    """Use rsync directly, because the transport would refuse the key before it."""
    assert pinning.box is not None
    own = pinning.project / "my keys" / "known_hosts"
    config = SshConfig(Destination("box"), None, pinning.box.config, own)
    rsync = Rsync("gpu1", Destination("box"), ("-F", str(config.file())))
    with pytest.raises(HostUnreachable):  # with one of several exit codes
        rsync.push(pinning.project, ["worker.py"], str(pinning.box.home), None)
    assert pinning.box.logins() == 0
    own.parent.mkdir()
    own.write_text(pinning.box.known_line())
    rsync.push(pinning.project, ["worker.py"], str(pinning.box.home), None)
    assert (pinning.box.home / "worker.py").is_file()


def test_changed_key_is_refused_and_the_file_is_named(pinning: Orch) -> None:
    assert pinning.box is not None
    own = pinning.project / "my keys" / "known_hosts"
    own.parent.mkdir()
    kind, key = Path(f"{pinning.box.identity}.pub").read_text().split()[:2]
    own.write_text(f"[127.0.0.1]:{pinning.box.port} {kind} {key}\n")

    refused = pinning.run("launch", "worker1", code=3)

    assert "ITS HOST KEY HAS CHANGED" in refused.stderr
    assert str(own) in refused.stderr
    assert "replace the key: orch trust gpu1" in refused.stderr


def test_unwritable_known_hosts_is_a_clear_error(pinning: Orch) -> None:
    (pinning.project / "my keys" / "known_hosts").mkdir(parents=True)
    refused = orch("trust", "gpu1", cwd=pinning.project, said="y\n", code=2)
    assert "Is a directory" in refused.stderr


def test_trust_of_the_local_host_is_refused(local_orch: Orch) -> None:
    local_orch.job("worker1")
    assert "this host is this machine" in local_orch.run("trust", "local", code=2).stderr


def test_failure_for_a_file_that_git_ignores_says_so(local_orch: Orch) -> None:
    """The rehearsal, `launch --wait` and `status` of the run name the file."""
    orch = local_orch
    (orch.project / "data").mkdir()
    (orch.project / "data/train.bin").write_text("x")
    (orch.project / ".gitignore").write_text("data/\nresults/\n.orch/\n")
    subprocess.run(["git", "init", "-q", str(orch.project)], check=True, timeout=60)
    command = ["python", "-c", "open('data/train.bin')"]
    said = "data/train.bin exists here but is git-ignored, so it was not sent"
    orch.table("train", command=command, rehearse=True)
    assert said in orch.run("launch", "train", code=4).stderr
    orch.table("train", command=command)
    assert said in orch.run("launch", "train", "--wait", code=1).stderr
    assert said in orch.run("status", "train").stderr
    assert said in "".join(orch.json("status", "train")["notes"])
