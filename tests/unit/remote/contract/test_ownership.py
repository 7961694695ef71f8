"""Refuse directories that another user of the machine owns or can write: those of a run, and those above it."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote.contract.ownership import ACCESS_LIST, check_path, check_project, check_run, find_unsafe, make_private
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from tests.remote_runs import RUN_ID
from tests.support import ROOT

NEIGHBOUR = 12345  # the number of a user and of a group that do not exist here
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")


def give_to_a_group(path: Path) -> None:
    os.chown(path, -1, NEIGHBOUR)
    path.chmod(0o770)


CHANGES: dict[str, Callable[[Path], None]] = {
    "everybody can write": lambda path: path.chmod(0o757),
    "another group can write": give_to_a_group,
    "another user owns": lambda path: os.chown(path, NEIGHBOUR, -1),
}


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    paths = ProjectPaths(tmp_path / "data" / "orch", "persistence")
    inner = [paths.code, paths.runs, paths.rehearsals, paths.secrets, paths.passed, paths.prepared, paths.pipes]
    inner += [paths.environments]
    for directory in (*inner, paths.bytecode, paths.slots / "queue", paths.run("worker1", RUN_ID).root):
        directory.mkdir(parents=True)
    return paths


@pytest.fixture
def run(paths: ProjectPaths) -> RunPaths:
    return paths.run("worker1", RUN_ID)


def refused(check: Callable[[], None]) -> AgentError:
    with pytest.raises(AgentError) as caught:
        check()
    assert caught.value.code == "unsafe_path"
    return caught.value


def test_directories_of_this_user_are_accepted(run: RunPaths) -> None:
    check_run(run)


def test_project_that_does_not_exist_yet_is_accepted(tmp_path: Path) -> None:
    check_project(ProjectPaths(tmp_path / "none" / "yet", "persistence"))


@as_root
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "name",
    ["..", "", "slots", "slots/queue", "persistence"]
    + [f"persistence/{name}" for name in ("code", "runs", "rehearsals", "passed", "prepared", "environments", "pipes")]
    + ["persistence/pycache"]
    + ["persistence/runs/worker1", f"persistence/runs/worker1/{RUN_ID}"],
)
def test_directory_that_another_user_can_change_is_refused(name: str, change: str, run: RunPaths) -> None:
    directory = Path(os.path.normpath(ProjectPaths.of_run(run).box / name))
    CHANGES[change](directory)

    error = refused(lambda: check_run(run))

    assert error.message.startswith(f"{directory} ")
    assert str(directory) in error.hint


def test_hint_is_the_command_that_fixes_it(run: RunPaths) -> None:
    run.root.chmod(0o777)

    error = refused(lambda: check_run(run))
    subprocess.run(["sh", "-c", error.hint], check=True)

    check_run(run)


def test_name_with_blanks_is_quoted_in_the_hint(tmp_path: Path) -> None:
    directory = tmp_path / "my runs"
    directory.mkdir()
    directory.chmod(0o777)

    assert refused(lambda: check_path(directory)).hint == f"chmod go-w '{directory}'"


# --- sticky directories ----------------------------------------------------------------------------------


def sticky(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    path.chmod(0o1777)
    return path


def test_sticky_directory_above_the_root_is_accepted(tmp_path: Path) -> None:
    own = sticky(tmp_path / "scratch") / "orch"
    own.mkdir()

    check_path(own)


def test_sticky_directory_is_refused_as_root(tmp_path: Path) -> None:
    """Every user could create an environment.json in it."""
    scratch = sticky(tmp_path / "scratch")

    assert f"{scratch}/orch-" in refused(lambda: check_project(ProjectPaths(scratch, "persistence"))).hint


@as_root
def test_directory_of_another_user_in_a_sticky_directory_is_refused(tmp_path: Path) -> None:
    theirs = sticky(tmp_path / "scratch") / "orch"
    theirs.mkdir()
    os.chown(theirs, NEIGHBOUR, NEIGHBOUR)

    assert f"is owned by uid {NEIGHBOUR}" in refused(lambda: check_path(theirs / "below")).message


# --- links -----------------------------------------------------------------------------------------------


def test_links_in_safe_directories_to_safe_directories_are_accepted(tmp_path: Path, run: RunPaths) -> None:
    paths = ProjectPaths.of_run(run)
    paths.runs.rename(tmp_path / "big")
    paths.runs.symlink_to("../../../big")

    check_run(run)


def test_link_to_an_unsafe_directory_is_refused(tmp_path: Path, paths: ProjectPaths) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "inner").mkdir()
    paths.code.rmdir()
    paths.code.symlink_to(tmp_path / "open" / "inner")

    assert refused(lambda: check_project(paths)).message.startswith(str(tmp_path / "open") + " ")


def test_link_in_an_unsafe_directory_is_refused(tmp_path: Path, paths: ProjectPaths) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "link").symlink_to(paths.box)
    (tmp_path / "open").chmod(0o777)

    linked = ProjectPaths(tmp_path / "open" / "link", "persistence")
    assert refused(lambda: check_project(linked)).message.startswith(str(tmp_path / "open") + " ")


@as_root
def test_link_of_another_user_in_a_sticky_directory_is_refused(tmp_path: Path, paths: ProjectPaths) -> None:
    link = sticky(tmp_path / "scratch") / "orch"
    link.symlink_to(paths.box)
    os.chown(link, NEIGHBOUR, NEIGHBOUR, follow_symlinks=False)

    assert refused(lambda: check_path(link)).message.startswith(f"{link} ")


def test_link_circle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        check_path(tmp_path / "a")


def test_dot_dot_in_a_link_resolves_as_in_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "inner").mkdir()
    (tmp_path / "safe").mkdir()
    (tmp_path / "link").symlink_to("open/inner")
    (tmp_path / "open").chmod(0o777)

    assert find_unsafe(tmp_path / "link" / ".." / "sibling") is not None
    assert find_unsafe(tmp_path / "safe" / ".." / "safe") is None


# --- groups, access lists, namespaces ----------------------------------------------------------------------


def private_group() -> int:
    """Return the group that has only this user, or skip the test."""
    import grp
    import pwd

    user = pwd.getpwuid(os.getuid())
    group = grp.getgrgid(user.pw_gid)
    if group.gr_name != user.pw_name or group.gr_mem:
        pytest.skip(f"{user.pw_name} has no group of its own here")
    return user.pw_gid


def test_write_permission_of_the_users_own_group_is_accepted(run: RunPaths) -> None:
    os.chown(run.root, -1, private_group())
    run.root.chmod(0o775)

    check_run(run)


def test_access_list_for_another_user_is_refused(run: RunPaths) -> None:
    """With an access list, the group bits of the mode show its mask."""
    gid = private_group()
    entry, nobody = struct.Struct("<HHI"), 0xFFFFFFFF
    owner, user, group, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20
    rows = [(owner, 7, nobody), (user, 7, NEIGHBOUR), (group, 5, nobody), (mask, 7, nobody), (other, 5, nobody)]
    try:
        os.setxattr(run.root, ACCESS_LIST, struct.pack("<I", 2) + b"".join(entry.pack(*row) for row in rows))
    except (OSError, AttributeError) as error:
        pytest.skip(f"no access lists here: {error}")
    os.chown(run.root, -1, gid)
    assert stat.S_IMODE(run.root.stat().st_mode) == 0o775

    assert "can be written by the group" in refused(lambda: check_run(run)).message


def in_user_namespace(path: Path) -> str:
    """Return what `find_unsafe` finds for `path` as root of a user namespace in which no other user is mapped."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
        "from remote.contract.ownership import *\n"
        "print(find_unsafe(Path(sys.argv[1]), is_ours=True))"
    )
    argv = ["unshare", "--user", "--map-root-user", sys.executable, "-S", "-c", code, str(path)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a user namespace cannot be created here: {error}")
    return done.stdout.strip()


@as_root
def test_unmapped_owner_is_trusted_only_above_our_directories(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    own = outside / "own"
    own.mkdir(parents=True)
    os.chown(outside, NEIGHBOUR, NEIGHBOUR)

    assert in_user_namespace(own) == "None"
    assert "is owned by" in in_user_namespace(outside)
    assert find_unsafe(own) is not None


# --- secrets -----------------------------------------------------------------------------------------------


def test_permissions_of_secrets_are_corrected(paths: ProjectPaths, run: RunPaths) -> None:
    secret = paths.secrets_of(run)
    secret.write_text(json.dumps({"TOKEN": "x"}))
    secret.chmod(0o644)
    paths.secrets.chmod(0o777)

    check_run(run)

    assert stat.S_IMODE(paths.secrets.stat().st_mode) == 0o700
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


@as_root
def test_secrets_of_another_user_are_refused(paths: ProjectPaths, run: RunPaths) -> None:
    secret = paths.secrets_of(run)
    secret.write_text("{}")
    os.chown(secret, NEIGHBOUR, NEIGHBOUR)

    assert refused(lambda: check_run(run)).message.startswith(str(secret))
    os.chown(paths.secrets, NEIGHBOUR, NEIGHBOUR)
    assert refused(lambda: check_project(paths)).message.startswith(str(paths.secrets))


def test_link_in_place_of_a_secret_is_refused(tmp_path: Path, paths: ProjectPaths, run: RunPaths) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    paths.secrets_of(run).symlink_to(tmp_path / "elsewhere")

    refused(lambda: make_private(paths.secrets_of(run)))
