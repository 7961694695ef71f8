"""The training loop, the same for every variant.

Training stops early only when all goals are met. After SIGTERM, training stops between two steps and writes a
checkpoint with the position within the epoch, so no step is lost or repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from remote.contract.goals import all_hold, sentence
from remote.worker import Run
from workers.common.errors import NonFinite, TrainingStopped, WorkerError
from workers.evaluation.metrics import Metrics, MetricSums
from workers.model.transformer import ModelOutput, TokenTransformer
from workers.perception.batching import Batch, Packed
from workers.training import checkpoint
from workers.training.checkpoint import TrainingProgress, seed_everything
from workers.training.distributed import Group
from workers.training.loader import BatchLoader
from workers.training.losses import mean
from workers.training.optimizer import MAX_GRADIENT_NORM, SCHEDULES, make_optimizer
from workers.training.sampler import SAMPLERS, batches_of_similar_length
from workers.training.training_config import TrainingConfig


class Trainer:
    """Trains one model on one dataset, as its `config` says."""

    def __init__(
        self,
        config: TrainingConfig,
        train: Packed,
        validation: Packed,
        run: Run,
        device: torch.device,
        group: Group | None = None,
    ) -> None:
        """Create a model with new weights, and its optimizer.

        Args:
            config: all settings.
            train: the tokens of the training split.
            validation: the tokens of the validation split.
            run: receives heartbeats, metrics and checkpoints.
            device: where to train; it is used instead of `config.device`.
            group: the processes that train together; this one alone if missing.
        """
        self.config, self.run, self.device, self.group = config, run, device, group or Group()
        seed_everything(config.seed)
        frames = train.frame_labels.shape[1]
        self.model = TokenTransformer(train.width, config.architecture, frames).to(device)
        seed_everything(
            config.seed + self.group.rank
        )  # the same weights in all processes, but different dropout in each
        self.call: Callable[..., ModelOutput] = (
            torch.compile(self.model, dynamic=True) if config.compile else self.model
        )
        self.objective = config.objective
        self.optimizer = make_optimizer(config.optimizer, self.model, config.learning_rate, config.weight_decay)
        self.schedule, self.sampler = SCHEDULES[config.schedule], SAMPLERS[config.sampler]
        self.train, self.validation = BatchLoader(train, device), BatchLoader(validation, device)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.progress = TrainingProgress(order=self.generator.get_state())

    def fit(self) -> TrainingProgress:
        """Train until the last epoch or until all goals are met, from the newest checkpoint if there is one.

        Raises:
            TrainingStopped: the run was asked to stop; a checkpoint is written.
            NonFinite: the loss or a gradient is not finite.
            BadInput: the checkpoint is of another run.
        """
        self.resume()
        for epoch in range(self.progress.epoch, self.config.epochs + 1):
            if self.goals_met():
                break
            loss = self.train_epoch()
            stop = self.group.any(self.run.stop_requested)
            if epoch % self.config.validate_every == 0 or epoch == self.config.epochs:
                self.save(self.validate(epoch, loss))
            elif stop:
                self.save()
            if stop:
                raise TrainingStopped(f"stopped after epoch {epoch}; the same command resumes from there")
        return self.progress

    def resume(self) -> bool:
        """Continue from the newest checkpoint that loads. Return False if there is none."""
        found = checkpoint.resume(self.run, self.config, self.model, self.optimizer, self.group)
        self.progress = found or self.progress
        return found is not None

    # --- training --------------------------------------------------------------------------------------

    def train_epoch(self) -> float:
        """Train the rest of the current epoch. Return the mean loss of the whole epoch."""
        progress, size = self.progress, self.config.batch_size
        self.generator.set_state(progress.order)
        order = self.sampler(progress.epoch, self.train.labels, self.train.richness, self.generator)
        batches = batches_of_similar_length(order, self.train.lengths, size, self.generator)
        steps = len(batches)
        shares = [self.group.share(indices) for indices in batches[progress.step :]]
        lines = ProgressLines()
        self.model.train()
        for indices, (batch, weight) in zip(batches[progress.step :], self.train.batches(shares), strict=True):
            rate = self.config.learning_rate * self.learning_rate_factor(steps)
            loss = self.train_step(batch, weight, rate, steps)
            progress.loss_sum += loss * len(indices)
            progress.samples_seen += len(indices)
            progress.step += 1
            progress.steps_done += 1
            self.beat("train", progress.step, steps)
            lines.add(loss)
            if progress.step % self.config.log_every == 0 or progress.step == steps:
                where = f"epoch {progress.epoch}/{self.config.epochs} step {progress.step}/{steps}"
                print(lines.next(where, rate), flush=True)
            if progress.step < steps and self.group.any(self.run.stop_requested):
                self.save()
                raise TrainingStopped(
                    f"stopped in epoch {progress.epoch} after step {progress.step}; the same command resumes from there"
                )
        epoch_loss = progress.loss_sum / progress.samples_seen
        progress.epoch, progress.step, progress.loss_sum, progress.samples_seen = progress.epoch + 1, 0, 0.0, 0
        progress.order = self.generator.get_state()
        return epoch_loss

    def learning_rate_factor(self, steps: int) -> float:
        """Return what the schedule says for the next of the epoch's `steps`."""
        done = (self.progress.epoch - 1 + self.progress.step / steps) / self.config.epochs
        return self.schedule(self.progress.steps_done + 1, done)

    def train_step(self, batch: Batch, weight: float, learning_rate: float, steps: int) -> float:
        """Take one step of the optimizer, unless the loss or a gradient is not finite.

        Args:
            batch: this process's share of the batch.
            weight: 0 if the share is only a placeholder, else 1.
            learning_rate: of this step.
            steps: of the epoch, for the error message.

        Returns:
            The loss of the whole batch.
        """
        sums, counts = self.predict(batch, weight)[1]
        loss = mean(sums, self.group.sum(counts))
        self.optimizer.zero_grad()
        loss.backward()
        parameters = list(self.model.parameters())
        value = float(self.group.sum_gradients(parameters, loss.detach()))
        norm = float(clip_grad_norm_(parameters, MAX_GRADIENT_NORM))
        if not math.isfinite(value + norm):
            self.fail_non_finite(value, norm, steps)
        for parameter_group in self.optimizer.param_groups:
            parameter_group["lr"] = learning_rate
        self.optimizer.step()
        return value

    def predict(
        self, batch: Batch, weight: float, every_row: bool = False
    ) -> tuple[ModelOutput, tuple[Tensor, Tensor]]:
        """Return the model's output for a batch, and the sums and counts of the objective in float32."""
        with self.autocast():
            call = self.model if every_row else self.call
            output = call(batch.features, batch.padding, batch.frame, every_row, self.config.objective.reads_tokens)
        sums, counts = self.objective(output, batch)
        return output, (sums * weight, counts * weight)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the model runs: bfloat16 or nothing."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.config.bf16 else nullcontext()

    def fail_non_finite(self, loss: float, norm: float, steps: int) -> None:
        """Record why the run ends, and raise NonFinite."""
        detail = (
            f"the loss is {loss:g} and the norm of its gradient {norm:g} in epoch {self.progress.epoch}, step"
            f" {self.progress.step + 1} of {steps}; the step was not taken; look for broken samples or lower"
            " --learning-rate"
        )
        self.run.fail("non_finite", detail)
        raise NonFinite(detail)

    # --- measuring -------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, samples: BatchLoader, phase: str) -> Metrics:
        """Return the metrics of `samples` (`MetricSums.result`). Draws no random numbers."""
        self.model.eval()
        sums = MetricSums(self.group.sum)
        shares = [self.group.share(part) for part in torch.arange(len(samples)).split(self.config.batch_size)]
        for step, (batch, weight) in enumerate(samples.batches(shares), start=1):
            output, terms = self.predict(batch, weight, every_row=True)
            sums.add(output, batch, terms, weight)
            self.beat(phase, step, len(shares))
        return sums.result()

    def validate(self, epoch: int, loss: float) -> tuple[float, float]:
        """Measure the validation split, record the metrics, and print them and which goals are met.

        Returns:
            The score of a checkpoint: how many goals are met, then the accuracy.
        """
        measured = self.evaluate(self.validation, "validate")
        accuracy = measured.pop("accuracy")
        metrics: Metrics = {"val_accuracy": accuracy, "val_loss": measured.pop("loss"), "loss": loss, **measured}
        metrics["weights"] = self.config.weights
        self.progress.metrics = metrics
        self.run.log_metrics(epoch, self.progress.steps_done, metrics)
        shown = (f"{key} {value:.4f}" for key, value in metrics.items() if isinstance(value, float))
        print(f"epoch {epoch}/{self.config.epochs}: {', '.join(shown)}", flush=True)
        results = self.run.judge(metrics)
        for result in results:
            if result.holds:
                print(f"  {result}", flush=True)
        early = all_hold(results) and epoch < self.config.epochs
        print(f"  {sentence(results)}{': stopping early' if early else ''}", flush=True)
        assert isinstance(accuracy, float)
        return float(len([result for result in results if result.holds])), accuracy

    def goals_met(self) -> bool:
        """Return whether the last validation meets all goals. After a restart, the goals may be different."""
        return all_hold(self.run.judge(self.progress.metrics))

    # --- keeping ---------------------------------------------------------------------------------------

    def save(self, score: Sequence[float] | None = None) -> None:
        """Write a checkpoint. The one with the best `score` is never pruned."""
        checkpoint.save(self.run, self.config, self.progress, self.model, self.optimizer, self.group, score)

    def prove_checkpoint(self) -> None:
        """Raise WorkerError unless the newest checkpoint on disk holds the weights that are in memory."""
        if self.run.paths is None or self.group.rank:
            return
        path = self.run.newest_checkpoint()
        saved = checkpoint.read(path).model if path else {}
        held = self.model.state_dict()
        if saved.keys() != held.keys() or not all(torch.equal(saved[key], held[key].cpu()) for key in held):
            raise WorkerError(f"the newest checkpoint ({path}) does not hold the trained model; check the disk")

    def beat(self, phase: str, step: int, steps: int) -> None:
        """Send a heartbeat. Validation and test belong to the epoch that ended."""
        epoch = self.progress.epoch if phase == "train" else max(1, self.progress.epoch - 1)
        self.run.beat(phase, epoch=epoch, epochs=self.config.epochs, step=step, steps=steps)


class ProgressLines:
    """The progress lines of an epoch: mean loss, learning rate and time since the line before."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.began = perf_counter()

    def add(self, loss: float) -> None:
        """Count the loss of one step."""
        self.losses.append(loss)

    def next(self, where: str, rate: float) -> str:
        """Return a line, and start the next one. `where` is the position, `rate` the learning rate."""
        loss, now = sum(self.losses) / len(self.losses), perf_counter()
        milliseconds = 1000 * (now - self.began) / len(self.losses)
        self.losses, self.began = [], now
        return f"{where} loss {loss:.4f} lr {rate:.1e} {milliseconds:.1f} ms/step"
