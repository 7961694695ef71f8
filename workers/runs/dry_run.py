"""The rehearsal: everything a run does, on one batch of each split, to find errors early and to forecast the time.

It calls what the real run calls: load, detect, compute features, train, validate, save, resume, evaluate. Only early
stopping and the summary are left out. The measurements and the forecast go to results/rehearsal.json.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from remote.contract.files import write_json
from remote.worker import Run
from workers.common.errors import NonFinite, TrainingStopped, WorkerError
from workers.common.parallel import torch_threads
from workers.dataset.videos import VideoDataset
from workers.evaluation.baselines import baselines
from workers.perception.batching import Packed
from workers.runs.evaluate import explain
from workers.training import checkpoint
from workers.training.distributed import Group
from workers.training.loader import BatchLoader
from workers.training.trainer import Trainer
from workers.training.training_config import TrainingConfig

STEPS = 4  # training steps: the first warms up the device, the others are measured
MIB = 1 << 20

Split = Mapping[str, Packed]
T = TypeVar("T")


@dataclass(frozen=True)
class TrainingJob:
    """The run that is rehearsed: its settings, all its data, and the function that makes its tokens."""

    config: TrainingConfig
    datasets: Mapping[str, VideoDataset]
    prepare: Callable[[VideoDataset], Packed]
    run: Run
    device: torch.device
    group: Group
    began: float  # perf_counter when the worker started
    threads: int  # of torch, once the samples are prepared

    def trainer(self, samples: Split) -> Trainer:
        """Return a trainer whose epochs are one step each."""
        config = replace(self.config, epochs=STEPS, validate_every=STEPS)
        return Trainer(config, samples["train"], samples["val"], self.run, self.device, self.group)


@dataclass(frozen=True)
class Measurements:
    """Seconds, each for one batch of the real size or as named; peak bytes, or the bytes of a checkpoint."""

    setup: float
    sample: float  # its tokens and features
    step: float
    validation: float
    checkpoint: float
    host_bytes: int
    gpu_bytes: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class RehearsalRecord:
    """The content of results/rehearsal.json. docs/workers.md explains the fields."""

    schema: int
    device: str
    samples: int
    samples_in_run: int
    epochs: int
    steps_per_epoch: int
    seconds_per_step: float
    seconds_per_validation: float
    seconds_per_epoch: float
    seconds_setup: float
    seconds_features: float
    seconds_total: float
    peak_host_bytes: int
    token_bytes_in_run: int
    peak_gpu_bytes: int
    checkpoint_bytes: int
    checkpoints: int


def rehearse(job: TrainingJob) -> RehearsalRecord:
    """Rehearse a run, print the forecast and write it to results/rehearsal.json.

    Raises:
        NonFinite: a loss or a metric is not finite.
        WorkerError: the checkpoint does not restore what was saved.
        TrainingStopped: the run was asked to stop.
    """
    setup = perf_counter() - job.began
    samples, sample = _prepare(job)
    with torch_threads(job.threads):
        measured = _try(job, samples, setup, sample)
    record = _record(job, samples, measured)
    if job.run.paths is not None:
        job.run.paths.results.mkdir(mode=0o700, exist_ok=True)
        write_json(job.run.paths.forecast, asdict(record), durable=True)
    _print(record)
    return record


def _try(job: TrainingJob, samples: Split, setup: float, sample: float) -> Measurements:
    """Train, validate, save, evaluate and resume."""
    trainer = job.trainer(samples)
    steps = [_timed(trainer, trainer.train_epoch) for _ in range(STEPS)]
    _, validation = _timed(trainer, lambda: trainer.validate(STEPS, steps[-1][0]))
    _check_finite("validation", trainer.progress.metrics)
    _, saving = _timed(trainer, trainer.save)
    test = samples["test"]
    loader = BatchLoader(test, trainer.device)
    _check_finite("test", {**trainer.evaluate(loader, "test"), **baselines(trainer.train.labels, test)})
    with TemporaryDirectory() as folder:
        explain(trainer, job.datasets["test"], loader, Path(folder), pictures=1)
    peaks = _peak_host_bytes(), _peak_gpu_bytes(trainer.device)  # measured before there is a second model
    size = _prove_checkpoint(trainer, job.trainer(samples))
    step = median(seconds for _, seconds in steps[1:])
    return Measurements(setup, sample, step, validation, saving, *peaks, size)


def _prepare(job: TrainingJob) -> tuple[dict[str, Packed], float]:
    """Return one batch of each split, and the seconds per sample in the fastest one, as the first also warms up."""
    samples, seconds = {}, []
    for split, dataset in job.datasets.items():
        began = perf_counter()
        samples[split] = job.prepare(dataset.first(job.config.batch_size))
        seconds.append((perf_counter() - began) / len(samples[split]))
    return samples, min(seconds)


def _timed(trainer: Trainer, work: Callable[[], T]) -> tuple[T, float]:
    """Return the result of `work` and its seconds, including those of the device. Raise if asked to stop."""
    began = perf_counter()
    result = work()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    if trainer.run.stop_requested:
        raise TrainingStopped("stopped during the rehearsal")
    return result, perf_counter() - began


def _check_finite(phase: str, metrics: Mapping[str, float | int | str | None]) -> None:
    wrong = [
        f"{key} is {value}" for key, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)
    ]
    if wrong:
        raise NonFinite(f"after {STEPS} training steps {' and '.join(wrong)} in the {phase}")


# --- the checkpoint ----------------------------------------------------------------------------------


def _prove_checkpoint(trainer: Trainer, fresh: Trainer) -> int:
    """Check that `fresh`, which has new weights, resumes to the state that `trainer` saved.

    Returns:
        The bytes of the checkpoint; 0 outside a run.
    """
    path = trainer.run.paths.checkpoint(STEPS) if trainer.run.paths else None
    if path is None:
        return 0
    try:
        saved = checkpoint.read(path).random
    except checkpoint.UNREADABLE as error:
        raise WorkerError(f"the checkpoint {path.name} cannot be loaded: {_reason(error)}") from error
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
    """Return the important line: torch prints advice before the refusal of `weights_only`."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return text.splitlines()[0] if text else type(error).__name__


def _same(one: object, other: object) -> bool:
    """Compare nested containers bit for bit, with tensors on any device."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


# --- the forecast ------------------------------------------------------------------------------------


def _record(job: TrainingJob, samples: Split, measured: Measurements) -> RehearsalRecord:
    """Forecast the run for all epochs. It is shorter if all goals are met early."""
    config, device = job.config, job.device
    steps = {split: math.ceil(len(dataset) / config.batch_size) for split, dataset in job.datasets.items()}
    tried, whole = (sum(map(len, splits.values())) for splits in (samples, job.datasets))
    validations = math.ceil(config.epochs / config.validate_every)
    per_validation = steps["val"] * measured.validation + measured.checkpoint
    per_epoch = steps["train"] * measured.step + validations * per_validation / config.epochs
    features = whole * measured.sample
    return RehearsalRecord(
        schema=1,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        samples=tried,
        samples_in_run=whole,
        epochs=config.epochs,
        steps_per_epoch=steps["train"],
        seconds_per_step=measured.step,
        seconds_per_validation=per_validation,
        seconds_per_epoch=per_epoch,
        seconds_setup=measured.setup,
        seconds_features=features,
        seconds_total=measured.setup + features + config.epochs * per_epoch,
        peak_host_bytes=measured.host_bytes,
        token_bytes_in_run=round(whole * _bytes_per_sample(samples)),
        peak_gpu_bytes=measured.gpu_bytes,
        checkpoint_bytes=measured.checkpoint_bytes,
        checkpoints=min(validations, job.run.checkpoints_at_once),
    )


def _peak_host_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux


def _peak_gpu_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _bytes_per_sample(samples: Split) -> float:
    """Return the bytes of the tokens, which the real run keeps in memory for all its samples."""
    return sum(split.nbytes for split in samples.values()) / sum(map(len, samples.values()))


def _print(record: RehearsalRecord) -> None:
    step, epoch = record.seconds_per_step, record.seconds_per_epoch
    total = timedelta(seconds=round(record.seconds_total))
    print(f"rehearsal on {record.device} with {record.samples} of {record.samples_in_run} samples:")
    print(f"  a step takes {step:.3f} s, an epoch of {record.steps_per_epoch} steps {epoch:.1f} s")
    print(f"  {record.epochs} epochs take about {total}, including setup and features")
    print(f"  memory {record.peak_host_bytes / MIB:.0f} MiB, GPU {record.peak_gpu_bytes / MIB:.0f} MiB")
    if record.checkpoint_bytes:
        size = record.checkpoint_bytes / MIB
        print(f"  {record.checkpoints} checkpoints of {size:.1f} MiB; one was written and loaded back", flush=True)
