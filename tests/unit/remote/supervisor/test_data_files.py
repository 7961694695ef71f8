from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.supervisor import data_files
from remote.supervisor.data_files import find_files, what_is_in
from tests.remote_runs import nested


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with a link to another disk's images, one upwards, and two to the same directory."""
    data, disk = tmp_path / "data", tmp_path / "disk"
    for name in ("train/cats/1.png", "train/cats/2.png", "train/dogs/1.png", "labels.csv"):
        path = disk / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    data.mkdir()
    (data / "images").symlink_to(disk / "train")
    (data / "again").symlink_to(disk / "train")
    (disk / "train" / "up").symlink_to(data)
    (data / "gone").symlink_to(disk / "no-such")
    (data / "one.png").write_text("x")
    return data


def names(data: Path, pattern: str, most: int = 100) -> list[str]:
    return sorted(str(path.relative_to(data)) for path in find_files(data, pattern, most))


def test_links_to_directories_are_followed_once(data: Path) -> None:
    again = ["again/cats/1.png", "again/cats/2.png", "again/dogs/1.png", "one.png"]
    assert names(data, "**/*.png") == again  # and not once more as images/, or through the link upwards
    assert names(data, "**/cats/*.png") == again[:2]
    assert names(data, "images/**/*.png") == ["images/cats/1.png", "images/cats/2.png", "images/dogs/1.png"] + [
        "images/up/one.png"
    ]
    assert len(find_files(data, "**/*.png", 2)) == 2


def test_links_without_a_wildcard_for_directories_all_count(data: Path) -> None:
    assert names(data, "*/cats/1.png") == ["again/cats/1.png", "images/cats/1.png"]
    assert names(data, "./images//dogs/") == ["images/dogs"]
    assert names(data, "[io]*") == ["images", "one.png"]
    assert names(data, "**.png") == ["one.png"]
    assert names(data, "gone") == ["gone"] and names(data, "gone/*") == []
    assert find_files(data / "no-such", "**/*", 1) == []


def test_search_is_bounded(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "MAX_ENTRIES", 3)
    assert names(data, "**/2.png") == []


def test_many_links_to_each_other_take_no_time(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        for other in range(12):
            (tmp_path / str(number) / f"to{other}").symlink_to(tmp_path / str(other))
    assert names(tmp_path, "**/*.png") == []


def test_deep_directories_are_searched(tmp_path: Path) -> None:
    with nested(tmp_path, "d", 200):
        assert len(find_files(tmp_path, "**/file", 2)) == 1


def test_kinds_of_files_are_counted_through_links(data: Path) -> None:
    found = what_is_in(data)
    assert found[0] == ("again/cats/*.png", 2)
    assert set(found[1:]) == {("*", 1), ("*.png", 1), ("again/dogs/*.png", 1)}


TREE = ("a/x.pt", "a/b/x.pt", "a/b/.h.pt", "b/x.txt", "x.pt", "c/b/a/x.pt")
PARTS = st.sampled_from(["**", "*", "a", "b", "*.pt", "x.*", "[ab]", "?"])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for name in TREE:
        os.makedirs(folder / os.path.dirname(name), exist_ok=True)
        (folder / name).write_text("x")
    return folder


@settings(deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=4).filter(lambda parts: parts[-1] != "**"))
def test_without_links_it_is_the_glob_of_pathlib(tree: Path, parts: list[str]) -> None:
    pattern = "/".join(parts)
    assert sorted(set(find_files(tree, pattern, 1000))) == sorted(set(tree.glob(pattern)))
