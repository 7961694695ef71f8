"""The reader of a worker's output on real files: ownership, limits, time left, and the formats of metric files."""

from __future__ import annotations

import json
import os
import random
import shlex
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remote.contract.files import append_jsonl, read_json, read_jsonl, write_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.position import Position
from remote.contract.run_record import JobRecord, MetricsRecord
from remote.supervisor import output_files, output_reader, tensorboard
from remote.supervisor.forms import Sign
from remote.supervisor.frames import OutputLines
from remote.supervisor.metric_files import MetricFiles
from remote.supervisor.output_files import OutputFiles, Row
from remote.supervisor.output_progress import OutputProgress
from remote.supervisor.output_reader import OutputReader
from remote.supervisor.patterns import Patterns
from tests.remote_runs import new_run
from tests.support import RECORDED

Read = Callable[..., OutputReader]
EVENTS = RECORDED / "output" / "events.out.tfevents.recorded"


@pytest.fixture
def run(paths: ProjectPaths) -> RunPaths:
    return new_run(paths)


@pytest.fixture
def reader(run: RunPaths) -> Read:
    def make(command: str = "python train.py", goals: dict[str, str] | None = None, **metrics: Any) -> OutputReader:
        job = JobRecord("worker1", tuple(shlex.split(command)), goals=goals or {}, metrics=MetricsRecord(**metrics))
        return OutputReader(run, job, (1, 0, time.monotonic()), (run.root,), notes.append)

    notes: list[str] = []
    return make


def say(run: RunPaths, text: str) -> None:
    with run.log.open("ab") as log:
        log.write(text.encode())


def at(run: RunPaths) -> tuple[Any, ...]:
    beat = read_json(run.heartbeat) or {}
    return tuple(beat.get(key) for key in ("epoch", "epochs", "step", "steps"))


@pytest.mark.parametrize(
    ("printed", "steps"),
    [
        ("max_iters = 5000 # total number of iterations\n", 5000),
        ("  max_steps: 5000\n", 5000),
        ("eval_iters = 20\nmax_iters = 5000\n", 5000),
        ("max_iters = 5000 or so\n", None),
        ("warmup_iters = 100\n", None),
        ("iter 0: loss 9\nmax_iters = 5000\n", None),  # it has begun: this is about something else
    ],
)
def test_settings_that_a_program_prints_first_say_how_long_it_is(
    run: RunPaths, reader: Read, printed: str, steps: int | None
) -> None:
    output = reader()
    say(run, f"{printed}iter 10: loss 2.1\n")
    output.look()
    assert at(run) == (None, None, 10, steps)


# --- whose files --------------------------------------------------------------------------------------------


def test_worker_that_begins_to_report_takes_over(run: RunPaths, reader: Read) -> None:
    output = reader()
    say(run, "epoch 1/3 loss=0.5\n")
    output.look()
    assert (read_json(run.heartbeat) or {})["source"] == "output"
    own = {"phase": "own", "epoch": 9}
    write_json(run.heartbeat, own)
    say(run, "epoch 2/3 loss=0.4\n")
    output.finish()
    assert read_json(run.heartbeat) == own
    assert [line["epoch"] for line in read_jsonl(run.metrics)] == [1]


def test_lines_of_the_worker_in_metrics_end_ours(run: RunPaths, reader: Read) -> None:
    output = reader()
    say(run, "epoch 1 loss=0.5\n")
    output.look()
    append_jsonl(run.metrics, {"epoch": 1, "step": 5, "loss": 0.1})
    say(run, "epoch 2 loss=0.4\n")
    output.finish()
    assert [line.get("source") for line in read_jsonl(run.metrics)] == ["output", None]


def test_job_that_names_its_metrics_may_have_a_heartbeat_of_its_own(run: RunPaths, reader: Read) -> None:
    write_json(run.heartbeat, {"phase": "own", "epoch": 9})
    output = reader(log=(r"loss=(?P<loss>\S+)",))
    say(run, "epoch 1 loss=0.5\n")
    output.finish()
    assert (read_json(run.latest_metrics) or {})["loss"] == 0.5
    assert read_json(run.heartbeat) == {"phase": "own", "epoch": 9}


@pytest.mark.parametrize("kind", ["directory", "FIFO", "no JSON"])
def test_strange_file_of_the_worker_is_left_alone(kind: str, run: RunPaths, reader: Read) -> None:
    if kind == "directory":
        run.heartbeat.mkdir()
    elif kind == "FIFO":
        os.mkfifo(run.heartbeat)
    else:
        run.heartbeat.write_text("mine")
    say(run, "epoch 1 loss=0.5\n")
    reader().finish()
    assert not run.metrics.exists()
    assert kind != "no JSON" or run.heartbeat.read_text() == "mine"


def test_run_directory_that_is_gone_is_not_made_again(run: RunPaths, reader: Read) -> None:
    output = reader()
    say(run, "epoch 1 loss=0.5\n")
    run.root.rename(run.root.with_name("moved"))
    output.finish()
    assert not run.root.exists()


# --- what is kept -------------------------------------------------------------------------------------------


def test_latest_metrics_have_the_newest_value_of_each_name(run: RunPaths, reader: Read) -> None:
    output = reader(goals={"VAL_ACC": ">= 0.9"})
    say(run, "epoch 1 val_acc=0.95 loss=2\nepoch 2 loss=1\n")
    output.finish()
    latest = read_json(run.latest_metrics) or {}
    assert (latest["VAL_ACC"], latest["loss"], latest["goals"], latest["epoch"]) == (0.95, 1.0, {"VAL_ACC": True}, 2)


def test_metrics_file_grows_slowly_after_a_burst(run: RunPaths, reader: Read) -> None:
    output = reader()
    for step in range(output_files.BURST + 2000):
        say(run, f"step {step} loss={step}.5\n")
    for _ in range(50):
        output.look()
    assert len(list(read_jsonl(run.metrics))) <= output_files.BURST + 10
    output.finish()
    assert len(list(read_jsonl(run.metrics))) <= output_files.BURST + 11
    assert (read_json(run.latest_metrics) or {})["loss"] == output_files.BURST + 1999.5


def test_number_of_names_is_bounded_and_goals_stay(run: RunPaths) -> None:
    files = OutputFiles(run, {"val_acc": "> 0"}, is_asked=True)
    files.add(Row(1, 1, {"val_acc": 0.5}))
    for number in range(5 * output_files.MOST_METRICS):
        files.add(Row(1, number, {f"loss_{number}": 1.0}))
    files.write_metrics(is_end=True)
    latest = read_json(run.latest_metrics) or {}
    assert latest["val_acc"] == 0.5 and len(latest) < output_files.MOST_METRICS + 10


def test_traceback_is_not_read(run: RunPaths, reader: Read) -> None:
    say(run, 'loss=1\nTraceback (most recent call last):\n  File "x", line 1\n    loss=2\nKeyError: loss: 3\n')
    say(run, "[rank0]: Traceback (most recent call last):\n[rank0]:   loss=4\n[rank0]: E: loss=5\n")
    reader().finish()
    assert [line["loss"] for line in read_jsonl(run.metrics)] == [1.0]


def test_number_that_is_still_being_written_is_not_read(run: RunPaths, reader: Read) -> None:
    output = reader()
    say(run, "epoch 1 val_loss=1.2")
    for _ in range(3):
        output.look()
    assert not run.metrics.exists()
    say(run, "345\n")
    output.look()
    assert (read_json(run.latest_metrics) or {})["val_loss"] == 1.2345


def test_bar_counts_before_anything_follows_it(run: RunPaths, reader: Read) -> None:
    output = reader()
    say(run, "\r 45%|####5     | 45/100 [00:10<00:12,  4.50it/s]")
    output.look()
    output.look()
    assert at(run) == (None, None, 45, 100)


# --- bounded work -------------------------------------------------------------------------------------------


def test_look_takes_bounded_cpu_time_for_any_output(run: RunPaths, reader: Read) -> None:
    chance = random.Random(1)
    bars = "".join(f"\r{n % 100:3d}%|{'#' * 60}| {n}/200000 [00:10<00:12, 4.5it/s]" for n in range(200_000))
    lines = "".join(f"step {n} loss={chance.random()} acc={chance.random()}\n" for n in range(60_000))
    for text in (bars, lines, "\n" * 3_000_000, "x" * 8_000_000, "1\n" * 1_000_000):
        say(run, text)
    output = reader()
    for _ in range(5):
        began = time.thread_time()
        output.look()
        assert time.thread_time() - began < 20 * output_reader.LOOK_S  # one chunk more than the limit, on any machine
    say(run, "\nval_loss: 0.25\n")
    began = time.thread_time()
    output.finish()
    assert time.thread_time() - began < 20 * output_reader.END_S
    assert (read_json(run.latest_metrics) or {})["val_loss"] == 0.25


@pytest.mark.parametrize("line", ["a" * 60 + "!", "1" * 4000])
@pytest.mark.parametrize("source", [r"(a+)+$", r"(?P<x>(a|a)*(\d|\d)*)$!", r"(?P<x>\d*\d*\d*\d*\d*)x"])
def test_search_that_backtracks_is_ended(source: str, line: str) -> None:
    patterns = Patterns([source])
    began = time.thread_time()
    for _ in range(10):
        patterns.find(line)
    assert time.thread_time() - began < 5.0


def test_pattern_that_this_python_does_not_know_is_a_problem() -> None:
    patterns = Patterns(["(?P<x>", r"loss (?P<loss>\S+ %)"])
    assert len(patterns.problems) == 1 and "cannot use the pattern '(?P<x>'" in patterns.problems[0]
    found = patterns.find("loss 5 %")
    assert found and found.metrics == {"loss": 0.05}


# --- progress and time left ---------------------------------------------------------------------------------


def test_time_left_follows_from_the_pace() -> None:
    progress = OutputProgress(Position())
    progress.take(Sign(epoch=1.0, epochs=4), 0, now=0.0)
    assert progress.eta(0.0) is None
    progress.take(Sign(epoch=2.0), 0, now=100.0)
    progress.take(Sign(epoch=3.0), 0, now=200.0)
    assert progress.eta(200.0) == pytest.approx(200.0)


def test_time_left_of_a_bar_that_counts_the_run_is_its_own() -> None:
    progress = OutputProgress(Position())
    progress.take(Sign(step=5, steps=10, eta_s=50.0, is_bar=True, phase="train"), 0, now=0.0)
    assert (progress.eta(0.0), progress.eta(20.0)) == (50.0, 30.0)
    progress.take(Sign(step=1, steps=2, eta_s=1.0, is_bar=True, phase="Map"), 0, now=30.0)
    assert (progress.eta(30.0), progress.position) == (None, Position(step=1, steps=2))


def test_epochs_that_count_from_zero_are_shown_from_one() -> None:
    progress = OutputProgress(Position())
    progress.take(Sign(epoch=0.0, step=8, steps=8), 0, now=0.0)
    progress.take(Sign(epoch=1.0, step=2, steps=8), 0, now=1.0)
    assert progress.position == Position(2, None, 2, 8)


def test_nested_bar_counts_only_below_one_of_epochs() -> None:
    progress = OutputProgress(Position())
    progress.take(Sign(step=5, steps=10, is_bar=True, phase="train"), 0, now=0.0)
    assert not progress.take(Sign(step=1, steps=4, is_bar=True, phase="train"), 1, now=1.0)
    progress.take(Sign(epoch=1, epochs=3, is_bar=True, counts_epochs=True), 0, now=2.0)
    assert progress.take(Sign(step=1, steps=4, is_bar=True, phase="train"), 1, now=3.0)
    assert progress.position == Position(2, 3, 1, 4)


@pytest.mark.parametrize(
    ("command", "epochs", "steps"),
    [
        ("python main.py --epochs 6", 6, None),
        ("python main.py --max_epochs=6 --lr 1", 6, None),
        ("python -m t fit --trainer.max_epochs 5", 5, None),
        ("python hf.py --num_train_epochs 3 --max_steps 9", 3, 9),
        ("python train.py config.py --max_iters=2000", None, 2000),
        ("python hydra.py trainer.max_epochs=5", 5, None),
        ("sh -c 'python x.py --epochs 6'", 6, None),
        ("python main.py --epochs all --save_every_epochs", None, None),
        ("python hf.py --save_steps 50 --warmup_epochs 1", None, None),
    ],
)
def test_totals_of_the_command_are_used(
    command: str, epochs: int | None, steps: int | None, run: RunPaths, reader: Read
) -> None:
    say(run, "epoch 2 loss=1\n" if epochs else "iter 2 loss=1\n")
    output = reader(command)
    output.finish()
    assert at(run) == ((2, epochs, None, None) if epochs else (None, None, 2, steps))


def test_totals_of_the_job_win_over_those_of_the_command(run: RunPaths, reader: Read) -> None:
    say(run, "epoch 2 loss=1\n")
    reader("python main.py --epochs 6", epochs=9).finish()
    assert at(run) == (2, 9, None, None)


# --- frames -------------------------------------------------------------------------------------------------


def test_lines_do_not_depend_on_how_the_bytes_arrive() -> None:
    data = (RECORDED / "output" / "hf-trainer.log").read_bytes()
    whole = [line.text for line in OutputLines().feed(data) if line.text.startswith("{")]
    for size in (1, 7, 100):
        lines = OutputLines()
        pieces = [line for at in range(0, len(data), size) for line in lines.feed(data[at : at + size])]
        assert [line.text for line in pieces if line.text.startswith("{")] == whole


def test_control_sequences_are_removed() -> None:
    [line] = OutputLines().feed(b"\x1b]0;x\x07\x1b[1;32mloss\x1b[0m: \x1b[Ka\b0.5\x00\n")
    assert "\x1b" not in line.text and "\x00" not in line.text


# --- files --------------------------------------------------------------------------------------------------


def test_table_that_is_written_again_with_more_columns_gives_each_row_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    files = MetricFiles(["*.csv"], [tmp_path], 0.0, {})
    path.write_text("step,loss\n1,0.5\n")
    assert list(files.read()) == [Row(None, 1, {"loss": 0.5})]
    path.write_text("step,loss,acc\n1,0.5,\n2,0.4,0.9\n3,0.3")
    assert list(files.read()) == [Row(None, 2, {"loss": 0.4, "acc": 0.9})]
    path.write_text("step,loss\n1,7.0\n")
    assert list(files.read()) == [Row(None, 1, {"loss": 7.0})]


def test_malformed_table_gives_what_is_well_formed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'a;loss\n"x;1\n\xff\x00;2\n1;2;3\n;4\n')
    (tmp_path / "b.tsv").write_text("epoch\tval loss\n1.0\t97%\n")
    found = list(MetricFiles(["*.csv", "*.tsv"], [tmp_path], 0.0, {}).read())
    assert Row(1, None, {"val loss": 0.97}) in found
    assert {"loss": 4.0} in [row.values for row in found]


def event(step: int, tag: bytes, value: bytes) -> bytes:
    item = b"\x0a" + bytes([len(tag)]) + tag + value
    summary = b"\x0a" + bytes([len(item)]) + item
    return b"\x10" + bytes([step]) + b"\x2a" + bytes([len(summary)]) + summary


def record(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + b"crc." + data + b"crc."


def test_events_of_both_kinds_are_read(tmp_path: Path) -> None:
    simple = event(3, b"loss", b"\x15" + struct.pack("<f", 0.5))
    tensor = b"\x08\x01" + b"\x2a\x04" + struct.pack("<f", 0.25)
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(record(simple) + record(event(3, b"acc", b"\x42" + bytes([len(tensor)]) + tensor)) + b"torn")
    with path.open("rb") as file:
        offset, rows = tensorboard.read(file, 0, 1 << 20)
    assert rows == [Row(None, 3, {"loss": 0.5, "acc": 0.25})]
    assert offset == path.stat().st_size - 4


def test_damaged_events_end_the_file(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(record(b"\xff" * 30) + struct.pack("<Q", 1 << 60) + bytes(100))
    with path.open("rb") as file:
        assert tensorboard.read(file, 0, 1 << 20) == (path.stat().st_size, [])


def test_recorded_events_are_read_in_small_looks() -> None:
    with EVENTS.open("rb") as file:
        whole = tensorboard.read(file, 0, 1 << 20)[1]
        offset, rows = 0, []
        while offset < EVENTS.stat().st_size:
            offset, found = tensorboard.read(file, offset, 1)
            rows += found
    assert [row.step for row in whole] == [0, 1, 2, 3, 4]
    assert json.dumps([row.values for row in whole]) != "[]"
    assert {name for row in rows for name in row.values} == {"loss/train", "acc"}
