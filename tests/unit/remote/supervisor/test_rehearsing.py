from __future__ import annotations

from pathlib import Path

import pytest

from remote.contract.files import write_json
from remote.contract.paths import RunPaths
from remote.contract.run_record import JobRecord
from remote.supervisor.forms import recognise
from remote.supervisor.rehearsing import (
    FILES_EVERY,
    LARGE_BYTES,
    Rehearsing,
    final_traceback,
    find_problem,
    shell_of,
)

JOB = JobRecord("train", attempt_limit=300.0, rehearse_start=60.0, rehearse_progress=20.0)


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    run = RunPaths(tmp_path / "train" / "20260126T210312-7f3a")
    for directory in (run.root, run.checkpoints, run.results, run.diagnostics, run.work):
        directory.mkdir(parents=True)
    (run.work / "train.py").write_text("x" * 2 * LARGE_BYTES)  # its code
    return run


def test_rehearsal_without_signs_ends_after_the_time_for_the_start(run: RunPaths) -> None:
    rehearsing = Rehearsing(run, JOB)
    assert rehearsing.look(59.9, has_signs=False) is None and rehearsing.limit == 60
    end = rehearsing.look(60.0, has_signs=False)
    assert end and (end.reason, end.detail) == ("started_well", "no sign of progress within 60 s, but it was running")


@pytest.mark.parametrize("first", [3.0, 59.0])
def test_rehearsal_goes_on_for_a_time_after_the_first_sign(run: RunPaths, first: float) -> None:
    rehearsing = Rehearsing(run, JOB)
    assert rehearsing.look(first, has_signs=True) is None
    assert rehearsing.limit == first + 20
    assert rehearsing.look(first + 19.9, has_signs=False) is None
    end = rehearsing.look(first + 20, has_signs=False)
    assert end and "20 s after its first sign of progress" in end.detail


@pytest.mark.parametrize("sign", ["heartbeat", "stacks"])
def test_worker_with_a_heartbeat_of_its_own_has_only_the_limit_of_the_attempt(run: RunPaths, sign: str) -> None:
    rehearsing = Rehearsing(run, JOB)
    assert rehearsing.look(5, has_signs=True) is None
    if sign == "heartbeat":
        write_json(run.heartbeat, {"phase": "train", "epoch": 1})
    else:
        run.stacks.touch()  # `Run.current()` opens it
    assert rehearsing.look(200, has_signs=True) is None
    assert rehearsing.limit == 300


def test_heartbeat_that_was_read_in_the_output_is_not_its_own(run: RunPaths) -> None:
    write_json(run.heartbeat, {"phase": "train", "epoch": 1, "source": "output"})
    assert Rehearsing(run, JOB).look(60, has_signs=False) is not None


def test_large_file_and_growing_file_are_signs_but_a_small_new_one_is_not(run: RunPaths) -> None:
    config, model = run.work / "config.yaml", run.work / "out" / "model.pt"
    model.parent.mkdir()
    for written, is_sign in [
        ([(config, "lr: 1")], False),
        ([(config, "lr: 1"), (config, "lr: 1\nseed: 2")], True),
        ([(config, "lr: 1"), (model, "weights")], True),
        ([(model, "w" * LARGE_BYTES)], True),
    ]:
        config.unlink(missing_ok=True)
        model.unlink(missing_ok=True)
        rehearsing = Rehearsing(run, JOB)
        for number, (path, text) in enumerate(written, 1):
            path.write_text(text)
            assert rehearsing.look(number * FILES_EVERY, has_signs=False) is None
        assert (rehearsing.limit < 60) == is_sign, written


@pytest.mark.parametrize(
    ("line", "shows"),
    [
        ("| epoch   1 |    40/   84 batches | loss 5.00 | ppl 170", True),
        ("iter 250: loss 2.1", True),
        (" 40%|####      | 40/100 [00:10<00:15, 4.00it/s]", True),
        ("fold 1:  40%|####      | 40/100 [00:10<00:15, 4.00it/s]", True),
        ("accuracy: 0.5", True),
        ("Downloading shards:  40%|####      | 40/100 [00:10<00:15, 4.00it/s]", False),
        ("Map (num_proc=8):  40%|####      | 40/100 [00:10<00:15, 4.00 examples/s]", False),
        ("Sanity Checking DataLoader 0: 100%|####| 2/2 [00:00<00:00, 4.00it/s]", False),
        ("learning_rate: 0.001", False),
    ],
)
def test_line_shows_training_or_what_comes_before_it(line: str, shows: bool) -> None:
    found = recognise(line)
    assert found is not None and found.shows_training == shows


# --- the end ------------------------------------------------------------------------------------------------------

TRACEBACK = (
    'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\n    step()\nValueError: no data\n'
)
REORDERED = "Traceback (most recent call last):\n| epoch 1 | 40/84 batches | loss 5.00\n" + TRACEBACK.split("\n", 1)[1]


@pytest.mark.parametrize(
    ("log", "command", "exception"),
    [
        (TRACEBACK, ["python", "train.py"], "ValueError: no data"),
        ("epoch 1 loss: 0.5\n" + TRACEBACK, ["bash", "-c", "python train.py 2>&1 | tee log"], "ValueError: no data"),
        (REORDERED, ["bash", "-c", "python train.py | tee log"], "ValueError: no data"),
        (
            TRACEBACK + "| epoch 1 | 40/84 batches | loss 5.00\n",
            ["sh", "-c", "./train | tee log"],
            "ValueError: no data",
        ),
        (TRACEBACK + "training ended with 1\n", ["bash", "-c", "python train.py; echo ended"], "ValueError: no data"),
        (TRACEBACK + "wandb: synced\n\n", ["python", "train.py"], "ValueError: no data"),
        ("ERROR:root:training failed\n" + TRACEBACK, ["python", "train.py"], "ValueError: no data"),
        # The program went on.
        (TRACEBACK + "without it, then\n", ["python", "train.py"], None),
        (TRACEBACK + "epoch 1 loss: 0.5\n", ["python", "train.py"], None),
        (TRACEBACK + "epoch 1 loss: 0.5\n", ["bash", "-c", "python train.py 2>&1 | tee log"], None),
        (TRACEBACK + "epoch 1 loss: 0.5\n", ["bash", "run.sh"], None),
        (TRACEBACK + "a line\n" * 6, ["bash", "-c", "python train.py | tee log"], None),
        ("ERROR:root:no apex\n" + TRACEBACK + "without it, then\n", ["sh", "-c", "./train | tee log"], None),
        # Python went on.
        ("epoch 1 loss: 0.5\nException ignored in: <function f at 0x7f>\n" + TRACEBACK, ["python", "train.py"], None),
        ("Exception in thread Thread-4 (_pin_memory_loop):\n" + TRACEBACK, ["python", "train.py"], None),
        ("--- Logging error ---\n" + TRACEBACK, ["python", "train.py"], None),
        ("Task exception was never retrieved\n" + TRACEBACK, ["python", "train.py"], None),
        ("epoch 1 loss: 0.5\n", ["python", "train.py"], None),
        ("", ["python", "train.py"], None),
    ],
)
def test_traceback_counts_only_if_it_is_the_end_of_the_program(
    run: RunPaths, log: str, command: list[str], exception: str | None
) -> None:
    assert final_traceback(log, shell_of(command, run.work)) == exception


@pytest.mark.parametrize(
    ("script", "keeps_order"), [("python train.py | tee log", False), ("python train.py 2>&1 | tee log", True)]
)
def test_pipe_in_the_script_of_a_shell_is_found(run: RunPaths, script: str, keeps_order: bool) -> None:
    (run.work / "run.sh").write_text(f"#!/bin/bash\n{script}\n")
    for command in (["bash", "run.sh"], ["./run.sh"], ["bash", "-c", script]):
        shell = shell_of(command, run.work)
        assert shell is not None and shell.keeps_order == keeps_order


def test_program_that_hangs_after_a_traceback_did_not_start_well(run: RunPaths) -> None:
    run.log.write_text("epoch 1 loss: 0.5\n" + TRACEBACK)
    end = Rehearsing(run, JOB).look(60, has_signs=False)
    assert end and end.reason == "traceback" and "ValueError: no data" in end.detail


def test_process_left_by_a_worker_that_has_worked_is_a_helper(run: RunPaths) -> None:
    left = {4711: "python3 serve.py"}
    problem = find_problem(run, JOB, run.work, left, "")
    assert problem and problem.reason == "background" and "python3 serve.py" in problem.detail
    write_json(run.heartbeat, {"phase": "train", "pid": 4710})
    assert find_problem(run, JOB, run.work, left, "") is None
    write_json(run.heartbeat, {"phase": "train", "pid": 4711})
    assert find_problem(run, JOB, run.work, left, "") is not None
