"""A secret is in the worker's environment and nowhere else; test_main_job.py tests that it gets there."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.integration.conftest import Orch
from tests.support import PROC, pids, wait_until

SECRET = "hunter2+and/more%of it"
FORMS = [SECRET.encode(), b64encode(SECRET.encode()).rstrip(b"="), quote(SECRET, safe="").encode()]
RECORDS = ("run.json", "state.json", "events.jsonl", "samples.jsonl", "supervisor.log", "training.log")
# Prints that it has the secret, then waits for the test.
WORKER = """
import os, sys, time
from pathlib import Path
gates = Path(os.environ["GATES"])
assert len(os.environ["TOKEN"]) == 22
print("it has its secret", flush=True)
while not (gates / "end").exists():
    time.sleep(0.01)
sys.exit(int(os.environ.get("CODE", "0")))
"""
PRINTS = """
import base64, os, sys, urllib.parse
token = os.environ["TOKEN"]
print("as it is:", token, flush=True)
sys.stderr.write("by parts: " + token[:9])
sys.stderr.flush()
os.write(2, token[9:].encode() + b"\\n")
print("encoded:", base64.b64encode(token.encode()).decode(), urllib.parse.quote(token, safe=""), flush=True)
print("the end", flush=True)
"""


def in_bytes(data: bytes) -> bool:
    return any(form in data for form in FORMS)


def files_with_it(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file() and in_bytes(path.read_bytes())]


class CommandLines:
    """Collect all command lines on this machine by polling."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ended.wait(0.002):  # a command line lives for tens of milliseconds at least
            self.look()

    def look(self) -> None:
        for pid in pids():
            try:
                self.seen.add((PROC / str(pid) / "cmdline").read_bytes())
            except OSError:  # it has ended
                continue

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def command_lines() -> Iterator[CommandLines]:
    if not PROC.joinpath("self").exists():
        pytest.skip("this machine has no /proc")
    with CommandLines() as lines:
        yield lines


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)


def job(orch: Orch, code: str = WORKER, **keys: Any) -> None:
    (orch.project / "show.py").write_text(code)
    env = {"GATES": str(orch.gates), **keys.pop("env", {})}
    orch.table("worker1", **{"command": ["python", "show.py"], "secrets": ["TOKEN"], "env": env, **keys})


def said(done: subprocess.CompletedProcess[str]) -> bytes:
    return (done.stdout + done.stderr).encode()


# --- processes and records ------------------------------------------------------------------------------


def test_command_lines_contain_no_secret_during_a_run(orch: Orch, command_lines: CommandLines) -> None:
    job(orch)

    orch.launch("worker1")
    wait_until(lambda: b"it has" in orch.on_box("worker1").log.read_bytes(), what="the worker")
    command_lines.look()
    orch.run("sync")
    orch.open("end")
    orch.wait_for("worker1", "succeeded")

    assert any(b"show.py" in line for line in command_lines.seen)
    assert any(b"supervise" in line for line in command_lines.seen)
    assert not [line for line in command_lines.seen if in_bytes(line)]


def test_run_records_contain_no_secret(ssh_orch: Orch) -> None:
    orch = ssh_orch
    job(orch)
    shown = [orch.run("launch", "worker1", "--json")]
    wait_until(lambda: b"it has" in orch.on_box("worker1").log.read_bytes(), what="the worker")
    run = orch.on_box("worker1")

    shown += [orch.run("status", "--json"), orch.run("sync"), orch.run("status")]

    kept = files_with_it(orch.root, orch.project / "results")
    assert [path.parent.name for path in kept] == ["secrets"]  # the only place, until the run ends
    assert kept[0].stat().st_mode & 0o177 == 0
    assert kept[0].parent.stat().st_mode & 0o077 == 0
    orch.open("end")
    orch.wait_for("worker1", "succeeded")
    shown += [orch.run("tail", "worker1"), orch.run("sync", "--json"), orch.run("tail", "worker1", "--json")]
    assert files_with_it(orch.root, orch.project / "results") == []
    assert {*RECORDS} <= {path.name for path in run.root.iterdir()}
    assert not [done.args for done in shown if in_bytes(said(done))]


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        pytest.param({"command": ["no-such-program", "--name"]}, 4, id="no program"),
        pytest.param({"prepare": ["bash", "-c", "exit 7"]}, 1, id="prepare fails"),
        pytest.param({"data": {"path": "gone", "pattern": "*", "at_least": 1}}, 4, id="no data"),
        pytest.param({"env": {"CODE": "3"}}, 1, id="exit code"),
        pytest.param({"needs": ["other"]}, 4, id="refused"),
    ],
)
def test_errors_contain_no_secret(local_orch: Orch, keys: dict[str, Any], code: int) -> None:
    local_orch.open("end")
    local_orch.job("other", "never")
    job(local_orch, **keys)

    plain = local_orch.run("launch", "worker1", "--wait", code=code)
    as_json = local_orch.run("launch", "worker1", "--wait", "--json", code=code)

    assert not in_bytes(said(plain) + said(as_json))
    assert files_with_it(local_orch.root, local_orch.project / "results") == []


def test_errors_that_repeat_the_request_contain_no_secret(ssh_orch: Orch) -> None:
    job(ssh_orch)
    ssh_orch.run("sync", "--code")
    assert ssh_orch.box is not None
    for agent in (ssh_orch.box.home / ".cache" / "orch").iterdir():
        agent.write_text("import sys\nsys.exit(sys.stdin.readline()[-250:])\n")

    plain = ssh_orch.run("launch", "worker1", code=3)
    as_json = ssh_orch.run("launch", "worker1", "--json", code=3)

    assert "ended with exit code 1" in plain.stderr
    assert not in_bytes(said(plain) + said(as_json))


def test_secret_of_one_run_is_not_in_the_environment_of_another(ssh_orch: Orch, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    job(ssh_orch)
    ssh_orch.table("other", command=["bash", "-c", f"env > {seen}"])
    ssh_orch.open("end")
    ssh_orch.run("launch", "worker1", "other", "--wait")

    assert b"ORCH_RUN_DIR=" in seen.read_bytes()
    assert not in_bytes(seen.read_bytes())


def test_secret_used_in_the_command_is_not_in_the_command_line(local_orch: Orch, command_lines: CommandLines) -> None:
    job(local_orch, command=["python", "show.py", "--token", "$TOKEN"])
    local_orch.launch("worker1")
    wait_until(lambda: b"it has" in local_orch.on_box("worker1").log.read_bytes(), what="the worker")
    command_lines.look()
    local_orch.open("end")

    assert any(b"--token" in line for line in command_lines.seen)
    assert not [line for line in command_lines.seen if in_bytes(line)]


# --- the output of a worker -----------------------------------------------------------------------------

MASKED = b"""\
as it is: ***TOKEN***
by parts: ***TOKEN***
encoded: ***TOKEN***== ***TOKEN***
the end
"""


def test_secret_printed_by_a_worker_is_masked_in_its_log(orch: Orch) -> None:
    job(orch, PRINTS)

    orch.run("launch", "worker1", "--wait")
    shown = [orch.run("tail", "worker1", "--json"), orch.run("sync")]

    assert orch.on_box("worker1").log.read_bytes() == MASKED
    assert orch.mirror("worker1").log.read_bytes() == MASKED
    assert files_with_it(orch.root, orch.project / "results") == []
    assert not [done.args for done in shown if in_bytes(said(done))]


def test_log_of_a_run_with_secrets_is_complete(local_orch: Orch) -> None:
    code = 'import os\nfor line in range(20000): os.write(1, b"%06d " % line + os.environ["TOKEN"].encode() + b"\\n")\n'
    job(local_orch, code)

    local_orch.run("launch", "worker1", "--wait")

    log = local_orch.on_box("worker1").log.read_bytes()
    assert log == b"".join(b"%06d ***TOKEN***\n" % line for line in range(20000))


def test_secret_printed_by_prepare_is_masked(local_orch: Orch) -> None:
    local_orch.open("end")
    job(local_orch, prepare=["bash", "-c", "env | grep ^TOKEN="])

    local_orch.run("launch", "worker1", "--wait")

    assert local_orch.on_box("worker1").log.read_bytes() == b"TOKEN=***TOKEN***\nit has its secret\n"


def test_worker_with_secrets_survives_its_supervisor(local_orch: Orch) -> None:
    job(local_orch, WORKER.replace("sys.exit(", 'print("after", os.environ["TOKEN"], flush=True)\nsys.exit('))
    local_orch.launch("worker1")
    run = local_orch.on_box("worker1")
    wait_until(lambda: b"it has" in run.log.read_bytes(), what="the worker")
    supervisor = next(pid for pid in pids() if _is_supervisor(pid, run.root))
    os.kill(supervisor, 9)
    wait_until(lambda: "taken_over" in run.events.read_text(), what="a new supervisor to take the worker over")

    local_orch.open("end")

    assert local_orch.wait_for("worker1", "succeeded")
    assert run.log.read_bytes().endswith(b"after ***TOKEN***\n")


def _is_supervisor(pid: int, folder: Path) -> bool:
    try:
        line = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"supervise" in line and b"orch-respawn" not in line and os.fsencode(folder) in line


# --- the environment of a job on this machine ------------------------------------------------------------

CREDENTIALS = {
    "HF_TOKEN": "hf_inherited_by_nobody",
    "WANDB_API_KEY": "0f0f0f0f_inherited_by_nobody",
    "AWS_ACCESS_KEY_ID": "AKIA_inherited_by_nobody",
    "MYSQL_PWD": "pwd_inherited_by_nobody",
    "db_password": "password_inherited_by_nobody",
    "DATABASE_URL": "postgres://me:inherited_by_nobody@db/x",
    "SSH_AUTH_SOCK": "/tmp/inherited_by_nobody",
    "PLAIN_NAME": "inherited_by_nobody, as a job takes a secret from it",
}
INHERITED = {
    "OMP_NUM_THREADS": "2",
    "HF_HOME": "/tmp/hf",
    "TOKENIZERS_PARALLELISM": "false",
    "https_proxy": "http://me:pw@proxy:3128",
    "PYTHONHASHSEED": "7",
}


@pytest.mark.parametrize("launcher", ["nohup", "tmux"])
def test_local_job_inherits_no_credentials(local_orch: Orch, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    orch = local_orch
    if launcher == "tmux" and shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    orch.host_table += f'launcher = "{launcher}"\n'
    orch.defaults = ""  # with a rehearsal
    for name, value in {**CREDENTIALS, **INHERITED}.items():
        monkeypatch.setenv(name, value)
    orch.table("worker1", command="true", secrets={"VALUE": {"env": "PLAIN_NAME"}})
    show = "env; [ $ORCH_REHEARSAL ] || until [ -e $GATES/end ]; do sleep 0.1; done"
    orch.table("other", command=["bash", "-c", show], prepare=["bash", "-c", "env"], env={"GATES": str(orch.gates)})

    launched = orch.run("launch", "other")
    run = orch.on_box("other")
    wait_until(lambda: b"OMP_NUM_THREADS=" in run.log.read_bytes(), what="the job's environment")
    environments = b"".join(_environ(pid) for pid in pids() if os.fsencode(orch.root) in _cmdline(pid))
    if launcher == "tmux":
        socket = json.loads(run.run.read_text())["attach"].split()[2]
        shown = subprocess.run(["tmux", "-L", socket, "show-environment", "-g"], capture_output=True, check=True)
        environments += shown.stdout
    orch.open("end")
    orch.wait_for("other", "succeeded")

    assert b"ORCH_RUN_DIR=" in run.log.read_bytes()
    assert b"HOME=" in environments
    assert b"inherited_by_nobody" not in environments
    assert not [path for path in _files(orch.root) if b"inherited_by_nobody" in path.read_bytes()]
    for name, value in INHERITED.items():
        assert f"{name}={value}\n".encode() in run.log.read_bytes()
    assert "HF_TOKEN" in launched.stdout
    assert "inherited_by_nobody" not in launched.stdout + launched.stderr
    assert 'secrets = ["AWS_ACCESS_KEY_ID"]' in launched.stdout + launched.stderr


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _environ(pid: int) -> bytes:
    return _read_proc(pid, "environ")


def _cmdline(pid: int) -> bytes:
    return _read_proc(pid, "cmdline")


def _read_proc(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""


# --- a crash --------------------------------------------------------------------------------------------

CRASHES = """
import ctypes, os, resource
print("limit:", resource.getrlimit(resource.RLIMIT_CORE), flush=True)
os.chdir(os.environ["GATES"])
ctypes.string_at(0)
"""


@pytest.fixture
def core_dumps() -> Iterator[bool]:
    """Allow core dumps of any size; return whether the kernel writes them to the working directory."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] != resource.RLIM_INFINITY:
        pytest.skip("the limit of core dumps cannot be raised here")
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield PROC.joinpath("sys/kernel/core_pattern").read_text().startswith("core")
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.mark.parametrize("secrets", [["TOKEN"], []], ids=["with a secret", "without one"])
def test_worker_crash_leaves_no_core_dump(local_orch: Orch, core_dumps: bool, secrets: list[str]) -> None:
    orch = local_orch
    job(orch, CRASHES, secrets=secrets, prepare=["bash", "-c", "ulimit -Hc"])

    orch.run("launch", "worker1", "--wait", code=1)

    assert orch.state("worker1")["reason"] == "signal"
    log = orch.on_box("worker1").log.read_text()
    unlimited = resource.RLIM_INFINITY
    assert f"limit: {(1, 1) if secrets else (unlimited, unlimited)}" in log
    assert log.startswith("0\n" if secrets else "unlimited\n")  # in blocks, for `prepare`
    if core_dumps:
        assert bool(list(orch.gates.glob("core*"))) is not bool(secrets)


def test_crash_of_orch_leaves_no_core_dump(local_orch: Orch, core_dumps: bool) -> None:
    """For example after Ctrl-\\ during a launch: the next snapshot would upload a dump in the project."""
    job(local_orch)
    launch = local_orch.start("launch", "worker1", "--wait", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs = local_orch.root / "test" / "runs" / "worker1"
    wait_until(lambda: any(b"it has" in log.read_bytes() for log in runs.glob("2*/training.log")), what="the worker")
    launch.send_signal(signal.SIGQUIT)

    assert launch.wait(30) == -signal.SIGQUIT
    local_orch.open("end")
    local_orch.wait_for("worker1", "succeeded")
    assert list(local_orch.project.glob("core*")) == []


# --- from a command -------------------------------------------------------------------------------------


@pytest.fixture
def secrets_from_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return `secrets` of a job whose value is printed by a command, which records each call."""
    monkeypatch.delenv("TOKEN")
    store = tmp_path / "store"
    store.mkdir()
    (store / "value").write_text(f"{SECRET}\n")
    (store / "asked").touch()
    return {"TOKEN": {"command": ["bash", "-c", f"echo x >> {store}/asked; cat {store}/value"]}}


def test_secret_from_a_command_is_not_in_records_or_command_lines(
    ssh_orch: Orch, command_lines: CommandLines, secrets_from_a_command: dict[str, object], tmp_path: Path
) -> None:
    orch = ssh_orch
    orch.defaults = ""  # with a rehearsal, which uses the same secret
    job(orch, secrets=secrets_from_a_command, env={"CODE": "0"})
    orch.table("other", command=["python", "show.py"], secrets=secrets_from_a_command, env={"GATES": str(orch.gates)})
    orch.open("end")

    shown = [orch.run("launch", "worker1", "other", "--wait", "--json")]
    command_lines.look()
    shown += [orch.run("status", "--json"), orch.run("sync"), orch.run("tail", "other")]

    assert (tmp_path / "store" / "asked").read_text() == "x\n"  # once for two jobs and their rehearsals
    assert "kept" not in shown[0].stderr
    assert files_with_it(orch.root, orch.project) == []
    assert json.loads(orch.mirror("worker1").run.read_text())["job"]["secrets"] == ["TOKEN"]
    assert not [done.args for done in shown if in_bytes(said(done))]
    assert not [line for line in command_lines.seen if in_bytes(line)]


def test_failing_secret_command_starts_nothing_and_names_the_key(local_orch: Orch, tmp_path: Path) -> None:
    job(local_orch, secrets={"TOKEN": {"command": ["bash", "-c", f"echo '{SECRET[:9]}'; echo locked >&2; exit 2"]}})
    local_orch.job("other")

    refused = local_orch.run("launch", "other", "worker1", code=2)

    assert "locked\n" in refused.stderr
    assert "orch: jobs.toml: [jobs.worker1] secrets.TOKEN: `bash -c" in refused.stderr
    assert "ended with exit code 2" in refused.stderr
    assert local_orch.json("runs")["runs"] == []


# --- files of a worker ----------------------------------------------------------------------------------

TELLS = """
import os, sys
from remote.worker import Run
token = os.environ["TOKEN"]
run = Run.current()
run.beat(token, epoch=1, epochs=2)
run.log_metrics(epoch=1, step=1, metrics={"loss": 0.5, token: 1.0, "said": token})
with open(os.path.join(os.environ["ORCH_RUN_DIR"], "training.log"), "a") as log:
    log.write(f"past the mask: {token}\\n")
(run.results / "mine.txt").write_text(token)
raise ValueError(f"bad token {token!r}")
"""


def test_secret_reported_by_a_worker_is_not_shown(ssh_orch: Orch) -> None:
    """The worker's own file contains the secret that it wrote; output on this machine does not."""
    orch = ssh_orch
    job(orch, TELLS, goals={"loss": "< 0.1"})

    shown = [orch.run("launch", "worker1", "--wait", "--json", code=1), orch.run("sync", "--json")]
    shown += [orch.run("status", "--json"), orch.run("status"), orch.run("runs", "--json")]
    tail = ("tail", "worker1", "--from", "0")
    shown += [orch.run(*tail, code=1), orch.run(*tail, "--json", code=1)]
    orch.defaults = ""
    job(orch, TELLS)
    shown += [orch.run("launch", "worker1", code=4), orch.run("check", "worker1", "--json", code=4)]

    assert in_bytes((orch.mirror("worker1").results / "mine.txt").read_bytes())  # see docs/security.md
    assert not [done.args for done in shown if in_bytes(said(done))]
    assert "past the mask: ***TOKEN***" in shown[5].stdout
    assert "ValueError: bad token '***TOKEN***'" in shown[7].stderr
