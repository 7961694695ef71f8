"""The training loop, the same for every variant.

Early stopping fires only when every goal holds. SIGTERM is heeded between two steps: a checkpoint with the position
within the epoch is written, so nothing is lost and nothing is done twice. On a GPU no step waits for the host: batches
are gathered on the device, and whether the numbers are finite is decided there (`optimizer.py`) and read now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remote.contract.goals import all_hold, sentence
from remote.worker import Run
from workers.common.errors import NonFinite, TrainingStopped, WorkerError
from workers.evaluation.metrics import Measures
from workers.model.transformer import ModelOutput, TokenTransformer
from workers.perception.tokens import Batch, Packed
from workers.training import checkpoint
from workers.training.checkpoint import TrainingProgress
from workers.training.distributed import Group
from workers.training.loader import Feed
from workers.training.losses import Objective, mean
from workers.training.optimizer import GuardedAdam, learning_rate
from workers.training.sampler import Order, Shuffled, in_batches

LOOK_EVERY = 50  # steps on a GPU between two looks at whether all was finite; on a CPU a look costs nothing


@dataclass(frozen=True)
class Settings:
    epochs: int = 30
    batch_size: int = 16  # of all processes together
    validate_every: int = 5  # epochs; the last epoch is always validated
    learning_rate: float = 1e-3
    schedule: str = "cosine"  # one of optimizer.SCHEDULES
    seed: int = 0
    bf16: bool = False  # matrix products in bfloat16; weights, losses and attention stay float32
    compile: bool = False  # torch.compile the model

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share to be resumed from; the number of epochs may differ."""
        return {key: value for key, value in vars(self).items() if key not in ("epochs", "validate_every", "compile")}


class Trainer:
    """Trains `model` on `train`; `identity`, with the settings, is what a checkpoint must share to be resumed from."""

    def __init__(
        self,
        model: TokenTransformer,
        objective: Objective,
        train: Packed,
        validation: Packed,
        settings: Settings,
        device: torch.device,
        run: Run,
        identity: Mapping[str, Any],
        order: Order | None = None,
        group: Group | None = None,
    ) -> None:
        self.model = model.to(device)
        self.call: Callable[..., ModelOutput] = (
            torch.compile(self.model, dynamic=True) if settings.compile else self.model
        )
        self.objective, self.settings, self.device, self.run = objective, settings, device, run
        self.reads_tokens = objective.reads_tokens
        self.train, self.validation = Feed(train, device), Feed(validation, device)
        self.order, self.group = order or Shuffled(), group or Group()
        self.identity = {**identity, **settings.identity, "objective": repr(objective), "order": repr(self.order)}
        self.identity["architecture"] = repr(model.architecture)
        told = ("seed", "batch_size", "learning_rate", "objective", "architecture", "order")
        self.about = {name: self.identity[name] for name in told}  # what the summary says of how it was made
        self.optimizer = GuardedAdam(self.model.parameters(), settings.learning_rate)
        self.look_every = LOOK_EVERY if device.type == "cuda" else 1
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.progress = TrainingProgress(order=self.generator.get_state())

    def fit(self) -> TrainingProgress:
        """Train until the last epoch or until all goals hold, from the newest checkpoint where there is one."""
        self.resume()
        for epoch in range(self.progress.epoch, self.settings.epochs + 1):
            if self.goals_hold():
                break
            loss = self.train_epoch()
            stop = self.group.any(self.run.stop_requested)
            if epoch % self.settings.validate_every == 0 or epoch == self.settings.epochs:
                self.save(self.validate(epoch, loss))
            elif stop:
                self.save()
            if stop:
                raise TrainingStopped(f"stopped after epoch {epoch}; it resumes from there")
        return self.progress

    def resume(self) -> bool:
        """Go on from the newest checkpoint that loads; False where there is none."""
        found = checkpoint.resume(self.run, self.model, self.optimizer, self.identity, self.group)
        self.progress = found or self.progress
        return found is not None

    # --- training --------------------------------------------------------------------------------------

    def train_epoch(self) -> float:
        """The rest of the epoch under way; returns the mean loss of the whole epoch."""
        progress, size = self.progress, self.settings.batch_size
        self.generator.set_state(progress.order)
        order = self.order(progress.epoch, self.train.labels, self.train.richness, self.generator)
        whole = in_batches(order, self.train.lengths, size, self.generator)
        loss_sum = torch.tensor(progress.loss_sum, dtype=torch.float64, device=self.device)
        self.model.train()
        parts = [self.group.share(indices) for indices in whole[progress.step :]]
        for indices, batch in zip(whole[progress.step :], self.train.batches(parts), strict=True):
            loss_sum += self.train_step(batch, len(whole)) * len(indices)
            progress.samples_seen += len(indices)
            progress.step += 1
            progress.steps_done += 1
            self.beat("train", progress.step, len(whole))
            if progress.step < len(whole) and self.group.any(self.run.stop_requested):
                self.check_finite(len(whole))
                progress.loss_sum = loss_sum.item()
                self.save()
                raise TrainingStopped(
                    f"stopped in epoch {progress.epoch} after step {progress.step}; it resumes from there"
                )
        self.check_finite(len(whole))
        loss = loss_sum.item() / progress.samples_seen
        progress.epoch, progress.step, progress.loss_sum, progress.samples_seen = progress.epoch + 1, 0, 0.0, 0
        progress.order = self.generator.get_state()
        return loss

    def train_step(self, batch: tuple[Batch, float], steps: int) -> Tensor:
        """One step of Adam, not taken where the loss is not a number to follow; returns the loss, on the device."""
        done = (self.progress.epoch - 1 + self.progress.step / steps) / self.settings.epochs
        rate = learning_rate(self.settings.learning_rate, self.settings.schedule, self.progress.steps_done + 1, done)
        sums, counts = self.terms(*batch)[1]
        loss = mean(sums, self.group.sum(counts))
        self.optimizer.zero_grad()
        loss.backward()
        loss = self.group.sum_gradients(self.optimizer.gradient, loss.detach())
        self.optimizer.guarded_step(loss, self.progress.steps_done + 1, rate)
        if self.progress.step % self.look_every == self.look_every - 1:
            self.check_finite(steps)
        return loss

    def terms(self, batch: Batch, weight: float, every_row: bool = False) -> tuple[ModelOutput, tuple[Tensor, Tensor]]:
        """What the model says of `batch`, and the objective's weighted sums and counts, in float32."""
        with self.autocast():
            call = self.model if every_row else self.call
            output = call(batch.features, batch.padding, batch.frame, every_row, self.reads_tokens)
        sums, counts = self.objective(output, batch)
        return output, (sums * weight, counts * weight)

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.settings.bf16 else nullcontext()

    def check_finite(self, steps: int) -> None:
        if self.optimizer.is_sound():
            return
        step = int(self.optimizer.bad_step) - self.progress.steps_done + self.progress.step
        progress, loss = self.progress, float(self.optimizer.bad_loss)
        detail = (
            f"the loss is {loss} or its gradient not finite in epoch {progress.epoch}, step {step} of {steps}; neither"
            " this step was taken nor any after it; look for broken samples or lower --learning-rate"
        )
        self.run.fail("non_finite", detail)
        raise NonFinite(detail)

    # --- measuring -------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, samples: Feed, phase: str) -> dict[str, Any]:
        """What `Measures.result` says of `samples`; draws nothing at random."""
        self.model.eval()
        measures = Measures(self.group.sum)
        parts = [self.group.share(part) for part in torch.arange(len(samples)).split(self.settings.batch_size)]
        for step, (batch, weight) in enumerate(samples.batches(parts), start=1):
            output, terms = self.terms(batch, weight, every_row=True)
            measures.add(output, batch, terms, weight)
            self.beat(phase, step, len(parts))
        return measures.result()

    def validate(self, epoch: int, loss: float) -> tuple[float, float]:
        """Measure, record, say which goals hold and which do not; how good it is: goals that hold, then accuracy."""
        measured = self.evaluate(self.validation, "validate")
        metrics = {
            "val_accuracy": measured.pop("accuracy"),
            "val_loss": measured.pop("loss"),
            "loss": loss,
            **measured,
            "weights": self.identity.get("weights"),
        }
        self.progress.metrics = metrics
        self.run.log_metrics(epoch, self.progress.steps_done, metrics)
        shown = (f"{key} {value:.4f}" for key, value in metrics.items() if isinstance(value, float))
        print(f"epoch {epoch}/{self.settings.epochs}: {', '.join(shown)}", flush=True)
        results = self.run.judge(metrics)
        for result in results:
            if result.holds:
                print(f"  {result}", flush=True)
        early = all_hold(results) and epoch < self.settings.epochs
        print(f"  {sentence(results)}{': stopping early' if early else ''}", flush=True)
        return float(sum(result.holds for result in results)), float(metrics["val_accuracy"])

    def goals_hold(self) -> bool:
        """Judged on the last validation, also after a restart, by the goals as they are now."""
        return all_hold(self.run.judge(self.progress.metrics))

    # --- keeping ---------------------------------------------------------------------------------------

    def save(self, score: Sequence[float] | None = None) -> None:
        """`score` says how good it is: the best checkpoint outlasts the pruning."""
        checkpoint.save(self.run, self.progress, self.model, self.optimizer, self.identity, self.group, score)

    def prove_checkpoint(self) -> None:
        """Raise unless the newest checkpoint on disk holds the weights that are in memory."""
        path = self.run.newest_checkpoint()
        if self.run.paths is None or self.group.rank:
            return
        saved = checkpoint.read(path)["model"] if path else {}
        held = self.model.state_dict()
        if saved.keys() != held.keys() or not all(torch.equal(saved[key], held[key].cpu()) for key in held):
            raise WorkerError(f"the trained model is not in its newest checkpoint ({path}); is the disk sound?")

    def beat(self, phase: str, step: int, steps: int) -> None:
        finished = phase != "train"
        epoch = max(1, self.progress.epoch - 1) if finished else self.progress.epoch
        self.run.beat(phase, epoch=epoch, epochs=self.settings.epochs, step=step, steps=steps)
