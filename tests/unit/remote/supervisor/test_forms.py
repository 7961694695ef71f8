"""What counts as progress or as a metric in one line, and above all what does not."""

from __future__ import annotations

import time
from typing import Any

import pytest

from remote.supervisor.forms import LONGEST_LINE, named_number, recognise, seconds

NOTHING = """\
torch: 2.1.0+cu121
Python 3.11.7 (main, May  9 2024, 07:35:25) [GCC 12.2.0]
version: 2.1
host: 10.0.0.1 port: 8080
listening on 127.0.0.1:6006
time: 12:34:56
2024-01-02 12:34:56,789 - INFO - starting
date: 2024-01-02
error: 404
Seed: 42
num params: 10.65M
batch_size=32
Namespace(batch_size=32, lr=0.1, epochs=3, loss=1)
ValueError: loss: 0.5 is out of range
UserWarning: acc 0.5
  File "train.py", line 5, in loss
epochs: 10
Training for 10 epochs
batch 64
learning to walk 5 times
commit 4f5e2a1 loss_fn
data.tar.gz:  33%|###3      | 1.5M/5.0M [00:01<00:02,  1.05MB/s]
https://example.org/loss/5
loss function 2-norm
memory: 5000MB
elapsed time 12.5s
{"hidden_size": 768, "num_layers": 12}
│ loss: 0.5                  │
GPU 0: loss-scaler
""".splitlines()


@pytest.mark.parametrize("line", NOTHING)
def test_line_that_is_no_report_gives_nothing(line: str) -> None:
    assert recognise(line) is None


@pytest.mark.parametrize(
    ("line", "metrics"),
    [
        ("val loss 2.1", {"val_loss": 2.1}),
        ("Validation Accuracy: 91.5 %", {"Validation_Accuracy": 0.915}),
        ("Test set: Average loss: 0.0512, Accuracy: 9834/10000 (98%)", {"Average_loss": 0.0512, "Accuracy": 0.9834}),
        ("val_error: 0.3 F1: 0.8 f1_score 0.7", {"val_error": 0.3, "F1": 0.8, "f1_score": 0.7}),
        ("loss=1e-5, lr=-.5e+2", {"loss": 1e-5, "lr": -50.0}),
        ("step 5 throughput: 812.5 loss=0.1, took 12.5s", {"throughput": 812.5, "loss": 0.1}),
        ("train.py:45: epoch 3 seed=7 rank: 0 loss=0.5", {"loss": 0.5}),
        ("epoch 3 ip: 10.0.0.1 at: 12:34:56 v: 1.2.3 size: 12MB", {}),
        ("Best val_acc: 0.91", {"Best_val_acc": 0.91}),
        ("loss: 1,234", {}),
        ("loss: 12, acc: 3", {"loss": 12.0, "acc": 3.0}),
    ],
)
def test_numbers_with_a_name(line: str, metrics: dict[str, float]) -> None:
    found = recognise(line)
    assert (found.metrics if found else {}) == metrics


def test_goal_counts_by_any_name() -> None:
    assert recognise("zorb: 5") is None
    found = recognise("zorb: 5", frozenset({"zorb"}))
    assert found and found.metrics == {"zorb": 5.0}


def test_number_that_is_not_finite_is_kept_as_such() -> None:
    found = recognise("val_loss: nan")
    assert found and found.metrics["val_loss"] != found.metrics["val_loss"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (" 45%|####5     | 45/100 [00:10<00:12,  4.50it/s]", {"step": 45, "steps": 100, "eta_s": 12.0}),
        ("1it [00:00, 33.2it/s]", {"step": 1}),
        ("Map:  33%|###3      | 500/1500 [00:01<1:00:02, 490.23 examples/s]", {"phase": "Map", "eta_s": 3602.0}),
        ("Epoch 3/10:  45%|####5     | 45/100 [00:10<?, ?batch/s]", {"epoch": 3.0, "epochs": 10, "step": 45}),
        ("Epochs:  33%|###3      | 1/3 [00:01<00:02]", {"epoch": 1, "epochs": 3, "counts_epochs": True}),
        ("Epoch(train)  [1][ 50/1000]  lr: 1.0e-03  eta: 1:02:03", {"step": 50, "steps": 1000, "eta_s": 3723.0}),
        ("Train Epoch: 1 [640/60000 (1%)]", {"epoch": 1.0, "step": 640, "steps": 60000}),
        ("epoch 3 of 10", {"epoch": 3.0, "epochs": 10}),
        ("step 1,000 loss 2.0", {"step": None}),
        ("best epoch: 3 loss=1", {"epoch": None}),
        ("45/100 [=====>....] - ETA: 1:02 - loss: 0.5", {"step": 45, "eta_s": 62}),
        ("Epoch 1/2 ━━━━━━━━━━━━ 8/8 0:00:00 • 0:00:01 48.2it/s", {"epoch": 1.0, "epochs": 2, "eta_s": 1.0}),
    ],
)
def test_positions(line: str, expected: dict[str, Any]) -> None:
    found = recognise(line)
    assert found is not None
    assert {key: getattr(found, key) for key in expected} == expected


def test_long_lines_and_configurations_give_nothing() -> None:
    assert recognise("loss=0.5 " + "x" * LONGEST_LINE) is None
    many = recognise("step 1 " + " ".join(f"k{n}={n}" for n in range(60)))
    assert many and many.metrics == {}


HOSTILE = [
    ("a" * 63 + " ") * 60,
    "epoch" + " " * 4000,
    "epoch[" * 600 + "1",
    "1" * 4000,
    "val " * 1000 + "1",
    "=" * 4000 + "1",
    " " * 3000 + "%|" + " " * 900 + "1",
    ("9" * 15 + "/") * 250,
    "━" * 4000 + "1",
    "step" + "(" * 4000 + "1",
    "-" * 4000 + "1",
    "a.b/" * 1000 + "1",
    "eta: " * 800 + "1:1",
    "1:" * 2000,
    "'" * 4000 + "1",
    "Error: " * 580 + "1",
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_time_for_a_hostile_line_is_bounded(number: int) -> None:
    """In CPU time of this thread, and generous: a backtracking expression would take minutes."""
    began = time.thread_time()
    recognise(HOSTILE[number])
    assert time.thread_time() - began < 1.0


def test_numbers_as_text() -> None:
    texts = ("1,000", "97 %", "-.5", "1e-3", "1_0", "x", "", "0x1", "9" * 100)
    assert [named_number(text) for text in texts] == [1000.0, 0.97, -0.5, 0.001, None, None, None, None, None]
    assert [seconds(text) for text in ("01:02", "1:00:00", "?", "")] == [62.0, 3600.0, None, None]
