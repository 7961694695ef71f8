"""Data on the box: where it may be put, what counts as the same, and that it appears in one step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from remote.agent import data_store
from remote.contract.datasets import below, digest
from remote.contract.paths import ProjectPaths
from remote.contract.protocol import AgentError
from remote.contract.uploads import DataBeginRequest, DataCommitRequest

CONTENT = "ab" * 32


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectPaths:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return ProjectPaths(tmp_path / "home/orch", "project")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("aaa")
    (folder / "sub/run.sh").write_text("x")
    (folder / "sub/run.sh").chmod(0o700)
    (folder / "link").symlink_to("a")
    return folder


def listing(folder: Path) -> str:
    return digest(dict(below(os.fsencode(folder))))


def upload(source: Path, incoming: str | None) -> None:
    assert incoming
    for name, _ in below(os.fsencode(source)):
        copy = Path(incoming, name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_symlink():
            copy.unlink(missing_ok=True)
            copy.symlink_to(os.readlink(source / name))
        else:
            copy.write_bytes((source / name).read_bytes())
            copy.chmod((source / name).stat().st_mode)
            os.utime(copy, ns=(0, (source / name).stat().st_mtime_ns))


def put(paths: ProjectPaths, source: Path, target: str, replace: bool = False, **args: Any) -> str:
    begun = data_store.begin(paths, DataBeginRequest(target, listing(source), **args))
    if begun.state == "same":
        return "same"
    upload(source, begun.incoming)
    data_store.commit(paths, DataCommitRequest(target, listing(source), replace=replace, **args))
    return begun.path


def test_data_is_put_where_the_user_says(paths: ProjectPaths, source: Path, tmp_path: Path) -> None:
    assert put(paths, source, "sets/x") == str(paths.data / "sets/x")
    assert put(paths, source, str(tmp_path / "disk/x")) == str(tmp_path / "disk/x")
    assert put(paths, source, "~/x") == str(tmp_path / "home/x")
    for place in (paths.data / "sets/x", tmp_path / "disk/x"):
        assert listing(place) == listing(source)
        assert not list(place.parent.glob(".orch-*"))
    assert put(paths, source, "sets/x") == "same"


@pytest.mark.parametrize(
    "target",
    ["", ".", "..", "../x", "a/../../x", "/", "~", "~/orch", "~/orch/project", "~/orch/project/runs/x", CONTENT]
    + ["~nobody-of-this-name/x", "~/orch/project/code", "x\0"],
)
def test_targets_that_hold_other_files_are_refused(paths: ProjectPaths, source: Path, target: str) -> None:
    for ask in (data_store.begin, data_store.commit):
        with pytest.raises(AgentError) as refusal:
            ask(paths, DataCommitRequest(target, listing(source), replace=True))
        assert refusal.value.code == "bad_target"
    assert not list(paths.box.parent.glob("**/.orch-incoming*"))


def test_other_files_are_replaced_only_if_asked(paths: ProjectPaths, source: Path) -> None:
    put(paths, source, "x")
    (paths.data / "x/a").write_text("other")
    with pytest.raises(AgentError) as refusal:
        put(paths, source, "x")
    assert refusal.value.code == "exists" and "--force" in refusal.value.hint
    assert (paths.data / "x/a").read_text() == "other"
    put(paths, source, "x", replace=True)
    assert (paths.data / "x/a").read_text() == "aaa"
    assert {path.name for path in paths.data.iterdir()} == {"x"}


def test_incomplete_upload_is_not_put_in_place_and_continues(paths: ProjectPaths, source: Path) -> None:
    asked = DataBeginRequest("x", listing(source))
    incoming = data_store.begin(paths, asked).incoming
    upload(source, incoming)
    (Path(str(incoming)) / "sub/run.sh").unlink()
    (Path(str(incoming)) / ".tmp-partial").mkdir()
    with pytest.raises(AgentError) as refusal:
        data_store.commit(paths, DataCommitRequest("x", listing(source)))
    assert refusal.value.code == "data_changed"
    assert not (paths.data / "x").exists()
    again = data_store.begin(paths, asked)
    assert (again.incoming, again.received) == (incoming, 3)
    (Path(str(incoming)) / "sub/run.sh").write_bytes((source / "sub/run.sh").read_bytes())
    os.utime(Path(str(incoming)) / "sub/run.sh", ns=(0, (source / "sub/run.sh").stat().st_mtime_ns))
    data_store.commit(paths, DataCommitRequest("x", listing(source)))
    assert not (paths.data / "x/.tmp-partial").exists()


def test_temporary_files_of_an_rsync_that_hangs_are_left_out(paths: ProjectPaths, source: Path) -> None:
    (source / "sub/.hidden").write_text("")
    incoming = Path(str(data_store.begin(paths, DataBeginRequest("x", listing(source))).incoming))
    upload(source, str(incoming))
    for name in (".run.sh.aB3dE6", ".hidden.aB3dE6", ".gone.aB3dE6"):
        (incoming / "sub" / name).write_text("half")
    with pytest.raises(AgentError, match="the 5 files"):  # one is not beside a file of its name
        data_store.commit(paths, DataCommitRequest("x", listing(source)))
    (incoming / "sub/.gone.aB3dE6").unlink()
    data_store.commit(paths, DataCommitRequest("x", listing(source)))
    assert listing(paths.data / "x") == listing(source)


def test_file_with_the_name_of_a_temporary_one_is_data(paths: ProjectPaths, source: Path) -> None:
    (source / ".a.aB3dE6").write_text("data")
    put(paths, source, "x")
    assert (paths.data / "x/.a.aB3dE6").read_text() == "data"


def test_data_of_a_job_is_read_only_and_restored_if_it_was_changed(paths: ProjectPaths, source: Path) -> None:
    path = Path(put(paths, source, CONTENT, content=True))
    modes = {name: (path / name).stat().st_mode & 0o777 for name in ("a", "sub/run.sh")}
    assert modes == {"a": 0o400, "sub/run.sh": 0o500}
    os.utime(source / "a", (1.0, 1.0))  # the same content with other dates
    assert put(paths, source, CONTENT, content=True) == "same"
    (path / "a").unlink()
    assert put(paths, source, CONTENT, content=True, replace=True) == str(path)
    assert (path / "a").read_text() == "aaa"


def test_single_file_is_put_under_the_name_of_the_target(paths: ProjectPaths, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "model.pt").write_text("weights")
    put(paths, folder, "best.pt", name="model.pt")
    assert (paths.data / "best.pt").read_text() == "weights"
    assert put(paths, folder, "best.pt", name="model.pt") == "same"
    assert {path.name for path in paths.data.iterdir()} == {"best.pt"}


def test_commit_that_is_sent_again_succeeds(paths: ProjectPaths, source: Path) -> None:
    """Its reply may have been lost."""
    begun = data_store.begin(paths, DataBeginRequest("x", listing(source)))
    upload(source, begun.incoming)
    request = DataCommitRequest("x", listing(source))
    assert data_store.commit(paths, request) == data_store.commit(paths, request)


def test_upload_that_is_gone_is_an_error(paths: ProjectPaths, source: Path) -> None:
    with pytest.raises(AgentError) as refusal:
        data_store.commit(paths, DataCommitRequest("x", listing(source)))
    assert refusal.value.code == "no_upload"
    with pytest.raises(AgentError) as malformed:
        data_store.begin(paths, DataBeginRequest("x", "../../etc"))
    assert malformed.value.code == "bad_request"
