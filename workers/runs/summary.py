"""The summary of a finished training: test metrics, baselines, faithfulness, and which goals are met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from remote.contract.files import write_json
from remote.contract.goals import GoalResult, sentence
from remote.contract.schema import to_json
from remote.worker import Run
from workers.dataset.dataset_record import DatasetIdentity
from workers.evaluation.faithfulness import Faithfulness
from workers.evaluation.metrics import Metrics
from workers.training.checkpoint import TrainingProgress
from workers.training.training_config import TrainingConfig

FILE = "summary.json"  # under results/


def summarise(
    run: Run,
    config: TrainingConfig,
    progress: TrainingProgress,
    dataset: DatasetIdentity,
    test: Metrics,
    baselines: Mapping[str, float],
    faithful: Faithfulness,
) -> None:
    """Print the results and write results/summary.json.

    Args:
        run: where to write; it judges the goals, on the last validation.
        config: the settings of the training.
        progress: its position at the end.
        dataset: what it was trained on.
        test: metrics of the test set.
        baselines: test accuracies of rules that need no training.
        faithful: the faithfulness of attention on the test set.
    """
    results = run.judge(progress.metrics)
    summary = {
        "schema": 1,
        "worker": config.variant,
        "weights": config.weights,
        "data": to_json(dataset),
        "limit": config.limit,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "optimizer": config.optimizer,
        "schedule": config.schedule,
        "sampler": config.sampler,
        "objective": asdict(config.objective),
        "architecture": asdict(config.architecture),
        "epochs_done": progress.epoch - 1,
        "test": dict(test),
        "validation": dict(progress.metrics),
        "baselines": dict(baselines),
        "faithfulness": asdict(faithful),
        "goals": [_goal(result) for result in results],
        "verdict": sentence(results),
    }
    if run.results is not None:
        run.results.mkdir(mode=0o700, exist_ok=True)
        write_json(run.results / FILE, summary, durable=True)
    print(f"test after {progress.epoch - 1} epochs: {_listed(test)}")
    print(f"baselines: {_listed(baselines)}")
    print(f"faithfulness: {faithful.text()}")
    print(f"pre-trained weights: {config.weights}")
    for result in results:
        print(f"goal: {result}")
    print(f"verdict: {sentence(results)}", flush=True)


def _goal(result: GoalResult) -> dict[str, str | float | bool | None]:
    return {"goal": str(result.goal), "metric": result.goal.metric, "value": result.value, "holds": result.holds}


def _listed(metrics: Mapping[str, float | int | str | None]) -> str:
    return ", ".join(f"{key} {value:.4f}" for key, value in metrics.items() if isinstance(value, float))
