"""A worker that replaces a file of its run: nothing hangs, and the run ends."""

from __future__ import annotations

import pytest

from remote.contract.files import write_json
from remote.host.process import PROC
from tests.integration.conftest import Stage

pytestmark = pytest.mark.skipif(not PROC.joinpath("self").exists(), reason="processes are searched by /proc alone")

DOCUMENTS = ("heartbeat", "state", "worker", "failure", "supervisor", "latest_metrics", "restart", "run")
NAMES = [f"{name}.json" for name in DOCUMENTS]
NAMES += ["events.jsonl", "samples.jsonl", "metrics.jsonl", "training.log", "supervisor.log", "log", "evidence"]
LOCKS = ["supervisor.lock", "keeper.lock"]
PLANT = """
path = pathlib.Path(run) / {name!r}
shutil.rmtree(path) if path.is_dir() else path.unlink() if path.exists() else None
{how}
time.sleep(2.5)
"""
WAYS = {"a FIFO": "os.mkfifo(path)", "a directory": "path.mkdir()", "a link to nothing": "path.symlink_to('nothing')"}


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, "a FIFO") for name in [*NAMES, *LOCKS]]
    + [
        (name, how)
        for how in WAYS
        if how != "a FIFO"
        for name in ("events.jsonl", "worker.json", "training.log", *LOCKS)
    ],
)
def test_run_ends_whatever_replaced_one_of_its_files(name: str, how: str, stage: Stage) -> None:
    stage.begin(PLANT.format(name=name, how=WAYS[how]) + "\nsys.exit(7)", restarts=0)

    stage.go.touch()
    stage.wait_until_nothing_is_left()

    state, reason = stage.outcome()
    assert state == "failed"
    assert reason == "exit" or name == "worker.json"  # whose end it tells
    assert "a-secret-value" not in stage.run.log.read_text() if stage.run.log.is_file() else True


@pytest.mark.parametrize("name", ["heartbeat.json", "events.jsonl", "worker.json", "supervisor.log", "training.log"])
def test_killed_supervisor_is_replaced_whatever_replaced_a_file(name: str, stage: Stage) -> None:
    stage.begin(
        PLANT.format(name=name, how=WAYS["a FIFO"]) + "\n(pathlib.Path(run) / 'planted').touch()\ntime.sleep(600)"
    )
    stage.go.touch()
    stage.wait_for_file("planted")

    stage.kill("supervisor", "shim")
    write_json(stage.run.stop, {"by": "the test"})

    stage.wait_until_nothing_is_left()
    assert stage.outcome()[0] in ("stopped", "failed")
