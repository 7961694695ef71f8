from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from textwrap import dedent
from typing import Any, BinaryIO

import pytest

from remote import worker
from remote.contract.files import TEMP_PREFIX, append_jsonl, read_json, read_jsonl
from remote.contract.paths import RunPaths
from remote.contract.protocol import ENV_ATTEMPT, ENV_GOALS, ENV_KEEP_CHECKPOINTS, ENV_RUN_DIR, SCHEMA, monotonic
from remote.worker import HEARTBEAT_EVERY, Run
from tests.support import ROOT

GOALS = {"val_accuracy": ">= 75 %", "consistency": ">= 70 %"}


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "worker1" / "20260126T210312-7f3a")
    paths.checkpoints.mkdir(parents=True)
    return paths


@pytest.fixture
def run(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv(ENV_RUN_DIR, str(paths.root))
    monkeypatch.setenv(ENV_GOALS, json.dumps(GOALS))
    return Run.current()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return the seconds since boot, which the test moves."""
    now = [monotonic()]
    monkeypatch.setattr(worker, "monotonic", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def put(data: bytes) -> Callable[[BinaryIO], Any]:
    return lambda file: file.write(data)


# --- outside a run ------------------------------------------------------------------------------------


def test_outside_a_run_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run.current()
    run.beat("train", epoch=1, epochs=3, step=1, steps=2)
    run.log_metrics(1, 2, {"val_accuracy": 0.5})
    assert run.save_checkpoint(1, put(b"x")) is None
    assert run.newest_checkpoint() is None
    assert run.results is None
    assert run.judge({}) == []
    assert not run.stop_requested
    assert os.listdir(tmp_path) == []


def test_goals_are_judged_outside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_GOALS, json.dumps(GOALS))
    assert [result.holds for result in Run.current().judge({"val_accuracy": 0.8})] == [True, None]


def test_run_knows_its_directory(run: Run, paths: RunPaths) -> None:
    assert run.paths and run.paths.root == paths.root
    assert run.results == paths.results


# --- heartbeat ----------------------------------------------------------------------------------------


def test_heartbeat_contains_the_position(run: Run, paths: RunPaths) -> None:
    run.beat("train", epoch=2, epochs=30, step=4, steps=500)
    record = read_json(paths.heartbeat)
    assert record
    assert {key: record[key] for key in ("schema", "pid", "phase", "epoch", "epochs", "step", "steps", "eta_s")} == {
        "schema": SCHEMA,
        "pid": os.getpid(),
        "phase": "train",
        "epoch": 2,
        "epochs": 30,
        "step": 4,
        "steps": 500,
        "eta_s": None,
    }


def test_heartbeats_within_a_second_are_dropped(run: Run, paths: RunPaths, clock: Callable[[float], None]) -> None:
    def step() -> int:
        return int((read_json(paths.heartbeat) or {})["step"])

    run.beat("train", step=1)
    clock(HEARTBEAT_EVERY * 0.9)
    run.beat("train", step=2)
    assert step() == 1
    clock(HEARTBEAT_EVERY * 0.2)
    run.beat("train", step=3)
    assert step() == 3
    run.beat("validate", step=4)  # a new phase is written immediately
    assert step() == 4
    run.beat("train", step=5)
    assert step() == 5


def test_eta_uses_the_speed_of_this_attempt(run: Run, paths: RunPaths, clock: Callable[[float], None]) -> None:
    def eta() -> Any:
        return (read_json(paths.heartbeat) or {})["eta_s"]

    run.beat("prepare")
    assert eta() is None
    run.beat("train", epoch=6, epochs=10, step=1, steps=10)  # resumed at half: a share of 0.51 is done
    assert eta() is None
    clock(100)
    run.beat("train", epoch=7, epochs=10, step=1, steps=10)  # a share of 0.1 took 100 s, and 0.39 remains
    assert eta() == pytest.approx(390)
    clock(100)
    run.beat("train", epoch=7, epochs=10, step=1, steps=10)  # no progress, so the remaining time grows
    assert eta() == pytest.approx(780)
    clock(100)
    run.beat("train", epoch=10, epochs=10, step=10, steps=10)
    assert eta() == pytest.approx(0)
    run.beat("test")
    assert eta() is None


# --- metrics ------------------------------------------------------------------------------------------


def test_validation_is_appended_and_is_the_latest(run: Run, paths: RunPaths) -> None:
    run.log_metrics(5, 2500, {"val_accuracy": 1.0, "consistency": 0.38})
    run.log_metrics(10, 5000, {"val_accuracy": 1.0, "consistency": 0.75})
    first, second = read_jsonl(paths.metrics)
    assert (first["epoch"], first["step"], first["val_accuracy"]) == (5, 2500, 1.0)
    assert first["schema"] == SCHEMA
    assert first["goals"] == {"val_accuracy": True, "consistency": False}
    assert second["goals"] == {"val_accuracy": True, "consistency": True}
    assert read_json(paths.latest_metrics) == second


def test_non_finite_metric_is_null_and_meets_no_goal(run: Run, paths: RunPaths) -> None:
    run.log_metrics(1, 1, {"val_accuracy": math.nan, "consistency": math.inf})
    record = read_json(paths.latest_metrics)
    assert record
    assert record["val_accuracy"] is None and record["consistency"] is None
    assert record["goals"] == {"val_accuracy": False, "consistency": False}
    assert list(read_jsonl(paths.metrics)) == [record]


def test_metrics_after_a_partial_line_start_a_new_line(run: Run, paths: RunPaths) -> None:
    run.log_metrics(1, 1, {"val_accuracy": 0.1})
    with paths.metrics.open("ab") as file:
        file.write(b'{"epoch":2,"val')
    run.log_metrics(2, 2, {"val_accuracy": 0.2})
    assert [record["epoch"] for record in read_jsonl(paths.metrics)] == [1, 2]


# --- checkpoints --------------------------------------------------------------------------------------


def test_checkpoint_is_complete_and_has_a_checksum(run: Run, paths: RunPaths) -> None:
    data = os.urandom((1 << 20) + 7)
    path = run.save_checkpoint(5, put(data))
    assert path == paths.checkpoint(5)
    assert path.read_bytes() == data
    assert paths.checksum(path).read_text().split()[0] == sha256(data).hexdigest()
    assert sorted(os.listdir(paths.checkpoints)) == ["epoch-0005.pt", "epoch-0005.pt.sha256"]
    assert path.stat().st_mode & 0o077 == 0
    assert run.newest_checkpoint() == path


def test_checkpoint_can_be_written_in_any_order(run: Run) -> None:
    """torch.save, for example, goes back to the beginning of the file."""

    def write(file: BinaryIO) -> None:
        file.write(b"....tail")
        file.seek(0)
        file.write(b"head")

    path = run.save_checkpoint(1, write)
    assert path and path.read_bytes() == b"headtail"
    assert run.newest_checkpoint() == path


@pytest.mark.parametrize("earlier", [None, 1, 5])
def test_failed_checkpoint_leaves_earlier_ones_unchanged(run: Run, paths: RunPaths, earlier: int | None) -> None:
    if earlier:
        run.save_checkpoint(earlier, put(b"earlier"))
    before = sorted(os.listdir(paths.checkpoints))

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        run.save_checkpoint(5, write)
    assert sorted(os.listdir(paths.checkpoints)) == before
    assert run.newest_checkpoint() == (paths.checkpoint(earlier) if earlier else None)


def test_newest_checkpoint_has_the_highest_epoch(run: Run, paths: RunPaths) -> None:
    assert run.newest_checkpoint() is None
    for epoch in (10, 9, 100):
        run.save_checkpoint(epoch, put(b"%d" % epoch))
    assert run.newest_checkpoint() == paths.checkpoint(100)


def test_newest_checkpoint_of_many_is_found(run: Run, paths: RunPaths) -> None:
    for epoch in (9999, 10_000):
        run.save_checkpoint(epoch, put(b"x"))
    assert run.newest_checkpoint() == paths.checkpoint(10_000)


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "one bit": flip,
    "cut short": lambda path: os.truncate(path, 3),
    "empty": lambda path: os.truncate(path, 0),
    "no checksum": lambda path: RunPaths.checksum(path).unlink(),
    "an empty checksum": lambda path: os.truncate(RunPaths.checksum(path), 0),
    "a checksum of NULs": lambda path: RunPaths.checksum(path).write_bytes(b"\0" * 65),
    "a directory": replace_by_directory,
    "a checksum alone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_checkpoint_that_does_not_match_its_checksum_is_skipped(run: Run, paths: RunPaths, damage: str) -> None:
    for epoch in (1, 2):
        run.save_checkpoint(epoch, put(b"epoch %d" % epoch))
    DAMAGE[damage](paths.checkpoint(2))
    assert run.newest_checkpoint() == paths.checkpoint(1)


def test_checkpoint_with_a_binary_checksum_is_skipped(run: Run, paths: RunPaths) -> None:
    for epoch in (1, 2):
        run.save_checkpoint(epoch, put(b"epoch %d" % epoch))
    paths.checksum(paths.checkpoint(2)).write_bytes(b"\xff" * 65)
    assert run.newest_checkpoint() == paths.checkpoint(1)


SAVE = """
    import os, sys
    from remote.worker import Run

    run = Run.current()
    run.save_checkpoint(int(sys.argv[1]), lambda file: file.write(b"earlier"))
    renames = []

    def crash(event, args):
        if event == "os.rename":
            renames.append(args)
            if len(renames) == int(sys.argv[2]):
                os._exit(9)

    sys.addaudithook(crash)
    run.save_checkpoint(2, lambda file: file.write(b"later"))
"""


REPLACE = """
    import os, sys
    from remote.worker import Run

    def crash(event, args):
        if event == "os.rename" and str(args[1]).endswith(".pt"):
            os._exit(9)

    sys.addaudithook(crash)
    Run.current().save_checkpoint(2, lambda file: file.write(os.urandom(8)))
"""


@pytest.mark.parametrize("rename", [1, 2])
def test_crash_while_saving_keeps_the_earlier_checkpoint(run: Run, paths: RunPaths, rename: int) -> None:
    with python(SAVE, 1, rename) as process:
        assert process.wait() == 9
    assert run.newest_checkpoint() == paths.checkpoint(1)
    left = [name for name in os.listdir(paths.checkpoints) if not name.endswith(".sha256")]
    assert all(name == "epoch-0001.pt" or name.startswith(TEMP_PREFIX) for name in left)
    run.save_checkpoint(2, put(b"later"))
    assert run.newest_checkpoint() == paths.checkpoint(2)


@pytest.mark.parametrize("rename", [1, 2])
def test_crash_while_replacing_keeps_one_valid_checkpoint(run: Run, paths: RunPaths, rename: int) -> None:
    """A stop at the beginning of an epoch writes the checkpoint of the previous epoch again."""
    with python(SAVE, 2, rename) as process:
        assert process.wait() == 9
    assert run.newest_checkpoint() == paths.checkpoint(2)


def test_repeated_crashes_keep_the_existing_checkpoint(run: Run, paths: RunPaths) -> None:
    run.save_checkpoint(2, put(b"earlier"))
    for _ in range(3):
        with python(REPLACE) as process:
            assert process.wait() == 9
    assert paths.checkpoint(2).read_bytes() == b"earlier"
    assert run.newest_checkpoint() == paths.checkpoint(2)


def test_kill_while_saving_keeps_the_earlier_checkpoint(run: Run, paths: RunPaths) -> None:
    run.save_checkpoint(1, put(b"earlier"))
    code = """
        import sys
        from remote.worker import Run

        def write(file):
            file.write(b"half")
            file.flush()
            print("half", flush=True)
            sys.stdin.readline()

        Run.current().save_checkpoint(2, write)
    """
    with python(code) as process:
        assert process.stdout and process.stdout.readline() == "half\n"
        process.kill()
        process.wait()
    assert run.newest_checkpoint() == paths.checkpoint(1)
    assert not paths.checkpoint(2).exists()


# --- the request to stop ------------------------------------------------------------------------------


def test_sigterm_sets_stop_requested(run: Run, paths: RunPaths) -> None:
    code = """
        import sys
        from remote.worker import Run

        run = Run.current()
        run.catch_sigterm()
        print("ready", run.stop_requested, flush=True)
        sys.stdin.readline()
        assert run.stop_requested
        run.save_checkpoint(1, lambda file: file.write(b"x"))
        sys.exit(143)
    """
    with python(code) as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == "ready False\n"
        process.send_signal(signal.SIGTERM)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait() == 143
    assert run.newest_checkpoint() == paths.checkpoint(1)


@contextmanager
def python(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Run a worker that can import `remote` in a separate process; end it when the block exits."""
    argv = [sys.executable, "-S", "-c", dedent(code), *map(str, args)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, cwd=ROOT, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


# --- repetition after a restart, and growth ---------------------------------------------------------------


def test_repeated_validation_adds_no_second_line(run: Run, paths: RunPaths) -> None:
    """It was killed after its metrics line and before its checkpoint, or before it wrote latest_metrics.json."""
    run.log_metrics(epoch=5, step=50, metrics={"val_accuracy": 0.5})
    run.log_metrics(epoch=10, step=100, metrics={"val_accuracy": 0.9})
    paths.latest_metrics.write_text("{}")

    run.log_metrics(epoch=10, step=100, metrics={"val_accuracy": 0.9})

    lines = list(read_jsonl(paths.metrics))
    assert [(line["epoch"], line["step"]) for line in lines] == [(5, 50), (10, 100)]
    assert read_json(paths.latest_metrics) == lines[-1]


def test_repeated_validation_keeps_metrics_of_any_name(run: Run, paths: RunPaths) -> None:
    metrics = {"time": 12.5, "values": 7, "x" * 5000: 1, "val_accuracy": 0.5}
    for _ in range(2):
        run.log_metrics(epoch=5, step=50, metrics=metrics)
        latest = read_json(paths.latest_metrics) or {}
        assert {name: latest.get(name) for name in metrics} == metrics
    assert len(list(read_jsonl(paths.metrics))) == 1


@pytest.mark.parametrize("name", ["epoch", "step", "goals", "schema"])
def test_metric_with_the_name_of_a_field_does_not_replace_it(run: Run, paths: RunPaths, name: str) -> None:
    for _ in range(2):
        run.log_metrics(epoch=5, step=50, metrics={name: 0.5})
    [line] = read_jsonl(paths.metrics)
    assert (line["epoch"], line["step"], line["schema"]) == (5, 50, SCHEMA)
    assert line["goals"] == {"val_accuracy": False, "consistency": False}


def test_line_that_the_supervisor_read_in_the_output_is_not_the_workers_own(run: Run, paths: RunPaths) -> None:
    append_jsonl(paths.metrics, {"epoch": 5, "step": 50, "loss": 1.0, "source": "output"})
    run.log_metrics(epoch=5, step=50, metrics={"loss": 0.5})
    assert [line["loss"] for line in read_jsonl(paths.metrics)] == [1.0, 0.5]
    assert (read_json(paths.latest_metrics) or {})["loss"] == 0.5


def test_partial_metrics_line_is_written_again(run: Run, paths: RunPaths) -> None:
    run.log_metrics(epoch=5, step=50, metrics={"val_accuracy": 0.5})
    whole = paths.metrics.read_bytes()
    paths.metrics.write_bytes(whole[: len(whole) // 2])

    run.log_metrics(epoch=5, step=50, metrics={"val_accuracy": 0.5})

    assert [line["epoch"] for line in read_jsonl(paths.metrics)] == [5]


def saved(run: Run, paths: RunPaths, *scores: float | None) -> list[str]:
    """Save checkpoints with these scores as epochs 1, 2, ...; return the names of the files that are kept."""
    for epoch, score in enumerate(scores, start=1):
        run.save_checkpoint(epoch, put(b"%d" % epoch), None if score is None else [score])
    return sorted(path.name for path in paths.checkpoints.glob("*.pt*"))


def kept(*epochs: int) -> list[str]:
    return [name for epoch in epochs for name in (f"epoch-{epoch:04d}.pt", f"epoch-{epoch:04d}.pt.sha256")]


@pytest.mark.parametrize(
    ("scores", "epochs"),
    [
        ((None,) * 3, (1, 2, 3)),
        ((None,) * 6, (4, 5, 6)),
        ((0.1, 0.9, 0.5, 0.5, 0.5, 0.5), (2, 4, 5, 6)),
        ((0.1, 0.9, 0.5, 0.5, 0.9, 0.5), (4, 5, 6)),  # as good and newer
        ((0.1, 0.9, None, None, None, None), (2, 4, 5, 6)),
    ],
)
def test_newest_and_best_checkpoints_are_kept(
    run: Run, paths: RunPaths, scores: tuple[float | None, ...], epochs: tuple[int, ...]
) -> None:
    assert saved(run, paths, *scores) == kept(*epochs)


def test_job_sets_how_many_checkpoints_are_kept(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_RUN_DIR, str(paths.root))
    monkeypatch.setenv(ENV_KEEP_CHECKPOINTS, "1")
    run = Run.current()
    assert saved(run, paths, 0.9, 0.1, 0.2) == kept(1, 3)
    assert run.checkpoints_at_once == 3


def test_damaged_checkpoint_does_not_count_as_kept(run: Run, paths: RunPaths) -> None:
    saved(run, paths, None, None, None)
    paths.checkpoint(3).write_bytes(b"torn")
    fresh = Run.current()

    fresh.save_checkpoint(4, put(b"4"))

    assert paths.checkpoint(1).exists()  # epoch 1 counts as the third valid checkpoint, with 2 and 4
    fresh.save_checkpoint(5, put(b"5"))
    assert not paths.checkpoint(1).exists()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800", ""])
def test_damaged_record_of_the_best_checkpoint_is_ignored(run: Run, paths: RunPaths, name: str) -> None:
    paths.best_checkpoint.write_text(json.dumps({"checkpoint": name, "score": [1.0]}))
    run.save_checkpoint(1, put(b"1"), [0.5])
    assert read_json(paths.best_checkpoint) == {"checkpoint": "epoch-0001.pt", "score": [0.5]}


def test_best_checkpoint_survives_a_restart(run: Run, paths: RunPaths) -> None:
    saved(run, paths, 0.9, 0.1, 0.1)
    fresh = Run.current()
    for epoch in (4, 5, 6):
        fresh.save_checkpoint(epoch, put(b"later"), [0.2])
    assert paths.checkpoint(1).exists()


# --- the last output --------------------------------------------------------------------------------------


def test_fail_records_the_reason(run: Run, paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_ATTEMPT, "3")
    run.fail("non_finite", "the loss is nan")
    assert read_json(paths.failure) == {"attempt": 3, "reason": "non_finite", "detail": "the loss is nan"}
    monkeypatch.delenv(ENV_RUN_DIR)
    Run.current().fail("non_finite", "outside a run nothing is written")


def in_a_process(paths: RunPaths, code: str) -> None:
    env = {**os.environ, ENV_RUN_DIR: str(paths.root), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", dedent(code)], env=env, check=False, timeout=60, stderr=subprocess.DEVNULL)


def test_last_heartbeat_has_the_step_of_the_failure(paths: RunPaths) -> None:
    """Its last heartbeats came too quickly for each to be written."""
    in_a_process(
        paths,
        """
        from remote.worker import Run
        run = Run.current()
        for step in range(1, 8):
            run.beat("train", epoch=1, epochs=2, step=step, steps=10)
        raise ValueError("at step 7")
        """,
    )
    assert (read_json(paths.heartbeat) or {})["step"] == 7
    assert not paths.stacks.exists()  # no stacks were requested


def test_heartbeat_on_a_full_disk_is_not_an_error(run: Run, paths: RunPaths) -> None:
    paths.root.rename(paths.root.with_name("gone"))
    run.beat("train", epoch=1, epochs=2, step=1, steps=10)
    with pytest.raises(OSError, match="No such file"):  # a lost result must be an error
        run.log_metrics(epoch=1, step=10, metrics={"val_accuracy": 0.5})
