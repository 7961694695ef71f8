from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from orchestrator.box import local, transport
from orchestrator.box.agent_bundle import agent_bundle
from orchestrator.box.client import Box
from orchestrator.box.local import LocalTransport, install_agent
from orchestrator.code.snapshot import ship, take
from orchestrator.errors import AgentUnusable, HostError, HostUnreachable, OrchError, Refused
from remote.contract import trees
from remote.contract.paths import ProjectPaths
from remote.contract.requests import Where
from tests.support import sizes, toy_request

HELLO = toy_request("hello")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "orch"


@pytest.fixture
def here() -> LocalTransport:
    return LocalTransport("here", sys.executable)


def speaking(tmp_path: Path, body: str) -> LocalTransport:
    """Return a box with the agent `body`."""
    script = tmp_path / "agent"
    script.write_text(f"#!{sys.executable} -IS\nimport os, signal, sys\nout = sys.stdout.buffer\n{body}\n")
    script.chmod(0o700)
    return LocalTransport("here", str(script))


# --- requests -----------------------------------------------------------------------------------------


def test_agent_answers(here: LocalTransport) -> None:
    result = here.call(HELLO)
    assert result["home"] == str(Path.home())
    with pytest.raises(ProcessLookupError):
        os.kill(result["pid"], 0)
    here.close()


def test_refusal_by_the_agent_is_raised(here: LocalTransport) -> None:
    with pytest.raises(Refused, match="no operation 'dance'"):
        here.call(toy_request("dance"))
    with pytest.raises(Refused, match="here: "):
        list(here.stream(toy_request("follow", {"root": "/nowhere", "project": "../x"})))


def test_agent_is_cached_and_repaired(cache: Path) -> None:
    path = install_agent()
    assert path == cache / agent_bundle().name
    assert path.read_bytes() == agent_bundle().data
    assert [stat.S_IMODE(item.stat().st_mode) for item in (cache, path)] == [0o700, 0o600]
    before = path.stat()
    assert install_agent().stat().st_ino == before.st_ino
    path.write_bytes(b"torn")
    assert install_agent().read_bytes() == agent_bundle().data


def test_relative_cache_path_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert install_agent().parent == tmp_path / ".cache" / "orch"


def test_missing_python_is_reported(tmp_path: Path) -> None:
    with pytest.raises(AgentUnusable, match="starting the agent on here: .*no-python") as failure:
        LocalTransport("here", str(tmp_path / "no-python")).call(HELLO)
    assert "python" in failure.value.hint


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('it broke')", "ended without a reply: it broke"),
        ("pass", "ended without a reply: no output"),
        ("print('Welcome!')", r"unexpected reply \(protocol version mismatch\?\): 'Welcome!'"),
        ("out.write(b'x' * 300)", "is longer than 200 bytes"),
    ],
)
def test_malformed_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str) -> None:
    monkeypatch.setattr(transport, "MAX_REPLY_BYTES", 200)
    with pytest.raises(AgentUnusable, match=said):
        speaking(tmp_path, body).call(HELLO)


def test_request_is_one_line_and_then_stdin_ends(tmp_path: Path) -> None:
    box = speaking(
        tmp_path, 'print(\'{"schema":1,"ok":true,"result":{"asked":%r}}\' % len(sys.stdin.read().split("\\n")))'
    )
    assert box.call(HELLO) == {"asked": 2}


def test_large_stderr_does_not_block(tmp_path: Path) -> None:
    body = 'sys.stderr.write("x" * 10**6); print(\'{"schema":1,"ok":true,"result":{}}\')'
    assert speaking(tmp_path, body).call(HELLO) == {}


def test_child_that_keeps_stdout_open_does_not_delay_the_answer(tmp_path: Path) -> None:
    body = """
reader, writer = os.pipe()
if os.fork() == 0:
    os.read(reader, 1)  # until the test ends it
    os._exit(0)
print('{"schema":1,"ok":true,"result":{"group":%d}}' % os.getpgid(0), flush=True)
os.close(1)
"""
    group = speaking(tmp_path, body).call(HELLO)["group"]
    assert group != os.getpgid(0)  # Ctrl-C in our terminal does not reach it
    os.killpg(group, 9)


# --- streams ------------------------------------------------------------------------------------------

FRAMES = """
sys.stdin.read()
out.write(b'{"pid":%d}\\n' % os.getpid() + b'{"bytes":3,"offset":7}\\na\\nb')
out.flush()
"""


def test_stream_yields_frames_until_its_end(tmp_path: Path) -> None:
    box = speaking(tmp_path, FRAMES + "out.write(b'{\"end\":true}\\n')")
    first, second = box.stream(HELLO)
    assert first.data == b""
    assert (second.head["offset"], second.data) == (7, b"a\nb")
    assert is_gone(first.head["pid"])


def test_broken_stream_is_an_error(tmp_path: Path) -> None:
    frames = speaking(tmp_path, FRAMES).stream(HELLO)
    next(frames), next(frames)
    with pytest.raises(HostUnreachable, match="cut off"):
        next(frames)


@pytest.mark.parametrize("deaf", [False, True])
def test_closing_a_stream_ends_only_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
    monkeypatch.setattr(local, "TERM_GRACE_S", 0.05 if deaf else 60)
    body = f"{'signal.signal(signal.SIGTERM, signal.SIG_IGN)' if deaf else ''}\n{FRAMES}\nwhile True: signal.pause()"
    box = speaking(tmp_path, body)
    one, other = box.stream(HELLO), box.stream(HELLO)
    pids = [next(frames).head["pid"] for frames in (one, other)]
    one.close()  # type: ignore[attr-defined]
    assert [is_gone(pid) for pid in pids] == [True, False]
    other.close()  # type: ignore[attr-defined]
    assert is_gone(pids[1])


# --- push ---------------------------------------------------------------------------------------------


def test_push_preserves_dates_execute_bits_and_links(here: LocalTransport, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"a.py": "1", "deep/er/run.sh": "2", "not.named": "3"})
    (source / "deep" / "er" / "run.sh").chmod(0o775)
    (source / "link").symlink_to("a.py")
    os.utime(source / "a.py", ns=(10**18, 10**18 + 7))
    target = tmp_path / "target"
    target.mkdir()
    here.push(source, ["a.py", "deep/er/run.sh", "link"], str(target), None)
    assert names(target) == {"a.py", "deep", "deep/er", "deep/er/run.sh", "link"}
    assert (target / "a.py").stat().st_mtime_ns == 10**18 + 7
    assert [mode(target / name) for name in ("a.py", "deep", "deep/er", "deep/er/run.sh")] == [0o600, *[0o700] * 3]
    assert os.readlink(target / "link") == "a.py"
    assert (source / "a.py").stat().st_nlink == 1


def test_push_links_unchanged_files_of_the_last_snapshot(here: LocalTransport, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"same": "1", "edited": "22", "mode": "3", "new": "4", "dir/x": "5"})
    last = fill(tmp_path / "last", {"same": "1", "edited": "21", "mode": "3", "new/inner": "4", "gone": "6"})
    (last / "dir").symlink_to(source / "dir")  # a file of the user, if the link were followed
    (source / "mode").chmod(0o700)
    for name in ("same", "edited"):  # by dates and sizes, nothing changed
        os.utime(source / name, (1, 1))
        os.utime(last / name, (1, 1))
    target = tmp_path / "target"
    target.mkdir()
    here.push(source, ["same", "edited", "mode", "new", "dir/x"], str(target), str(last))
    assert (target / "same").samefile(last / "same")
    assert (target / "edited").read_text() == "22"
    assert mode(target / "mode") == 0o700
    assert [(source / name).stat().st_nlink for name in ("same", "edited", "mode", "new", "dir/x")] == [1] * 5


def test_push_into_another_filesystem_copies(
    here: LocalTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    source, last = fill(tmp_path / "source", {"a": "1"}), fill(tmp_path / "last", {"a": "1"})
    (tmp_path / "target").mkdir()
    here.push(source, ["a"], str(tmp_path / "target"), str(last))
    assert (tmp_path / "target" / "a").read_text() == "1"


def test_push_reports_what_failed(here: LocalTransport, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"a": "1"})
    with pytest.raises(OrchError, match="copying gone from .*: the file was removed meanwhile"):
        here.push(source, ["gone"], str(tmp_path), None)
    with pytest.raises(HostError, match="copying a from "):
        here.push(source, ["a"], str(source / "a" / "target"), None)


# --- pull ---------------------------------------------------------------------------------------------


def test_pull_copies_files_dates_and_modes(here: LocalTransport, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"training.log": "1\n", "checkpoints/a.pt": "2", "run.sh": "3"})
    (source / "run.sh").chmod(0o755)
    target = tmp_path / "mirror" / "run"
    here.pull(str(source), target, sizes(source))
    assert names(target) == names(source)
    assert (target / "training.log").stat().st_mtime_ns == (source / "training.log").stat().st_mtime_ns
    assert [mode(target / name) for name in (".", "checkpoints", "run.sh", "training.log")] == [0o700] * 3 + [0o600]
    before = (target / "checkpoints" / "a.pt").stat()
    with (source / "training.log").open("a") as log:
        log.write("2\n")
    (source / "run.sh").unlink()
    here.pull(str(source), target, sizes(source))
    assert (target / "training.log").read_text() == "1\n2\n"
    assert (target / "checkpoints" / "a.pt").stat().st_ino == before.st_ino
    assert (target / "run.sh").exists()  # nothing is ever deleted here


def test_pull_detects_a_change_of_the_same_size(here: LocalTransport, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"state.json": "1"})
    here.pull(str(source), tmp_path / "mirror", sizes(source))
    (source / "state.json").write_text("2")
    os.utime(source / "state.json", ns=(1, 1))
    here.pull(str(source), tmp_path / "mirror", sizes(source))
    assert (tmp_path / "mirror" / "state.json").read_text() == "2"


def test_pull_copies_listed_regular_files_only(here: LocalTransport, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"a": "1", "unlisted": "2", "deep/unlisted": "3", "deep/c": "5"})
    listed = {"a": 1, "deep/c": 1, "link": 1, "folder/c": 1, "pipe": 0, "was a file": 3}
    (source / "link").symlink_to("a")
    (source / "folder").symlink_to("deep")
    (source / "was a file").mkdir()
    os.mkfifo(source / "pipe")
    here.pull(str(source), tmp_path / "mirror", listed)
    assert names(tmp_path / "mirror") == {"a", "deep", "deep/c"}


def test_pull_writes_nothing_outside_the_mirror(here: LocalTransport, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"a": "new", "deep/b": "new"})
    outside = fill(tmp_path / "outside", {"a": "old", "b": "old"})
    target = tmp_path / "mirror"
    target.mkdir()
    (target / "a").symlink_to(outside / "a")
    (target / "deep").symlink_to(outside)
    here.pull(str(source), target, sizes(source))
    assert [(target / name).read_text() for name in ("a", "deep/b")] == ["new", "new"]
    assert not (target / "a").is_symlink()
    assert not (target / "deep").is_symlink()
    assert [(outside / name).read_text() for name in "ab"] == ["old", "old"]


def test_pull_skips_vanished_files(here: LocalTransport, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"a": "1", "b": "2", "deep/c": "3"})
    listed = sizes(source)
    (source / "a").unlink()
    shutil.rmtree(source / "deep")
    here.pull(str(source), tmp_path / "mirror", listed)
    assert names(tmp_path / "mirror") == {"b"}


def test_pull_of_a_missing_folder_is_an_error(here: LocalTransport, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(fill(tmp_path / "elsewhere", {"a": ""}))
    for path in ("gone", "link", "elsewhere/a"):
        with pytest.raises(OrchError, match="no such directory"):
            here.pull(str(tmp_path / path), tmp_path / "mirror", {"a": 0})


# --- code, from the laptop to the box -------------------------------------------------------------------


def test_launch_ships_code_once_and_shares_unchanged_files(here: LocalTransport, tmp_path: Path) -> None:
    code = fill(tmp_path / "code", {"train.py": "1", "pkg/model.py": "2", "run.sh": "3", ".env": "SECRET"})
    (code / "run.sh").chmod(0o755)
    box = ProjectPaths(tmp_path / "root", "thing")

    first = take(code)
    assert ship(first, Box(here, Where(str(box.box), "thing")))
    assert not ship(first, Box(here, Where(str(box.box), "thing")))
    assert names(box.tree(first.tree)) == {"train.py", "pkg", "pkg/model.py", "run.sh"}
    assert mode(box.tree(first.tree) / "run.sh") == 0o500

    (code / "train.py").write_text("changed")
    second = take(code)
    assert ship(second, Box(here, Where(str(box.box), "thing")))
    links = {name: (box.tree(second.tree) / name).stat().st_nlink for name in second.files}
    assert links == {"train.py": 1, "pkg/model.py": 2, "run.sh": 2}
    assert (box.tree(first.tree) / "train.py").read_text() == "1"
    assert trees.tree_hash(trees.scan(box.tree(first.tree))) == first.tree


def test_code_that_changes_during_upload_is_refused(here: LocalTransport, tmp_path: Path) -> None:
    code = fill(tmp_path / "code", {"train.py": "1"})
    snapshot = take(code)
    (code / "train.py").write_text("2")
    with pytest.raises(Refused, match="not those of the announced tree"):
        ship(snapshot, Box(here, Where(str(tmp_path / "root"), "thing")))
    assert names(tmp_path / "root" / "thing" / "code") == {".incoming"}


def test_code_modified_on_the_box_is_repaired(here: LocalTransport, tmp_path: Path) -> None:
    code = fill(tmp_path / "code", {"train.py": "1", "model.py": "2"})
    snapshot = take(code)
    ship(snapshot, Box(here, Where(str(tmp_path / "root"), "thing")))
    shipped = ProjectPaths(tmp_path / "root", "thing").tree(snapshot.tree)
    (shipped / "train.py").chmod(0o600)
    (shipped / "train.py").write_text("patched")
    assert ship(snapshot, Box(here, Where(str(tmp_path / "root"), "thing")))
    assert (shipped / "train.py").read_text() == "1"


def fill(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
