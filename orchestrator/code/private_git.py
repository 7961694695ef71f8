"""Run git on a repository without any program that its configuration names.

git starts programs that a repository's own files choose: fsmonitor, hooks, filters, diff drivers, transports. So git is
never shown that configuration. It gets a private git directory instead, made for one command of orch: the commit, the
index and the objects are the repository's, the settings are those of `SETTINGS` alone, none of which names a program.
The only module that starts git.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SpecError

TIMEOUT_S = 600.0  # for one call of git; longer is a hang, for example on a FIFO in the place of a .gitignore
COPIED_BYTES = 1 << 20  # of an exclude file
# How files are compared and what is ignored. None of these runs a program.
SETTINGS = (
    *("core.repositoryformatversion", "extensions.objectformat", "core.filemode", "core.symlinks", "core.ignorecase"),
    *(
        "core.precomposeunicode",
        "core.autocrlf",
        "core.eol",
        "core.checkstat",
        "core.trustctime",
        "core.sparsecheckout",
    ),
    *("core.excludesfile", "core.attributesfile"),
)
_FILE_SETTINGS = {
    "core.excludesfile": "ignore",
    "core.attributesfile": "attributes",
}  # and their names in ~/.config/git
# Where the user's settings lie, and which directories are safe. git reads them to find the repository, no further.
_KEPT = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_CEILING_DIRECTORIES")
_KEPT_PREFIX = ("GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_", "GIT_DISCOVERY_ACROSS_FILESYSTEM")


@dataclass(frozen=True)
class Repository:
    """A repository whose files are read through a private git directory. Names are relative to `folder`."""

    folder: Path
    environment: Mapping[str, str]
    commit: str | None = None  # None before the first one
    branch: str | None = None  # None where HEAD is detached

    def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """What git prints. Raises SpecError where it fails."""
        return _run(self.folder, arguments, self.environment, stdin).output

    def ask(self, *arguments: str) -> bool:
        """Whether git says yes (0) or no (1). Raises SpecError for anything else."""
        return _run(self.folder, arguments, self.environment, codes=(0, 1)).code == 0

    def bounded(self, arguments: Sequence[str], limit: int) -> bytes | None:
        """What git prints, or None if that is more than `limit` bytes."""
        return _run(self.folder, arguments, self.environment, limit=limit).output_within_limit


def is_installed() -> bool:
    return shutil.which("git") is not None


def discover(folder: Path, scratch: Path) -> Repository | None:
    """The repository whose work tree holds `folder`, or None. `scratch` is where its private git directory goes.

    git itself looks for it, so its rules on whose repository is safe hold. Raises SpecError if it refuses.
    """
    # A repository without a work tree is not looked for: every folder can be made to look like one.
    words = ("-c", "safe.bareRepository=explicit", "rev-parse", "--is-inside-work-tree", "--show-toplevel")
    here = _discovery_environment()
    done = _run(folder, [*words, "--absolute-git-dir", "--git-common-dir"], here, codes=(0, 128))
    lines = os.fsdecode(done.output).split("\n")[:-1]
    if lines[:1] == ["false"]:
        return None
    if done.code != 0:
        raise _failed(folder, words[2:], done.errors)
    if len(lines) != 4:
        raise SpecError(f"reading the git repository of {folder}: its path contains a line break", "rename the folder")
    top, git_dir, common = (Path(os.path.join(folder, line)) for line in lines[1:])
    head = _run(folder, ["rev-parse", "--quiet", "--verify", "HEAD"], here, codes=(0, 1))
    branch = _run(folder, ["symbolic-ref", "--quiet", "--short", "HEAD"], here, codes=(0, 1))
    commit = os.fsdecode(head.output).strip() if head.code == 0 else None
    private = _new_git_dir(scratch, commit)
    for name in ("exclude", "attributes"):
        _copy(common / "info" / name, private / "info" / name)
    for shared in sorted(git_dir.glob("sharedindex.*")):
        _copy(shared, private / shared.name, limit=None)
    _write_config(private, _settings(private, common / "config", top))
    environment = _private_environment(private, top, git_dir / "index", common / "objects")
    return Repository(folder, environment, commit, os.fsdecode(branch.output).rstrip("\n") or None)


def plain(folder: Path, scratch: Path) -> Repository:
    """`folder`, itself the top of a repository that nobody registered: its files and .gitignore files are read.

    Of its git directory only the index is, for the names of files that are tracked although they are ignored.
    """
    private = _new_git_dir(scratch, None)
    _write_config(private, {})
    index = folder / ".git" / "index"
    is_own = not (folder / ".git").is_symlink() and index.is_file() and not index.is_symlink()
    repository = Repository(folder, _private_environment(private, folder, index, private / "objects"))
    if is_own and _run(folder, ["ls-files", "-z"], repository.environment, codes=range(256)).code == 0:
        return repository
    return Repository(folder, _private_environment(private, folder, private / "index", private / "objects"))


# --- the private git directory ------------------------------------------------------------------------


def _new_git_dir(scratch: Path, commit: str | None) -> Path:
    private = Path(tempfile.mkdtemp(dir=scratch))
    for name in ("objects", "refs", "info"):
        (private / name).mkdir()
    (private / "HEAD").write_text(f"{commit}\n" if commit else "ref: refs/heads/none\n")
    return private


def _copy(source: Path, target: Path, limit: int | None = COPIED_BYTES) -> None:
    """Copy a small regular file, if it is there."""
    if source.is_file() and (limit is None or source.stat().st_size <= limit):
        shutil.copyfile(source, target)


def _settings(private: Path, local: Path, top: Path) -> dict[str, str]:
    """Those of `SETTINGS` that the user or the repository set. What the repository's file includes is not read."""
    _write_config(private, {})
    environment = {**_discovery_environment(), "GIT_DIR": str(private)}
    found = dict(_listed(private, environment, "config", "-z", "--list"))
    if local.is_file():
        found.update(_listed(private, environment, "config", "-z", "--list", "--no-includes", "--file", str(local)))
    chosen = {name: found[name] for name in SETTINGS if found.get(name) is not None}
    config_home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    for name, default in _FILE_SETTINGS.items():
        path = os.path.join(top, os.path.expanduser(chosen.get(name) or os.path.join(config_home, "git", default)))
        chosen.pop(name, None)
        if os.path.isfile(path):  # a FIFO would be waited for
            chosen[name] = path
    return chosen


def _listed(folder: Path, environment: Mapping[str, str], *arguments: str) -> Iterator[tuple[str, str]]:
    for row in _run(folder, arguments, environment).output.split(b"\0"):
        name, separator, value = row.partition(b"\n")
        yield os.fsdecode(name), os.fsdecode(value) if separator else "true"


def _write_config(private: Path, settings: Mapping[str, str]) -> None:
    lines = ["[core]", "\tbare = false"]
    for name, value in settings.items():
        section, _, key = name.partition(".")
        quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        lines += [f"[{section}]", f'\t{key} = "{quoted}"']
    (private / "config").write_bytes(os.fsencode("\n".join(lines) + "\n"))


# --- the process --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Done:
    code: int
    output: bytes
    errors: bytes
    limit: int | None

    @property
    def output_within_limit(self) -> bytes | None:
        return None if self.limit is not None and len(self.output) > self.limit else self.output


def _run(
    folder: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    stdin: bytes = b"",
    limit: int | None = None,
    codes: Sequence[int] = (0,),
) -> _Done:
    """Run git to its end. One that prints more than `limit` bytes, or takes longer than TIMEOUT_S, is ended."""
    command = ["git", "-C", str(folder), *arguments]
    late = threading.Event()
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
        given.write(stdin)
        given.seek(0)
        with subprocess.Popen(command, env=environment, stdin=given, stdout=subprocess.PIPE, stderr=errors) as process:

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(TIMEOUT_S, end)
            timer.start()
            try:
                assert process.stdout is not None  # a pipe was asked for
                output = process.stdout.read() if limit is None else process.stdout.read(limit + 1)
                if limit is not None and len(output) > limit:
                    process.kill()
                    return _Done(0, output, b"", limit)
            finally:
                timer.cancel()
        errors.seek(0)
        said = errors.read()
    if late.is_set():
        raise _failed(folder, arguments, f"no answer within {TIMEOUT_S:.0f} s".encode())
    if process.returncode not in codes:
        raise _failed(folder, arguments, said)
    return _Done(process.returncode, output, said, limit)


def _failed(folder: Path, arguments: Sequence[str], errors: bytes) -> SpecError:
    said = errors.decode("utf-8", "replace").strip()
    what = " ".join(arguments)
    return SpecError(f"reading the git repository of {folder}: git {what[:60]}: {said}", "run git status there")


def _discovery_environment() -> dict[str, str]:
    """Ours, less what points git at another repository or names a program."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name in _KEPT or name.startswith(_KEPT_PREFIX)
    }


def _private_environment(private: Path, top: Path, index: Path, objects: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {
        **ours,
        "GIT_DIR": str(private),
        "GIT_WORK_TREE": str(top),
        "GIT_INDEX_FILE": str(index),
        "GIT_OBJECT_DIRECTORY": str(objects),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "HOME": str(private),  # git before 2.32 does not know GIT_CONFIG_GLOBAL
        "XDG_CONFIG_HOME": str(private),
        "GIT_OPTIONAL_LOCKS": "0",  # nothing is written into the index
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",  # a missing object is an error: no transport is started
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_TERMINAL_PROMPT": "0",
    }
