"""The persistence-augmented dataset on disk: made by `python -m workers.dataset --out DIR`, read by `VideoDataset`.

    DIR/output/augmented_traj_00000.pt    one sample each: the dict that `make_sample` describes
    DIR/dataset.json                      written last; a directory without it is torn, and making it again finishes it

Sample i is a function of (seed, i), to the byte. The splits are ranges of i: the first 80 % train, then 10 %
validation, the rest test.
"""

from __future__ import annotations

import argparse
import copy
import io
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from remote.files import read_json, write_atomic, write_json
from remote.protocol import ENV_DATA_DIR
from remote.worker import Run
from workers import scenes
from workers.errors import BadInput, Stopped, WorkerError

FOLDER, PATTERN, MARKER = "output", "augmented_traj_*.pt", "dataset.json"
VERSION = 1  # of what `draw` makes from a seed; raise it when the same seed would make another video
SPLITS = ("train", "val", "test")
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)


def split_ranges(count: int) -> dict[str, range]:
    """8 : 1 : 1 of `count` samples, by index."""
    train, validation = count * 8 // 10, count // 10
    return {
        "train": range(train),
        "val": range(train, train + validation),
        "test": range(train + validation, count),
    }


def make_sample(seed: int, index: int) -> dict[str, Any]:
    """One sample.

    video         uint8 [16 frames, 64 rows, 64 columns, 3 RGB]
    label         0 or 1 (`scenes.class_of`)
    boxes         float32 [tracks, 16, 4], (x0, y0, x1, y1) in pixels, zero where not visible
    visible       bool [tracks, 16]
    persistent    bool [tracks]; the others are transient
    frame_labels  bool [16]: a transient shows
    seed, index   what it was made from
    """
    scene, video = scenes.draw(seed, index)
    return {
        "video": torch.from_numpy(video),
        "label": scene.label,
        "boxes": torch.from_numpy(scene.boxes()),
        "visible": torch.from_numpy(scene.visible),
        "persistent": torch.from_numpy(scene.persistent),
        "frame_labels": torch.from_numpy(scene.frame_labels()),
        "seed": seed,
        "index": index,
    }


def sample_path(root: Path, index: int) -> Path:
    return root / FOLDER / f"augmented_traj_{index:05d}.pt"


def load_sample(path: Path) -> dict[str, Any]:
    """The dict of `make_sample`; BadInput where the file is torn or is something else."""
    try:
        sample: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"video", "label", "boxes", "visible", "persistent"} - set(sample)
    except (*UNREADABLE, TypeError) as error:
        raise BadInput(f"{path} cannot be read as a sample ({type(error).__name__}); make the dataset again") from error
    if missing:
        raise BadInput(f"{path} is no sample of this dataset: it lacks {', '.join(sorted(missing))}")
    return sample


# --- making it ---------------------------------------------------------------------------------------


def generate(root: Path, samples: int, seed: int, run: Run) -> dict[str, Any]:
    """Make or finish the dataset under `root`; returns what its dataset.json says. Does nothing where it is whole."""
    wanted = {"version": VERSION, "count": samples, "seed": seed}
    record = read_json(root / MARKER)
    if record is not None:
        other = {key: record.get(key) for key, value in wanted.items() if record.get(key) != value}
        if other:
            raise BadInput(f"{root} already holds another dataset ({_words(other)}); choose another --out or delete it")
        if _bytes(root) == (samples, record.get("bytes")):
            print(f"{root} is whole: {samples} samples", flush=True)
            return record
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    labels = []
    for index in range(samples):
        if run.stop_requested:
            raise Stopped(f"stopped after {index} of {samples} samples; the same command finishes them")
        run.beat("prepare", step=index + 1, steps=samples)
        labels.append(_ensure_sample(root, seed, index))
    return _mark_whole(root, wanted, labels)


def _ensure_sample(root: Path, seed: int, index: int) -> int:
    """Write sample `index` unless it is there and whole; returns its label."""
    path = sample_path(root, index)
    try:
        if path.exists():
            found = load_sample(path)
            if (found.get("seed"), found.get("index")) == (seed, index):
                return int(found["label"])
    except BadInput:
        pass  # torn: made anew below
    sample = make_sample(seed, index)
    buffer = io.BytesIO()
    torch.save(sample, buffer)
    write_atomic(path, buffer.getvalue())
    return int(sample["label"])


def _mark_whole(root: Path, wanted: Mapping[str, Any], labels: Sequence[int]) -> dict[str, Any]:
    files, size = _bytes(root)
    if files != len(labels):
        raise BadInput(f"{root / FOLDER} holds {files} samples, not {len(labels)}; delete it or choose another --out")
    ranges = split_ranges(len(labels))
    record = {
        **wanted,
        "bytes": size,
        "pattern": f"{FOLDER}/{PATTERN}",
        "splits": {name: len(indices) for name, indices in ranges.items()},
        "positive_share": {name: _mean([labels[i] for i in indices]) for name, indices in ranges.items()},
        "parameters": {name.lower(): value for name, value in vars(scenes).items() if name.isupper()},
    }
    write_json(root / MARKER, record, durable=True)
    print(f"{root}: {len(labels)} samples, {_words(record['splits'])}, {_mean(labels):.1%} in class 1", flush=True)
    return record


def _bytes(root: Path) -> tuple[int, int]:
    """How many samples there are, and their bytes together."""
    sizes = [path.stat().st_size for path in (root / FOLDER).glob(PATTERN)]
    return len(sizes), sum(sizes)


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def _words(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in record.items())


# --- reading it --------------------------------------------------------------------------------------


class VideoDataset(Dataset[dict[str, Any]]):
    """One split of the dataset under `root`; item i is the dict of `make_sample`.

    Raises BadInput at construction unless the dataset is whole and the split has `at_least` samples. `limit` keeps
    the first samples only.
    """

    def __init__(self, root: Path, split: str, at_least: int = 1, limit: int | None = None) -> None:
        if split not in SPLITS:
            raise BadInput(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
        record, paths = _whole_dataset(Path(root))
        self.identity = {key: record.get(key) for key in ("version", "count", "seed")}
        self.paths = [paths[index] for index in split_ranges(len(paths))[split]][:limit]
        if len(self.paths) < max(1, at_least):
            raise BadInput(
                f"the {split} split of {root} has {len(self.paths)} samples, at least {max(1, at_least)} are needed"
                f" ({len(paths)} files in all); make a larger dataset: python -m workers.dataset --out DIR --samples N"
            )

    def first(self, count: int) -> VideoDataset:
        """At most `count` samples of this split."""
        part = copy.copy(self)
        part.paths = self.paths[:count]
        return part

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return load_sample(self.paths[index])


def _whole_dataset(root: Path) -> tuple[dict[str, Any], list[Path]]:
    """The record and the files of a finished dataset; BadInput says what was looked for, where, and what is there."""
    paths = sorted((root / FOLDER).glob(PATTERN))
    remedy = f"make or finish it: python -m workers.dataset --out {root}"
    if not paths:
        raise BadInput(f"looked for {FOLDER}/{PATTERN} in {root} and found none; {_what_is_there(root)}; {remedy}")
    record = read_json(root / MARKER)
    if record is None:
        raise BadInput(f"{root} is not a finished dataset: {len(paths)} samples but no {MARKER}; {remedy}")
    if record.get("count") != len(paths):
        raise BadInput(f"{root} is torn: {MARKER} says {record.get('count')} samples, {len(paths)} are there; {remedy}")
    return record, paths


def _what_is_there(root: Path) -> str:
    if not root.is_dir():
        return "there is no such directory"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(root))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"the directory holds {', '.join(names[:5])}{more}" if names else "the directory is empty"


# --- the command -------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="workers.dataset", description="Make the persistence-augmented dataset.")
    parser.add_argument("--out", type=Path, default=os.environ.get(ENV_DATA_DIR), help=f"default: ${ENV_DATA_DIR}")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.out is None:
        parser.error(f"say where with --out DIR (or {ENV_DATA_DIR})")
    if options.samples < 10 or options.seed < 0:
        parser.error("--samples is 10 or more (each split needs one), --seed is 0 or more")
    try:
        run = Run.current()
        run.catch_sigterm()
        generate(Path(options.out), options.samples, options.seed, run)
    except WorkerError as error:
        print(f"workers.dataset: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        print(f"workers.dataset: {options.out} cannot be written: {error}", file=sys.stderr, flush=True)
        return BadInput.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
