"""Hostile repositories and folders against the real `orch`: none of their programs may run here."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

import pytest

from remote.contract.paths import ProjectPaths
from tests.support import ROOT

JOBS = """\
[project]
name = "test"
{project}
[hosts.local]
gpus = 0
survive_reboot = false

[jobs.nothing]
command = ["true"]
rehearse = false
"""
IDENTITY = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")


@pytest.fixture(autouse=True)
def git_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@dataclass
class Trap:
    """A project in its own repository, and a program that must not run; if it runs, it leaves a file."""

    project: Path
    program: Path
    sprung: Path

    def git(self, *arguments: str, at: Path | None = None) -> str:
        words = ["git", "-C", str(at or self.project), *IDENTITY, "-c", "protocol.file.allow=always", *arguments]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def config(self, name: str, value: str | None = None, at: Path | None = None) -> None:
        self.git("config", name, value or str(self.program), at=at)

    def new(self, folder: Path, **files: str) -> Path:
        """Make a repository with one commit."""
        for name, text in {"lib.py": "1\n", **files}.items():
            self.write(folder / name, text)
        self.git("init", "-q", "-b", "main", at=folder)
        self.git("add", "-A", "-f", at=folder)
        self.git("commit", "-q", "-m", "a commit", at=folder)
        return folder

    def repository_elsewhere(self) -> Path:
        """Make a repository next to the project. Its configuration names the program."""
        folder = self.new(self.project.parent / "elsewhere")
        self.config("core.fsmonitor", at=folder)
        return folder

    def keep_git(self, is_kept: bool) -> None:
        """Leave the project a repository, or make it a plain folder."""
        if not is_kept:
            shutil.rmtree(self.project / ".git")

    def write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def jobs(self, project: str = "") -> None:
        self.write(self.project / "jobs.toml", JOBS.format(project=project))

    def springs(self, *arguments: str, at: Path | None = None) -> bool:
        """Return whether plain git runs the program for this command."""
        words = ["git", "-C", str(at or self.project), *arguments]
        subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
        sprung = self.sprung.exists()
        self.sprung.unlink(missing_ok=True)
        return sprung

    def orch(
        self, *arguments: str, at: Path | None = None, codes: Sequence[int] = (0,), env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the real command; it must end with one of `codes`, without a traceback, and not run the program."""
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            cwd=at or self.project,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=100,
            check=False,
        )
        out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        assert not self.sprung.exists(), f"orch {arguments} ran the program\n{err}"
        assert "Traceback" not in err, err
        assert done.returncode in codes, f"orch {arguments}: {done.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def shipped(self) -> set[str]:
        """Return the files of the newest snapshot."""
        code = ProjectPaths(self.project / ".orch", "test").code
        trees = sorted((p for p in code.iterdir() if p.is_dir() and len(p.name) == 64), key=lambda p: p.stat().st_mtime)
        return {str(path.relative_to(trees[-1])) for path in trees[-1].rglob("*") if not path.is_dir()}


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    sprung = tmp_path / "sprung"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {sprung}\nexit 1\n")
    program.chmod(0o755)
    trap = Trap(tmp_path / "project", program, sprung)
    trap.jobs()
    trap.new(trap.project, **{"train.py": "1\n", ".gitignore": "/.orch/\n"})
    trap.write(trap.project / "lib.py", "22\n")  # a change for git to compare
    return trap


# --- programs that a repository's configuration names -----------------------------------------------------

Plant = Callable[[Trap], Sequence[str] | None]  # prepares the trap; returns the git command that triggers it, if any


def fsmonitor(trap: Trap) -> Sequence[str]:
    trap.config("core.fsmonitor")
    return ["ls-files", "--others"]


def old_fsmonitor(trap: Trap) -> Sequence[str]:
    trap.config("core.fsmonitorHookVersion", "1")
    return fsmonitor(trap)


def fsmonitor_in_the_index(trap: Trap) -> Sequence[str]:
    command = fsmonitor(trap)
    trap.git("update-index", "--fsmonitor")
    trap.sprung.unlink()
    return command


def hooks_path(trap: Trap) -> Sequence[str]:
    shutil.copy(trap.program, trap.write(trap.project / "hooks" / "post-index-change", ""))
    trap.config("core.hooksPath", "hooks")
    os.utime(trap.project / "train.py", (1, 1))
    return ["status"]


def hook(trap: Trap) -> Sequence[str]:
    shutil.copy(trap.program, trap.write(trap.project / ".git" / "hooks" / "post-index-change", ""))
    os.utime(trap.project / "train.py", (1, 1))
    return ["status"]


def clean_filter(trap: Trap) -> Sequence[str]:
    trap.write(trap.project / ".gitattributes", "* filter=evil\n")
    trap.config("filter.evil.clean")
    return ["diff", "HEAD"]


def process_filter(trap: Trap) -> Sequence[str]:
    trap.write(trap.project / ".gitattributes", "* filter=evil\n")
    trap.config("filter.evil.process")
    return ["diff", "HEAD"]


def required_filter(trap: Trap) -> Sequence[str]:
    trap.config("filter.evil.required", "true")
    trap.config("filter.evil.smudge")
    return clean_filter(trap)


def filter_with_an_odd_name(trap: Trap) -> Sequence[str]:
    trap.write(trap.project / ".gitattributes", "* filter=a=b.c\n")
    trap.config("filter.a=b.c.clean")
    return ["diff", "HEAD"]


def filter_by_info_attributes(trap: Trap) -> Sequence[str]:
    trap.write(trap.project / ".git" / "info" / "attributes", "* filter=evil\n")
    trap.config("filter.evil.clean")
    return ["diff", "HEAD"]


def filter_by_attributes_file(trap: Trap) -> Sequence[str]:
    trap.config("core.attributesFile", str(trap.write(trap.project / "attributes", "* filter=evil\n")))
    trap.config("filter.evil.clean")
    return ["diff", "HEAD"]


def external_diff(trap: Trap) -> Sequence[str]:
    trap.config("diff.external")
    return ["diff", "HEAD"]


def diff_driver(trap: Trap) -> Sequence[str]:
    trap.write(trap.project / ".gitattributes", "* diff=evil\n")
    trap.config("diff.evil.command")
    return ["diff", "HEAD"]


def textconv(trap: Trap) -> Sequence[str]:
    trap.write(trap.project / ".gitattributes", "* diff=evil\n")
    trap.config("diff.evil.textconv")
    return ["diff", "HEAD"]


def cached_textconv(trap: Trap) -> Sequence[str]:
    trap.config("diff.evil.cachetextconv", "true")
    return textconv(trap)


def pager(trap: Trap) -> None:
    for name in ("core.pager", "pager.diff", "pager.ls-files", "pager.config", "pager.rev-parse"):
        trap.config(name)


def editors_and_askers(trap: Trap) -> None:
    for name in ("core.editor", "sequence.editor", "core.askPass", "credential.helper", "gpg.program", "core.gitProxy"):
        trap.config(name)
    for name in ("interactive.diffFilter", "uploadpack.packObjectsHook", "trailer.x.command", "merge.evil.driver"):
        trap.config(name)


def alias(trap: Trap) -> None:
    for name in ("ls-files", "diff", "rev-parse", "config", "check-attr"):
        trap.config(f"alias.{name}", f"!{trap.program}")


def included_settings(trap: Trap) -> Sequence[str]:
    trap.write(trap.project / "settings", f"[core]\n\tfsmonitor = {trap.program}\n")
    trap.config("include.path", "../settings")
    return ["ls-files", "--others"]


def conditional_settings(trap: Trap) -> Sequence[str]:
    trap.write(trap.project / "settings", f"[core]\n\tfsmonitor = {trap.program}\n")
    trap.config(f"includeIf.gitdir:{trap.project}/.path", str(trap.project / "settings"))
    return ["ls-files", "--others"]


def settings_of_the_worktree(trap: Trap) -> Sequence[str]:
    trap.config("extensions.worktreeConfig", "true")
    trap.git("config", "--worktree", "core.fsmonitor", str(trap.program))
    return ["ls-files", "--others"]


def settings_of_a_newer_git(trap: Trap) -> Sequence[str]:
    trap.config("core.repositoryFormatVersion", "1")
    trap.config("extensions.worktreeConfig", "true")
    return fsmonitor(trap)


def missing_object(trap: Trap, url: str) -> Sequence[str]:
    """A partial clone, whose missing objects git would fetch by starting a transport."""
    trap.config("core.repositoryFormatVersion", "1")
    trap.config("extensions.partialClone", "origin")
    trap.config("remote.origin.promisor", "true")
    trap.config("remote.origin.url", url)
    blob = trap.git("rev-parse", "HEAD:lib.py").strip()
    (trap.project / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    return ["diff", "HEAD"]


def ssh_command(trap: Trap) -> Sequence[str]:
    trap.config("core.sshCommand")
    return missing_object(trap, "ssh://nobody@localhost/x")


def upload_pack(trap: Trap) -> Sequence[str]:
    trap.config("remote.origin.uploadpack")
    return missing_object(trap, str(trap.project))


def external_transport(trap: Trap) -> Sequence[str]:
    trap.config("protocol.ext.allow", "always")
    return missing_object(trap, f"ext::{trap.program}")


def proxy_command(trap: Trap) -> Sequence[str]:
    trap.config("core.gitProxy")
    return missing_object(trap, "git://localhost/x")


def missing_commit(trap: Trap) -> Sequence[str]:
    trap.config("remote.origin.uploadpack")
    missing_object(trap, str(trap.project))
    commit = trap.git("rev-parse", "HEAD").strip()
    (trap.project / ".git" / "objects" / commit[:2] / commit[2:]).unlink()
    return ["diff", "HEAD"]


def alternate_refs(trap: Trap) -> None:
    trap.config("core.alternateRefsCommand")
    other = trap.new(trap.project.parent / "other")
    trap.write(trap.project / ".git" / "objects" / "info" / "alternates", f"{other}/.git/objects\n")


def submodule(trap: Trap) -> Path:
    library = trap.new(trap.project.parent / "library")
    trap.git("submodule", "add", "-q", str(library), "vendor/lib")
    trap.git("commit", "-q", "-a", "-m", "a submodule")
    trap.write(trap.project / "vendor" / "lib" / "lib.py", "2\n")  # same size, so git reads it
    return trap.project / "vendor" / "lib"


def fsmonitor_of_a_submodule(trap: Trap) -> Sequence[str]:
    trap.config("core.fsmonitor", at=submodule(trap))
    return ["diff", "HEAD", "--ignore-submodules=none"]


def filter_of_a_submodule(trap: Trap) -> Sequence[str]:
    inner = submodule(trap)
    trap.write(inner / ".gitattributes", "* filter=evil\n")
    trap.config("filter.evil.clean", at=inner)
    return ["diff", "HEAD", "--ignore-submodules=none"]


def submodule_in_a_submodule(trap: Trap) -> Sequence[str]:
    inner = submodule(trap)
    trap.git("submodule", "add", "-q", str(trap.project.parent / "library"), "deeper", at=inner)
    trap.config("core.fsmonitor", at=inner / "deeper")
    return ["diff", "HEAD", "--ignore-submodules=none"]


def submodule_update_command(trap: Trap) -> None:
    submodule(trap)
    trap.git("submodule", "--quiet", "deinit", "-f", "vendor/lib")
    trap.git("config", "--file", ".gitmodules", "submodule.vendor/lib.update", f"!{trap.program}")
    trap.config("submodule.vendor/lib.update", f"!{trap.program}")


def submodule_with_another_git_directory(trap: Trap) -> Sequence[str]:
    inner = submodule(trap)
    elsewhere = trap.repository_elsewhere()
    trap.write(inner / ".git", f"gitdir: {elsewhere}/.git\n")
    return ["diff", "HEAD", "--ignore-submodules=none"]


def linked_worktree(trap: Trap) -> Sequence[str]:
    """Make the project a worktree of a repository next to it."""
    main = trap.project.parent / "main"
    trap.project.rename(main)
    trap.git("worktree", "add", "-q", str(trap.project), "-b", "other", at=main)
    trap.config("core.fsmonitor", at=main)
    return ["ls-files", "--others"]


def git_directory_elsewhere(trap: Trap) -> Sequence[str]:
    elsewhere = trap.project.parent / "elsewhere.git"
    (trap.project / ".git").rename(elsewhere)
    trap.write(trap.project / ".git", f"gitdir: {elsewhere}\n")
    return fsmonitor(trap)


PLANTS: list[Plant] = [
    *(fsmonitor, old_fsmonitor, fsmonitor_in_the_index, hooks_path, hook, clean_filter, process_filter),
    *(required_filter, filter_with_an_odd_name, filter_by_info_attributes, filter_by_attributes_file, external_diff),
    *(diff_driver, textconv, cached_textconv, pager, editors_and_askers, alias, included_settings),
    *(conditional_settings, settings_of_the_worktree, settings_of_a_newer_git, ssh_command, upload_pack),
    *(external_transport, proxy_command, missing_commit, alternate_refs, fsmonitor_of_a_submodule),
    *(filter_of_a_submodule, submodule_in_a_submodule, submodule_update_command),
    *(submodule_with_another_git_directory, linked_worktree, git_directory_elsewhere),
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_no_program_named_by_a_repository_runs(trap: Trap, plant: Plant) -> None:
    command = plant(trap)
    if command is not None:
        assert trap.springs(*command), "the trap does not work"
    trap.orch("sync", "--code")
    assert {"train.py", "lib.py", "jobs.toml"} <= trap.shipped()


def test_launch_runs_no_program_named_by_a_repository(trap: Trap) -> None:
    clean_filter(trap)
    trap.config("core.fsmonitor")
    trap.orch("launch", "nothing", "--wait")


@pytest.mark.parametrize(
    "variable",
    [
        *("GIT_EXTERNAL_DIFF", "GIT_PAGER", "PAGER", "GIT_EDITOR", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS"),
        *("GIT_PROXY_COMMAND", "GIT_SEQUENCE_EDITOR", "SSH_ASKPASS"),
    ],
)
def test_program_in_a_git_environment_variable_does_not_run(trap: Trap, variable: str) -> None:
    trap.orch("sync", "--code", env={variable: str(trap.program)})


def test_git_settings_in_the_environment_are_ignored(trap: Trap) -> None:
    one = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.fsmonitor", "GIT_CONFIG_VALUE_0": str(trap.program)}
    trap.orch("sync", "--code", env=one)
    trap.orch("sync", "--code", env={"GIT_CONFIG_PARAMETERS": f"'core.fsmonitor={trap.program}'"})


def test_user_filter_does_not_run_if_a_repository_names_it(trap: Trap, tmp_path: Path) -> None:
    """Git LFS installs itself like this for all repositories."""
    trap.write(trap.project / ".gitattributes", "* filter=lfs\n")
    settings = trap.write(tmp_path / "gitconfig", f'[filter "lfs"]\n\tclean = {trap.program}\n\trequired = true\n')
    trap.orch("sync", "--code", env={"GIT_CONFIG_GLOBAL": str(settings)})


# --- unregistered repositories in the project ------------------------------------------------------------


@pytest.mark.parametrize("place", ["results/a/x", ".orch/x", "data/x", "vendor"])
@pytest.mark.parametrize("include", ["", 'include = ["results/**", "data/*", "*"]'])
def test_nested_repository_runs_nothing(trap: Trap, place: str, include: str) -> None:
    nested = trap.new(trap.project / place, **{".gitignore": "*.tmp\nkept.txt\n", "kept.txt": "1"})
    trap.write(nested / "x.tmp", "")
    trap.config("core.fsmonitor", at=nested)
    trap.write(trap.project / ".gitignore", "/.orch/\n" if place == ".orch/x" else "")
    trap.jobs(include)
    assert trap.springs("ls-files", "--others", at=nested)
    trap.orch("sync", "--code")
    shipped = {name for name in trap.shipped() if name.startswith(place)}
    if place in ("data/x", "vendor"):
        names = {"lib.py", ".gitignore", "kept.txt", *(["x.tmp"] if include else [])}
        assert shipped == {f"{place}/{name}" for name in names}
    elif place == ".orch/x" or not include:
        assert not shipped
    assert not {name for name in trap.shipped() if ".git" in name.split("/")}


def test_repository_in_results_is_not_entered(trap: Trap) -> None:
    nested = trap.new(trap.project / "results" / "a" / "1" / "work")
    trap.config("core.fsmonitor", at=nested)
    trap.jobs('include = ["train.py"]')
    trap.orch("sync", "--code")
    trap.orch("launch", "nothing", "--wait")


@pytest.mark.parametrize("with_git", [True, False])
def test_run_folders_are_not_read(trap: Trap, with_git: bool) -> None:
    """git would wait forever for ignore rules in a FIFO."""
    trap.keep_git(with_git)
    for folder in ("results", ".orch", "scratch/root"):
        (trap.project / folder).mkdir(parents=True)
        os.mkfifo(trap.project / folder / ".gitignore")
    trap.jobs()
    jobs = trap.project / "jobs.toml"
    jobs.write_text(jobs.read_text() + '[hosts.other]\nroot = "scratch/root"\n')
    trap.write(trap.project / ".gitignore", "")
    done = trap.orch("sync", "--code")
    assert "not sent" not in done.stderr


def test_repositories_nested_twice_run_nothing(trap: Trap) -> None:
    for place in ("a", "a/b", "a/b/c"):
        trap.config("core.fsmonitor", at=trap.new(trap.project / place))
    trap.orch("sync", "--code")
    assert {"a/lib.py", "a/b/lib.py", "a/b/c/lib.py"} <= trap.shipped()


def test_nested_git_file_is_not_followed(trap: Trap) -> None:
    elsewhere = trap.new(trap.project.parent / "elsewhere", secret="1")
    trap.config("core.fsmonitor", at=elsewhere)
    trap.config("core.worktree", str(elsewhere), at=elsewhere)
    trap.write(trap.project / "nested" / ".git", f"gitdir: {elsewhere}/.git\n")
    trap.write(trap.project / "nested" / "own.py", "")
    trap.orch("sync", "--code")
    assert {name for name in trap.shipped() if name.startswith("nested")} == {"nested/own.py"}


def test_nested_git_link_is_not_followed(trap: Trap) -> None:
    elsewhere = trap.repository_elsewhere()
    trap.write(trap.project / "nested" / "own.py", "")
    (trap.project / "nested" / ".git").symlink_to(elsewhere / ".git")
    trap.orch("sync", "--code")
    assert "nested/own.py" in trap.shipped()


def test_bare_repository_in_the_tree_is_a_plain_folder(trap: Trap) -> None:
    bare = trap.project / "bare"
    trap.git("init", "-q", "--bare", str(bare))
    trap.config("core.bare", "false", at=bare)
    trap.config("core.worktree", "..", at=bare)
    trap.config("core.fsmonitor", at=bare)
    trap.orch("sync", "--code")


def test_project_that_is_a_bare_repository_runs_nothing(trap: Trap) -> None:
    """git would treat the folder as a repository whose work tree is that folder."""
    inner = trap.project / "inner"
    trap.git("init", "-q", "--bare", str(inner))
    trap.config("core.bare", "false", at=inner)
    trap.config("core.worktree", ".", at=inner)
    trap.config("core.fsmonitor", at=inner)
    trap.write(inner / "jobs.toml", JOBS.format(project=""))
    assert trap.springs("ls-files", "--others", at=inner)
    trap.orch("sync", "--code", at=inner, codes=(0, 2))


def test_work_tree_outside_the_project_is_not_shipped(trap: Trap) -> None:
    private = trap.write(trap.project.parent / "private" / "diary.txt", "x").parent
    trap.config("core.worktree", str(private))
    trap.config("core.fsmonitor")
    trap.orch("sync", "--code")
    assert not [name for name in trap.shipped() if "diary" in name]


def index_of(*names: str) -> bytes:
    """Return a git index with file names that `git add` would refuse."""
    rows = b""
    for name in sorted(names):
        encoded = os.fsencode(name)
        row = struct.pack(">10L20sH", *[0] * 6, 0o100644, 0, 0, 0, bytes(20), len(encoded)) + encoded
        rows += row + b"\0" * (8 - len(row) % 8)
    data = b"DIRC" + struct.pack(">LL", 2, len(names)) + rows
    return data + sha1(data, usedforsecurity=False).digest()


def test_index_with_odd_names_ships_nothing_from_outside(trap: Trap) -> None:
    trap.write(trap.project.parent / "outside", "secret")
    names = (
        "../outside",
        "/etc/hostname",
        "a/../../outside",
        ".git/config",
        "./lib.py",
        "a//b",
        "train.py",
        "jobs.toml",
    )
    (trap.project / ".git" / "index").write_bytes(index_of(*names))
    trap.orch("sync", "--code")
    nested = trap.new(trap.project.parent / "again" / "nested")
    (nested / ".git" / "index").write_bytes(index_of("../lib.py", "../../outside", "lib.py"))
    again = trap.new(nested.parent)
    trap.write(again / "jobs.toml", JOBS.format(project=""))
    trap.orch("sync", "--code", at=again)
    shipped = Trap(again, trap.program, trap.sprung).shipped()
    assert "nested/lib.py" in shipped
    assert not [name for name in shipped | trap.shipped() if "outside" in name or "hostname" in name or ".git/" in name]


@pytest.mark.parametrize("name", [".GIT", ".Git", ".git ", ".git.", "git~1", ".g\u200cit"])
@pytest.mark.parametrize("with_git", [True, False])
def test_folder_that_some_file_systems_read_as_git_is_not_shipped(trap: Trap, name: str, with_git: bool) -> None:
    trap.write(trap.project / "pkg" / name / "config", "[core]\n\tfsmonitor = ./e.sh\n")
    trap.keep_git(with_git)
    trap.jobs('include = ["pkg/"]')
    done = trap.orch("sync", "--code")
    assert not [path for path in trap.shipped() if "config" in path]
    assert "git's own data" in done.stderr


# --- jobs.toml among results ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["direct", "latest", "work", "linked results", "link from outside", "local root"])
def test_jobs_toml_among_results_is_skipped(trap: Trap, way: str, tmp_path: Path) -> None:
    results = trap.project / "results"
    if way == "linked results":
        (tmp_path / "disk").mkdir()
        results.symlink_to(tmp_path / "disk")
    run = results / "a" / "20260101T000000Z-abcd"
    if way == "local root":
        run = trap.project / ".orch" / "test" / "runs" / "a" / "20260101T000000Z-abcd"
    evil = '[project]\nname = "evil"\n[hosts.local]\npython = "./py"\n[jobs.a]\ncommand = ["true"]\n'
    trap.write(run / "jobs.toml", evil)
    shutil.copy(trap.program, run / "py")
    (run / ".orch" / "evil" / "runs" / "a").mkdir(parents=True)
    (run / "work").mkdir()
    (run.parent / "latest").symlink_to(run.name)
    (tmp_path / "short").symlink_to(run)
    at = {"latest": run.parent / "latest", "work": run / "work", "link from outside": tmp_path / "short"}.get(way, run)
    trap.orch("status", at=at, env={"PWD": str(at)})
    if way != "linked results":
        trap.orch("status", at=at, env={"PWD": "/"})
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "-f", str(run / "jobs.toml"), "status"],
        cwd=at,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert trap.sprung.exists(), done.stderr  # a command named by the user is allowed


def test_copied_jobs_toml_without_a_project_above_is_refused(trap: Trap, tmp_path: Path) -> None:
    """results/ is a link to another disk, and PWD is unset."""
    run = tmp_path / "disk" / "a" / "1"
    run.mkdir(parents=True)
    (trap.project / "results").symlink_to(tmp_path / "disk")
    trap.orch("status")
    trap.write(run / "jobs.toml", '[project]\nname = "evil"\n[hosts.local]\npython = "./py"\n')
    shutil.copy(trap.program, run / "py")
    (run / ".orch" / "evil" / "runs").mkdir(parents=True)
    done = trap.orch("status", at=run, codes=(2,), env={"PWD": ""})
    assert "it is inside a results folder" in done.stderr
    assert "-f" in done.stderr


# --- odd files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_git", [True, False])
def test_odd_file_names_and_kinds_do_no_harm(trap: Trap, with_git: bool) -> None:
    trap.keep_git(with_git)
    for name in (b"caf\xe9.py", b"a\nb.py", b"\x1b]52;c;eA==\x07.py", "\u202egnp.py".encode(), b"-rf", b" "):
        (Path(os.fsdecode(os.fsencode(trap.project) + b"/" + name))).write_bytes(b"\xff\xfe\x00caf\xe9")
    os.mkfifo(trap.project / "pipe")
    trap.write(trap.project / "\x1b[2J.env", "")
    (trap.project / "loop").symlink_to("loop")
    deep = trap.project
    for _ in range(12):
        deep = deep / ("d" * 100)
    trap.write(deep / "deep.py", "")
    done = trap.orch("sync", "--code")
    if not with_git:  # git lists no FIFO
        assert "not sent: pipe (neither a regular file nor a symlink)" in done.stderr
    assert "\x1b" not in done.stderr
    assert {"-rf", "a\nb.py", os.fsdecode(b"caf\xe9.py")} <= trap.shipped()
    trap.orch("launch", "nothing", "--wait")
    trap.orch("launch", "nothing", "--json")
    withheld = json.loads(trap.orch("sync", "--code", "--json").stdout)["code"][0]["withheld"]
    assert {"path": "\x1b[2J.env", "reason": "looks like a file of secrets"} in withheld


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_reported(trap: Trap) -> None:
    trap.write(trap.project / "closed", "").chmod(0)
    assert "closed cannot be read" in trap.orch("sync", "--code", codes=(2,)).stderr


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[core\n", b"nonsense", b"\0" * 100])
@pytest.mark.parametrize("name", ["config", "HEAD", "index", "packed-refs"])
def test_broken_repository_is_one_clear_error(trap: Trap, name: str, content: bytes) -> None:
    (trap.project / ".git" / name).write_bytes(content)
    done = trap.orch("sync", "--code", codes=(0, 2))
    assert done.returncode == 0 or "reading the git repository of" in done.stderr


def test_deleted_current_directory_is_one_clear_error(trap: Trap, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && exec {sys.executable} -P -m orchestrator.cli status"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "the current directory no longer exists" in done.stderr
