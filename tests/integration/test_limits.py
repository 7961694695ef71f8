"""A box that sends slowly, or more than announced, cannot block a command or fill this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from orchestrator.box import incoming, local, retry
from orchestrator.box.agent_bundle import AgentBundle
from orchestrator.box.incoming import Allowance, Watch
from orchestrator.box.local import LocalTransport
from orchestrator.box.retry import RetryingTransport
from orchestrator.errors import AgentUnusable, CopyFailed, HostTooSlow, HostUnreachable
from orchestrator.ssh import rsync, ssh_session, ssh_transport
from orchestrator.ssh.ssh_transport import SshTransport
from remote.contract.paths import PARTIAL
from remote.contract.requests import Request
from tests.support import SshdBox, left_by, name_of, sftp_server, sizes, toy_request, wait_until

SLOW_AGENT = """
import json, os, sys, time
request = json.loads(sys.stdin.readline())
op, out = request["op"], sys.stdout.buffer
def dribble(data):
    while True:
        for byte in data:
            out.write(bytes([byte])); out.flush(); time.sleep(0.05)
if op == "answer":
    dribble(b"x" * 100)
elif op == "good":
    print('{"schema": 1, "ok": true, "result": {}}')
elif op == "head":
    out.write(b'{"bytes": 1, "n": 0}\\na'); dribble(b" ")
elif op == "data":
    out.write(b'{"bytes": 1, "n": 0}\\na{"bytes": 1000000}\\n'); dribble(b"x")
elif op == "large":
    for _ in range(8):
        out.write(b'{"bytes": 1000000}\\n' + bytes(1000000))
    print('{"end": true}')
elif op == "many":
    out.write(b'{"n": 0}\\n' * 10000 + b'{"end": true}\\n')
elif op == "long heads":
    out.write((b'{"n": "' + b"x" * 1000000 + b'"}\\n') * 8 + b'{"end": true}\\n')
elif op == "slow frames":
    for _ in range(50):
        out.write(b'{"n": 0}\\n'); out.flush(); time.sleep(0.1)
    print('{"end": true}')
elif op == "pipe":
    os.mkfifo("fifo"); open("fifo").read()
"""


@pytest.fixture(scope="module")
def slow() -> AgentBundle:
    """An agent that never ends."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("__main__.py", SLOW_AGENT)
    return AgentBundle(buffer.getvalue(), sha256(buffer.getvalue()).hexdigest())


@pytest.fixture
def slow_here(tmp_path: Path) -> LocalTransport:
    """This machine with a slow agent, whose processes have `tmp_path` in their command lines."""
    script = tmp_path / "agent"
    script.write_text(f"#!{sys.executable} -IS\nimport os\nos.chdir({str(tmp_path)!r})\n{SLOW_AGENT}")
    script.chmod(0o700)
    return LocalTransport("here", str(script))


@pytest.fixture
def slow_server() -> Iterator[int]:
    """Return the port of a server that sends an endless SSH banner byte by byte."""
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while not stop.wait(0.05):
                connection.sendall(b"S")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        stop.set()
        server.shutdown(socket.SHUT_RDWR)


# --- requests and streams --------------------------------------------------------------------------------


@pytest.fixture(params=["openssh", "fabric"])
def any_box(request: pytest.FixtureRequest, sshd_box: SshdBox) -> SshdBox:
    """Run the test with each SSH client."""
    sshd_box.client = request.param
    return sshd_box


def limit_calls(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(ssh_session, "CALL_S", seconds)


def test_slowly_sent_answer_is_cut_off(any_box: SshdBox, slow: AgentBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = any_box.transport(bundle=slow)
    transport.call(toy_request("good"))
    limit_calls(monkeypatch, 1.0)
    with pytest.raises(HostTooSlow, match="asking gpu1 for 'answer': not finished within 1 s"):
        transport.call(toy_request("answer"))
    wait_until(lambda: not left_by([any_box.home]), what="the agent to end")
    assert transport.call(toy_request("good")) == {}


def test_installation_counts_towards_the_total_limit(
    any_box: SshdBox, slow: AgentBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_calls(monkeypatch, 2.0)
    python = any_box.home / "python"
    python.write_text("#!/bin/sh\ncase $5 in agent-*) while :; do printf x; sleep 0.1; done;; esac\nexit 2\n")
    python.chmod(0o700)
    with pytest.raises(HostTooSlow, match="not finished within 2 s"):
        any_box.transport(bundle=slow, python=str(python)).call(toy_request("good"))


@pytest.mark.parametrize("way", ["direct", "jump", "proxy"])
def test_slowly_sent_handshake_is_cut_off(
    any_box: SshdBox, slow_server: int, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    limit_calls(monkeypatch, 1.5)
    options: dict[str, object] = {"Port": slow_server}
    if way == "jump":
        options["ProxyJump"] = "box"
    elif way == "proxy":
        proxy = any_box.folder / "proxy"
        proxy.write_text("#!/bin/sh\nwhile sleep 0.05; do printf S; done\n")
        proxy.chmod(0o700)
        options["ProxyCommand"] = proxy
    any_box.add_host("slow", **options)
    before = set(left_by([any_box.folder]))
    transport = any_box.transport(ssh="slow")
    with pytest.raises(HostTooSlow, match="not finished within 1.5 s"):
        transport.call(toy_request("hello"))
    transport.close()
    wait_until(lambda: set(left_by([any_box.folder])) <= before, what="the proxy to end")


def test_close_ends_a_handshake_in_another_thread(sshd_box: SshdBox, slow_server: int) -> None:
    """Ctrl-C does this while several hosts are asked in parallel."""
    sshd_box.add_host("slow", Port=slow_server)
    transport, errors = sshd_box.fabric(ssh="slow"), []

    def ask() -> None:
        try:
            transport.call(toy_request("hello"))
        except HostUnreachable as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(
        lambda: transport._session._newest is not None and transport._session._newest.client.get_transport(),
        what="the handshake to begin",
    )
    transport.close()
    asking.join(timeout=5)  # shorter than any limit
    assert len(errors) == 1


@pytest.mark.parametrize("part", ["head", "data"])
def test_slowly_sent_frame_is_cut_off(
    sshd_box: SshdBox, slow: AgentBundle, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(ssh_transport, "FRAME_S", 0.5)
    stream = sshd_box.transport(bundle=slow).stream(toy_request(part))
    assert next(stream).data == b"a"
    with pytest.raises(HostTooSlow, match="not finished within 0.5 s"):
        next(stream)


@pytest.mark.parametrize(("op", "said"), [("answer", "not finished within 1 s"), ("pipe", "no answer for 2 s")])
def test_local_agent_that_hangs_is_killed(
    slow_here: LocalTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str, said: str
) -> None:
    monkeypatch.setattr(local, "CALL_S", 1.0 if op == "answer" else 300.0)
    monkeypatch.setattr(local, "ANSWER_S", 2.0)
    with pytest.raises(HostTooSlow, match=f"asking the agent on here: {said}"):
        slow_here.call(toy_request(op))
    assert not left_by([tmp_path])


@pytest.mark.parametrize("part", ["head", "data"])
def test_slowly_sent_local_frame_is_cut_off(
    slow_here: LocalTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(local, "FRAME_S", 0.5)
    stream = slow_here.stream(toy_request(part))
    assert next(stream).data == b"a"
    with pytest.raises(HostTooSlow, match="not finished within 0.5 s"):
        next(stream)
    assert not left_by([tmp_path])


def test_host_that_is_too_slow_is_not_asked_again() -> None:
    class Slow(LocalTransport):
        def call(self, request: Request) -> dict[str, object]:
            if request.op == "slow":
                raise HostTooSlow("too slow")
            return {}

    retrying = RetryingTransport(Slow("here", sys.executable), print)
    retrying.call(toy_request("reach"))
    with pytest.raises(HostTooSlow):
        retrying.call(toy_request("slow"))


@pytest.mark.parametrize("what", ["large", "many", "long heads"])
def test_size_of_a_buffered_stream_is_limited(
    slow_here: LocalTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    retrying = RetryingTransport(slow_here, print)
    few = list(retrying.stream(toy_request(what, {"once": True})))
    assert few == list(slow_here.stream(toy_request(what)))
    monkeypatch.setattr(retry, "MAX_ONCE_BYTES", 4 << 20)
    with pytest.raises(AgentUnusable, match=f"reading '{what}' on here: stopped after 4 MiB"):
        retrying.stream(toy_request(what, {"once": True}))
    wait_until(lambda: not left_by([tmp_path]), what="the agent to end")


def test_duration_of_a_buffered_stream_is_limited(slow_here: LocalTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "CALL_S", 1.0)
    with pytest.raises(HostTooSlow, match="reading 'slow frames' on here: not finished within 1 s"):
        RetryingTransport(slow_here, print).stream(toy_request("slow frames", {"once": True}))


# --- copies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["fabric", "openssh"])
def test_stalled_copy_is_ended(sshd_box: SshdBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str) -> None:
    fake = sshd_box.home / "rsync"  # and the server of SFTP
    sshd_box.stop()
    sshd_box.sftp = str(fake)
    sshd_box.env["PATH"] = f"{sshd_box.home}:{os.environ['PATH']}"
    sshd_box.start()
    monkeypatch.setattr(incoming, "COPY_BASE_S", 2.0)
    fake.write_text(f'#!/bin/sh\ncase "$*" in *--version*) exec {rsync_here()} --version;; esac\nexec sleep 1000\n')
    fake.chmod(0o700)
    with pytest.raises(HostTooSlow, match="copying .* from gpu1: not finished within 2 s"):
        getattr(sshd_box, client)().pull(str(sshd_box.home), tmp_path / "mirror", {"a": 1})
    assert sizes(tmp_path / "mirror") == {}
    (tmp_path / "a").write_text("a")
    with pytest.raises(HostTooSlow, match="copying .* to gpu1: not finished within 2 s"):
        getattr(sshd_box, client)().push(tmp_path, ["a"], str(sshd_box.home / "code"), None)
    assert not [pid for pid in left_by([tmp_path]) if name_of(pid) in ("rsync", "ssh")]


def rsync_here() -> str:
    return subprocess.run(["which", "rsync"], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("kind", ["fabric", "openssh", "local"])
def test_file_much_larger_than_listed_is_not_copied(
    sshd_box: SshdBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(incoming, "GROWTH_BYTES", 1 << 20)
    run = sshd_box.home / "run"
    run.mkdir()
    (run / "large").write_bytes(bytes(3 << 20))
    (run / "small").write_text("small")
    transport = by(kind, sshd_box)
    with contextlib.suppress(CopyFailed):  # rsync skips it: the caller sees that it is missing
        transport.pull(str(run), tmp_path / "mirror", {"large": 10, "small": 5})
    assert sizes(tmp_path / "mirror") == {"small": 5}


def test_rsync_cannot_write_more_than_was_listed(
    sshd_box: SshdBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The box reports a small file and sends a larger one."""
    monkeypatch.setattr(incoming, "GROWTH_BYTES", 1 << 20)
    monkeypatch.setattr(rsync, "MAX_SIZE", "--max-size=1000000000")  # as if orch trusted the box
    run = sshd_box.home / "run"
    run.mkdir()
    (run / "large").write_bytes(os.urandom(3 << 20))
    with pytest.raises(CopyFailed, match="a file is much larger than the box had listed"):
        sshd_box.openssh().pull(str(run), tmp_path / "mirror", {"large": 10})
    assert sum(sizes(tmp_path / "mirror").values()) <= 1 << 21


def test_copy_much_larger_than_listed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "GROWTH_BYTES", 1 << 20)
    monkeypatch.setattr(incoming, "LOOK_S", 0.0)
    (tmp_path / "before").write_bytes(bytes(5 << 20))
    monkeypatch.setattr(incoming, "LOOK_SHARE", 0)
    watch = Watch("copying", Allowance.of({"a": 1000}), [tmp_path])
    watch.check()
    (tmp_path / "more").write_bytes(os.urandom(3 << 20))
    with pytest.raises(CopyFailed, match="much more than the box had listed"):
        watch.check()


def test_size_of_a_large_mirror_is_not_measured_for_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring takes a small share of the time, however long one measurement takes."""
    looks = []

    def slow_size(folder: Path) -> int:
        looks.append(folder)
        time.sleep(0.1)  # as on a network file system
        return size_of(folder)

    size_of = incoming._size_of
    monkeypatch.setattr(incoming, "_size_of", slow_size)
    monkeypatch.setattr(incoming, "LOOK_S", 0.05)
    monkeypatch.setattr(incoming, "LOOK_SHARE", 10_000)
    watch = Watch("copying", Allowance.of({"a": 1000}), [tmp_path])
    for _ in range(20):
        time.sleep(0.01)
        watch.check()
    assert len(looks) == 1


def test_time_limit_grows_with_the_listed_size() -> None:
    none, much = Allowance.of({}), Allowance.of({"a": 10 << 30, "b": 10 << 30})
    assert none.seconds == incoming.COPY_BASE_S
    assert much.seconds == incoming.COPY_BASE_S + (20 << 30) / incoming.SLOWEST_BYTES_S + 2 * incoming.FILE_S
    assert (much.file_bytes, much.total_bytes) == (21 << 30, 41 << 30)


def test_many_small_files_get_more_time_and_the_error_names_the_limit(tmp_path: Path) -> None:
    allowance = Allowance.of({f"small{number}": 100 for number in range(200_000)})
    assert allowance.seconds >= 10_000  # 20 files per second
    watch = Watch("copying", dataclasses.replace(allowance, seconds=-1.0))
    with pytest.raises(HostTooSlow, match="the limit for 200000 files with 20 MB in all"):
        watch.check()
    assert Allowance.of({"a": 5}).listed == "1 file with 5 B in all"


# --- files that cannot be copied -------------------------------------------------------------------------


@pytest.fixture(params=["fabric", "openssh", "local"])
def either(request: pytest.FixtureRequest, sshd_box: SshdBox) -> SshTransport | LocalTransport:
    return by(request.param, sshd_box)


def by(way: str, box: SshdBox) -> SshTransport | LocalTransport:
    """Return a transport to a box: by a client of SSH, or `local`."""
    return LocalTransport("gpu1", sys.executable) if way == "local" else getattr(box, way)()


def test_files_that_cannot_be_copied_are_reported_and_others_are_copied(
    either: SshTransport | LocalTransport, tmp_path: Path
) -> None:
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    run.mkdir()
    deep = "/".join(["x" * 200] * 30)
    good = ["a", "z", "sub/b", "new\nline", "caf\udcff", "-n", "#c", "trailing "]
    for name in [*good, "is a folder here", "below/file", 'odd"name\n']:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("text")
    (mirror / "is a folder here" / "x").mkdir(parents=True)
    (mirror / "is a folder here" / "x" / "mine").write_text("mine")
    (mirror / "below").write_text("a file here")
    listed = {**sizes(run), "x" * 300: 1, deep: 1, "vanished": 3}
    with pytest.raises(CopyFailed, match=f"4 of {len(listed)} files failed") as failure:
        either.pull(str(run), mirror, listed)
    assert failure.value.rest_copied
    assert set(failure.value.failures) == {"is a folder here", "below/file", "x" * 300, deep}
    assert "is in the way (a directory)" in failure.value.failures["is a folder here"]
    assert "name too long" in failure.value.failures[deep]
    assert {*good, 'odd"name\n'} <= set(sizes(mirror))
    assert (mirror / "is a folder here/x/mine").read_text() == "mine"
    assert not list(mirror.rglob(".tmp-*"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("client", ["fabric", "openssh"])
def test_files_that_the_box_cannot_read_are_reported(sshd_box: SshdBox, tmp_path: Path, client: str) -> None:
    """The program that sends them runs as a user without permission to read them."""
    for name, program in (("rsync", rsync_here()), ("sftp", sftp_server())):
        (sshd_box.home / name).write_text(f'#!/bin/sh\nexec setpriv --reuid 65534 --clear-groups {program} "$@"\n')
        (sshd_box.home / name).chmod(0o755)
    sshd_box.stop()
    sshd_box.sftp = str(sshd_box.home / "sftp")
    sshd_box.env["PATH"] = f"{sshd_box.home}:{os.environ['PATH']}"
    sshd_box.start()
    run = tmp_path / "run"
    names = ["a", "z", "secret", "sub/new\nsecret", 'q"uote"secret', "\udcffsecret"]
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("text")
        (run / name).chmod(0o600 if "secret" in name else 0o644)
    for folder in (run, *run.parents):
        if folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    sshd_box.home.chmod(0o755)
    sshd_box.folder.chmod(0o755)
    with pytest.raises(CopyFailed, match="4 of 6 files failed") as failure:
        getattr(sshd_box, client)().pull(str(run), tmp_path / "mirror", sizes(run))
    assert set(failure.value.failures) == {name for name in names if "secret" in name}
    assert all("Permission denied" in reason for reason in failure.value.failures.values())
    assert set(sizes(tmp_path / "mirror")) == {"a", "z"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with about 2 MiB of space."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_laptop_disk_is_reported_and_the_copy_resumes(
    either: SshTransport | LocalTransport, tmp_path: Path, small_disk: Path
) -> None:
    run, mirror = tmp_path / "run", small_disk / "mirror"
    run.mkdir()
    (run / "a").write_text("a")
    (run / "large").write_bytes(os.urandom(1 << 20))
    (small_disk / "ballast").write_bytes(bytes(3 << 19))
    with pytest.raises(
        CopyFailed, match=f"the disk of this machine is full: [0-9.]+ [kM]?B free at {mirror}"
    ) as failure:
        either.pull(str(run), mirror, sizes(run))
    assert "free disk space" in failure.value.hint
    hidden = {path.name for path in mirror.rglob(".tmp-*")}
    assert hidden <= {PARTIAL}
    (small_disk / "ballast").unlink()
    either.pull(str(run), mirror, sizes(run))
    assert (mirror / "large").read_bytes() == (run / "large").read_bytes()
    assert set(sizes(mirror)) == {"a", "large"}


def test_next_copy_removes_leftovers_of_a_killed_copy(either: SshTransport | LocalTransport, tmp_path: Path) -> None:
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    run.mkdir()
    (run / "sub").mkdir()
    (run / "a").write_text("a")
    (run / "sub/b").write_text("b")
    lefts = (".tmp-incoming-x/.large.Ab3dEf", ".tmp-partial/large", "sub/.tmp-partial/gone", "other/.tmp-partial/c")
    for left in lefts:
        (mirror / left).parent.mkdir(parents=True, exist_ok=True)
        (mirror / left).write_text("half")
    with incoming.staging(mirror) as other:  # of another command that is running now
        either.pull(str(run), mirror, sizes(run))
        assert other.is_dir()
    assert set(sizes(mirror)) == {"a", "sub/b", "other/.tmp-partial/c"}  # the last one may be of another command


def test_unwritable_target_is_a_clear_error(either: SshTransport | LocalTransport, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/a").write_text("a")
    (tmp_path / "file").write_text("")
    with pytest.raises(CopyFailed, match="Not a directory"):
        either.pull(str(tmp_path / "run"), tmp_path / "file" / "mirror", {"a": 1})
    with pytest.raises(CopyFailed, match="no such directory|No such file"):
        either.pull(str(tmp_path / "gone"), tmp_path / "mirror", {"a": 1})


def test_unreachable_and_too_slow_are_distinguished() -> None:
    assert issubclass(HostTooSlow, HostUnreachable)
    assert (HostTooSlow.code, HostTooSlow.exit_code) == ("too_slow", 3)
