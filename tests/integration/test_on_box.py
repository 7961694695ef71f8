"""A person on the box: a shell and commands in a run, its terminal, forwarded ports. Real sshd, tmux and HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remote.contract.files import read_json
from tests.in_terminal import InTerminal
from tests.integration.conftest import Orch
from tests.support import free_port, wait_until

ENTER, CTRL_C = "\n", "\x03"
SHOW = "import os, sys; print(os.getcwd(), *(os.environ.get(name) for name in sys.argv[1:]), sep='|')"
CLIENTS = ("openssh", "fabric")


def with_client(orch: Orch, client: str) -> Orch:
    orch.host_table += f'client = "{client}"\n'
    return orch


@pytest.fixture(params=["local", *CLIENTS])
def any_orch(request: pytest.FixtureRequest) -> Orch:
    """Run the test on this machine, and over SSH with each client."""
    if request.param == "local":
        here: Orch = request.getfixturevalue("local_orch")
        return here
    return with_client(request.getfixturevalue("ssh_orch"), request.param)


@pytest.fixture(params=CLIENTS)
def client_orch(request: pytest.FixtureRequest, ssh_orch: Orch) -> Orch:
    return with_client(ssh_orch, request.param)


def test_command_runs_in_the_directory_and_environment_of_the_run(
    any_orch: Orch, monkeypatch: pytest.MonkeyPatch
) -> None:
    orch = any_orch
    monkeypatch.setenv("TOKEN", "a-secret-value")
    env = {"GATES": str(orch.gates), "WORDS": 'two "words" & *; ~', "SEEN": "${WORDS}!"}
    orch.job("train", "go", env=env, secrets=["TOKEN"])
    orch.launch("train")
    run = orch.on_box("train")
    names = ["WORDS", "SEEN", "ORCH_RUN_DIR", "ORCH_ATTEMPT", "CUDA_VISIBLE_DEVICES", "TOKEN"]
    seen = orch.run("exec", "train", "--", "python", "-c", SHOW, *names).stdout.strip().split("|")
    assert seen[0] == str(run.work)
    assert seen[1:3] == ['two "words" & *; ~', 'two "words" & *; ~!']
    assert Path(seen[3]) == run.root
    assert seen[4:] == ["1", "", "None"]  # and no secret
    orch.run("exec", "train", "python", "-c", "import remote.worker, value")
    orch.open("go")
    orch.wait_for("train", "succeeded")


def test_streams_and_exit_code_of_a_command_are_passed_on(any_orch: Orch) -> None:
    orch = any_orch
    orch.job("train")
    orch.run("launch", "train", "--wait")
    data = bytes(range(256)) * 4000
    program = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1]); sys.exit('said')"
    command = orch.command("exec", "train", "--", "python", "-c", program)
    done = subprocess.run(command, cwd=orch.project, input=data, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, data[::-1], b"said\n")
    missing = orch.run("exec", "train", "--", "no-such-program", "--help", code=127)
    assert missing.stderr == "orch: no-such-program: No such file or directory\n"
    for number in (signal.SIGKILL, signal.SIGINT):
        orch.run("exec", "train", "--", "sh", "-c", f"kill -{number:d} $$", code=128 + number)
    assert orch.run("exec", "train", "--", "printf", "<%s>", "", "x", "").stdout == "<><x><>"
    assert "there is no command" in orch.run("exec", "train", "--", "", "x", code=2).stderr


def test_command_of_a_person_outlives_the_run(ssh_orch: Orch) -> None:
    """Its environment names the run, as those of the processes do that are ended with the run."""
    ssh_orch.job("train", "go")
    ssh_orch.launch("train")
    run = ssh_orch.on_box("train")
    with ssh_orch.start("exec", "train", "--", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        started.stdin.write(b"before\n")
        started.stdin.flush()
        assert started.stdout.readline() == b"before\n"
        os.kill(
            int((read_json(run.worker) or {})["keeper"][0]), signal.SIGKILL
        )  # the shim: the environment counts then
        ssh_orch.run("stop", "train")
        assert started.communicate(b"after\n", timeout=30)[0] == b"after\n"
    assert started.returncode == 0


def test_shell_has_a_terminal(any_orch: Orch) -> None:
    orch = any_orch
    orch.job("train")
    orch.run("launch", "train", "--wait")
    shell = InTerminal(orch.command("ssh", "train"), orch.project)
    shell.type(f"echo re''ady{ENTER}")
    shell.expect("ready")
    shell.type(f"test -t 0 && echo in $(basename $PWD) of ${{ORCH_RUN_DIR#{orch.on_box('train').root}}}.{ENTER}")
    shell.expect("in work of /.")
    shell.type(f"echo be''fore; sleep 100{ENTER}")
    shell.expect("before")
    shell.type(CTRL_C)  # ends the command in the shell, not the shell
    shell.type(f"exit 5{ENTER}")
    assert shell.wait() == 5
    shell.close()


def test_shell_on_a_host_is_in_the_directory_of_the_project(any_orch: Orch) -> None:
    orch = any_orch
    orch.job("train")
    command = orch.command("ssh", orch.host)
    before = subprocess.run(command, cwd=orch.project, input="pwd", capture_output=True, text=True, check=False)
    assert before.returncode == 0, before.stderr
    assert Path(before.stdout.strip()).is_dir()
    orch.run("launch", "train", "--wait")
    done = subprocess.run(command, cwd=orch.project, input="pwd; exit 3", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, f"{orch.root / 'test'}\n")


def test_terminal_of_a_run_is_shown_read_only(ssh_orch: Orch, home: Path) -> None:
    ssh_orch.host_table = ssh_orch.host_table.replace('"nohup"', '"tmux"')
    ssh_orch.job("train", "go")
    ssh_orch.launch("train")
    attached = InTerminal(ssh_orch.command("attach", "train"), ssh_orch.project)
    attached.expect("train: go")
    attached.type(CTRL_C)  # read-only: does not reach the supervisor
    for key in ("\x02", "d"):  # tmux takes keys that come together for a paste
        time.sleep(0.2)
        attached.type(key)
    attached.expect("detached")
    assert attached.wait() == 0
    attached.close()
    assert ssh_orch.state("train")["state"] == "running"
    assert "needs a terminal" in ssh_orch.run("attach", "train", code=2).stderr
    ssh_orch.open("go")
    ssh_orch.wait_for("train", "succeeded")


def test_log_is_followed_where_there_is_no_terminal(ssh_orch: Orch) -> None:
    ssh_orch.job("train")
    ssh_orch.run("launch", "train", "--wait")
    done = ssh_orch.run("attach", "train")
    assert "has no terminal on gpu1, only its log" in done.stderr
    assert "succeeded" in done.stdout


def test_unknown_run_or_host_is_named(ssh_orch: Orch) -> None:
    ssh_orch.job("train")
    assert "no job" in ssh_orch.run("ssh", "trian", code=2).stderr
    assert "did you mean 'gpu1'?" in ssh_orch.run("ssh", "gpu", code=2).stderr
    assert "no run" in ssh_orch.run("exec", "train", "ls", code=2).stderr
    assert ssh_orch.box is not None
    ssh_orch.box.stop()
    assert "gpu1" in ssh_orch.run("ssh", "gpu1", code=3).stderr


# --- ports ------------------------------------------------------------------------------------------------


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """Serve the files of a folder by HTTP/1.0, where the end of a page is the end of its connection."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: accepts(port), what="the server")
        yield port
    finally:
        process.kill()
        process.wait()


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def page(port: int, name: str = "page") -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=20) as answer:
        content: bytes = answer.read()
    return content


def first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode()


def end(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    with process.stdout:
        return process.wait(30)


def test_port_is_forwarded_until_ctrl_c(client_orch: Orch, tmp_path: Path) -> None:
    orch = client_orch
    orch.job("train")
    (tmp_path / "page").write_bytes(b"x" * 3_000_000)
    local = free_port()
    with server(tmp_path) as remote:
        started = orch.start("forward", "gpu1", f"{local}:{remote}", stdout=subprocess.PIPE)
        assert first_line(started) == f"http://127.0.0.1:{local}\n"
        assert [len(page(local)) for _ in range(3)] == [3_000_000] * 3
        with socket.create_connection(("127.0.0.1", local)) as half:  # a page whose end is that of the connection
            half.sendall(b"GET /page HTTP/1.0\r\n\r\n")
            half.shutdown(socket.SHUT_WR)
            assert sum(len(data) for data in iter(lambda: half.recv(1 << 16), b"")) > 3_000_000
        assert end(started) == 0
    wait_until(lambda: not accepts(local), what="the end of the forwarding")


def test_port_can_be_forwarded_before_a_program_listens(client_orch: Orch, tmp_path: Path) -> None:
    orch = client_orch
    orch.job("train", "go")
    orch.launch("train")
    (tmp_path / "page").write_bytes(b"here")
    local, port = free_port(), free_port()
    with open(tmp_path / "said", "w+") as said:
        started = orch.start("forward", "train", f"{local}:{port}", stdout=subprocess.PIPE, stderr=said)
        first_line(started)
        with socket.create_connection(("127.0.0.1", local)) as early:
            assert early.recv(1) == b""
        command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", str(tmp_path), str(port)]
        late = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: accepts(port), what="the server")
            assert page(local) == b"here"
        finally:
            late.kill()
            late.wait()
        assert end(started) == 0
        said.seek(0)
        assert f"no program listens at 127.0.0.1:{port} of gpu1 yet" in said.read()
    orch.open("go")
    orch.wait_for("train", "succeeded")


def test_forwarding_is_restored_after_a_lost_connection(client_orch: Orch, tmp_path: Path) -> None:
    orch = client_orch
    orch.job("train")
    (tmp_path / "page").write_bytes(b"again")
    local = free_port()
    with server(tmp_path) as remote:
        started = orch.start("forward", "gpu1", f"{local}:{remote}", stdout=subprocess.PIPE)
        first_line(started)
        assert page(local) == b"again"
        assert orch.box is not None
        orch.box.kill_connections()
        wait_until(lambda: answers(local), 60, "the forwarding to be back")
        assert end(started) == 0


def answers(port: int) -> bool:
    try:
        return page(port) == b"again"
    except OSError:
        return False


def test_port_in_use_is_one_clear_error(ssh_orch: Orch) -> None:
    ssh_orch.job("train")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = ssh_orch.run("forward", "gpu1", str(port), code=1).stderr
    assert f"listening at port {port} of this machine: it is in use" in said
    assert "is not PORT or PORT:REMOTE" in ssh_orch.run("forward", "gpu1", "http", code=2).stderr


def test_forwarding_to_this_machine_is_refused(local_orch: Orch) -> None:
    local_orch.job("train")
    said = local_orch.run("forward", "local", f"{free_port()}:6006", code=2).stderr
    assert "local is this machine: nothing to forward" in said
    assert "http://127.0.0.1:6006" in said
