"""The data that is sent to a box: what belongs to it, and the hash of its content, read once."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from orchestrator.code import dataset
from orchestrator.code.dataset import content_hash, examine
from orchestrator.errors import OrchError, SpecError
from orchestrator.system import cache
from remote.contract.files import sha256_of

OLD = (1_000_000_000.0, 1_000_000_000.0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    for name in ("train/a.bin", "train/b.bin", "labels.csv"):
        (folder / name).write_text(name)
        os.utime(folder / name, OLD)
    (folder / "first").symlink_to("train/a.bin")
    return folder


def test_data_is_all_that_a_box_can_have(data: Path) -> None:
    (data / "disk").symlink_to("/mnt/disk")
    (data / "train/up").symlink_to("../../other")
    (data / "train/sibling").symlink_to("../labels.csv")
    os.mkfifo(data / "pipe")
    (data / ".git").mkdir()
    (data / ".git/config").write_text("x")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(data / "s"))
        found = examine(data)
    assert set(found.entries) == {"train/a.bin", "train/b.bin", "labels.csv", "first", "train/sibling"}
    assert dict(found.skipped) == {
        "disk": "a link out of the directory, to /mnt/disk",
        "train/up": "a link out of the directory, to ../../other",
        "pipe": "not a regular file",
        "s": "not a regular file",
        ".git/config": "git's own data",
    }
    assert found.size == len("train/a.bin" + "train/b.bin" + "labels.csv")


def test_link_to_the_data_is_followed(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "one").symlink_to(data / "labels.csv")
    assert set(examine(tmp_path / "link").entries) == set(examine(data).entries)
    single = examine(tmp_path / "one")
    assert (single.name, set(single.entries)) == ("labels.csv", {"labels.csv"})


@pytest.mark.parametrize(("name", "said"), [("nothing", "no such file"), ("empty", "no files"), ("pipe", "neither")])
def test_nothing_to_send_is_an_error(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecError, match=said):
        examine(tmp_path / name)


def test_hash_is_that_of_names_and_contents(data: Path) -> None:
    before = content_hash(examine(data))
    os.utime(data / "labels.csv", (2_000_000.0, 2_000_000.0))
    assert content_hash(examine(data)) == before
    (data / "labels.csv").write_text("LABELS.csv")
    changed = content_hash(examine(data))
    (data / "first").unlink()
    assert len({before, changed, content_hash(examine(data))}) == 3


def test_unchanged_files_are_not_read_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(file: object) -> str:
        read.append(os.path.basename(file.name))  # type: ignore[attr-defined]
        return sha256_of(file)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "sha256_of", counted)
    first = content_hash(examine(data))
    assert sorted(read) == ["a.bin", "b.bin", "labels.csv"]
    assert content_hash(examine(data)) == first and len(read) == 3
    (data / "labels.csv").write_text("x")  # changed just now: it may change again within the same date
    content_hash(examine(data))
    content_hash(examine(data))
    assert read[3:] == ["labels.csv", "labels.csv"]
    (data / "train/a.bin").unlink()  # another file with the same size and date
    (data / "new").write_text("train/a.bix")
    (data / "new").rename(data / "train/a.bin")
    os.utime(data / "train/a.bin", OLD)
    assert content_hash(examine(data)) != first


def test_damaged_cache_counts_as_empty(data: Path) -> None:
    first = content_hash(examine(data))
    (record,) = cache.directory().glob(f"{cache.DATA_PREFIX}*")
    for damage in ("", "[]", '{"files": 3}', '{"files": {"labels.csv": ["x"], "train/a.bin": 7}}'):
        record.write_text(damage)
        assert content_hash(examine(data)) == first


def test_file_that_is_removed_meanwhile_is_an_error(data: Path) -> None:
    found = examine(data)
    (data / "labels.csv").unlink()
    with pytest.raises(OrchError, match=r"labels\.csv: No such file"):
        content_hash(found)
