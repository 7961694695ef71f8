from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.agent.code_store import begin, commit, finish, has, newest_tree
from remote.contract import trees
from remote.contract.paths import ProjectPaths
from remote.contract.protocol import AgentError
from remote.contract.trees import TreeEntry, read, scan, tree_hash
from remote.contract.uploads import CodeBeginReply, CodeCommitReply

DAY_S = 24 * 3600

# A name may contain any bytes except NUL and slash: newlines, quotes, bytes that are not UTF-8.
parts = st.binary(min_size=1, max_size=6).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b".."))
paths = st.lists(parts, min_size=1, max_size=3).map(lambda names: os.fsdecode(b"/".join(names)))
entries = st.builds(
    TreeEntry,
    st.sampled_from(["file", "exec", "link"]),
    st.binary(max_size=2).map(lambda data: sha256(data).hexdigest()),
)
listings = st.dictionaries(paths, entries, max_size=5)


# --- the hash -----------------------------------------------------------------------------------------


@given(listings, st.randoms(use_true_random=False))
def test_order_of_entries_does_not_matter(listing: dict[str, TreeEntry], shuffler: random.Random) -> None:
    rows = list(listing.items())
    shuffler.shuffle(rows)
    assert tree_hash(dict(rows)) == tree_hash(listing)


@given(listings, listings)
def test_different_trees_have_different_hashes(one: dict[str, TreeEntry], other: dict[str, TreeEntry]) -> None:
    assert (tree_hash(one) == tree_hash(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a", "b"], ["a\nb"]),
        (["a,b"], ["a", "b"]),
        (['a"'], ["a\\"]),
        (["\udcff"], ["\\udcff"]),
        (["ab/c"], ["a/bc"]),
    ],
)
def test_unusual_names_have_different_hashes(one: list[str], other: list[str]) -> None:
    entry = TreeEntry("file", sha256(b"").hexdigest())
    assert tree_hash(dict.fromkeys(one, entry)) != tree_hash(dict.fromkeys(other, entry))


def test_hash_of_a_known_tree_does_not_change() -> None:
    """Snapshots on boxes are named by it."""
    listing = {
        "train.py": TreeEntry("file", sha256(b"pass\n").hexdigest()),
        "run.sh": TreeEntry("exec", sha256(b"").hexdigest()),
        os.fsdecode(b"caf\xe9"): TreeEntry("link", sha256(b"train.py").hexdigest()),
    }
    assert tree_hash(listing) == "b6ca08edfd81f71dd7135345625594bb389876cd90f3181eeb39601e0f3890b7"
    assert tree_hash({}) == sha256(b"[]").hexdigest()


@given(listings)
def test_names_sort_by_their_bytes(listing: dict[str, TreeEntry]) -> None:
    in_order = {os.fsdecode(name): listing[os.fsdecode(name)] for name in sorted(map(os.fsencode, listing))}
    assert trees.manifest(in_order) == trees.manifest(listing)


# --- reading ------------------------------------------------------------------------------------------


def test_scan_sees_kinds_contents_and_names(tmp_path: Path) -> None:
    fill(tmp_path, {"deep/er/train.py": b"pass", "run.sh": b"#!"})
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "deep" / "up").symlink_to("..")  # a link to a directory is an entry, and is not followed
    (tmp_path / "empty").mkdir()
    expected = {
        "deep/er/train.py": TreeEntry("file", sha256(b"pass").hexdigest()),
        "run.sh": TreeEntry("exec", sha256(b"#!").hexdigest()),
        "link": TreeEntry("link", sha256(b"nowhere").hexdigest()),
        "deep/up": TreeEntry("link", sha256(b"..").hexdigest()),
    }
    assert scan(tmp_path) == expected
    assert scan(tmp_path, ["link"]) == {"link": expected["link"]}


def test_scan_reads_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = b"caf\xe9\n.py"
    try:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(b"")
    except OSError:
        pytest.skip("this filesystem takes UTF-8 names alone")
    assert list(scan(tmp_path)) == [os.fsdecode(name)]


def test_scan_refuses_other_file_types(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AgentError, match="pipe is neither") as refusal:
        scan(tmp_path)
    assert refusal.value.code == "not_a_file"


def test_scan_of_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scan(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        scan(tmp_path, ["gone"])


def test_read_returns_size_and_head(tmp_path: Path) -> None:
    data = b"x" * (3 << 20)
    (tmp_path / "big").write_bytes(data)
    assert read(tmp_path / "big") == (TreeEntry("file", sha256(data).hexdigest()), len(data), data[: trees.HEAD_BYTES])


# --- committing ---------------------------------------------------------------------------------------


def test_commit_makes_a_private_read_only_snapshot(tmp_path: Path) -> None:
    incoming = fill(tmp_path / "in", {"a.py": b"1", "pkg/run.sh": b"2"})
    (incoming / "pkg").chmod(0o755)
    (incoming / "pkg" / "run.sh").chmod(0o755)
    (incoming / "link").symlink_to("a.py")
    tree = tree_hash(scan(incoming))
    commit(incoming, tmp_path / tree, tree)
    assert not incoming.exists()
    assert [mode(tmp_path / tree / name) for name in (".", "pkg", "a.py", "pkg/run.sh")] == [0o700, 0o700, 0o400, 0o500]
    assert tree_hash(scan(tmp_path / tree)) == tree
    assert sha256((tmp_path / f"{tree}.json").read_bytes()).hexdigest() == tree


@pytest.mark.parametrize("change", ["content", "name", "more", "less", "mode", "special"])
def test_commit_refuses_a_different_tree(tmp_path: Path, change: str) -> None:
    incoming = fill(tmp_path / "in", {"a.py": b"1", "b.py": b"2"})
    tree = tree_hash(scan(incoming))
    changes: dict[str, Callable[[], object]] = {
        "content": lambda: (incoming / "a.py").write_bytes(b"3"),
        "name": lambda: (incoming / "a.py").rename(incoming / "c.py"),
        "more": lambda: (incoming / "c.py").write_bytes(b""),
        "less": lambda: (incoming / "a.py").unlink(),
        "mode": lambda: (incoming / "a.py").chmod(0o755),
        "special": lambda: os.mkfifo(incoming / "pipe"),
    }
    changes[change]()
    with pytest.raises(AgentError) as refusal:
        commit(incoming, tmp_path / tree, tree)
    assert refusal.value.code == ("not_a_file" if change == "special" else "tree_changed")
    assert list(tmp_path.iterdir()) == []


def test_second_commit_of_the_same_tree_succeeds(tmp_path: Path) -> None:
    first, second = (fill(tmp_path / name, {"a.py": b"1"}) for name in ("first", "second"))
    tree = tree_hash(scan(first))
    commit(first, tmp_path / tree, tree)
    before = (tmp_path / tree / "a.py").stat().st_ino
    commit(second, tmp_path / tree, tree)
    assert (tmp_path / tree / "a.py").stat().st_ino == before
    assert not second.exists()


def test_commit_does_not_change_modes_of_a_linked_snapshot(tmp_path: Path) -> None:
    first = fill(tmp_path / "first", {"a.py": b"1"})
    old = tree_hash(scan(first))
    commit(first, tmp_path / old, old)
    second = fill(tmp_path / "second", {"b.py": b"2"})
    os.link(tmp_path / old / "a.py", second / "a.py")
    new = tree_hash(scan(second))
    commit(second, tmp_path / new, new)
    assert (tmp_path / new / "a.py").stat().st_nlink == 2
    assert mode(tmp_path / old / "a.py") == 0o400


def test_failed_rename_raises(tmp_path: Path) -> None:
    incoming = fill(tmp_path / "in", {"a.py": b"1"})
    tree = tree_hash(scan(incoming))
    (tmp_path / tree).write_text("in the way")
    with pytest.raises(OSError, match=tree):
        commit(incoming, tmp_path / tree, tree)


# --- a shipment ---------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> ProjectPaths:
    return ProjectPaths(tmp_path / "box" / "root", "thing")


def shipped(project: ProjectPaths, files: dict[str, bytes], tmp_path: Path) -> str:
    """Put a tree on the box as a laptop does."""
    tree = tree_hash(scan(fill(tmp_path / "laptop" / sha256(repr(files).encode()).hexdigest(), files)))
    incoming = str(begin(project, tree).incoming)
    fill(Path(incoming), files)
    assert finish(project, tree, incoming) == CodeCommitReply()
    return tree


def test_upload_becomes_a_snapshot(project: ProjectPaths, tmp_path: Path) -> None:
    tree = shipped(project, {"a.py": b"1"}, tmp_path)
    assert begin(project, tree) == CodeBeginReply(have=True)
    assert has(project, tree)
    assert [mode(path) for path in (project.box, project.root, project.code, project.incoming)] == [0o700] * 4
    assert list(project.incoming.iterdir()) == []


def test_begin_links_to_the_snapshot_used_last(project: ProjectPaths, tmp_path: Path) -> None:
    first, second = (shipped(project, {"a.py": data}, tmp_path) for data in (b"1", b"2"))
    os.utime(project.tree(first), (1, 1))
    assert begin(project, "0" * 64).link_to == str(project.tree(second))
    os.utime(project.tree(second), (1, 1))
    begin(project, first)
    assert begin(project, "0" * 64).link_to == str(project.tree(first))


def test_each_upload_has_its_own_private_directory(project: ProjectPaths) -> None:
    offers = [begin(project, "0" * 64) for _ in range(2)]
    assert [offer.have for offer in offers] == [False, False]
    assert [offer.link_to for offer in offers] == [None, None]
    assert len({offer.incoming for offer in offers}) == 2
    assert [mode(Path(str(offer.incoming))) for offer in offers] == [0o700] * 2


def test_leftover_uploads_are_removed_after_a_day(project: ProjectPaths) -> None:
    left = Path(str(begin(project, "0" * 64).incoming))
    os.utime(left, (1, 1))  # as a transfer that preserves dates does
    now = left.stat().st_ctime
    begin(project, "1" * 64, now=now + DAY_S - 1)
    assert left.is_dir()
    begin(project, "1" * 64, now=now + DAY_S + 1)
    assert not left.exists()


def test_manually_changed_snapshot_is_sent_again_and_repaired(project: ProjectPaths, tmp_path: Path) -> None:
    files = {"a.py": b"1", "b.py": b"2"}
    tree = shipped(project, files, tmp_path)
    (project.tree(tree) / "output.txt").write_text("a file that a job left does not matter")
    assert has(project, tree)
    (project.tree(tree) / "a.py").chmod(0o600)
    (project.tree(tree) / "a.py").write_bytes(b"patched")
    kept = (project.tree(tree) / "b.py").stat().st_ino
    assert not has(project, tree)
    offer = begin(project, tree)
    assert (offer.have, offer.link_to) == (False, None)  # nothing is linked against a changed snapshot
    assert shipped(project, files, tmp_path) == tree
    assert has(project, tree)
    assert mode(project.tree(tree) / "a.py") == 0o400
    assert (project.tree(tree) / "b.py").stat().st_ino == kept


def test_snapshot_without_its_manifest_is_compared_with_a_new_upload(project: ProjectPaths, tmp_path: Path) -> None:
    files = {"a.py": b"1", "b.py": b"2"}
    tree = shipped(project, files, tmp_path)
    manifest = project.code / f"{tree}.json"
    manifest.write_bytes(b"[]")
    assert not has(project, tree)
    assert shipped(project, files, tmp_path) == tree
    manifest.unlink()
    (project.tree(tree) / "a.py").unlink()
    assert shipped(project, files, tmp_path) == tree
    assert has(project, tree)


@pytest.mark.parametrize("tree", ["", "../x", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_invalid_tree_hash_is_refused(project: ProjectPaths, tree: str) -> None:
    for ask in (lambda: begin(project, tree), lambda: finish(project, tree, "x"), lambda: has(project, tree)):
        with pytest.raises(AgentError, match="not a tree hash"):
            ask()


def test_finish_refuses_other_directories(project: ProjectPaths, tmp_path: Path) -> None:
    tree = "0" * 64
    offered = begin(project, tree).incoming
    outside = fill(tmp_path / f"{tree}-x", {"a": b""})
    (project.incoming / f"{tree}-link").symlink_to(outside)
    for path in (
        str(outside),
        f"{project.incoming}/../../../../../{outside.name}",
        str(project.incoming),
        f"{offered}/inner",
        f"{project.incoming}/{tree}-link",
        f"{project.incoming}/{tree}-gone",
        str(begin(project, "1" * 64).incoming),
        "",
        "\0",
    ):
        with pytest.raises(AgentError):
            finish(project, tree, path)
    assert (outside / "a").exists()
    assert Path(str(offered)).is_dir()


def test_newest_tree_ignores_other_entries(tmp_path: Path) -> None:
    assert newest_tree(tmp_path / "gone") is None
    (tmp_path / "not-a-hash").mkdir()
    (tmp_path / ("1" * 64)).write_text("a file")
    (tmp_path / ("2" * 64)).symlink_to(tmp_path / "not-a-hash")
    assert newest_tree(tmp_path) is None
    (tmp_path / ("3" * 64)).mkdir()
    assert newest_tree(tmp_path) is None  # it has no manifest


def fill(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
