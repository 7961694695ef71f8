from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.box.client import Box
from orchestrator.code import git as git_module
from orchestrator.code.git import GitRecord
from orchestrator.code.snapshot import CodeSnapshot, ship, take
from orchestrator.errors import AgentUnusable, OrchError, Refused, SpecError
from remote.contract import trees
from remote.contract.requests import Request, Where
from remote.contract.uploads import CodeBeginRequest, CodeCommitRequest
from tests.canned_box import CannedTransport

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n"
SECRET = "c2VjcmV0"


@pytest.fixture(autouse=True)
def git_of_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ignore the user's git settings and any repository around the temporary directory."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "somebody@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "file")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return new_repo(tmp_path / "repo", {"train.py": "pass\n", "pkg/__init__.py": "", ".gitignore": "*.log\ndata/\n"})


def git(directory: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", directory, *arguments], check=True, capture_output=True, text=True).stdout


def new_repo(directory: Path, files: Mapping[str, str]) -> Path:
    fill(directory, files)
    git(directory, "init", "-q", "-b", "main")
    return save(directory)


def save(directory: Path) -> Path:
    git(directory, "add", "-A", "-f")
    git(directory, "commit", "-q", "--allow-empty", "-m", "a commit")
    return directory


def fill(directory: Path, files: Mapping[str, str]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def withheld(snapshot: CodeSnapshot) -> dict[str, str]:
    return {item.path: item.reason for item in snapshot.withheld}


def record(snapshot: CodeSnapshot) -> GitRecord:
    assert snapshot.git is not None
    return snapshot.git


# --- which files --------------------------------------------------------------------------------------


def test_tracked_and_untracked_files_are_taken_without_ignored_and_deleted(repo: Path) -> None:
    fill(repo, {"new.py": "1", "run.log": "2", "data/x.pt": "3", "gone.py": "4"})
    git(repo, "add", "gone.py")
    (repo / "gone.py").unlink()
    (repo / "train.py").write_text("print()\n")
    snapshot = take(repo)
    assert snapshot.files == (".gitignore", "new.py", "pkg/__init__.py", "train.py")
    assert snapshot.withheld == ()
    assert snapshot.size == sum((repo / name).stat().st_size for name in snapshot.files)
    assert snapshot.tree == trees.tree_hash(trees.scan(repo, snapshot.files))


def test_tree_hash_depends_only_on_the_files(repo: Path, tmp_path: Path) -> None:
    """The box computes the announced hash from its copy, and a copy without git has the same hash."""
    snapshot = take(repo)
    copy = tmp_path / "copy"
    for name in snapshot.files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repo / name, copy / name)
    assert trees.tree_hash(trees.scan(copy)) == snapshot.tree == take(copy).tree
    assert take(copy).git is None
    (repo / "train.py").chmod(0o755)
    assert take(repo).tree != snapshot.tree


def test_subfolder_of_a_repository_is_taken_alone(repo: Path) -> None:
    fill(repo, {"pkg/new.py": "1", "pkg/old.log": "2"})
    (repo / "pkg" / "__init__.py").write_text("x = 1\n")
    snapshot = take(repo / "pkg")
    assert snapshot.files == ("__init__.py", "new.py")
    assert "a/pkg/__init__.py" in record(snapshot).patch


def test_link_in_place_of_a_tracked_folder_is_not_followed(repo: Path, tmp_path: Path) -> None:
    shutil.rmtree(repo / "pkg")
    (repo / "pkg").symlink_to(fill(tmp_path / "elsewhere", {"__init__.py": "private"}))
    snapshot = take(repo)
    assert snapshot.files == (".gitignore", "train.py")
    assert "link" in withheld(snapshot)["pkg"]
    assert "private" not in record(snapshot).patch


def test_odd_file_names_are_taken(repo: Path) -> None:
    names = ["a\nb.py", "-n", " space", 'quo"te', "ünï.py", "back\\slash", ":(top)x", "*"]
    fill(repo, dict.fromkeys(names, "x"))
    assert set(names) < set(take(repo).files)
    save(repo)
    fill(repo, dict.fromkeys(names, "y"))
    assert record(take(repo)).patch.count("diff --git") == len(names)


def test_submodules_are_walked_with_their_own_git(repo: Path, tmp_path: Path) -> None:
    library = new_repo(tmp_path / "library", {"lib.py": "1\n", ".gitignore": "*.tmp\n"})
    git(repo, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(library), "vendor/lib")
    save(repo)
    fill(repo, {"vendor/lib/new.py": "", "vendor/lib/x.tmp": "", "vendor/lib/.env": ""})
    snapshot = take(repo)
    assert {"vendor/lib/lib.py", "vendor/lib/new.py", "vendor/lib/.gitignore"} < set(snapshot.files)
    assert not {"vendor/lib/x.tmp", "vendor/lib/.git"} & set(snapshot.files)
    assert list(withheld(snapshot)) == ["vendor/lib/.env"]
    assert record(snapshot).dirty
    git(repo / "vendor" / "lib", "clean", "-qxfd")
    assert not record(take(repo)).dirty
    git(repo, "submodule", "--quiet", "deinit", "-f", "vendor/lib")
    assert withheld(take(repo)) == {"vendor/lib": "a submodule that is not checked out"}


def test_repository_cloned_into_the_folder_is_shipped(repo: Path) -> None:
    new_repo(repo / "cloned", {"lib.py": "1"})
    snapshot = take(repo)
    assert "cloned/lib.py" in snapshot.files
    assert record(snapshot).dirty


def test_folder_without_git_ships_everything_that_looks_like_code(tmp_path: Path) -> None:
    code = {"train.py": "", "env/cartpole.py": "", "pkg/build/x.py": "", "data.csv": ""}
    no_code = [
        *(".venv/a.py", "pkg/__pycache__/a.pyc", "b.pyc", "node_modules/x/y.js", "x.egg-info/PKG-INFO", ".DS_Store"),
        *("results/a/b", ".orch/x", "build/x", "wandb/x", ".hg/x"),
        *("my-env/pyvenv.cfg", "my-env/lib/x.py", "conda/conda-meta/history", "conda/lib/x.py"),
    ]
    project = fill(tmp_path / "project", {**code, **dict.fromkeys(no_code, "")})
    snapshot = take(project)
    assert set(snapshot.files) == set(code)
    assert (snapshot.git, set(withheld(snapshot))) == (None, {"node_modules/", "my-env/", "conda/"})
    included = take(project, include=["results/a/b", "build"]).files
    assert set(included) == {*code, "results/a/b", "build/x"}


def test_repository_without_the_git_program_is_a_plain_folder(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    snapshot = take(repo)
    assert snapshot.files == (".gitignore", "pkg/__init__.py", "train.py")
    assert snapshot.git is None


def test_folder_ignored_by_its_outer_repository_is_a_plain_folder(repo: Path) -> None:
    fill(repo, {"data/project/train.py": ""})
    snapshot = take(repo / "data" / "project")
    assert snapshot.files == ("train.py",)
    assert snapshot.git is None


def test_repository_that_git_cannot_read_is_an_error(repo: Path) -> None:
    """Without the ignore rules the data would be uploaded."""
    (repo / ".git" / "HEAD").write_text("nonsense")
    with pytest.raises(SpecError, match=r"git rev-parse .*: fatal: "):
        take(repo)


def test_environment_of_a_git_hook_is_ignored(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert "train.py" in take(repo).files


def test_nested_repositories_keep_their_own_rules(repo: Path) -> None:
    nested = new_repo(repo / "cloned", {"lib.py": "", ".gitignore": "*.json\nbuild/\n", "kept.json": ""})
    fill(nested, {"x.json": "", "build/x.py": "", "new.py": ""})
    shipped = {name for name in take(repo).files if name.startswith("cloned/")}
    assert shipped == {"cloned/lib.py", "cloned/.gitignore", "cloned/kept.json", "cloned/new.py"}
    (nested / ".git" / "index").write_bytes(b"nonsense")
    shipped = {name for name in take(repo).files if name.startswith("cloned/")}
    assert shipped == {"cloned/lib.py", "cloned/.gitignore", "cloned/new.py"}


def test_global_ignore_patterns_are_respected(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(repo, {"a.mine": "", "b.local": "", "c.info": "", ".git/info/exclude": "*.info\n"})
    fill(tmp_path, {"gitconfig": f"[core]\n\texcludesFile = {tmp_path}/ignore\n", "ignore": "*.mine\n"})
    assert {"a.mine", "b.local"} < set(take(repo).files)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    assert "a.mine" not in take(repo).files
    assert not {"c.info"} & set(take(repo).files)
    git(repo, "config", "core.excludesFile", str(fill(tmp_path, {"other": "*.local\n"}) / "other"))
    assert "b.local" not in take(repo).files


def test_line_endings_that_git_converts_are_not_a_change(repo: Path) -> None:
    git(repo, "config", "core.autocrlf", "true")
    (repo / "train.py").write_bytes(b"pass\r\n")
    assert not record(take(repo)).dirty


def test_changes_are_detected_with_a_file_system_monitor(repo: Path, tmp_path: Path) -> None:
    """Its answers are in the index: git treats files that it did not name as unchanged."""
    monitor = tmp_path / "monitor"
    monitor.write_text("#!/bin/sh\nprintf 'token\\0'\n")
    monitor.chmod(0o755)
    git(repo, "config", "core.fsmonitor", str(monitor))
    git(repo, "update-index", "--fsmonitor")
    git(repo, "status")
    fill(repo, {"train.py": "x = 1\n", "new.py": ""})
    assert git(repo, "diff", "HEAD") == ""
    assert "+x = 1\n" in record(take(repo)).patch
    assert "new.py" in take(repo).files


def test_split_index_is_read(repo: Path) -> None:
    git(repo, "update-index", "--split-index")
    fill(repo, {"train.py": "x = 1\n"})
    assert take(repo).files == (".gitignore", "pkg/__init__.py", "train.py")
    assert "+x = 1\n" in record(take(repo)).patch


def test_sha256_repository_is_read(tmp_path: Path) -> None:
    project = fill(tmp_path / "project", {"train.py": ""})
    git(project, "init", "-q", "-b", "main", "--object-format=sha256")
    save(project)
    assert len(record(take(project)).commit or "") == 64
    assert not record(take(project)).dirty


def test_folder_of_a_local_host_is_not_shipped(repo: Path) -> None:
    fill(repo, {"scratch/orch/project/runs/x": "", "scratch/a.py": ""})
    shipped = take(
        repo, include=["scratch/"], roots=[repo / "scratch" / "orch", repo / ".orch", Path("/elsewhere")]
    ).files
    assert {name for name in shipped if name.startswith("scratch")} == {"scratch/a.py"}


def test_results_are_included_only_by_a_pattern_that_starts_with_them(repo: Path) -> None:
    fill(repo, {"results/a/best.pt": "", "results/a/.git/config": "", "results/b.txt": "", ".orch/x.pt": ""})
    assert "results/a/best.pt" in take(repo, include=["results/**/*.pt"]).files
    assert {"results/a/best.pt", "results/b.txt"} < set(take(repo, include=["results/"]).files)
    for pattern in ("**/best.pt", "*", "**", ".orch/x.pt", ".orch/"):
        assert not [name for name in take(repo, include=[pattern]).files if name.startswith(("results", ".orch"))]
    assert not [name for name in take(repo, include=["results/"]).files if ".git" in name.split("/")]


def test_exclude_leaves_out_files_and_folders(repo: Path) -> None:
    fill(repo, {"docs/deep/x.md": "", "pkg/note.md": "", ".env": ""})
    snapshot = take(repo, include=["pkg/*"], exclude=["docs/", "*.md", "/train.py", ".env"])
    assert snapshot.files == (".gitignore", "pkg/__init__.py")
    assert snapshot.withheld == ()


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_missing_or_empty_folder_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "file":
        path.write_text("")
    if what == "empty":
        path.mkdir()
    with pytest.raises(SpecError, match="no such directory" if what != "empty" else "no files to send"):
        take(path)


def test_vanished_file_is_reported(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = trees.read

    def remove_and_read(path: Path, head_bytes: int) -> trees.Reading:
        if path.name == "train.py":
            path.unlink()
        return read(path, head_bytes)

    monkeypatch.setattr(trees, "read", remove_and_read)
    with pytest.raises(OrchError, match=r"train\.py was removed") as failure:
        take(repo)
    assert failure.value.hint


def test_unreadable_file_is_reported(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, head_bytes: int) -> trees.Reading:
        raise PermissionError(13, "Permission denied", str(path))  # root is never refused

    monkeypatch.setattr(trees, "read", refuse)
    with pytest.raises(SpecError, match=r"\.gitignore cannot be read: .*Permission denied") as failure:
        take(repo)
    assert "exclude" in failure.value.hint


# --- files that are not copied ------------------------------------------------------------------------

SECRETS = {
    **dict.fromkeys(["id_rsa", "keys/id_ed25519.bak", "id_ecdsa", "Server.PEM", "tls.key", "a.p12", "b.pfx"], "x"),
    **dict.fromkeys([".env", ".env.local", "app/.env.production", ".netrc", ".pgpass", ".git-credentials"], "x"),
    **dict.fromkeys([".aws/credentials", "home/.aws/credentials", "pass.kdbx"], "x"),
    **dict.fromkeys([".envrc", "prod.env", "deploy_rsa", ".npmrc", "terraform.tfstate", ".bash_history"], "x"),
    **dict.fromkeys([".kube/config", ".docker/config.json", ".huggingface/token", "kaggle.json", "a.jks"], "x"),
    "notes.txt": KEY,
    "later.txt": "\n\ufeff " + KEY,
    "settings.json": '{"key": "-----BEGIN PRIVATE KEY-----\\n' + "Ab3/" * 16 + '"}',
    "both.pem": "-----BEGIN CERTIFICATE-----\n" + "Ab3/" * 16 + "\n" + KEY,
}
NO_SECRETS = {
    **dict.fromkeys([".env.example", ".env.sample", ".env.template", "environment.yml", "keyboard.py"], "x"),
    **dict.fromkeys(["aws/credentials.md", "docs/pem.md"], "x"),
    "test_keys.py": "PEM = '''\n" + KEY + "'''\n",  # too short to be a key
    "ca.pem": "-----BEGIN CERTIFICATE-----\n" + "Ab3/" * 16 + "\n-----END CERTIFICATE-----\n",
    "id_rsa.pub": "ssh-rsa AAAA",
}


@pytest.mark.parametrize("with_git", [True, False])
def test_secrets_are_not_shipped(tmp_path: Path, with_git: bool) -> None:
    project = fill(tmp_path / "project", {**SECRETS, **NO_SECRETS, "results/a.json": "", ".orch/x/y": ""})
    if with_git:
        new_repo(project, {})
    snapshot = take(project)
    assert set(snapshot.files) == set(NO_SECRETS)
    assert set(withheld(snapshot)) == set(SECRETS) | ({"results/", ".orch/"} if with_git else set())  # tracked
    assert all(withheld(snapshot).values())


def test_include_ships_only_what_it_names(tmp_path: Path) -> None:
    project = fill(tmp_path / "project", {**SECRETS, "train.py": "", "results/best.json": "", "results/x.json": ""})
    new_repo(project, {})
    snapshot = take(project, include=["notes.txt", ".env", "results/best.json"])
    assert set(snapshot.files) == {"train.py", "notes.txt", ".env", "results/best.json"}
    assert {"results/", ".env.local", "app/.env.production"} < set(withheld(snapshot))


def test_include_ships_files_that_git_ignores(repo: Path) -> None:
    fill(repo, {".gitignore": ".env\n*.pem\n.venv/\nconfig/\n", ".env": "x", "ca.pem": "x"})
    fill(repo, {".venv/lib/cacert.pem": "x", "config/.env": "x", "config/b.toml": "x"})
    assert not {".env", "ca.pem"} & set(take(repo).files)
    assert set(take(repo, include=[".env", "*.pem"]).files) == {*take(repo).files, ".env", "ca.pem"}
    assert {"config/.env", "config/b.toml"} < set(take(repo, include=["config/"]).files)


def test_links_within_the_folder_are_shipped_as_links(repo: Path, tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", {"secret": "x"})
    (repo / "pkg" / "ok").symlink_to("../train.py")
    (repo / "folder").symlink_to("pkg")
    (repo / "dangling").symlink_to("not/there")
    bad = {
        "out": "../outside/secret",
        "absolute": str(outside),
        "inside-but-absolute": str(repo / "train.py"),
        "round": f"../{repo.name}/train.py",
        "sly": "folder/../../outside",
        "by-another": "pkg/up/outside",
    }
    (repo / "pkg" / "up").symlink_to("../..")
    for name, target in bad.items():
        (repo / name).symlink_to(target)
    snapshot = take(repo)
    assert {"pkg/ok", "folder", "dangling"} < set(snapshot.files)
    assert set(withheld(snapshot)) == {*bad, "pkg/up"}
    assert "outside/secret" in withheld(snapshot)["out"]
    assert trees.scan(repo, ["folder"])["folder"].kind == "link"
    assert "absolute" in take(repo, include=["absolute"]).files


def test_sockets_and_pipes_are_never_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = fill(tmp_path / "project", {"train.py": ""})
    monkeypatch.chdir(project)  # a socket's path has to be short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        snapshot = take(project, include=["pipe", "socket"])
    assert snapshot.files == ("train.py",)
    assert set(withheld(snapshot)) == {"pipe", "socket"}


# --- the git record -----------------------------------------------------------------------------------


def test_clean_checkout_is_recorded_without_a_patch(repo: Path) -> None:
    head = git(repo, "rev-parse", "HEAD").strip()
    assert take(repo).git == GitRecord(commit=head, branch="main", dirty=False, patch="")
    git(repo, "checkout", "-q", "--detach")
    assert record(take(repo)).branch is None


def test_repository_without_commits_is_recorded(tmp_path: Path) -> None:
    project = fill(tmp_path / "project", {"train.py": "pass\n"})
    git(project, "init", "-q", "-b", "main")
    assert take(project).git == GitRecord(commit=None, branch="main", dirty=True, patch="")


def test_untracked_files_make_it_dirty_but_are_not_in_the_patch(repo: Path) -> None:
    fill(repo, {"results/x": "", "run.log": ""})
    assert not record(take(repo)).dirty
    fill(repo, {"new.py": "1\n"})
    assert record(take(repo)).dirty
    assert record(take(repo)).patch == ""


SETTINGS = {
    "diff.relative": "true",
    "diff.noprefix": "true",
    "color.ui": "always",
    "diff.external": "false",
    "diff.renames": "copies",
}


@pytest.mark.parametrize("folder", [".", "pkg"])
def test_patch_applied_to_the_commit_gives_the_shipped_tree(repo: Path, tmp_path: Path, folder: str) -> None:
    files = {"edit.py": "a\nb\nc\n", "drop.py": "x\n", "move.py": "long enough to be seen as moved\n" * 9}
    fill(repo / folder, files)
    (repo / folder / "binary").write_bytes(bytes(range(256)))
    save(repo)
    fill(repo / folder, {"edit.py": "a\nB\nc\n", "sub/added.py": "new\n", "no newline": "x"})
    (repo / folder / "binary").write_bytes(bytes(range(255, -1, -1)))
    (repo / folder / "edit.py").chmod(0o755)
    (repo / folder / "drop.py").unlink()
    (repo / folder / "move.py").rename(repo / folder / "moved.py")
    (repo / folder / "sub" / "link").symlink_to("added.py")
    git(repo, "add", "-A")
    for name, value in SETTINGS.items():
        git(repo, "config", name, value)
    snapshot = take(repo / folder)
    clean = tmp_path / "clean"
    git(tmp_path, "clone", "-q", str(repo), str(clean))
    git(clean, "checkout", "-q", str(record(snapshot).commit))
    apply(clean, record(snapshot).patch)
    assert take(clean / folder).tree == snapshot.tree


def test_patch_contains_no_secret(repo: Path, tmp_path: Path) -> None:
    fill(repo, {".env": "TOKEN=old-c2VjcmV0", "gone.key": SECRET, "was.txt": KEY, "notes.txt": "a\n", "pkg/.env": "a"})
    fill(repo, {"private.md": "a", "results/r.json": "a", "id_rsa": "a", "binary.pem": "a"})
    save(repo)
    fill(repo, {".env": f"TOKEN={SECRET}", "was.txt": "nothing now\n", "notes.txt": KEY, "pkg/.env": SECRET})
    fill(repo, {"private.md": SECRET, "results/r.json": SECRET, "id_rsa": KEY, "train.py": "x = 1\n"})
    (repo / "binary.pem").write_bytes(b"\0" + SECRET.encode())
    (repo / "gone.key").unlink()
    (repo / ".env").rename(repo / "settings.txt")
    fill(repo, {".env": SECRET})
    git(repo, "add", "-A")
    git(repo, "rm", "-q", "--cached", "settings.txt")
    snapshot = take(repo, include=["pkg/.env"], exclude=["private.md"])
    patch = record(snapshot).patch
    assert SECRET not in patch
    assert "binary.pem b/binary.pem" not in patch
    assert "pkg/.env" in snapshot.files
    assert "contains a private key: a/was.txt b/was.txt" in patch
    assert "withheld: '.env'" in patch
    clean = tmp_path / "clean"
    git(tmp_path, "clone", "-q", str(repo), str(clean))
    apply(clean, patch)
    assert (clean / "train.py").read_text() == "x = 1\n"


def test_secrets_in_a_folder_that_replaced_a_file_are_not_in_the_patch(repo: Path) -> None:
    fill(repo, {"thing": "a\n"})
    save(repo)
    (repo / "thing").unlink()
    fill(repo, {"thing/.env": SECRET, "thing/ok.py": "1\n"})
    git(repo, "add", "-A", "-f")
    patch = record(take(repo)).patch
    assert SECRET not in patch
    assert "thing/ok.py" in patch


def test_secrets_of_a_subfolder_project_are_not_in_the_patch(repo: Path) -> None:
    fill(repo, {"pkg/.env": "a\n", "pkg/mod.py": "a\n"})
    save(repo)
    fill(repo, {"pkg/.env": SECRET, "pkg/mod.py": "b\n", "train.py": "not of this folder\n"})
    patch = record(take(repo / "pkg")).patch
    assert SECRET not in patch
    assert "+b\n" in patch
    assert "not of this folder" not in patch


def test_file_that_is_not_utf8_is_left_out_and_reported(repo: Path) -> None:
    (repo / "latin.txt").write_bytes(b"caf\xe9\n")
    save(repo)
    (repo / "latin.txt").write_bytes(b"th\xe9\n")
    fill(repo, {"train.py": "x = 1\n"})
    patch = record(take(repo)).patch
    assert "not UTF-8: a/latin.txt b/latin.txt" in patch
    assert "+x = 1\n" in patch


def test_filtered_file_is_left_out_of_the_patch_and_reported(repo: Path) -> None:
    """As with Git LFS: the commit holds a pointer. The filter itself does not run."""
    fill(repo, {".gitattributes": "*.bin filter=lfs\n", "a.bin": "pointer"})
    save(repo)
    git(repo, "config", "filter.lfs.clean", "false")
    git(repo, "config", "filter.lfs.required", "true")
    fill(repo, {"a.bin": "large", "train.py": "x = 1\n"})
    snapshot = take(repo)
    assert "a.bin" in snapshot.files
    assert record(snapshot).dirty
    assert "git filters it (for example Git LFS): 'a.bin'" in record(snapshot).patch
    assert "large" not in record(snapshot).patch
    assert "+x = 1\n" in record(snapshot).patch


def test_removed_token_is_not_in_the_patch(repo: Path) -> None:
    token = "gh" + "p_" + "a1B2c3D4e5F6g7H8i9J0" + "k1L2m3N4o5P6q7R8"
    fill(repo, {"login.py": f"TOKEN = '{token}'\n"})
    save(repo)
    fill(repo, {"login.py": "TOKEN = None\n"})
    snapshot = take(repo)
    assert "login.py" in snapshot.files
    assert token not in record(snapshot).patch
    assert "as it contains a GitHub token: a/login.py b/login.py" in record(snapshot).patch


def test_patch_that_git_cannot_make_is_reported(repo: Path) -> None:
    blob = git(repo, "rev-parse", "HEAD:train.py").strip()
    (repo / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    fill(repo, {"train.py": "x = 1\n"})
    assert record(take(repo)).dirty
    assert record(take(repo)).patch.startswith("# no patch: ")


@pytest.mark.parametrize(("line", "times"), [("a" * 63, 1 << 15), ("ж" * 20, 12000)])
def test_long_patch_is_left_out(repo: Path, line: str, times: int) -> None:
    fill(repo, {"train.py": f"{line}\n" * times})
    snapshot = take(repo)
    assert record(snapshot).dirty
    assert record(snapshot).patch == f"# no patch: it is longer than {git_module.PATCH_LIMIT} characters\n"


def apply(directory: Path, patch: str) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(patch.encode())
        file.flush()
        git(directory, "apply", "--whitespace=nowarn", file.name)


# --- shipping -----------------------------------------------------------------------------------------


@dataclass
class Answers(CannedTransport):
    """A transport with prepared answers."""

    replies: list[dict[str, Any] | Exception]
    host: str = "box"
    calls: list[Request] = field(default_factory=list)
    pushes: list[tuple[Path, Sequence[str], str, str | None]] = field(default_factory=list)

    def call(self, request: Request) -> dict[str, Any]:
        self.calls.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        self.pushes.append((source, files, target, link_to))


WHERE = Where("/box", "thing")
SNAPSHOT = CodeSnapshot(Path("/here"), ("a.py",), "0" * 64, (), None, 1)
HAVE = {"have": True, "incoming": None, "link_to": None}
LINKED = {"have": False, "incoming": "/box/in", "link_to": "/box/old"}
UNLINKED = {**LINKED, "link_to": None}


def test_tree_that_the_box_has_is_not_sent() -> None:
    box = Answers([HAVE])
    assert not ship(SNAPSHOT, Box(box, WHERE))
    assert box.calls == [Request(CodeBeginRequest("0" * 64), WHERE)]
    assert box.pushes == []


def test_tree_is_sent_and_committed() -> None:
    box = Answers([LINKED, {}])
    assert ship(SNAPSHOT, Box(box, WHERE))
    assert box.pushes == [(Path("/here"), ("a.py",), "/box/in", "/box/old")]
    assert box.calls[1] == Request(CodeCommitRequest("0" * 64, "/box/in"), WHERE)


def test_refused_tree_is_sent_again_without_links() -> None:
    box = Answers([LINKED, Refused("changed"), LINKED, {}])
    assert ship(SNAPSHOT, Box(box, WHERE))
    assert [link_to for *_, link_to in box.pushes] == ["/box/old", None]


@pytest.mark.parametrize(
    "replies",
    [[UNLINKED, Refused("changed")], [LINKED, Refused("changed"), LINKED, Refused("changed")], [Refused("changed")]],
)
def test_tree_refused_twice_is_an_error(replies: list[dict[str, Any] | Exception]) -> None:
    box = Answers(replies)
    with pytest.raises(Refused, match="changed"):
        ship(SNAPSHOT, Box(box, WHERE))
    assert box.replies == []


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"have": "yes", "incoming": "/x", "link_to": None},
        {"have": False, "incoming": "relative", "link_to": None},
        {"have": False, "incoming": None, "link_to": None},
        {"have": False, "incoming": "/a\nb", "link_to": None},
        {"have": False, "incoming": "/a", "link_to": "--rsh=x"},
    ],
)
def test_malformed_answer_stops_the_upload(reply: dict[str, Any]) -> None:
    box = Answers([reply])
    with pytest.raises(AgentUnusable):
        ship(SNAPSHOT, Box(box, WHERE))
    assert box.pushes == []
