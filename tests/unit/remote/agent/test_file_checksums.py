"""Checksums of the files of a run: made once, and again when the file has changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from remote.agent import file_checksums as checksums
from remote.contract.files import read_jsonl, write_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.requests import ChecksumsRequest

RUN_ID = "20260126T210312-7f3a"


@pytest.fixture
def run(paths: ProjectPaths) -> RunPaths:
    run = paths.run("worker1", RUN_ID)
    run.results.mkdir(parents=True)
    write_json(run.run, {})
    return run


def ask(paths: ProjectPaths, *names: str, job: str = "worker1") -> list[object]:
    request = ChecksumsRequest(tuple((job, RUN_ID, name) for name in names))
    return list(checksums.checksums(paths, request).files)


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def test_checksum_is_made_once_until_the_file_changes(paths: ProjectPaths, run: RunPaths) -> None:
    file = run.results / "a\udcff"
    file.write_bytes(b"first")
    name = "results/a\udcff"
    entry = [5, file.stat().st_mtime_ns, digest(b"first")]
    assert ask(paths, name) == ask(paths, name) == [entry]
    assert len(list(read_jsonl(run.checksums))) == 1
    file.write_bytes(b"other")
    os.utime(file, ns=(1, 1))
    assert ask(paths, name) == [[5, 1, digest(b"other")]]
    assert ask(paths, name) == [[5, 1, digest(b"other")]]
    assert len(list(read_jsonl(run.checksums))) == 2


def test_what_cannot_be_read_has_no_checksum(paths: ProjectPaths, run: RunPaths, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (run.results / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(run.results / "pipe")
    (run.results / "a").write_bytes(b"a")
    names = ["results/link", "results/pipe", "results", "results/gone", "../x", "", "results/\0", "results/a"]
    *others, last = ask(paths, *names)
    assert others == [None] * 7 and last == [1, (run.results / "a").stat().st_mtime_ns, digest(b"a")]
    assert ask(paths, "results/a", job="other") == [None]


def test_malformed_record_is_ignored(paths: ProjectPaths, run: RunPaths) -> None:
    (run.results / "a").write_bytes(b"a")
    run.checksums.write_text('[]\n{"path": 7}\n{"path": "results/a", "bytes": 1}\nnoise')
    assert ask(paths, "results/a") == [[1, (run.results / "a").stat().st_mtime_ns, digest(b"a")]]


def test_reply_is_bounded_in_time(paths: ProjectPaths, run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (run.results / name).write_bytes(b"x")
    monkeypatch.setattr(checksums, "REPLY_S", -1.0)
    assert len(ask(paths, "results/a", "results/b")) == 1
    monkeypatch.setattr(checksums, "FILE_S", -1.0)
    assert ask(paths, "results/b") == [None]
