"""Data comes to the box once per content: `orch push`, and `data.from` of a job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.ssh.rsync import SentBytes
from tests.integration.conftest import Orch
from tests.support import sftp_server

READ = """\
import os
print(sorted(os.listdir("data")), open("data/train/a.bin").read(), open("data/README").read())
assert os.path.samefile(os.path.join(os.environ["ORCH_DATA_DIR"], "train"), "data/train")
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / "train").mkdir(parents=True)
    (folder / "train/a.bin").write_text("aaa")
    (folder / "README").write_text("read me")
    (folder / "first").symlink_to("train/a.bin")
    (folder / "disk").symlink_to("/mnt")
    return folder


def listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture(params=["local", "ssh"])
def either(request: pytest.FixtureRequest) -> Orch:
    found: Orch = request.getfixturevalue(f"{request.param}_orch")
    return found


def test_push_puts_data_on_a_host(either: Orch, dataset: Path, tmp_path: Path) -> None:
    orch = either
    orch.table("train", command=["true"])
    there = orch.root / "test/data/set"

    shown = orch.run("push", str(dataset), f"{orch.host}:")

    assert shown.stdout == f"3 files, 10 B, sent to {orch.host}:{there}\n"
    assert "not sent: disk (a link out of the directory, to /mnt)" in shown.stderr
    assert listed(there) == {"train/a.bin", "README", "first"}
    assert (there / "first").read_text() == "aaa"
    assert (there / "README").stat().st_mtime == pytest.approx((dataset / "README").stat().st_mtime, abs=1)
    assert "already at" in orch.run("push", str(dataset), "set").stdout  # the only host
    (dataset / "README").write_text("changed")
    assert "exists with other content" in orch.run("push", str(dataset), "set", code=4).stderr
    assert (there / "README").read_text() == "read me"
    document = orch.json("push", str(dataset), "set", "--force")
    assert (document["sent"], document["files"], document["bytes"]) == (True, 3, 10)
    assert document["skipped"] == [{"path": "disk", "reason": "a link out of the directory, to /mnt"}]
    assert (there / "README").read_text() == "changed"
    orch.run("push", str(dataset / "README"), f"{orch.host}:{tmp_path}/disk/")
    assert (tmp_path / "disk/README").read_text() == "changed"


def test_wrong_push_is_refused(local_orch: Orch, dataset: Path) -> None:
    orch = local_orch
    orch.table("train", command=["true"])
    assert "no host 'nowhere'" in orch.run("push", str(dataset), "nowhere:x", code=2).stderr
    assert "write local:PATH" in orch.run("push", str(dataset), "local", code=2).stderr
    assert "no such file" in orch.run("push", "absent", "local:x", code=2).stderr
    assert "leads out of" in orch.run("push", str(dataset), "local:../x", code=4).stderr


@pytest.mark.parametrize("client", ["fabric", "openssh"])
def test_interrupted_push_continues(ssh_orch: Orch, tmp_path: Path, client: str) -> None:
    """The second upload is cut: only that one is sent again. There are two or three, by the speed of the first."""
    orch, folder = ssh_orch, tmp_path / "large"
    assert orch.box is not None
    orch.host_table += f'client = "{client}"\n'
    orch.table("train", command=["true"])
    folder.mkdir()
    for name in "abc":
        (folder / name).write_bytes(os.urandom(17 << 20))  # more than two of them are not sent at once
    box = orch.box.home
    for name, program in (("rsync", shutil.which("rsync")), ("sftp", sftp_server())):
        (box / name).write_text(
            f'#!/bin/sh\necho x >> {box}/calls\n[ "$(wc -l < {box}/calls)" = 2 ] && kill -KILL $PPID\n'
            f'exec {program} "$@"\n'
        )
        (box / name).chmod(0o755)
    orch.box.stop()
    orch.box.sftp = str(box / "sftp")
    orch.box.env["PATH"] = f"{box}:{os.environ['PATH']}"
    orch.box.start()

    shown = orch.run("push", str(folder), "gpu1:large")

    assert "3 files" in shown.stdout and "sent to" in shown.stdout
    assert "trying again" in shown.stderr
    assert len((box / "calls").read_text().split()) in (3, 4)
    for name in "abc":
        assert (orch.root / "test/data/large" / name).read_bytes() == (folder / name).read_bytes()


def test_progress_is_what_rsync_says() -> None:
    said = (
        b"building file list ... \n 0 files...\r2 files to consider\nx\n"
        b"\r         32,768   0%    0.00kB/s    0:00:00  \r     20,611,072  68%   19.41MB/s    0:00:00  "
        b"\r     30,000,000 100%   19.64MB/s    0:00:01 (xfr#1, to-chk=1/2)\ny\n"
        b"\r         32,768   1%   71.91kB/s    0:00:41  \r      3000000 100%    5.09MB/s    0:00:00\n"
    )
    for size in (1, 7, len(said)):
        sent: list[int] = []
        bytes_of = SentBytes(sent.append)
        for at in range(0, len(said), size):
            bytes_of.feed(said[at : at + size])
        assert sent == [32_768, 20_611_072, 30_000_000, 30_032_768, 33_000_000]


def test_data_of_a_job_is_sent_once_per_content(either: Orch, dataset: Path) -> None:
    """Part of the directory is code: only the rest is linked into the working directory."""
    orch = either
    shutil.copytree(dataset, orch.project / "data", symlinks=True)
    (orch.project / ".gitignore").write_text("data/*\n!data/README\nresults/\n.orch/\n")
    subprocess.run(["git", "init", "-q", str(orch.project)], check=True, timeout=60)
    (orch.project / "read.py").write_text(READ)
    orch.table("read", command=["python", "read.py"], data={"from": "data", "pattern": "**/*.bin"})

    shown = orch.run("launch", "read", "--wait")

    assert "data/disk was not sent: a link out of the directory" in shown.stderr
    assert orch.on_box("read").log.read_text() == "['README', 'first', 'train'] aaa read me\n"
    (sent,) = [path for path in (orch.root / "test/data").iterdir() if path.is_dir()]
    assert listed(sent) == {"train/a.bin", "README", "first"}
    assert not (sent / "README").stat().st_mode & 0o222
    orch.run("launch", "read", "--wait")
    assert [path for path in (orch.root / "test/data").iterdir() if path.is_dir()] == [sent]
    (orch.project / "data/train/a.bin").write_text("bbb")
    orch.run("launch", "read", "--wait")
    assert orch.on_box("read").log.read_text() == "['README', 'first', 'train'] bbb read me\n"
    record = json.loads(orch.on_box("read").run.read_text())["job"]
    assert record["data"]["path"].startswith("data/") and "data/README" not in record["links"]
