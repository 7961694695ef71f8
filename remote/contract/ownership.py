"""Check whether another user of the machine could change the target of a path, as sshd does for ~/.ssh (StrictModes).

A user who can write one directory on the path to a run can replace the run or its code. So every directory from `/`
on must be owned by this user or by root, and be writable by nobody else. Two things are allowed:

- a sticky directory above ours (/tmp): nobody can rename or remove our files in it. Root's /tmp and /var/tmp count as
  sticky, because container images come without that bit, and if users share such a machine, nothing in it is safe;
- write permission for the user's own private group, which has no other member. Debian's sshd allows this too
  (user-group-modes.patch), because `umask 002` gives this permission to every directory that a user creates there.

In a user namespace (a rootless container, Apptainer), an unmapped owner of a directory outside appears as `nobody`.
Above our own directories such an owner is trusted like root, because whoever set up the namespace chose its contents.
POSIX access lists are checked (their mask is the group's permission), those of NFSv4 and macOS are not.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError

UNSAFE = "unsafe_path"  # the code of every error raised here
MAX_LINKS = 40  # symlinks in one path; the limit of the Linux kernel
ACCESS_LIST = "system.posix_acl_access"  # acl(5)
TEMPORARY = ("/tmp", "/var/tmp")
ELSEWHERE = "set `root` of this host to a directory of your own"


class Unsafe(NamedTuple):
    """Why one directory, file or link is unsafe."""

    path: str
    why: str  # "is owned by bob"
    fix: str  # a shell command, or a sentence


def check_project(paths: ProjectPaths) -> None:
    """Check the project, its root and the directories above it. Correct the permissions of the secrets.

    Directories that do not exist are skipped.

    Raises:
        AgentError: `unsafe_path`: another user can change one of them.
    """
    _refuse(find_unsafe(paths.box, is_ours=True))
    _check_inner(paths.root)
    for directory in (paths.code, paths.runs, paths.rehearsals, paths.passed, paths.prepared, paths.environments):
        _check_inner(directory)
    for directory in (paths.bytecode, paths.pipes, paths.slots, paths.queue):
        _check_inner(directory)
    make_private(paths.secrets)


def check_run(run: RunPaths) -> None:
    """Check a run before it is used: its project, the directory of its job and its own. Raise as `check_project`."""
    paths = ProjectPaths.of_run(run)
    check_project(paths)
    for directory in (run.root.parent, run.root):
        _check_inner(directory)
    make_private(paths.secrets_of(run))


def refusal(run: RunPaths) -> str:
    """Return why neither the program nor `run` may be used: another user could change it. Empty if nobody can."""
    try:
        check_program()
        check_run(run)
    except AgentError as error:
        return f"{error.message}; {error.hint}"
    return ""


def check_path(path: Path) -> None:
    """Raise AgentError `unsafe_path` if another user can change or replace `path`."""
    _refuse(find_unsafe(path, is_ours=True))


def check_program() -> None:
    """Check the zipapp that this process runs from, if any. Raise as `check_path`.

    Directories above the home directory are not checked, as in sshd: the agent has no other place to be.
    """
    program = os.path.abspath(sys.argv[0])
    if program.endswith(".pyz"):
        unsafe = find_unsafe(Path(program), is_ours=True, passed=Path.home().resolve().parents)
        _refuse(unsafe and unsafe._replace(fix=unsafe.fix.replace(f"{ELSEWHERE}, or as", "as")))


def make_private(path: Path) -> None:
    """Give a directory mode 0700 or a file mode 0600, if it exists.

    Raises:
        AgentError: `unsafe_path`: it belongs to another user, or is neither a directory nor a regular file.
    """
    try:
        found = os.lstat(str(path))
    except FileNotFoundError:
        return
    if found.st_uid != os.geteuid():
        _refuse(Unsafe(str(path), f"is owned by {_user(found.st_uid)}", _owner_fix(str(path))))
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        _refuse(Unsafe(str(path), "is neither a directory nor a regular file", f"rm {_quoted(str(path))}"))
    mode = 0o700 if stat.S_ISDIR(found.st_mode) else 0o600
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(str(path), mode)


def find_unsafe(path: Path, is_ours: bool = False, passed: Sequence[Path] = ()) -> Optional[Unsafe]:
    """Find the first component of `path` that another user can change.

    Args:
        path: The path. If it does not exist, only its existing part is checked.
        is_ours: Apply stricter rules to the last component: a sticky bit or an unmapped owner does not make it safe.
        passed: Directories that are not checked.

    Returns:
        That component with the reason, or None if there is none.
    """
    if not hasattr(os, "geteuid"):
        return None  # Windows has no such permissions
    way = list(_components(str(path.absolute())))
    trusted = {str(directory) for directory in passed}
    for number, (where, found) in enumerate(way):
        is_last = number == len(way) - 1 and os.path.exists(str(path))
        unsafe = None if where in trusted else _examine(where, found, is_ours and is_last)
        if unsafe:
            return unsafe
    return None


# --- one directory --------------------------------------------------------------------------------------


def _check_inner(path: Path) -> None:
    """Check one directory of ours whose parent was already checked."""
    try:
        found = os.lstat(str(path))
    except FileNotFoundError:
        return
    is_link = stat.S_ISLNK(found.st_mode)
    _refuse(find_unsafe(path, is_ours=True) if is_link else _examine(str(path), found, is_ours=True))


def _examine(where: str, found: os.stat_result, is_ours: bool) -> Optional[Unsafe]:
    trusted = found.st_uid in (0, os.geteuid()) or (not is_ours and _is_unmapped(found.st_uid))
    if not trusted:
        return Unsafe(where, f"is owned by {_user(found.st_uid)}", _owner_fix(where))
    mode = found.st_mode
    is_roots = found.st_uid == 0 or _is_unmapped(found.st_uid)
    is_sticky = mode & stat.S_ISVTX or (where in TEMPORARY and is_roots)
    if stat.S_ISLNK(mode) or (is_sticky and not is_ours):
        return None
    if mode & stat.S_IWOTH:
        return Unsafe(where, "can be written by every user", _mode_fix(where, found, "go-w"))
    if mode & stat.S_IWGRP and not _is_private_group(where, found.st_gid):
        return Unsafe(where, f"can be written by the group {_group(found.st_gid)}", _mode_fix(where, found, "g-w"))
    return None


def _refuse(unsafe: Optional[Unsafe]) -> None:
    if unsafe:
        raise AgentError(UNSAFE, f"{unsafe.path} {unsafe.why}: others could change what orch runs there", unsafe.fix)


def _components(path: str) -> Iterator[Tuple[str, os.stat_result]]:
    """Yield every existing directory, link and file that the system passes when it resolves `path`."""
    at, waiting, links = "/", path.split("/")[::-1], 0
    yield at, os.lstat(at)
    while waiting:
        name = waiting.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)  # `at` contains no link, and the directories above it were yielded before
            continue
        where = os.path.join(at, name)
        try:
            found = os.lstat(where)
        except FileNotFoundError:
            return
        yield where, found
        if not stat.S_ISLNK(found.st_mode):
            at = where
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(where)
        at = "/" if target.startswith("/") else at
        waiting += target.split("/")[::-1]


# --- users and groups ------------------------------------------------------------------------------------


def _is_unmapped(uid: int) -> bool:
    """Return whether `uid` stands for users that are not mapped into this user namespace (user_namespaces(7))."""
    try:
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
        mapped = [[int(word) for word in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except (OSError, ValueError):
        return False
    return uid == overflow and not any(first <= uid < first + count for first, _, count in mapped)


def _is_private_group(where: str, gid: int) -> bool:
    """Return whether this user is the only member of the group, and no access list gives others its permissions."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    if user.pw_gid != gid or group.gr_name != user.pw_name or not set(group.gr_mem) <= {user.pw_name}:
        return False
    return not _has_access_list(where) and _members_by_passwd(gid) <= {user.pw_name}


def _members_by_passwd(gid: int) -> Set[str]:
    """Return the local accounts with this primary group. Do not list the accounts of a directory service."""
    try:
        lines = Path("/etc/passwd").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    fields: List[List[str]] = [line.split(":") for line in lines]
    return {account[0] for account in fields if len(account) > 3 and account[3] == str(gid)}


def _has_access_list(where: str) -> bool:
    try:
        return hasattr(os, "getxattr") and bool(os.getxattr(where, ACCESS_LIST))
    except OSError:
        return False  # no list, or a file system without access lists


def _user(uid: int) -> str:
    account = account_name(uid)
    return f"uid {uid}" if account == str(uid) else account


def account_name(uid: int) -> str:
    """Return the name of the user, or the number if there is no name."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


# --- fixes -----------------------------------------------------------------------------------------------


def _owner_fix(where: str) -> str:
    return f"{ELSEWHERE}, or as root: chown {account_name(os.geteuid())} {_quoted(where)}"


def _mode_fix(where: str, found: os.stat_result, change: str) -> str:
    if found.st_mode & stat.S_ISVTX or where in TEMPORARY:  # a directory for all users
        return f"set `root` of this host to {where}/orch-{account_name(os.geteuid())}"
    command = f"chmod {change} {_quoted(where)}"
    return command if found.st_uid == os.geteuid() else f"{ELSEWHERE}, or as root: {command}"


def _quoted(path: str) -> str:
    import shlex

    return shlex.quote(path)
