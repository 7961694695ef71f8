"""The final evaluation: the one reader of the test set, after the last step has been taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.common.errors import TrainingStopped
from workers.dataset.videos import VideoDataset
from workers.evaluation.baselines import baselines
from workers.evaluation.faithfulness import faithfulness
from workers.evaluation.heatmaps import Attended, attended, draw
from workers.model.transformer import ModelOutput
from workers.perception.tokens import Batch, Packed
from workers.runs.summary import summarise
from workers.training.loader import Feed
from workers.training.trainer import Trainer

PICTURES = 3  # of samples that were right, and of ones that were wrong
FOLDER = "heatmaps"  # under results/

Ask = Callable[..., ModelOutput]


def examine(trainer: Trainer, videos: VideoDataset, test: Packed, detections: Packed, about: Mapping[str, Any]) -> None:
    """Measure `test`, the tokens of `videos`; the first process then looks closer, draws, and sums up.

    The baselines are of `detections`, the same videos with a token for each detection.
    """
    samples = Feed(test, trainer.device)
    measured = trainer.evaluate(samples, "test")
    if trainer.group.rank:
        return
    results = trainer.run.results
    faithful = look_closer(trainer, videos, samples, results / FOLDER if results else None)
    beside = baselines(trainer.train.labels, detections)
    summarise(trainer.run, trainer.progress, measured, beside, {**about, **trainer.about}, faithful)


def look_closer(
    trainer: Trainer, videos: VideoDataset, samples: Feed, folder: Path | None, pictures: int = PICTURES
) -> dict[str, Any]:
    """What `faithfulness` says of the samples, and heatmaps of a few of them in `folder`."""
    trainer.model.eval()
    ask = _asking(trainer)
    faithful = faithfulness(ask, _batches(trainer, samples), trainer.settings.seed)
    if folder is not None:
        draw(folder, _pictures(ask, _batches(trainer, samples), videos, pictures))
    return faithful


def _asking(trainer: Trainer) -> Ask:
    """The model without gradients; a beat for each question, and an end to them when the run is asked to stop."""

    @torch.no_grad()
    def ask(features: Tensor, padding: Tensor, frame: Tensor, every_row: bool = False) -> ModelOutput:
        if trainer.run.stop_requested:
            raise TrainingStopped("stopped during the final evaluation; the same command repeats that alone")
        trainer.beat("test", 1, 1)
        with trainer.autocast():
            return trainer.model(features, padding, frame, every_row)

    return ask


def _batches(trainer: Trainer, samples: Feed) -> Iterator[Batch]:
    parts = torch.arange(len(samples)).split(trainer.settings.batch_size)
    return (batch for batch, _ in samples.batches([(part, 1.0) for part in parts]))


def _pictures(ask: Ask, batches: Iterator[Batch], videos: VideoDataset, count: int) -> list[Attended]:
    """The first `count` samples that were right and that were wrong, of those with objects of both kinds."""
    left = {True: count, False: count}
    number, chosen = 0, []
    for batch in batches:
        output = ask(batch.features, batch.padding, batch.frame)
        predicted, labels = output.logits.argmax(dim=-1).cpu(), batch.labels.cpu()
        both = (batch.persistent.any(dim=1) & batch.transient.any(dim=1)).cpu()
        for row in range(len(batch)):
            right = bool(predicted[row] == labels[row])
            if both[row] and left[right]:
                left[right] -= 1
                name = f"{'right' if right else 'wrong'}-{number:04d}"
                parts = videos[number]["video"], batch, row, output.attention[-1, row], int(predicted[row])
                chosen.append(attended(name, *parts))
            number += 1
    return chosen
