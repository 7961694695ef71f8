"""What a finished training says: test measures, baselines, the verdict of each goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remote.contract.files import write_json
from remote.contract.goals import sentence
from remote.worker import Run
from workers.evaluation.faithfulness import in_words
from workers.training.checkpoint import TrainingProgress

FILE = "summary.json"  # under results/


def summarise(
    run: Run,
    progress: TrainingProgress,
    test: Mapping[str, Any],
    beside: Mapping[str, float],
    about: Mapping[str, Any],
    faithful: Mapping[str, Any],
) -> dict[str, Any]:
    """Print the verdict and write results/summary.json; goals are judged on the last validation."""
    results = run.judge(progress.metrics)
    summary = {
        "schema": 1,
        **about,
        "epochs_done": progress.epoch - 1,
        "test": dict(test),
        "validation": dict(progress.metrics),
        "baselines": dict(beside),
        "faithfulness": dict(faithful),
        "goals": [
            {"goal": str(result.goal), "metric": result.goal.metric, "value": result.value, "holds": result.holds}
            for result in results
        ],
        "verdict": sentence(results),
    }
    if run.results is not None:
        run.results.mkdir(mode=0o700, exist_ok=True)
        write_json(run.results / FILE, summary, durable=True)
    _print(summary, [str(result) for result in results])
    return summary


def _print(summary: Mapping[str, Any], results: Sequence[str]) -> None:
    measured = ", ".join(f"{key} {value:.4f}" for key, value in summary["test"].items() if isinstance(value, float))
    print(f"test after {summary['epochs_done']} epochs: {measured}")
    print("baselines: " + ", ".join(f"{key} {value:.4f}" for key, value in summary["baselines"].items()))
    print(f"faithfulness: {in_words(summary['faithfulness'])}")
    print(f"pre-trained weights: {summary['weights']}")
    for result in results:
        print(f"goal: {result}")
    print(f"verdict: {summary['verdict']}", flush=True)
