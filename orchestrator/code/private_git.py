"""Run git on a repository without running programs that the repository's configuration names.

git starts programs that a repository's own files choose: fsmonitor, hooks, filters, diff drivers, transports. So git
never reads that configuration. It gets a private git directory instead, which exists for one command of orch: it uses
the repository's commit, index and objects, but only the settings in `SETTINGS`, none of which names a program. This is
the only module that starts git.
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
from orchestrator.system.limits import calling_after

TIMEOUT_S = 600.0  # seconds for one call of git; it may hang, for example because .gitignore is a FIFO
COPIED_BYTES = 1 << 20  # the largest exclude or attributes file that is copied
# Settings that decide how files are compared and which are ignored. None of them runs a program.
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
# The default file of each in ~/.config/git.
_FILE_SETTINGS = {"core.excludesfile": "ignore", "core.attributesfile": "attributes"}
# Variables that say where the user's settings are. They are kept only to find the repository (safe.directory) and to
# read `SETTINGS`.
_KEPT = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_CEILING_DIRECTORIES")
_KEPT_PREFIX = ("GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_", "GIT_DISCOVERY_ACROSS_FILESYSTEM")


@dataclass(frozen=True)
class Repository:
    """A repository that git reads through a private git directory. Names are relative to `folder`."""

    folder: Path
    environment: Mapping[str, str]
    commit: str | None = None  # None before the first commit
    branch: str | None = None  # None if HEAD is detached

    def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """Return the output of git. Raise SpecError if it fails."""
        return _run(self.folder, arguments, self.environment, stdin).output

    def ask(self, *arguments: str) -> bool:
        """Return True for exit code 0 and False for 1. Raise SpecError for any other."""
        return _run(self.folder, arguments, self.environment, codes=(0, 1)).code == 0

    def bounded(self, arguments: Sequence[str], limit: int) -> bytes | None:
        """Return the output of git, or None if it is longer than `limit` bytes. Raise SpecError if git fails."""
        return _run(self.folder, arguments, self.environment, limit=limit).output_within_limit


def is_installed() -> bool:
    """Return whether `git` is on the PATH."""
    return shutil.which("git") is not None


def discover(folder: Path, scratch: Path) -> Repository | None:
    """Find the repository whose work tree contains `folder`, and make a private git directory for it in `scratch`.

    git itself searches for it, so git's own rules on which repositories are safe apply.

    Returns:
        The repository; None if `folder` is not in a work tree.

    Raises:
        SpecError: git refuses the repository or cannot read it.
    """
    # Bare repositories are not searched for: any folder can be made to look like one.
    arguments = ("-c", "safe.bareRepository=explicit", "rev-parse", "--is-inside-work-tree", "--show-toplevel")
    here = _discovery_environment()
    done = _run(folder, [*arguments, "--absolute-git-dir", "--git-common-dir"], here, codes=(0, 128))
    lines = os.fsdecode(done.output).split("\n")[:-1]
    if lines[:1] == ["false"]:
        return None
    if done.code != 0:
        raise _failed(folder, arguments[2:], done.errors)
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
    """Return the repository whose top is `folder` and that is not a registered submodule.

    Only its files, its .gitignore files and its index are read; the index names files that are tracked although they
    are ignored. An index that git cannot read counts as empty.
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
    """Copy a regular file of at most `limit` bytes; do nothing if there is none."""
    if source.is_file() and (limit is None or source.stat().st_size <= limit):
        shutil.copyfile(source, target)


def _settings(private: Path, local: Path, top: Path) -> dict[str, str]:
    """Return those of `SETTINGS` that the user or the repository set. Includes of the repository do not count."""
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
        if os.path.isfile(path):  # git would wait forever for a FIFO
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
    """Run git and return its result. Kill it once it has printed more than `limit` bytes.

    Raise SpecError if its exit code is not one of `codes`, or if it takes longer than `TIMEOUT_S`.
    """
    command = ["git", "-C", str(folder), *arguments]
    timed_out = threading.Event()
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
        given.write(stdin)
        given.seek(0)
        with subprocess.Popen(command, env=environment, stdin=given, stdout=subprocess.PIPE, stderr=errors) as process:

            def kill() -> None:
                timed_out.set()
                process.kill()

            with calling_after(TIMEOUT_S, kill):
                assert process.stdout is not None  # a pipe was asked for
                output = process.stdout.read() if limit is None else process.stdout.read(limit + 1)
                if limit is not None and len(output) > limit:
                    process.kill()
                    return _Done(0, output, b"", limit)
        errors.seek(0)
        error_text = errors.read()
    if timed_out.is_set():
        raise _failed(folder, arguments, f"no answer within {TIMEOUT_S:.0f} s".encode())
    if process.returncode not in codes:
        raise _failed(folder, arguments, error_text)
    return _Done(process.returncode, output, error_text, limit)


def _failed(folder: Path, arguments: Sequence[str], errors: bytes) -> SpecError:
    reason = errors.decode("utf-8", "replace").strip()
    command = " ".join(arguments)
    hint = f"run git status in {folder}"
    return SpecError(f"reading the git repository of {folder}: git {command[:60]}: {reason}", hint)


def _discovery_environment() -> dict[str, str]:
    """Return our environment without variables that point git at another repository or name a program."""
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
        "GIT_OPTIONAL_LOCKS": "0",  # git must not write the index
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",  # fail on a missing object instead of starting a transport
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_TERMINAL_PROMPT": "0",
    }
