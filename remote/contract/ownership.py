"""Whether another user of the machine could change what a path leads to, as sshd asks of ~/.ssh (StrictModes).

Whoever can write one directory on the way to a run can put another run, or other code, in its place. So every
directory from `/` on must be owned by this user or by root, and be writable by nobody else. Two things are allowed:

- a sticky directory above ours (/tmp): nobody can rename or remove there what we own. Root's /tmp and /var/tmp count
  as sticky: images of containers come without that bit, and where users share such a machine nothing in it is safe;
- write permission of the user's own private group, which has no other member. Debian's sshd allows that too
  (user-group-modes.patch), as `umask 002` gives it to every directory that a user makes there.

Inside a user namespace (a rootless container, Apptainer) the owner of a directory outside shows as `nobody` where it
is not mapped. Above our own directories such an owner is trusted like root: whoever set up the namespace chose what is
seen in it. POSIX access lists are seen (their mask is the group's permission), those of NFSv4 and macOS are not.
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
MAX_LINKS = 40  # as the Linux kernel follows in one path
ACCESS_LIST = "system.posix_acl_access"  # acl(5)
TEMPORARY = ("/tmp", "/var/tmp")
ELSEWHERE = "set `root` of this host to a directory of your own"


class Unsafe(NamedTuple):
    """What is wrong with one directory, file or link."""

    path: str
    why: str  # "is owned by bob"
    fix: str  # a shell command, or what to do instead


def check_project(paths: ProjectPaths) -> None:
    """Raise AgentError `unsafe_path` if somebody else can change the project, its root or what lies above.

    Directories that do not exist are passed over; the secrets' permissions are put right.
    """
    _refuse(find_unsafe(paths.box, is_ours=True))
    _check_inner(paths.root)
    for directory in (paths.code, paths.runs, paths.rehearsals, paths.passed, paths.prepared, paths.bytecode):
        _check_inner(directory)
    for directory in (paths.pipes, paths.slots, paths.slots / "queue"):
        _check_inner(directory)
    make_private(paths.secrets)


def check_run(run: RunPaths) -> None:
    """The same for a run that is about to be used: its project, the directory of its job and its own."""
    paths = ProjectPaths.of_run(run)
    check_project(paths)
    for directory in (run.root.parent, run.root):
        _check_inner(directory)
    make_private(paths.secrets_of(run))


def check_path(path: Path) -> None:
    """Raise AgentError `unsafe_path` if somebody else can change what lies at `path`, or put another in its place."""
    _refuse(find_unsafe(path, is_ours=True))


def check_program() -> None:
    """The same for the zipapp that this process runs from, if it is one.

    What lies above the home directory is left out, as by sshd: the agent has no other place to go to.
    """
    program = os.path.abspath(sys.argv[0])
    if program.endswith(".pyz"):
        unsafe = find_unsafe(Path(program), is_ours=True, passed=Path.home().resolve().parents)
        _refuse(unsafe and unsafe._replace(fix=unsafe.fix.replace(f"{ELSEWHERE}, or as", "as")))


def make_private(path: Path) -> None:
    """Give a directory mode 0700 or a file 0600; pass over a missing one.

    Raise AgentError `unsafe_path` if it is another user's, or neither a directory nor a regular file.
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
    """Return the first thing on the way to `path`, itself included, that another user can change; None if nothing.

    With `is_ours` the last one is held to more: neither the sticky bit nor an unmapped owner makes up for anything.
    A path that does not exist is looked at as far as it does. Directories in `passed` are not looked at.
    """
    if not hasattr(os, "geteuid"):
        return None  # Windows, which has none of these permissions
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
    """One directory of ours in one that was looked at already."""
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
    """Every directory, link and file that the system passes on its way to `path`, as far as they exist."""
    at, waiting, links = "/", path.split("/")[::-1], 0
    yield at, os.lstat(at)
    while waiting:
        name = waiting.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)  # `at` holds no link, and what lies above it was passed already
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
    """Whether `uid` stands for users that this user namespace has no number for (user_namespaces(7))."""
    try:
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
        mapped = [[int(word) for word in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except (OSError, ValueError):
        return False
    return uid == overflow and not any(first <= uid < first + count for first, _, count in mapped)


def _is_private_group(where: str, gid: int) -> bool:
    """Whether this user alone is in the group, and no access list gives others what the mode shows as the group's."""
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
    """Accounts of this machine whose first group it is. A directory service is not asked for all it knows."""
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
        return False  # none, or a file system that knows none


def _user(uid: int) -> str:
    account = _account(uid)
    return f"uid {uid}" if account == str(uid) else account


def _account(uid: int) -> str:
    """The user's name, or the number of one who has none."""
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


# --- what to do ------------------------------------------------------------------------------------------


def _owner_fix(where: str) -> str:
    return f"{ELSEWHERE}, or as root: chown {_account(os.geteuid())} {_quoted(where)}"


def _mode_fix(where: str, found: os.stat_result, change: str) -> str:
    if found.st_mode & stat.S_ISVTX or where in TEMPORARY:  # it is meant for everybody
        return f"set `root` of this host to {where}/orch-{_account(os.geteuid())}"
    command = f"chmod {change} {_quoted(where)}"
    return command if found.st_uid == os.geteuid() else f"{ELSEWHERE}, or as root: {command}"


def _quoted(path: str) -> str:
    import shlex

    return shlex.quote(path)
