from __future__ import annotations

from pathlib import Path

import pytest

from remote.contract.files import write_json
from remote.contract.paths import RunPaths
from remote.contract.run_record import JobRecord
from remote.supervisor.forms import recognise
from remote.supervisor.rehearsing import FILES_EVERY, LARGE_BYTES, Rehearsing

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
