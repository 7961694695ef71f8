from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.contract import logs
from remote.contract.files import TEMP_PREFIX
from remote.contract.logs import CHUNK, LogReader, line_offset, log_size, parts
from remote.contract.paths import RunPaths
from remote.shim.log_writer import KEPT_PARTS, LogWriter
from tests.remote_runs import in_private_mounts
from tests.support import ROOT

Fresh = Callable[[], RunPaths]


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """Return a function that makes a new directory at each call, for property tests."""
    return lambda: RunPaths(tmp_path_factory.mktemp("run"))


def read_all(run: RunPaths, offset: int = 0, size: int = CHUNK) -> bytes:
    """Return all bytes from `offset` on, with a mark where a part was removed."""
    reader = LogReader(run)
    found = b""
    while True:
        start, data = reader.read(offset, size)
        found += b"" if start == offset else b"<%d missing>" % (start - offset)
        found += data
        if not data:
            reader.close()
            return found
        offset = start + len(data)


def names(run: RunPaths) -> list[str]:
    return sorted(os.listdir(run.log_parts)) if run.log_parts.exists() else []


# --- writing ------------------------------------------------------------------------------------------


def test_full_log_becomes_a_compressed_part(run: RunPaths) -> None:
    writer = LogWriter(run, part_bytes=10)
    for line in (b"0123456789", b"ab", b"cdefghijkl", b"end"):
        writer.write(line)
    assert names(run) == ["000000000000000-000000000000010.gz", "000000000000010-000000000000022.gz"]
    assert gzip.decompress((run.log_parts / names(run)[1]).read_bytes()) == b"abcdefghijkl"
    assert run.log.read_bytes() == b"end"
    assert log_size(run) == 25
    assert {path.stat().st_mode & 0o777 for path in run.log_parts.iterdir()} == {0o600}


def test_second_writer_continues_after_the_first(run: RunPaths) -> None:
    LogWriter(run, part_bytes=4).write(b"one\n")
    LogWriter(run, part_bytes=4).write(b"two\n")
    assert (read_all(run), log_size(run)) == (b"one\ntwo\n", 8)


def test_first_part_and_newest_parts_are_kept(run: RunPaths) -> None:
    writer = LogWriter(run, part_bytes=4)
    for number in range(KEPT_PARTS + 1):  # all parts that are kept, and then the newest bytes
        writer.write(b"%03d\n" % number)
    assert len(parts(run)) == KEPT_PARTS
    assert read_all(run) == b"".join(b"%03d\n" % number for number in range(KEPT_PARTS + 1))
    for number in range(KEPT_PARTS + 1, KEPT_PARTS + 4):
        writer.write(b"%03d\n" % number)
    kept = parts(run)
    assert len(kept) == KEPT_PARTS
    assert [part.start for part in kept] == [0, *range(4 * 4, 4 * (KEPT_PARTS + 3), 4)]
    newest = b"".join(b"%03d\n" % number for number in range(4, KEPT_PARTS + 4))
    assert read_all(run) == b"000\n<12 missing>" + newest
    assert log_size(run) == 4 * (KEPT_PARTS + 4)  # offsets include removed parts


@pytest.mark.parametrize("crash", ["renamed", "half compressed", "not yet removed"])
def test_writer_killed_during_compression_loses_nothing(run: RunPaths, crash: str) -> None:
    run.log_parts.mkdir()
    part = run.log_parts / f"{0:015d}-{8:015d}.part"
    part.write_bytes(b"one\ntwo\n")
    if crash == "half compressed":
        (run.log_parts / f"{TEMP_PREFIX}0123").write_bytes(gzip.compress(b"one\ntwo\n")[:9])
    if crash == "not yet removed":
        part.with_suffix(".gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    assert (read_all(run), log_size(run)) == (b"one\ntwo\n", 8)
    LogWriter(run).write(b"three\n")
    assert (read_all(run), log_size(run)) == (b"one\ntwo\nthree\n", 14)
    assert names(run) == [part.with_suffix(".gz").name]


def test_lost_output_on_a_full_disk_is_noted_later(tmp_path: Path) -> None:
    in_private_mounts(
        f"mount -t tmpfs -o size=4m tmpfs '{tmp_path}'",
        """
        from pathlib import Path
        from remote.contract.logs import LogReader, log_size
        from remote.shim.log_writer import HELD_BYTES, LogWriter
        from remote.contract.paths import RunPaths
        run = RunPaths(Path(sys.argv[1]))
        ballast = run.root / "ballast"
        writer = LogWriter(run)
        writer.write(b"before\\n")
        try:
            with open(ballast, "wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError:
            pass
        for _ in range(150):
            writer.write(b"x" * 9_999 + b"\\n")
        kept = run.log.stat().st_size
        assert kept < 16384 and writer.is_behind, kept
        ballast.unlink()
        writer.write(b"after\\n")
        said = LogReader(run).read(0, 1 << 21)[1]
        lost = 7 + 1_500_000 - kept - HELD_BYTES
        notice = f"\\n[orch] {lost} bytes of output are missing here: No space left on device\\n".encode()
        whole = b"before\\n" + (b"x" * 9_999 + b"\\n") * 150
        assert said == whole[: kept + HELD_BYTES] + notice + b"after\\n", (kept, said[-200:])
        assert log_size(run) == len(said)
        """,
        tmp_path,
    )


def test_log_stays_uncompressed_on_a_full_disk(tmp_path: Path) -> None:
    in_private_mounts(
        f"mount -t tmpfs -o size=256k tmpfs '{tmp_path}'",
        """
        import os
        from pathlib import Path
        from remote.contract.logs import LogReader
        from remote.shim.log_writer import LogWriter
        from remote.contract.paths import RunPaths
        run = RunPaths(Path(sys.argv[1]))
        noise = os.urandom(150_000)  # so random that its compressed form does not fit on the disk as well
        writer = LogWriter(run, part_bytes=100_000)
        writer.write(noise)
        writer.write(b"after")
        assert [name.rpartition(".")[2] for name in os.listdir(run.log_parts)] == ["part"], os.listdir(run.log_parts)
        reader = LogReader(run)
        assert reader.read(0, 1 << 20) == (0, noise)
        assert reader.read(150_000) == (150_000, b"after")
        """,
        tmp_path,
    )


# --- reading ------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=12), max_size=12), st.integers(1, 20), st.integers(1, 30))
@settings(max_examples=60)
def test_every_offset_reads_byte_exact(fresh: Fresh, chunks: list[bytes], part_bytes: int, size: int) -> None:
    run, data = fresh(), b"".join(chunks)
    writer = LogWriter(run, part_bytes)
    for chunk in chunks:
        writer.write(chunk)
    assert log_size(run) == len(data)
    if len(parts(run)) >= KEPT_PARTS:
        return
    for offset in range(len(data) + 1):
        assert read_all(run, offset, size) == data[offset:]
    reader = LogReader(run)  # one reader for all offsets, which also go backwards
    for offset in reversed(range(len(data) + 1)):
        start, found = reader.read(offset, size)
        assert (start, found) == (offset, data[offset : offset + len(found)])
        assert found or offset == len(data)
    reader.close()


def test_missing_log_reads_as_empty(run: RunPaths) -> None:
    assert LogReader(run).read(0) == (0, b"")
    assert log_size(run) == 0
    run.log_parts.mkdir()
    (run.log_parts / "notes.txt").write_text("not ours")
    assert parts(run) == []


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from remote.shim.log_writer import LogWriter
from remote.contract.paths import RunPaths
writer = LogWriter(RunPaths(Path(sys.argv[2])), part_bytes=2000)
for number in range(2500):
    writer.write(b"line %06d\\n" % number)
"""


def test_reader_sees_every_byte_once_during_rotation(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log becomes fourteen parts, fewer than are kept. Its size never decreases."""
    expected = b"".join(b"line %06d\n" % number for number in range(2500))
    found, size = b"", 0
    reader = LogReader(run)
    with subprocess.Popen([sys.executable, "-S", "-c", WRITER, str(ROOT), str(run.root)]) as writer:
        while len(found) < len(expected):
            is_over = writer.poll() is not None
            now = log_size(run)
            assert now >= size
            size = now
            start, data = reader.read(len(found), 701)
            assert start == len(found)
            found += data
            assert data or not is_over, f"it ended at {len(found)}"
    reader.close()
    assert writer.returncode == 0
    assert found == expected
    assert 10 < len(parts(run)) < KEPT_PARTS


# --- the last lines -----------------------------------------------------------------------------------


def last_lines(data: bytes, count: int) -> bytes:
    """Return what `tail -n` prints."""
    return b"".join(data.splitlines(keepends=True)[-count:]) if count > 0 else b""


newlines = st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\xff", b"\0"]), max_size=40).map(b"".join)


@given(newlines, st.integers(-1, 45), st.integers(1, 9), st.integers(1, 60))
@settings(max_examples=300)
def test_line_offset_matches_a_simple_implementation(
    fresh: Fresh, data: bytes, count: int, chunk: int, part_bytes: int
) -> None:
    run = fresh()
    writer = LogWriter(run, part_bytes)
    step = max(1, len(data) // (KEPT_PARTS - 2))
    for at in range(0, len(data), step):
        writer.write(data[at : at + step])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "CHUNK", chunk)
        offset = line_offset(run, count)
    assert data[offset:] == last_lines(data, count)


def test_lines_are_counted_as_a_terminal_shows_them(run: RunPaths) -> None:
    nested = b"".join(b"\n\r inner %d/9\x1b[A" % number for number in range(10_000))
    run.log.write_bytes(b"one\ntwo\n" + b"\r outer 0/3" + nested + b"\n\n\x1b[2A\n\nlast")
    assert line_offset(run, 1) == log_size(run) - len(b"last")
    assert line_offset(run, 3) == len(b"one\ntwo\n")
    assert line_offset(run, 4) == len(b"one\n")


def test_search_for_the_last_lines_is_limited(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_SEARCHED", 100)
    writer = LogWriter(run, part_bytes=CHUNK)
    for _ in range(4):
        writer.write(b"x" * CHUNK)
    assert len(parts(run)) == 3
    assert 100 <= log_size(run) - line_offset(run, 1) <= CHUNK + 100
    assert line_offset(run, 1000) == 0


@pytest.mark.parametrize("damage", ["junk", "cut", "empty", "directory", "fifo", "dangling link"])
@pytest.mark.timeout(20)
def test_damaged_part_is_skipped(run: RunPaths, damage: str) -> None:
    writer = LogWriter(run, part_bytes=10)
    for line in range(4):
        writer.write(b"line %d...\n" % line)
    part = parts(run)[1].path
    data = part.read_bytes()
    part.unlink()
    if damage == "directory":
        part.mkdir()
    elif damage == "fifo":
        os.mkfifo(part)
    elif damage == "dangling link":
        part.symlink_to("nowhere")
    else:
        kinds = {"junk": b"junk", "cut": data[:12], "empty": b""}
        part.write_bytes(kinds[damage])

    assert read_all(run) == b"line 0...\n<10 missing>line 2...\nline 3...\n"
    assert line_offset(run, 2) == 20


@pytest.mark.parametrize("shift", [-1, 0, 1])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_lines_may_cross_chunks(run: RunPaths, shift: int, end: bytes) -> None:
    data = b"first\n" + b"x" * (CHUNK + shift - len(end)) + end
    run.log.write_bytes(data)
    assert line_offset(run, 1) == len(b"first\n")
    assert line_offset(run, 2) == 0
    run.log.write_bytes(b"\n" * (2 * CHUNK + shift))
    assert line_offset(run, CHUNK + 1) == CHUNK + shift - 1


def test_too_many_lines_give_all_and_zero_lines_give_the_end(run: RunPaths) -> None:
    run.log.write_bytes(b"one\ntwo")
    assert [line_offset(run, count) for count in (0, 1, 2, 3, 10**9)] == [7, 4, 0, 0, 0]
    run.log.unlink()
    assert line_offset(run, 5) == 0


@pytest.mark.parametrize("chunk", [1, 5, CHUNK])
def test_lines_are_counted_across_a_removed_part(run: RunPaths, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """[0, 8) and [20, 28) are kept, [8, 20) is not."""
    monkeypatch.setattr(logs, "CHUNK", chunk)
    run.log_parts.mkdir()
    for start, data in ((0, b"one\ntwo\n"), (20, b"six\nsev\n")):
        (run.log_parts / f"{start:015d}-{start + 8:015d}.gz").write_bytes(gzip.compress(data))
    run.log.write_bytes(b"eight\n")
    found = [read_all(run, line_offset(run, count)) for count in range(1, 7)]
    assert found[0] == b"eight\n"
    assert found[1] == b"sev\neight\n"
    assert found[2].endswith(b"six\nsev\neight\n") and b"two" not in found[2]
    assert found[3] == b"two\n<12 missing>six\nsev\neight\n"
    assert found[4] == found[5] == b"one\ntwo\n<12 missing>six\nsev\neight\n"
