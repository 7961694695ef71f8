"""The final evaluation, after the last training step. Only it reads the test set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from workers.common.errors import TrainingStopped
from workers.dataset.videos import VideoDataset
from workers.evaluation.baselines import baselines
from workers.evaluation.faithfulness import Faithfulness, faithfulness
from workers.evaluation.heatmaps import Attended, attended, draw
from workers.model.transformer import ModelOutput
from workers.perception.batching import Batch, Packed
from workers.runs.summary import summarise
from workers.training.loader import BatchLoader
from workers.training.trainer import Trainer

PICTURES = 3  # heatmaps of correct predictions, and of wrong ones
FOLDER = "heatmaps"  # under results/

Predict = Callable[..., ModelOutput]


def final_evaluation(trainer: Trainer, videos: VideoDataset, test: Packed, detections: Packed) -> None:
    """Measure the test set; the first process then tests faithfulness, draws heatmaps and writes the summary.

    Args:
        trainer: of the trained model.
        videos: the test split.
        test: its tokens.
        detections: the same videos with one token per detection, for the baselines.
    """
    samples = BatchLoader(test, trainer.device)
    measured = trainer.evaluate(samples, "test")
    if trainer.group.rank:
        return
    results = trainer.run.results
    faithful = explain(trainer, videos, samples, results / FOLDER if results else None)
    compared = baselines(trainer.train.labels, detections)
    summarise(trainer.run, trainer.config, trainer.progress, videos.identity, measured, compared, faithful)


def explain(
    trainer: Trainer, videos: VideoDataset, samples: BatchLoader, folder: Path | None, pictures: int = PICTURES
) -> Faithfulness:
    """Return the faithfulness of the model's attention, and draw heatmaps of a few samples into `folder`."""
    trainer.model.eval()
    predict = _predictor(trainer)
    faithful = faithfulness(predict, _batches(trainer, samples), trainer.config.seed)
    if folder is not None:
        draw(folder, _pictures(predict, _batches(trainer, samples), videos, pictures))
    return faithful


def _predictor(trainer: Trainer) -> Predict:
    """Return the model without gradients. Each call sends a heartbeat, and ends the run if it was asked to stop."""

    @torch.no_grad()
    def predict(features: Tensor, padding: Tensor, frame: Tensor, every_row: bool = False) -> ModelOutput:
        if trainer.run.stop_requested:
            raise TrainingStopped("stopped during the final evaluation; the same command repeats only that")
        trainer.beat("test", 1, 1)
        with trainer.autocast():
            return trainer.model(features, padding, frame, every_row)

    return predict


def _batches(trainer: Trainer, samples: BatchLoader) -> Iterator[Batch]:
    parts = torch.arange(len(samples)).split(trainer.config.batch_size)
    return (batch for batch, _ in samples.batches([(part, 1.0) for part in parts]))


def _pictures(predict: Predict, batches: Iterator[Batch], videos: VideoDataset, count: int) -> list[Attended]:
    """Return the first `count` correct and wrong predictions, of samples with objects of both kinds."""
    left = {True: count, False: count}
    number, chosen = 0, []
    for batch in batches:
        output = predict(batch.features, batch.padding, batch.frame)
        predicted, labels = output.logits.argmax(dim=-1).cpu(), batch.labels.cpu()
        both = (batch.persistent.any(dim=1) & batch.transient.any(dim=1)).cpu()
        for row in range(len(batch)):
            right = bool(predicted[row] == labels[row])
            if both[row] and left[right]:
                left[right] -= 1
                name = f"{'right' if right else 'wrong'}-{number:04d}"
                parts = videos[number].video, batch, row, output.attention[-1, row], int(predicted[row])
                chosen.append(attended(name, *parts))
            number += 1
    return chosen
