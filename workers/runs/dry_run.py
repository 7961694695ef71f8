"""The rehearsal: all that a run does, on a batch or two, to show that it will not fail and to say how long it takes.

It calls what the real run calls: load, detect, features, train, validate, checkpoint, resume, test. Left out are
early stopping and the summary. What was measured goes to results/rehearsal.json.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor

from remote.contract.files import write_json
from remote.worker import Run
from workers.common.errors import NonFinite, TrainingStopped, WorkerError
from workers.common.parallel import torch_threads
from workers.dataset.videos import VideoDataset
from workers.evaluation.baselines import baselines
from workers.perception.tokens import Packed
from workers.runs.evaluate import look_closer
from workers.training import checkpoint
from workers.training.loader import Feed
from workers.training.trainer import Settings, Trainer

STEPS = 4  # the first warms the device up, the others are measured
MIB = 1 << 20

Split = Mapping[str, Packed]
T = TypeVar("T")


@dataclass(frozen=True)
class TrainingJob:
    """The run to come: its whole data, and the very functions that it will call."""

    datasets: Mapping[str, VideoDataset]
    prepare: Callable[[VideoDataset], Packed]
    make_trainer: Callable[[Split, Settings], Trainer]
    settings: Settings
    run: Run
    began: float  # perf_counter when the worker started
    threads: int  # of torch, once the samples are prepared


@dataclass(frozen=True)
class Measured:
    """Seconds, each of one batch of the real size or of what is named; bytes at the highest, or of a checkpoint."""

    setup: float
    sample: float  # its tokens and features
    step: float
    validation: float
    checkpoint: float
    host_bytes: int
    gpu_bytes: int
    checkpoint_bytes: int


def rehearse(job: TrainingJob) -> dict[str, Any]:
    """Raise, or return what was measured after writing and printing it."""
    setup = perf_counter() - job.began
    samples, sample = _prepare(job)
    with torch_threads(job.threads):
        trainer, measured = _try(job, samples, setup, sample)
    record = _record(job, samples, measured, trainer.device)
    if job.run.paths is not None:
        job.run.paths.results.mkdir(mode=0o700, exist_ok=True)
        write_json(job.run.paths.forecast, record, durable=True)
    _print(record)
    return record


def _try(job: TrainingJob, samples: Split, setup: float, sample: float) -> tuple[Trainer, Measured]:
    """Train, validate, save, test, look closer and resume."""
    # An epoch here is one step, on one full batch.
    trainer = job.make_trainer(samples, replace(job.settings, epochs=STEPS, validate_every=STEPS))
    steps = [_timed(trainer, trainer.train_epoch) for _ in range(STEPS)]
    _, validation = _timed(trainer, lambda: trainer.validate(STEPS, steps[-1][0]))
    _check_finite("validation", trainer.progress.metrics)
    _, saving = _timed(trainer, trainer.save)
    test = samples["test"]
    _check_finite("test", trainer.evaluate(Feed(test, trainer.device), "test") | baselines(trainer.train.labels, test))
    with TemporaryDirectory() as folder:
        look_closer(trainer, job.datasets["test"], Feed(test, trainer.device), Path(folder), pictures=1)
    peaks = _peak_host_bytes(), _peak_gpu_bytes(trainer.device)  # before there are two models
    size = _prove_checkpoint(trainer, job.make_trainer(samples, trainer.settings))
    step = median(seconds for _, seconds in steps[1:])
    return trainer, Measured(setup, sample, step, validation, saving, *peaks, size)


def _prepare(job: TrainingJob) -> tuple[dict[str, Packed], float]:
    """One batch of each split, and the seconds a sample took where it was fastest: the first split also warms up."""
    samples, seconds = {}, []
    for split, dataset in job.datasets.items():
        began = perf_counter()
        samples[split] = job.prepare(dataset.first(job.settings.batch_size))
        seconds.append((perf_counter() - began) / len(samples[split]))
    return samples, min(seconds)


def _timed(trainer: Trainer, work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and its seconds, until the device has done it; raises TrainingStopped when asked to stop."""
    began = perf_counter()
    result = work()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    if trainer.run.stop_requested:
        raise TrainingStopped("stopped during the rehearsal")
    return result, perf_counter() - began


def _check_finite(phase: str, metrics: Mapping[str, Any]) -> None:
    floats = {key: value for key, value in metrics.items() if isinstance(value, float)}
    wrong = [f"{key} is {value}" for key, value in floats.items() if not math.isfinite(value)]
    if wrong:
        raise NonFinite(f"after {STEPS} training steps {' and '.join(wrong)} in the {phase}")


# --- the checkpoint ----------------------------------------------------------------------------------


def _prove_checkpoint(trainer: Trainer, fresh: Trainer) -> int:
    """Raise unless `fresh` resumes to the state that `trainer` saved; returns the checkpoint's bytes, 0 outside a run.

    `fresh` has the weights of a new start, so what it has afterwards came from the file.
    """
    path = trainer.run.paths.checkpoint(STEPS) if trainer.run.paths else None
    if path is None:
        return 0
    try:
        saved = checkpoint.read(path)["random"]
    except checkpoint.UNREADABLE as error:
        raise WorkerError(f"the checkpoint {path.name} cannot be loaded back: {_reason(error)}") from error
    resumed = fresh.resume()
    differing = [
        name
        for name, one, other in (
            ("model", trainer.model.state_dict(), fresh.model.state_dict()),
            ("optimizer", trainer.optimizer.state_dict(), fresh.optimizer.state_dict()),
            ("progress", vars(trainer.progress), vars(fresh.progress)),
            ("random states", saved, [checkpoint.random_states()]),
        )
        if not _same(one, other)
    ]
    if differing or not resumed:
        raise WorkerError(f"the checkpoint {path.name} does not restore what was saved: {', '.join(differing)}")
    fresh.prove_checkpoint()
    return path.stat().st_size


def _reason(error: BaseException) -> str:
    """The line of it that matters: torch puts advice before the refusal of `weights_only`."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return text.splitlines()[0] if text else type(error).__name__


def _same(one: Any, other: Any) -> bool:
    """Bit for bit, however deep, on whichever device."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


# --- what was measured -------------------------------------------------------------------------------


def _record(job: TrainingJob, samples: Split, measured: Measured, device: torch.device) -> dict[str, Any]:
    """The forecast is of all epochs; goals that hold early make it shorter."""
    settings = job.settings
    steps = {split: math.ceil(len(dataset) / settings.batch_size) for split, dataset in job.datasets.items()}
    tried, whole = (sum(map(len, splits.values())) for splits in (samples, job.datasets))
    validations = math.ceil(settings.epochs / settings.validate_every)
    a_validation = steps["val"] * measured.validation + measured.checkpoint
    an_epoch = steps["train"] * measured.step + validations * a_validation / settings.epochs
    features = whole * measured.sample
    return {
        "schema": 1,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "samples": tried,
        "samples_in_run": whole,
        "epochs": settings.epochs,
        "steps_per_epoch": steps["train"],
        "seconds_per_step": measured.step,
        "seconds_per_validation": a_validation,
        "seconds_per_epoch": an_epoch,
        "seconds_setup": measured.setup,
        "seconds_features": features,
        "seconds_total": measured.setup + features + settings.epochs * an_epoch,
        "peak_host_bytes": measured.host_bytes,
        "token_bytes_in_run": round(whole * _bytes_per_sample(samples)),
        "peak_gpu_bytes": measured.gpu_bytes,
        "checkpoint_bytes": measured.checkpoint_bytes,
        "checkpoints": min(validations, job.run.checkpoints_at_once),
    }


def _peak_host_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS gives bytes, Linux KiB


def _peak_gpu_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _bytes_per_sample(samples: Split) -> float:
    """Of the tokens, which the real run keeps in memory for all its samples."""
    return sum(split.nbytes for split in samples.values()) / sum(map(len, samples.values()))


def _print(record: Mapping[str, Any]) -> None:
    step, epoch = record["seconds_per_step"], record["seconds_per_epoch"]
    total = timedelta(seconds=round(record["seconds_total"]))
    print(f"rehearsal on {record['device']} with {record['samples']} of {record['samples_in_run']} samples:")
    print(f"  a step takes {step:.3f} s, an epoch of {record['steps_per_epoch']} steps {epoch:.1f} s")
    print(f"  {record['epochs']} epochs, setup and features included, take about {total}")
    print(f"  memory {record['peak_host_bytes'] / MIB:.0f} MiB, GPU {record['peak_gpu_bytes'] / MIB:.0f} MiB")
    if record["checkpoint_bytes"]:
        size = record["checkpoint_bytes"] / MIB
        print(f"  {record['checkpoints']} checkpoints of {size:.1f} MiB; one was written and loaded back", flush=True)
