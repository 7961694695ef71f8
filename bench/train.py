"""Time 30 epochs of worker2 with the original method and with ours: same data, model, loss and steps.

crops  every epoch reads each float32 `.pt` file, detects, and sends every crop through the plain ResNet-18 in float32.
       These are the same features as ours; `speedup` is the ratio to this method
frames as crops, but every frame goes through ResNet-18, and the features of an object are read from the feature
       maps of its frame (RoIAlign): twice the work, for worse features
ours   objects and half-precision features of crops are computed once, into an empty cache; epochs gather from memory
again  as ours, with a full cache

The first two are measured for --slow-epochs epochs and one validation, and extrapolated. Their accuracy is that of 30
epochs on their own float32 features: the network is frozen, so every epoch computes the same ones. Each method runs in
its own process, so that its peak memory is its own. The benchmark prints a table and writes build/bench-train.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.transforms.functional import normalize

from bench.setting import write_figures
from remote.worker import Run
from workers.common.parallel import TRAINING_THREADS, torch_threads
from workers.dataset.dataset_record import SPLITS
from workers.dataset.generate import generate
from workers.dataset.video_sample import VideoSample, load_sample
from workers.dataset.videos import VideoDataset, sample_path
from workers.evaluation.metrics import Metrics
from workers.perception.batching import Batch, Packed, Sample, collate
from workers.perception.detector import Detections, ObjectDetector
from workers.perception.features import MEAN, STD, Appearance, crop
from workers.perception.matching import match
from workers.perception.objects import find
from workers.perception.resnet import load_resnet
from workers.perception.tokens import Geometry, tokenise
from workers.runs.variants import WORKER1, WORKER2
from workers.training.loader import BatchLoader
from workers.training.trainer import Trainer
from workers.training.training_config import TrainingConfig

MIN_SPEEDUP = 15.0
CPU, NO_RUN = torch.device("cpu"), Run(None, [])
MIB = 1 << 20


def main() -> int:
    options = _options()
    if options.way:
        ways = {"crops": original, "frames": original, "ours": ours, "again": ours, "grow": grow}
        figures = ways[options.way](options)
        usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        figures["peak_mib"] = max(usage) / 1024  # of the largest process
        options.to.write_text(json.dumps(figures))
        return 0
    with tempfile.TemporaryDirectory(prefix="orch-bench-", dir=options.scratch) as folder:
        record = measure(options, Path(folder))
    write_figures("bench-train", record)
    report(record)
    return 0 if record["speedup"] >= MIN_SPEEDUP else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--slow-epochs", type=int, default=1, help="epochs of the original method to measure")
    parser.add_argument("--growth", type=int, nargs="*", default=[1000, 10000], help="samples to time worker1 with")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads and processes")
    parser.add_argument("--weights", default="random", help="weights of ResNet-18; the speed does not depend on them")
    parser.add_argument("--scratch", type=Path, help="a directory on a real disk; takes 1.25 MB per sample")
    parser.add_argument("--way", choices=("crops", "frames", "ours", "again", "grow"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    data = folder / "data"
    generate(data, options.samples, 0, NO_RUN)
    (folder / "float32").mkdir()
    for index in range(options.samples):
        sample = load_sample(sample_path(data, index))
        torch.save({**vars(sample), "video": sample.video.float() / 255}, folder / "float32" / f"{index:05d}.pt")
    ways = {way: in_a_process(options, way, data, options.samples) for way in ("ours", "again", "crops", "frames")}
    growth = [in_a_process(options, "grow", folder / f"grow-{count}", count) for count in options.growth]
    return {
        "speedup": ratio(ways, "crops"),
        "speedup_in_cpu_time": ratio(ways, "crops", "cpu_seconds"),
        "speedup_over_frames": ratio(ways, "frames"),
        "speedup_over_frames_in_cpu_time": ratio(ways, "frames", "cpu_seconds"),
        "samples": options.samples,
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, {options.threads} threads, {_processor()}",
        "torch": torch.__version__,
        "weights": ways["ours"]["weights"],
        "epochs": options.epochs,
        "slow_epochs_measured": options.slow_epochs,
        **ways,
        "growth": growth,
    }


def ratio(ways: dict[str, Any], way: str, clock: str = "seconds") -> float:
    return float(ways[way][clock] / ways["ours"][clock])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def in_a_process(options: argparse.Namespace, way: str, data: Path, samples: int) -> dict[str, Any]:
    to = data.with_name(f"{way}-{samples}.json")
    argv = [sys.executable, __file__, "--way", way, "--data", str(data), "--to", str(to), "--samples", str(samples)]
    argv += ["--epochs", str(options.epochs), "--slow-epochs", str(options.slow_epochs), "--weights", options.weights]
    print(f"==> {way}, {samples} samples", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=environment)
    figures: dict[str, Any] = json.loads(to.read_text())
    return figures


# --- the methods -------------------------------------------------------------------------------------


Look = Callable[[Any, "list[Tensor]", "list[Detections]"], Tensor]


class OriginalLoader:
    """Replaces a BatchLoader: computes everything again for every batch."""

    def __init__(self, folder: Path, indices: range, packed: Packed, weights: str, look: Look) -> None:
        self.paths = [folder / f"{index:05d}.pt" for index in indices]
        # Only for the order of the samples.
        self.labels, self.richness, self.lengths = packed.labels, packed.richness, packed.lengths
        self.network, self.look = load_resnet(weights)[0].requires_grad_(False).eval(), look
        self.detector = ObjectDetector(confidence_threshold=0.4)
        self.seconds: dict[str, float] = defaultdict(float)

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, parts: Sequence[tuple[Tensor, float]]) -> Iterator[tuple[Batch, float]]:
        for indices, weight in parts:
            yield collate(self.samples(indices.tolist())), weight

    def samples(self, numbers: list[int]) -> list[Sample]:
        marks = [time.perf_counter()]
        read = [load_sample(self.paths[number]) for number in numbers]
        marks.append(time.perf_counter())
        videos = [(sample.video * 255).round().to(torch.uint8) for sample in read]
        found = [self.detector.detect(video) for video in videos]
        marks.append(time.perf_counter())
        with torch.no_grad():
            vectors = self.look(self.network, videos, found).split([len(each) for each in found])
        marks.append(time.perf_counter())
        for name, first, last in zip(("read", "detect", "resnet"), marks, marks[1:], strict=False):
            self.seconds[name] += last - first
        return [_sample(*each) for each in zip(read, found, vectors, strict=True)]


def by_crops(network: Any, videos: list[Tensor], found: list[Detections]) -> Tensor:
    """[detections of all videos, 512]."""
    return network(torch.cat([crop(video, each.boxes, each.frame) for video, each in zip(videos, found, strict=True)]))


def by_frames(network: Any, videos: list[Tensor], found: list[Detections]) -> Tensor:
    """[detections of all videos, 960]: values of the feature maps of the four stages at the position of each object.

    RoIAlign is from He et al. 2017; maps of every stage as in Lin et al. 2017, because the last one, 2 x 2 for a frame
    of 64 x 64 pixels, cannot separate neighbours.
    """
    states = normalize(torch.cat(videos).permute(0, 3, 1, 2).float() / 255, list(MEAN), list(STD))
    side = states.shape[-1]
    first = torch.arange(len(videos)) * len(videos[0])
    frames = torch.cat([each.frame + start for each, start in zip(found, first, strict=True)])
    regions = torch.cat([frames[:, None].float(), torch.cat([each.boxes for each in found])], dim=1)
    looks = []
    for name, stage in network.named_children():
        if name == "avgpool":
            break
        states = stage(states)
        if name.startswith("layer"):
            looks.append(roi_align(states, regions, 1, states.shape[-1] / side, sampling_ratio=1, aligned=True))
    return torch.cat(looks, dim=1).flatten(1)


def _sample(read: VideoSample, found: Any, vectors: Tensor) -> Sample:
    """Make the same tokens as our method does: the features, then the geometry."""
    true = match(found, read.boxes, read.visible)
    kind = read.persistent[true.clamp(min=0)]
    corner, opposite = found.boxes[:, :2] / 64, found.boxes[:, 2:] / 64
    scalars = (found.frame / 15, found.red.float(), (found.area / 64**2).sqrt(), found.confidence)
    geometry = torch.cat([(corner + opposite) / 2, opposite - corner, torch.stack(scalars, dim=1)], dim=1)
    return Sample(
        features=torch.cat([vectors, geometry], dim=1),
        persistent=(true >= 0) & kind,
        transient=(true >= 0) & ~kind,
        frame=found.frame,
        boxes=found.boxes / 64,
        frame_labels=read.frame_labels,
        label=read.label,
        red_label=0,
        richness=float(read.frame_labels.float().mean()),
    )


def trainer_of(train: Packed, validation: Packed, config: TrainingConfig) -> Trainer:
    return Trainer(config, train, validation, NO_RUN, CPU)


def original(options: argparse.Namespace) -> dict[str, Any]:
    folder, look = options.data.with_name("float32"), by_frames if options.way == "frames" else by_crops
    datasets = {split: VideoDataset(options.data, split) for split in SPLITS}
    known = {split: tokenise(dataset, ObjectDetector(0.4), Geometry(), NO_RUN) for split, dataset in datasets.items()}
    splits = {
        split: OriginalLoader(folder, dataset.indices, known[split], options.weights, look)
        for split, dataset in datasets.items()
    }
    config = replace(WORKER2.config, epochs=options.epochs)
    first = torch.arange(min(16, len(splits["train"])))
    width = next(splits["train"].batches([(first, 1.0)]))[0].features.shape[-1]  # this also warms up
    splits["train"].seconds.clear()
    # The trainer makes its model for this width. It never reads these tokens.
    unread = torch.zeros(1, width).expand(len(known["train"].frame), -1)
    trainer = trainer_of(replace(known["train"], parts=(unread,)), known["val"], config)
    trainer.train, trainer.validation = (cast(BatchLoader, splits[split]) for split in ("train", "val"))
    began = clocks()
    for _ in range(options.slow_epochs):
        trainer.train_epoch()
    epoch, cpu_epoch = (spent / options.slow_epochs for spent in since(began))
    began = clocks()
    trainer.evaluate(trainer.validation, "validate")
    validation, cpu_validation = since(began)
    parts = {name: seconds / options.slow_epochs for name, seconds in splits["train"].seconds.items()}
    kept = {split: Packed.of(way.samples(list(range(len(way))))) for split, way in splits.items()}
    seconds = config.epochs * epoch + _validations(config) * validation
    return {
        "seconds": seconds,
        "cpu_seconds": config.epochs * cpu_epoch + _validations(config) * cpu_validation,
        "seconds_per_epoch": epoch,
        "seconds_per_validation": validation,
        "samples_per_second": config.epochs * len(splits["train"]) / seconds,
        "per_epoch": {**parts, "train": epoch - sum(parts.values())},
        **_accuracies(trainer_of(kept["train"], kept["val"], config), kept["test"]),
    }


def clocks() -> tuple[float, float]:
    return time.perf_counter(), cpu()


def since(began: tuple[float, float]) -> tuple[float, float]:
    now = clocks()
    return now[0] - began[0], now[1] - began[1]


def cpu() -> float:
    """CPU seconds of this process and its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _validations(config: TrainingConfig) -> int:
    return -(-config.epochs // config.validate_every)


def _accuracies(trainer: Trainer, test: Packed) -> Metrics:
    metrics = trainer.fit().metrics
    tested = trainer.evaluate(BatchLoader(test, CPU), "test")
    return {"val_accuracy": metrics["val_accuracy"], "test_accuracy": tested["accuracy"], "test_loss": tested["loss"]}


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """Our method: with an empty cache for `ours`, with a full one for `again`."""
    began, cpu_began = clocks()
    seconds: dict[str, float] = defaultdict(float)
    detector, samples = ObjectDetector(confidence_threshold=0.4), {}
    appearance = Appearance(options.weights, CPU)
    for split in ("train", "val"):  # the test split is not part of the 30 epochs in either method
        dataset = VideoDataset(options.data, split)
        mark = time.perf_counter()
        find(dataset, detector, NO_RUN)
        seconds["detect"] += time.perf_counter() - mark
        mark = time.perf_counter()
        samples[split] = tokenise(dataset, detector, appearance, NO_RUN)
        seconds["resnet"] += time.perf_counter() - mark
    config, mark = replace(WORKER2.config, epochs=options.epochs), time.perf_counter()
    trainer = trainer_of(samples["train"], samples["val"], config)
    with torch_threads(TRAINING_THREADS):
        trainer.fit()
    done, cpu_done = clocks()
    seconds["train"] = done - mark
    test = tokenise(VideoDataset(options.data, "test"), detector, appearance, NO_RUN)
    tested = _accuracies(trainer, test)  # fit has nothing left to do
    return {
        "seconds": done - began,
        "cpu_seconds": cpu_done - cpu_began,
        "samples_per_second": config.epochs * len(samples["train"]) / (done - began),
        "parts": dict(seconds),
        "weights": appearance.weights,
        **tested,
    }


# --- growth and the report ---------------------------------------------------------------------------


def grow(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that worker1 does: make the data, the tokens of all splits, one epoch."""
    marks = [time.perf_counter()]
    generate(options.data, options.samples, 0, NO_RUN)
    marks.append(time.perf_counter())
    detector = ObjectDetector(confidence_threshold=0.4)
    samples = {split: tokenise(VideoDataset(options.data, split), detector, Geometry(), NO_RUN) for split in SPLITS}
    marks.append(time.perf_counter())
    trainer = trainer_of(samples["train"], samples["val"], WORKER1.config)
    with torch_threads(TRAINING_THREADS):
        trainer.train_epoch()
    marks.append(time.perf_counter())
    names = ("generate", "tokens", "epoch")
    return {"samples": options.samples, **{name: b - a for name, a, b in zip(names, marks, marks[1:], strict=False)}}


def report(record: dict[str, Any]) -> None:
    ways = [record[way] for way in ("crops", "frames", "ours", "again")]
    print(f"\n{record['samples']} samples, {record['epochs']} epochs, weights {record['weights']}, {record['machine']}")
    print(f"{'':18}{'crops':>12}{'frames':>12}{'ours':>12}{'ours, cached':>14}")
    for name, key, form in (
        ("seconds", "seconds", "12.1f"),
        ("CPU seconds", "cpu_seconds", "12.1f"),
        ("samples/s", "samples_per_second", "12.1f"),
        ("test accuracy", "test_accuracy", "12.3f"),
        ("test loss", "test_loss", "12.3f"),
        ("peak memory, MiB", "peak_mib", "12.0f"),
    ):
        print(f"{name:18}" + "".join(f"{way[key]:{form}}" for way in ways))
    print(f"ratio {record['speedup']:.1f} (at least {MIN_SPEEDUP:g}), over frames {record['speedup_over_frames']:.1f}")
    cpu_times = record["speedup_in_cpu_time"], record["speedup_over_frames_in_cpu_time"]
    print("in CPU time, which depends less on other work on the machine: {:.1f} and {:.1f}".format(*cpu_times))
    print(f"crops and frames: measured {record['slow_epochs_measured']} epochs and a validation, then extrapolated")
    for name in ("crops", "frames"):
        print(f"an epoch of {name}: {_parts(record[name]['per_epoch'])}")
    print(f"all of ours: {_parts(record['ours']['parts'])}")
    for row in record["growth"]:
        seconds = _parts({name: row[name] for name in ("generate", "tokens", "epoch")})
        print(f"worker1 with {row['samples']:6} samples: {seconds}, {row['peak_mib']:.0f} MiB")


def _parts(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())


if __name__ == "__main__":
    sys.exit(main())
