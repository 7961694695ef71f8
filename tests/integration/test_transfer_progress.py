"""How far a transfer is, told by both clients: in a pipe as plain lines, on a terminal as one live line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.box.transport import Transport
from tests.integration.conftest import Orch
from tests.integration.test_run_contents import on_terminal
from tests.support import SshdBox, sizes

FILES = {"large": 3 << 20, "small": 10, "empty": 0}


@pytest.fixture(params=["openssh", "fabric"])
def either(request: pytest.FixtureRequest, sshd_box: SshdBox) -> Transport:
    """Return a transport by each client."""
    make: Callable[[], Transport] = getattr(sshd_box, request.param)
    return make()


def make_files(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, size in FILES.items():
        (folder / name).write_bytes(os.urandom(size))
    return folder


def test_bytes_and_files_are_told_in_each_direction(either: Transport, sshd_box: SshdBox, tmp_path: Path) -> None:
    here, there = make_files(tmp_path / "here"), sshd_box.home / "there"
    there.mkdir()
    told: dict[str, list[tuple[int, int]]] = {"push": [], "upload": [], "pull": []}

    either.push(here, list(FILES), str(there / "code"), None, lambda *counts: told["push"].append(counts))
    either.upload(here, FILES, str(there / "data"), lambda *counts: told["upload"].append(counts))
    either.pull(str(there / "data"), tmp_path / "back", FILES, lambda *counts: told["pull"].append(counts))

    assert sizes(tmp_path / "back") == FILES
    for counts in told.values():
        assert counts == sorted(counts) and counts[-1] == (sum(FILES.values()), len(FILES))


@pytest.mark.parametrize("client", ["openssh", "fabric"])
def test_terminal_shows_a_bar_for_each_command_that_copies(ssh_orch: Orch, client: str) -> None:
    orch = ssh_orch
    orch.host_table += f'client = "{client}"\n'
    (orch.project / "train.py").write_text("open('model.pt', 'wb').write(bytes(3 << 20))\n")
    (orch.project / "weights.bin").write_bytes(os.urandom(3 << 20))
    orch.table("train", command=["python", "train.py"])
    make_files(orch.project.parent / "data")

    for words, arguments in (
        (b"sending the code to gpu1 [", ("sync", "--code")),
        (b"gpu1 [", ("push", str(orch.project.parent / "data"), "gpu1:data")),
        (b"downloading [", ("sync",)),
    ):
        if arguments == ("sync",):
            orch.run("launch", "train", "--wait")
        code, shown = on_terminal(orch, *arguments)
        assert code == 0 and words in shown, (arguments, shown)
    assert orch.run("sync", "train").stderr.count("downloading") == 0  # a short one says nothing in a pipe
