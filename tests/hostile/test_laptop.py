"""The real `orch` on a laptop with unusable folders, disks, encodings, terminals, streams or HOME.

Each command ends with a documented exit code and, if it fails, with one error that names the cause.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.hostile.laptop import Laptop
from tests.support import clean_environment, end_leftovers

CODES = (0, 1, 2, 3, 4, 130)
SPEC = """\
[project]
name = "test"

[hosts.local]
gpus = 0
survive_reboot = false

[defaults]
host = "local"
rehearse = false
restarts = 0

[jobs.train]
command = [
  "sh", "-c", "echo grün; head -c 300000 /dev/zero > \\"`printenv ORCH_RUN_DIR`/results/large\\"; echo '→ ende'",
]
goals = { "Genauigkeit_grün" = ">= 75 %" }
"""


@dataclass
class Project:
    """A project with one succeeded run that is not synced."""

    folder: Path
    home: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def run_directory(self) -> Path:
        return next((self.folder / ".orch" / "test" / "runs" / "train").iterdir())

    def orch(self, *arguments: str, before: str = "", **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run a command from a shell that first runs `before`; None removes a variable of the environment."""
        environment = {**self.environment, **{name: value for name, value in changes.items() if value is not None}}
        for name in [name for name, value in changes.items() if value is None]:
            environment.pop(name, None)
        command = ["bash", "-c", f'{before}\nexec "$@"', "bash", sys.executable, "-m", "orchestrator.cli", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, timeout=60, check=False)
        said = (text.decode("utf-8", "backslashreplace") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(command, done.returncode, *said)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Path]]:
    """Make the project and a copy of its folder."""
    top = tmp_path_factory.mktemp("laptop")
    folder, home = top / "project", top / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "jobs.toml").write_text(SPEC)
    changes = clean_environment(os.environ, home)
    environment = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
    project = Project(folder, home, environment)
    succeeded(project.orch("launch", "train", "--wait"))
    shutil.copytree(folder, top / "kept", symlinks=True)
    yield project, top / "kept"
    end_leftovers([top])


@pytest.fixture
def project(made: tuple[Project, Path]) -> Project:
    found, kept = made
    shutil.rmtree(found.folder)
    shutil.copytree(kept, found.folder, symlinks=True)
    return found


def succeeded(done: subprocess.CompletedProcess[str], *codes: int) -> str:
    """Check that the command ended as expected; return its output."""
    said = done.stdout + done.stderr
    assert "Traceback" not in said and "Exception ignored" not in said, said
    assert done.returncode in (codes or (0,)), f"{done.returncode}: {said}"
    return said


def refused(done: subprocess.CompletedProcess[str], *words: str) -> str:
    """Check that the command failed with a documented exit code and one error that contains `words`."""
    said = succeeded(done, *CODES[1:])
    assert len(re.findall("^orch: ", done.stderr, re.MULTILINE)) == 1, said
    for word in words:
        assert word in said, said
    return said


# --- the results ----------------------------------------------------------------------------------------

READ_ONLY = 'mkdir -p results; mount --bind results results; mount -o remount,ro,bind results; exec "$@"'
FULL = "mount -t tmpfs -o size=64k tmpfs results; dd if=/dev/zero of=results/filler bs=4k 2>/dev/null || true"
SMALL = "cp -a results kept; mount -t tmpfs -o size=160k tmpfs results; cp -a kept/. results"


def in_mounts(project: Project, mounts: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Wrap a command to run in a mount namespace prepared by the shell text `mounts`."""
    unshare = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("a mount namespace cannot be created here")
    python = [sys.executable, "-m", "orchestrator.cli", *arguments]
    command = [*unshare, "sh", "-c", f'set -e\n{mounts}\nexec "$@"', "sh", *python]
    where, env = project.folder, project.environment
    return subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", ["sync", "launch train"])
def test_read_only_results_folder_is_reported(project: Project, command: str) -> None:
    done = in_mounts(project, READ_ONLY.removesuffix('; exec "$@"'), *command.split())

    refused(done, "results", "ead-only")
    assert len(list((project.folder / ".orch" / "test" / "runs" / "train").iterdir())) == 1


def test_status_and_tail_work_on_a_full_disk(project: Project) -> None:
    for mounts in (READ_ONLY.removesuffix('; exec "$@"'), f"{SMALL}; {FULL.split('; ')[1]}"):
        for command in (("status",), ("runs",), ("tail", "train", "--no-follow")):
            said = succeeded(in_mounts(project, mounts, *command))
            assert "train" in said or "grün" in said


def test_full_results_folder_is_reported_and_nothing_is_lost(project: Project) -> None:
    done = in_mounts(project, SMALL, "sync")

    said = refused(done)
    assert any(word in said for word in ("No space left", "room", "free")), said
    succeeded(project.orch("sync"))
    assert (project.results / "train" / "latest" / "results" / "large").stat().st_size == 300_000


def test_launch_on_a_full_disk_starts_nothing(project: Project) -> None:
    done = in_mounts(project, FULL, "launch", "train")

    said = refused(done)
    assert any(word in said for word in ("No space left", "room", "free")), said
    assert len(list((project.folder / ".orch" / "test" / "runs" / "train").iterdir())) == 1


def test_file_size_limit_is_reported(project: Project) -> None:
    refused(project.orch("sync", before="ulimit -f 100"), "File too large")
    succeeded(project.orch("sync"))
    assert (project.results / "train" / "latest" / "results" / "large").stat().st_size == 300_000


def test_open_file_limit_is_reported(project: Project) -> None:
    said = succeeded(project.orch("sync", before="ulimit -n 8"), *CODES)

    assert "orch: " not in said or "open files" in said


def _file(path: Path) -> None:
    path.write_text("mine")


def _link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "mine").write_text("mine")


INSTEAD = [_file, _link_to_nothing, _link_to_itself, _fifo]


@pytest.mark.parametrize("place", ["results", "results/train"])
@pytest.mark.parametrize("make", INSTEAD)
def test_file_in_place_of_a_folder_is_reported(project: Project, make: Callable[[Path], None], place: str) -> None:
    shutil.rmtree(project.folder / place)
    make(project.folder / place)

    for command in ("status", "runs"):
        succeeded(project.orch(command), *CODES)
    assert place in succeeded(project.orch("sync"), 1)
    said = succeeded(project.orch("launch", "train"), 1 if place == "results" else 0)

    assert place in said
    assert os.path.lexists(project.folder / place)
    started = len(list((project.folder / ".orch" / "test" / "runs" / "train").iterdir())) - 1
    assert started == ("on local" in said)


def test_results_folder_may_be_a_link_to_another_disk(project: Project, tmp_path: Path) -> None:
    shutil.move(project.results, tmp_path / "elsewhere")
    project.results.symlink_to(tmp_path / "elsewhere")

    succeeded(project.orch("sync"))

    assert (tmp_path / "elsewhere" / "train" / "latest" / "results" / "large").is_file()
    assert project.results.is_symlink()


@pytest.mark.parametrize("make", [_folder, *INSTEAD])
def test_foreign_file_named_latest_does_no_harm(project: Project, make: Callable[[Path], None]) -> None:
    latest = project.results / "train" / "latest"
    latest.unlink(missing_ok=True)
    make(latest)
    run = project.results / "train" / project.run_directory.name

    succeeded(project.orch("sync"))
    succeeded(project.orch("status"))
    succeeded(project.orch("launch", "train", "--wait"))

    assert (run / "results" / "large").stat().st_size == 300_000
    if make is _folder:
        assert (latest / "mine").read_text() == "mine"
    elif make in (_file, _fifo):
        assert not latest.is_symlink() and not latest.is_dir()


@pytest.mark.parametrize("make", [_folder, *INSTEAD])
def test_foreign_files_next_to_the_runs_do_no_harm(project: Project, make: Callable[[Path], None]) -> None:
    for place in ("results/x", "results/train/x", "results/train/20991231T000000-ffff", "results/.launching"):
        path = project.folder / place
        shutil.rmtree(path, ignore_errors=True)
        make(path)

    succeeded(project.orch("status"))
    said = succeeded(project.orch("sync"))

    assert "train" in said


# --- names, texts and encodings ---------------------------------------------------------------------------

ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": "C"}
ENCODINGS = [
    pytest.param({"PYTHONIOENCODING": "ascii"}, id="ascii output"),
    pytest.param({"PYTHONIOENCODING": "latin-1"}, id="latin-1 output"),
    pytest.param({"PYTHONIOENCODING": "utf-16"}, id="utf-16 output"),
    pytest.param({"PYTHONIOENCODING": "cp1252:strict"}, id="cp1252 output"),
    pytest.param({"LC_ALL": "POSIX"}, id="POSIX"),
    pytest.param({"LC_ALL": "no_SUCH.locale"}, id="no such locale"),
    pytest.param(ASCII, id="ascii everywhere"),
]
COMMANDS = [("watch",), ("tail", "train"), ("sync",), ("status", "--json"), ("--help",)]
FEW = [("status",), ("sync",)]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_works_in_any_encoding(project: Project, encoding: dict[str, str]) -> None:
    for name in ("gr\udcfcn", "→", "\udcff\udcfe", "ß"):
        (project.run_directory / "results" / name).write_text(name, errors="surrogateescape")
        (project.run_directory / "results" / f"link{name}").symlink_to("nothing")

    said = {}
    for command in COMMANDS:
        said[command[0]] = succeeded(project.orch(*command, **encoding))
        assert len(said[command[0]]) < 10_000
    copied = len(list((project.results / "train" / "latest" / "results").iterdir()))
    assert copied == 5 or (copied == 3 and said["sync"].count("not a valid file name") == 2)


@pytest.mark.parametrize("folder", ["[red]x", "-f", "a b'\"$(touch canary)"])
def test_project_folder_may_have_any_name(tmp_path: Path, home: Path, folder: str) -> None:
    project = in_folder(tmp_path / folder, home)

    succeeded(project.orch("launch", "train", "--wait"))
    for command in FEW:
        succeeded(project.orch(*command, PYTHONIOENCODING="ascii"))

    assert not list(tmp_path.rglob("canary"))
    assert (project.results / "train" / "latest" / "results" / "large").is_file()


@pytest.mark.parametrize("folder", ["gr\udcfcn", "two\nlines"])
def test_unprintable_root_is_refused(tmp_path: Path, home: Path, folder: str) -> None:
    project = in_folder(tmp_path / folder, home)

    refused(project.orch("launch", "train"), "unprintable characters", "root")


def in_folder(folder: Path, home: Path) -> Project:
    folder.mkdir()
    (folder / "jobs.toml").write_text(SPEC)
    (folder / "gr\udcfcn.txt").write_text("x")
    return Project(folder, home)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"\xef\xbb\xbf" + SPEC.encode(), 0, id="with a byte order mark"),
        pytest.param(SPEC.replace("\n", "\r\n").encode(), 0, id="with Windows line ends"),
        pytest.param(SPEC.encode("utf-16"), 2, id="UTF-16"),
        pytest.param(SPEC.replace("→", "").encode("latin-1"), 2, id="Latin-1"),
        pytest.param(SPEC.encode() + b"\0", 2, id="NUL"),
        pytest.param(b"\xff" * 1000, 2, id="bytes"),
        pytest.param(b"a" * 10_000_000, 2, id="ten megabytes"),
        pytest.param(b"a=" + b"[" * 100_000, 2, id="deep"),
    ],
)
def test_spec_in_any_encoding_is_read_or_refused(project: Project, data: bytes, code: int) -> None:
    (project.folder / "jobs.toml").write_bytes(data)

    done = project.orch("status")

    assert len(succeeded(done, code)) < 2000
    if code:
        refused(done, "jobs.toml")


@pytest.mark.parametrize("make", [_link_to_nothing, _link_to_itself, _fifo, _folder])
def test_spec_that_is_not_a_file_is_refused(project: Project, make: Callable[[Path], None]) -> None:
    (project.folder / "jobs.toml").unlink()
    make(project.folder / "jobs.toml")

    refused(project.orch("status"), "jobs.toml")
    refused(project.orch("-f", "jobs.toml", "status"), "jobs.toml")
    refused(project.orch("init"), "jobs.toml")


# --- terminals and streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", "0", "-1", "many", "100000"])
def test_commands_work_at_any_terminal_width(project: Project, value: str) -> None:
    for command in COMMANDS[:3]:
        succeeded(project.orch(*command, COLUMNS=value, LINES=value), 0, 1)


@pytest.mark.parametrize("term", ["dumb", "unknown", "", None])
def test_commands_work_on_any_terminal_type(project: Project, term: str | None) -> None:
    for command in COMMANDS[:3]:
        succeeded(project.orch(*command, TERM=term), 0, 1)


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_commands_work_with_a_closed_stream(project: Project, streams: str) -> None:
    run = project.results / "train" / project.run_directory.name
    for command in (*FEW, ("launch", "train")):
        said = succeeded(project.orch(*command, before=f"exec {streams}"), 0, 1)
        assert ">&-" in streams or said
    assert (run / "results" / "large").stat().st_size == 300_000


@pytest.mark.parametrize("command", COMMANDS)
def test_full_disk_behind_the_output_is_reported(project: Project, command: tuple[str, ...]) -> None:
    said = project.orch(*command, before="exec > /dev/full").stderr

    assert "Traceback" not in said and "Exception ignored" not in said
    if command != ("--help",):
        assert "No space left on device" in said
    succeeded(project.orch(*command, before="exec 2> /dev/full"), 0, 1)
    succeeded(project.orch(*command, before="exec > /dev/full 2>&1"), 0, 1, 120)


@pytest.mark.parametrize("command", COMMANDS)
def test_closed_pipe_is_not_an_error(project: Project, command: tuple[str, ...]) -> None:
    for streams in ("> >(exec true); sleep 0.1", "> >(exec true) 2>&1; sleep 0.1"):
        succeeded(project.orch(*command, before=f"exec {streams}"), 0, 1)


# --- HOME, user and working directory --------------------------------------------------------------------------


@pytest.mark.parametrize("home_of", [None, "", "/nonexistent", "relative", "/dev/null", "/proc"])
def test_unusable_home_is_reported_or_not_needed(project: Project, home_of: str | None) -> None:
    expected = 3 if home_of in ("/dev/null", "/proc") else None

    for command in ("status", "sync", "doctor local"):
        done = project.orch(*command.split(), HOME=home_of, XDG_CACHE_HOME=None)
        succeeded(done, *CODES)
        if expected and command != "doctor local":
            refused(done, str(home_of))
    if home_of == "/nonexistent":
        shutil.rmtree(home_of, ignore_errors=True)


def test_user_without_a_name_can_launch_and_stop(project: Project) -> None:
    unshare = ["unshare", "--user", "--map-user=54321"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("a user namespace cannot be created here")
    environment = {
        name: value
        for name, value in project.environment.items()
        if name not in ("USER", "LOGNAME", "LNAME", "USERNAME")
    }
    for command in (["launch", "train"], ["stop", "train"]):
        done = subprocess.run(
            [*unshare, sys.executable, "-m", "orchestrator.cli", *command],
            cwd=project.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        succeeded(done, *CODES)  # 4 if parent folders belong to users that this namespace does not know


@pytest.mark.parametrize("command", ["status", "init", "launch train", "-f jobs.toml status", "--help"])
def test_deleted_working_directory_is_reported(project: Project, command: str) -> None:
    done = project.orch(*command.split(), before="mkdir gone; cd gone; rmdir ../gone")

    if command == "--help":
        succeeded(done)
    else:
        refused(done, "no longer exists")


def test_folder_that_init_cannot_write_is_reported(tmp_path: Path, home: Path) -> None:
    project = Project(tmp_path, home)
    mounts = "mount --bind . .; mount -o remount,ro,bind .; cd ."
    refused(in_mounts(project, f"{mounts}; cd {tmp_path}", "init"), "ead-only")


# --- known hosts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [None, _folder, _fifo, _link_to_itself])
def test_known_hosts_that_is_not_a_file_is_reported(
    far: Laptop, tmp_path: Path, make: Callable[[Path], None] | None
) -> None:
    known = tmp_path / "known"
    if make is not None:
        make(known)
    config = far.home / ".ssh" / "config"
    text = config.read_text()
    far.begin("")
    try:
        config.write_text("\n".join(line for line in text.splitlines() if "UserKnownHostsFile" not in line))
        config.write_text(f"{config.read_text()}\n  UserKnownHostsFile {known}\n")
        shown = far.run("status")
    finally:
        config.write_text(text)

    assert shown.code == 3
    assert "Traceback" not in shown.text
    assert "known" in shown.text and "honest" in shown.text
