"""The training loop, the same for every worker.

Early stopping fires only when every goal holds. SIGTERM is heeded between two steps: a checkpoint with the position
within the epoch is written, so nothing is lost and nothing is done twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from remote.goals import all_hold, sentence
from remote.worker import Run
from workers import checkpoint
from workers.checkpoint import Progress
from workers.errors import NonFinite, Stopped, WorkerError
from workers.losses import Objective
from workers.measures import Measures
from workers.tokens import Batch, Sample, batches


@dataclass(frozen=True)
class Settings:
    epochs: int = 30
    batch_size: int = 16
    validate_every: int = 5  # epochs; the last epoch is always validated
    learning_rate: float = 1e-3
    seed: int = 0


class Trainer:
    """Trains `model` on `train`; `identity` is what a checkpoint must share to be resumed from."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        train: Sequence[Sample],
        validation: Sequence[Sample],
        settings: Settings,
        device: torch.device,
        run: Run,
        identity: Mapping[str, Any],
    ) -> None:
        self.model = model.to(device)
        self.objective, self.settings, self.device, self.run = objective, settings, device, run
        self.train, self.validation = train, validation
        self.identity = {**identity, "batch_size": settings.batch_size, "seed": settings.seed}
        self.identity["learning_rate"] = settings.learning_rate
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.learning_rate)
        self.steps = math.ceil(len(train) / settings.batch_size)  # in an epoch
        self.order = torch.Generator().manual_seed(settings.seed)
        self.progress = Progress(order=self.order.get_state())

    def fit(self) -> Progress:
        """Train until the last epoch or until all goals hold, from the newest checkpoint where there is one."""
        self.resume()
        for epoch in range(self.progress.epoch, self.settings.epochs + 1):
            if self.goals_hold():
                break
            loss = self.train_epoch()
            if epoch % self.settings.validate_every == 0 or epoch == self.settings.epochs:
                self.validate(epoch, loss)
                self.save()
            elif self.run.stop_requested:
                self.save()
            if self.run.stop_requested:
                raise Stopped(f"stopped after epoch {epoch}; it resumes from there")
        return self.progress

    def resume(self) -> bool:
        """Go on from the newest checkpoint that loads; False where there is none."""
        found = checkpoint.resume(self.run, self.model, self.optimizer, self.identity)
        self.progress = found or self.progress
        return found is not None

    def train_epoch(self) -> float:
        """The rest of the epoch under way; returns the mean loss of the whole epoch."""
        progress = self.progress
        self.order.set_state(progress.order)
        order = torch.randperm(len(self.train), generator=self.order).tolist()
        self.model.train()
        for batch in batches(self.train, self.settings.batch_size, order[progress.step * self.settings.batch_size :]):
            progress.loss_sum += self.train_step(batch.to(self.device)) * len(batch)
            progress.samples_seen += len(batch)
            progress.step += 1
            progress.steps_done += 1
            self.beat("train", progress.step, self.steps)
            if self.run.stop_requested and progress.step < self.steps:
                self.save()
                raise Stopped(f"stopped in epoch {progress.epoch} after step {progress.step}; it resumes from there")
        loss = progress.loss_sum / progress.samples_seen
        progress.epoch, progress.step, progress.loss_sum, progress.samples_seen = progress.epoch + 1, 0, 0.0, 0
        progress.order = self.order.get_state()
        return loss

    def train_step(self, batch: Batch) -> float:
        """One step of Adam; raises NonFinite before the step where the loss is not a number to follow."""
        logits, attention = self.model(batch.features, batch.padding)
        loss: Tensor = self.objective(logits, attention, batch)
        value = loss.item()
        if not math.isfinite(value):
            raise NonFinite(
                f"the loss is {value} in epoch {self.progress.epoch}, step {self.progress.step + 1}; the step was not"
                " taken; look for broken samples or lower --learning-rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return value

    @torch.no_grad()
    def evaluate(self, samples: Sequence[Sample], phase: str) -> dict[str, Any]:
        """What `Measures.result` says of `samples`; draws nothing at random."""
        self.model.eval()
        measures = Measures()
        steps = math.ceil(len(samples) / self.settings.batch_size)
        for step, cpu_batch in enumerate(batches(samples, self.settings.batch_size), start=1):
            batch = cpu_batch.to(self.device)
            logits, attention = self.model(batch.features, batch.padding)
            measures.add(logits, attention, batch, self.objective(logits, attention, batch))
            self.beat(phase, step, steps)
        return measures.result()

    def validate(self, epoch: int, loss: float) -> None:
        """Measure, record, and say which goals hold and which do not."""
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

    def goals_hold(self) -> bool:
        """Judged on the last validation, also after a restart, by the goals as they are now."""
        return all_hold(self.run.judge(self.progress.metrics))

    def save(self) -> None:
        checkpoint.save(self.run, self.progress, self.model, self.optimizer, self.identity)

    def prove_checkpoint(self) -> None:
        """Raise unless the newest checkpoint on disk holds the weights that are in memory."""
        path = self.run.newest_checkpoint()
        if self.run.paths is None:
            return
        saved = checkpoint.read(path)["model"] if path else {}
        held = self.model.state_dict()
        if saved.keys() != held.keys() or not all(torch.equal(saved[key], held[key].cpu()) for key in held):
            raise WorkerError(f"the trained model is not in its newest checkpoint ({path}); is the disk sound?")

    def beat(self, phase: str, step: int, steps: int) -> None:
        finished = phase != "train"
        epoch = max(1, self.progress.epoch - 1) if finished else self.progress.epoch
        self.run.beat(phase, epoch=epoch, epochs=self.settings.epochs, step=step, steps=steps)
