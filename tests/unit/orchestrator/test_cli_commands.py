"""Every command through the real command line in this process: text, JSON and exit code.

The jobs are real; they run on this machine and behind a real sshd.
"""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import remote
from orchestrator import cli
from tests.hostile.screen import Shown
from tests.support import SSHD, SshdBox, end_leftovers

JOB = """\
import os, sys, time
from remote.worker import Run

run = Run.current()
run.catch_sigterm()
print("a line of the log", flush=True)
run.beat("train", epoch=1, epochs=1, step=1, steps=1)
while sys.argv[1] == "endless" and not run.stop_requested:
    time.sleep(0.01)
run.log_metrics(epoch=1, step=1, metrics={"val_accuracy": 0.9})
run.save_checkpoint(1, lambda file: file.write(b"weights"))
sys.exit(3 if sys.argv[1] == "failing" else 0)
"""
JOBS_TOML = """\
[project]
name = "test"

{host}

[defaults]
host = "gpu1"
rehearse = false
restarts = 0

[jobs.good]
command = ["python", "job.py", "good"]
expects = ["training.log", "checkpoints/*.pt"]
goals = {{ val_accuracy = ">= 50 %" }}

[jobs.failing]
command = ["python", "job.py", "failing"]
goals = {{ val_accuracy = ">= 99 %" }}

[jobs.endless]
command = ["python", "job.py", "endless"]
"""
HOSTS = {
    "local": '[hosts.gpu1]\nroot = ".orch"\ngpus = 0\nsurvive_reboot = false\n',
    "ssh": f'[hosts.gpu1]\nssh = "box"\nroot = "~/orch"\ngpus = 0\nlauncher = "nohup"\npython = "{sys.executable}"\n'
    "survive_reboot = false\n",
}


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.out.splitlines()]
        assert all(document["schema"] == 1 for document in found)
        return found

    def document(self, kind: str) -> dict[str, Any]:
        (only,) = self.documents
        assert only["kind"] == kind
        return only


Orch = Callable[..., Said]


@pytest.fixture
def orch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Orch:
    """Run the command line in the current directory."""

    def run(*arguments: str, said: str = "") -> Said:
        monkeypatch.setattr(sys, "argv", ["orch", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        capsys.readouterr()
        code = exit_code()
        return Said(code, *capsys.readouterr())

    return run


def exit_code() -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code if isinstance(ended.value.code, int) else int(ended.value.code is not None)


@dataclass
class Place:
    """A project, its HOME, and the output of its first launch."""

    project: Path
    home: Path
    box: SshdBox | None = None
    launched: Said | None = None


def make_place(folder: Path, host: str, box: SshdBox | None = None) -> Place:
    place = Place(folder / "project", folder / "home", box)
    shutil.copytree(
        Path(remote.__file__).parent, place.project / "remote", ignore=shutil.ignore_patterns("__pycache__")
    )
    (place.project / "job.py").write_text(JOB)
    (place.project / "jobs.toml").write_text(JOBS_TOML.format(host=host))
    (place.home / ".ssh").mkdir(parents=True, mode=0o700)
    if box is not None:
        shutil.copy(box.config, place.home / ".ssh" / "config")
    return place


@pytest.fixture(scope="module", params=HOSTS)
def shared_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One project for all tests: a run takes a second, and most tests only read an ended one."""
    folder = tmp_path_factory.mktemp(request.param)
    box = None
    if request.param == "ssh":
        if SSHD is None:
            pytest.skip("sshd is not installed: apt install openssh-server")
        (folder / "sshd").mkdir()
        box = SshdBox(folder / "sshd")
        box.start()
    yield make_place(folder, HOSTS[request.param], box)
    end_leftovers([folder])
    if box is not None:
        box.close()


@pytest.fixture
def place(shared_place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Make the shared project the current directory."""
    monkeypatch.chdir(shared_place.project)
    monkeypatch.setenv("HOME", str(shared_place.home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_place.home / ".cache"))
    return shared_place


@pytest.fixture
def launched(place: Place, orch: Orch) -> Said:
    """Return the output of `launch --wait --json` for a run that succeeds and one that fails."""
    if place.launched is None:
        place.launched = orch("launch", "good", "failing", "--wait", "--json")
    return place.launched


@pytest.fixture
def ended(launched: Said) -> dict[str, str]:
    """Return the ids of the succeeded and the failed run, by job."""
    return {run["job"]: run["run_id"] for run in launched.documents[-1]["runs"]}


# --- before the first run -------------------------------------------------------------------------------------


def test_init_writes_a_spec_once(orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = orch("init")
    assert first.code == 0 and str(tmp_path / "jobs.toml") in first.out
    again = orch("init")
    assert again.code == 2 and again.out == "" and "jobs.toml" in again.err


def test_doctor_reports_each_check(place: Place, orch: Orch) -> None:
    document = orch("doctor", "--json").document("doctor")
    checks = document["checks"]
    assert {"about", "name", "status", "detail", "hint"} <= checks[0].keys()
    assert {check["status"] for check in checks} <= {"ok", "warn", "fail"}
    assert {"gpu1"} <= {check["about"] for check in checks}

    text = orch("doctor", "gpu1")

    assert text.code == (4 if any(check["status"] == "fail" for check in checks) else 0)
    for check in checks:
        if check["about"] == "gpu1":
            assert check["name"] in text.out


def test_doctor_of_an_unknown_host_is_a_usage_error(place: Place, orch: Orch) -> None:
    assert orch("doctor", "nobody").code == 2
    assert orch("doctor", "nobody", "--json").document("error")["error"]["exit_code"] == 2


def test_trust_pins_the_key_only_after_confirmation(place: Place, orch: Orch) -> None:
    if place.box is None:
        refused = orch("trust", "gpu1")
        assert refused.code == 2 and refused.out == "" and "gpu1" in refused.err
        return
    known = place.box.known_hosts.read_text()
    place.box.known_hosts.unlink()

    no = orch("trust", "gpu1", said="n\n")
    assert no.code == 3 and place.box.fingerprint() in no.out and not place.box.known_hosts.exists()
    yes = orch("trust", "gpu1", said="y\n")
    assert yes.code == 0 and place.box.fingerprint() in yes.out
    assert place.box.known_hosts.read_text() == known


def test_check_rehearses_and_starts_nothing(place: Place, orch: Orch) -> None:
    before = run_ids(orch)

    document = orch("check", "good", "--set", "rehearse=true", "--json").document("check")
    text = orch("check", "good")

    assert [rehearsal["job"] for rehearsal in document["rehearsals"]] == ["good"]
    assert document["code"]["files"] > 1
    assert text.code == 0 and "good" in text.out
    assert run_ids(orch) == before


def run_ids(orch: Orch) -> list[str]:
    return [run["run_id"] for run in orch("runs", "--json").document("status")["runs"]]


# --- a run, start to end --------------------------------------------------------------------------------------


def test_launch_and_wait_reports_how_the_runs_ended(place: Place, orch: Orch, launched: Said) -> None:
    first, last = launched.documents
    text = orch("launch", "good", "failing", "--wait")

    assert (first["kind"], last["kind"]) == ("launch", "ended")
    assert first["code"]["files"] > 1 and first["code"]["withheld"] == []
    assert {run["job"]: (run["state"], run["host"]) for run in last["runs"]} == {
        "good": ("succeeded", "gpu1"),
        "failing": ("failed", "gpu1"),
    }
    assert {run["job"]: [goal["holds"] for goal in run["verdict"]] for run in last["runs"]} == {
        "good": [True],
        "failing": [False],
    }
    assert launched.code == text.code == 1
    for words in (("good", "succeeded"), ("failing", "failed")):
        assert [line for line in text.out.splitlines() if all(word in line for word in words)]


def test_launch_without_wait_names_the_run_and_stop_ends_it(place: Place, orch: Orch) -> None:
    launched = orch("launch", "endless")
    (run,) = orch("status", "endless", "--json").document("status")["runs"]
    assert launched.code == 0 and run["run_id"] in launched.out
    assert run["state"] in ("starting", "running")
    assert orch("launch", "endless", "--json").document("error")["error"]["exit_code"] == 4

    stopped = orch("stop", "endless", "--json")
    assert stopped.code == 0
    assert [known["state"] for known in stopped.document("stop")["runs"]] == ["stopped"]
    assert orch("stop", "endless", "--json").document("stop")["had_ended"] == [["endless", run["run_id"]]]

    restarted = orch("restart", "endless", "--json").document("restart")
    assert [known["run_id"] for known in restarted["runs"]] == [run["run_id"]]
    text = orch("stop", "endless")
    assert text.code == 0 and "stopped" in text.out and run["run_id"] in text.out


def test_restart_and_wait_reports_that_it_failed_again(place: Place, orch: Orch, ended: dict[str, str]) -> None:
    text = orch("restart", ended["failing"], "--wait")
    assert text.code == 1 and ended["failing"] in text.out


# --- looking at runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "runs", "watch"])
def test_overviews_show_each_run_and_its_state(place: Place, orch: Orch, ended: dict[str, str], command: str) -> None:
    as_json = orch(command, *ended.values(), "--json")
    text = orch(command, *ended.values())

    runs = {run["run_id"]: run["state"] for run in as_json.document("status")["runs"]}
    assert runs[ended["good"]] == "succeeded" and runs[ended["failing"]] == "failed"
    for words in (("good", "succeeded"), ("failing", "failed")):
        assert [line for line in text.out.splitlines() if all(word in line for word in words)]
    assert text.code == as_json.code == (1 if command == "watch" else 0)


def test_status_of_an_unknown_run_is_a_usage_error(place: Place, orch: Orch) -> None:
    text, as_json = orch("status", "nobody"), orch("status", "nobody", "--json")
    assert text.code == as_json.code == 2
    assert text.out == "" and "nobody" in text.err
    assert "nobody" in as_json.document("error")["error"]["message"]


def test_tail_prints_the_log_and_the_outcome(place: Place, orch: Orch, ended: dict[str, str]) -> None:
    text = orch("tail", ended["failing"])
    *logs, last = orch("tail", ended["failing"], "--json").documents

    assert text.out.startswith("a line of the log\n") and "failed" in text.out
    assert "".join(log["text"] for log in logs).startswith("a line of the log\n")
    assert {log["kind"] for log in logs} == {"log"} and logs[0]["offset"] == 0
    assert last["kind"] == "ended" and last["runs"][0]["state"] == "failed"
    assert text.code == 1


def test_tail_without_following_prints_only_the_log(place: Place, orch: Orch, ended: dict[str, str]) -> None:
    assert orch("tail", ended["good"], "--no-follow", "--lines", "1").out == "a line of the log\n"
    assert orch("tail", ended["good"], "--no-follow", "--from", "2", "--json").documents[0]["offset"] == 2


def test_sync_copies_each_run_once(place: Place, orch: Orch, ended: dict[str, str]) -> None:
    (copied,) = orch("sync", ended["good"], "--json").document("sync")["runs"]
    assert (copied["run_id"], copied["whole"]) == (ended["good"], True)
    copy = Path(copied["directory"])
    assert (copy / "training.log").read_bytes().startswith(b"a line of the log\n")

    text = orch("sync")
    again = orch("sync", "--json")

    assert text.code == 0 and ended["failing"] in text.out
    assert again.code == 0 and again.document("sync")["runs"] == again.document("sync")["errors"] == []


def test_sync_of_only_the_code_names_its_tree(place: Place, orch: Orch) -> None:
    (host,) = orch("sync", "--code", "--json").document("sync")["code"]
    assert (host["host"], host["withheld"]) == ("gpu1", [])
    text = orch("sync", "--code")
    assert text.code == 0 and host["tree"][:12] in text.err


def test_sync_with_an_invalid_size_limit_is_a_usage_error(place: Place, orch: Orch) -> None:
    assert orch("sync", "--limit", "large").code == 2


# --- usage ----------------------------------------------------------------------------------------------------


def test_version_is_that_of_the_package(orch: Orch) -> None:
    said = orch("--version")
    assert (said.code, said.err) == (0, "")
    assert said.out.split()[0] == "orch" and said.out.split()[1][0].isdigit()


@pytest.mark.parametrize("arguments", [("-h",), ("--help",), ("launch", "-h"), ("sync", "--help")])
def test_help_is_printed(orch: Orch, arguments: tuple[str, ...]) -> None:
    said = orch(*arguments)
    assert said.code == 0 and "Usage" in said.out


@pytest.mark.parametrize(
    "arguments", [("launch",), ("nonsense",), ("status", "--nonsense"), ("tail", "good", "-n", "x")]
)
def test_usage_error_is_exit_code_2(orch: Orch, arguments: tuple[str, ...]) -> None:
    said = orch(*arguments)
    assert (said.code, said.out) == (2, "") and said.err


@pytest.mark.parametrize("command", ["doctor", "status", "runs", "watch", "sync"])
def test_directory_without_jobs_is_a_usage_error(
    orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text, as_json = orch(command), orch(command, "--json")
    assert text.code == as_json.code == 2
    assert text.out == "" and "jobs.toml" in text.err
    assert as_json.document("error")["error"]["exit_code"] == 2


# --- on a terminal --------------------------------------------------------------------------------------------


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shown]:
    """Run the command line on its own terminal, 120 columns wide."""

    def run(*arguments: str) -> Shown:
        ours, its = pty.openpty()
        written = bytearray()
        reader = threading.Thread(target=read_all, args=(ours, written))
        reader.start()
        with monkeypatch.context() as patch, os.fdopen(its, "w", encoding="utf-8") as stream:
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", "120")
            patch.setattr(sys, "argv", ["orch", *arguments])
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            code = exit_code()
        reader.join(timeout=10)
        os.close(ours)
        return Shown(code, bytes(written))

    return run


def read_all(descriptor: int, into: bytearray) -> None:
    while True:
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # EIO: the other end is closed
            return
        if not data:
            return
        into += data


@pytest.mark.parametrize("shared_place", ["local"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("launch", "good", "--wait"), 0, ("good", "succeeded")),
        (("check", "good"), 0, ("good",)),
        (("status", "good", "failing"), 0, ("succeeded", "failed")),
        (("watch", "good", "failing"), 1, ("succeeded", "failed")),
        (("tail", "good"), 0, ("a line of the log", "succeeded")),
        (("status", "nobody"), 2, ("nobody",)),
    ],
)
def test_commands_work_on_a_terminal(
    place: Place,
    ended: dict[str, str],
    on_terminal: Callable[..., Shown],
    arguments: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
) -> None:
    shown = on_terminal(*arguments)
    assert shown.code == code, shown.text
    assert [word for word in words if word not in shown.text] == []
    assert shown.harm() == []
