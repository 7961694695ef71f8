from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.contract.files import (
    MAX_JSON_BYTES,
    TEMP_PREFIX,
    append_jsonl,
    parse_object,
    read_json,
    read_jsonl,
    sha256_file,
    to_json,
    write_atomic,
    write_json,
)
from tests.support import ROOT

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
records = st.dictionaries(st.text(max_size=5), values, max_size=4)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that all examples of a property test share."""
    return tmp_path_factory.mktemp("files")


# --- complete or missing ------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [False, True])
def test_write_replaces_the_file_and_leaves_no_temporary_file(tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "state.json"
    write_atomic(target, b"a longer first text", durable)
    write_atomic(target, b"second", durable)
    assert target.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["state.json"]


def test_written_file_is_private(tmp_path: Path) -> None:
    write_atomic(tmp_path / "state.json", b"")
    assert (tmp_path / "state.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("durable", [False, True])
def test_failed_write_leaves_no_temporary_file(tmp_path: Path, durable: bool) -> None:
    (tmp_path / "state.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "state.json", b"x", durable)
    assert os.listdir(tmp_path) == ["state.json"]


def test_value_that_is_not_json_leaves_the_file_unchanged(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "state.json", {"a": object()})
    assert read_json(tmp_path / "state.json") == {"a": 1}
    assert os.listdir(tmp_path) == ["state.json"]


CRASH = """
import os, sys
from pathlib import Path
from remote.contract.files import write_atomic

def crash(event, args):
    if event == "os.rename":
        os._exit(9)

write_atomic(Path(sys.argv[1]), b"old")
sys.addaudithook(crash)
write_atomic(Path(sys.argv[1]), b"new", durable=True)
"""


def test_crash_before_the_rename_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    with python(CRASH, target) as process:
        assert process.wait() == 9
    assert target.read_bytes() == b"old"
    assert [name.startswith(TEMP_PREFIX) for name in sorted(os.listdir(tmp_path))] == [True, False]


def test_reader_never_sees_a_partial_write(tmp_path: Path) -> None:
    writer = """
        import sys
        from pathlib import Path
        from remote.contract.files import write_json
        for number in range(300):
            write_json(Path(sys.argv[1]), {"number": number, "filler": "x" * (number * 37 % 5000)})
    """
    target = tmp_path / "state.json"
    write_json(target, {"number": -1})
    seen = []
    with python(writer, target) as process:
        while process.poll() is None:
            record = read_json(target)
            assert record is not None
            seen.append(record["number"])
        assert process.returncode == 0
    assert seen == sorted(seen)
    assert read_json(target)["number"] == 299  # type: ignore[index]


# --- JSON ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_non_finite_number_becomes_null(number: float) -> None:
    value = {"a": number, "list": [number, (number, 1)], "deep": {"b": {"c": number}}}
    assert to_json(value) == b'{"a":null,"list":[null,[null,1]],"deep":{"b":{"c":null}}}\n'


@given(records)
@settings(deadline=None)
def test_json_is_one_strict_line_and_reads_back(record: dict[str, Any]) -> None:
    line = to_json(record)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    back = parse_object(line)
    assert back == finite(record)
    assert to_json(back) == line


def finite(value: Any) -> Any:
    """Return the value with None for numbers that are not finite or need more than 63 bits."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, int) and abs(value) >= 2**63:
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else value


NO_OBJECT = {
    "empty": b"",
    "torn": b'{"a": 1',
    "two": b'{"a":1}{"b":2}',
    "a list": b"[1]",
    "a number": b"1",
    "null": b"null",
    "not UTF-8": b'{"a":"\xff"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a":1}',
    "NULs, as a power cut leaves them": b"\0" * 512,
    "nested too deep": b'{"a":' * 100_000,
    "nested too deep and whole": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "lists nested too deep": b"[" * 100_000,
}


def test_number_beyond_63_bits_reads_as_null() -> None:
    for number in (b"9" * 10_000, b"-9223372036854775809", b"1e999", b"NaN", b"-Infinity"):
        assert parse_object(b'{"a":' + number + b',"b":9223372036854775807}') == {"a": None, "b": 2**63 - 1}


@pytest.mark.parametrize("data", NO_OBJECT.values(), ids=NO_OBJECT)
def test_value_that_is_not_an_object_reads_as_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state.json").write_bytes(data)
    assert read_json(tmp_path / "state.json") is None
    assert list(read_jsonl(tmp_path / "state.json")) in ([], [{"a": 1}])


def test_file_that_cannot_be_opened_reads_as_none(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "link", tmp_path / "absent" / "state.json"):
        assert read_json(path) is None
    assert list(read_jsonl(tmp_path / "absent")) == []


def test_file_at_the_size_limit_is_read_and_a_larger_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    filler = MAX_JSON_BYTES - len(b'{"a":""}')
    path.write_bytes(b'{"a":"' + b"x" * filler + b'"}')
    assert read_json(path) == {"a": "x" * filler}
    path.write_bytes(b'{"a":"' + b"x" * (filler + 1) + b'"}')
    assert read_json(path) is None


@given(st.binary() | st.text().map(str.encode) | records.map(to_json))
@settings(deadline=None)
def test_any_bytes_are_read_without_error(scratch: Path, data: bytes) -> None:
    path = scratch / "any.json"
    path.write_bytes(data)
    assert isinstance(read_json(path), (dict, type(None)))
    assert all(isinstance(record, dict) for record in read_jsonl(path))


# --- JSON lines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b'{"epo', b"\0\0\0", b'{"epoch":2}', b"\xff"])
def test_append_after_a_partial_line_starts_a_new_line(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"epoch": 1})
    with path.open("ab") as file:
        file.write(torn)
    append_jsonl(path, {"epoch": 3})
    append_jsonl(path, {"epoch": 4})
    assert path.read_bytes() == b'{"epoch":1}\n' + torn + b'\n{"epoch":3}\n{"epoch":4}\n'
    assert [record["epoch"] for record in read_jsonl(path) if record["epoch"] != 2] == [1, 3, 4]


@given(
    st.lists(st.tuples(st.dictionaries(st.text(max_size=3), scalars, max_size=2), st.binary(max_size=12)), max_size=8)
)
@settings(deadline=None, max_examples=60)
def test_garbage_between_records_loses_no_record(scratch: Path, pieces: list[tuple[dict[str, Any], bytes]]) -> None:
    path = scratch / "any.jsonl"
    path.unlink(missing_ok=True)
    for record, garbage in pieces:
        append_jsonl(path, record)
        with path.open("ab") as file:
            file.write(garbage)
    found = list(read_jsonl(path))
    for record, _ in pieces:  # garbage may look like a record, so only require that ours are found, in order
        while found and found[0] != finite(record):
            found.pop(0)
        assert found, f"{record} was lost"
        found.pop(0)


def test_line_beyond_the_limit_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":"' + b"x" * (2 * MAX_JSON_BYTES) + b'"}\n{"a":2}\n')
    assert list(read_jsonl(path)) == [{"a": 1}, {"a": 2}]


def test_two_appending_processes_lose_no_line(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from remote.contract.files import append_jsonl
        sys.stdin.readline()
        for number in range(200):
            record = {"who": sys.argv[2], "number": number, "filler": "x" * (number * 31 % 3000)}
            append_jsonl(Path(sys.argv[1]), record)
    """
    path = tmp_path / "events.jsonl"
    with python(code, path, "a") as one, python(code, path, "b") as other:
        for process in (one, other):
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [one.wait(), other.wait()] == [0, 0]
    found = list(read_jsonl(path))
    assert len(found) == 400
    for who in "ab":
        assert [record["number"] for record in found if record["who"] == who] == list(range(200))
    assert json.dumps(found).count("x") == 2 * sum(number * 31 % 3000 for number in range(200))


def test_checksum_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 1)
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == sha256(data).hexdigest()
    (tmp_path / "link").symlink_to("file")
    assert sha256_file(tmp_path / "link") == sha256(data).hexdigest()
    (tmp_path / "empty").touch()
    assert sha256_file(tmp_path / "empty") == sha256(b"").hexdigest()


@contextmanager
def python(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program that can import `remote` in a separate process; end it when the block exits."""
    argv = [sys.executable, "-S", "-c", dedent(code), *map(str, args)]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
