"""A script: start worker1 with one fault planted.

    python faulty_worker.py FAULT [options of worker1]

Each fault once cost a night. It needs only `workers`, so that a test can copy it into a project and run it as a job.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from workers import worker1
from workers.evaluation.metrics import Metrics, MetricSums, log_ratio
from workers.model.transformer import ModelOutput, TokenTransformer
from workers.runs import entry
from workers.training import checkpoint, losses


def patch(owner: object, name: str, value: object) -> Any:
    """Replace an attribute and return what it was."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before


def wrong_keyword() -> None:
    detector: Any = patch(
        entry, "ObjectDetector", lambda confidence_threshold: detector(min_confidence=confidence_threshold)
    )


def attention_of_the_batch() -> None:
    def averaged(model: TokenTransformer, *inputs: Any) -> ModelOutput:
        output: ModelOutput = forward(model, *inputs)
        return output._replace(attention=output.attention.mean(dim=1, keepdim=True))

    forward = patch(TokenTransformer, "forward", averaged)


def mask_of_samples() -> None:
    def indexed(attention: Tensor, persistent: Tensor, transient: Tensor, target: float) -> None:
        ratios, both = log_ratio(attention, persistent, transient)
        ratios.mean(dim=1, keepdim=True)[0][both]

    patch(losses, "attention_term", indexed)


def import_at_validation() -> None:
    def result(sums: MetricSums) -> Metrics:
        importlib.import_module("heatmaps")
        return {}

    patch(MetricSums, "result", result)


def checkpoint_that_does_not_load() -> None:
    states: Any = patch(checkpoint, "random_states", lambda: {**states(), "made in": Path("/")})


def metric_that_is_not_a_number() -> None:
    result: Any = patch(MetricSums, "result", lambda sums: {**result(sums), "consistency": float("nan")})


class Fault(NamedTuple):
    """A fault, and how the rehearsal ends."""

    plant: Callable[[], None]
    exit_code: int
    cause: str


FAULTS = {
    "wrong-keyword": Fault(
        wrong_keyword, 1, "TypeError: ObjectDetector.__init__() got an unexpected keyword argument 'min_confidence'"
    ),
    "attention-of-the-batch": Fault(attention_of_the_batch, 1, "ValueError: the persistent mask is [16, "),
    "mask-of-samples": Fault(
        mask_of_samples,
        1,
        "The shape of the mask [16] at index 0 does not match the shape of the indexed tensor [1]",
    ),
    "import-at-validation": Fault(import_at_validation, 1, "ModuleNotFoundError: No module named 'heatmaps'"),
    "checkpoint-that-does-not-load": Fault(
        checkpoint_that_does_not_load,
        1,
        "worker1: the checkpoint epoch-0004.pt cannot be loaded: Unsupported global: GLOBAL pathlib",
    ),
    "metric-that-is-not-a-number": Fault(
        metric_that_is_not_a_number, 1, "worker1: after 4 training steps consistency is nan in the validation"
    ),
}


if __name__ == "__main__":
    name, *options = sys.argv[1:]
    FAULTS[name].plant()
    sys.exit(worker1.main(options))
