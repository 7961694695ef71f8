"""The persistence-augmented dataset on disk, made by `python -m workers.dataset generate`, read by `VideoDataset`.

    DIR/output/augmented_traj_00000.pt    one sample each: the dict that `make_sample` describes
    DIR/packed/                           the same, memory-mapped (packing.py); either layout is enough
    DIR/dataset.json                      written last; a directory without it is torn, and making it again finishes it

Sample i is a function of (seed, i) and the parameters, to the byte. The splits are ranges of i: the first 80 % train,
then 10 % validation, the rest test.
"""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from remote.contract.files import read_json
from workers.common import array_cache
from workers.common.errors import BadInput
from workers.dataset import scenes
from workers.dataset.packing import FOLDER as PACKED_FOLDER
from workers.dataset.packing import PackedVideos

FOLDER, PATTERN, MARKER = "output", "augmented_traj_*.pt", "dataset.json"
VERSION = 1  # of what `draw` makes from a seed; raise it when the same seed would make another video
SPLITS = ("train", "val", "test")
IDENTITY = ("version", "count", "seed", "parameters", "sha256")  # of dataset.json: what makes two datasets the same
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)


def split_ranges(count: int) -> dict[str, range]:
    """8 : 1 : 1 of `count` samples, by index."""
    train, validation = count * 8 // 10, count // 10
    return {
        "train": range(train),
        "val": range(train, train + validation),
        "test": range(train + validation, count),
    }


def make_sample(seed: int, index: int, parameters: scenes.Parameters = scenes.DEFAULT) -> dict[str, Any]:
    """One sample.

    video         uint8 [16 frames, 64 rows, 64 columns, 3 RGB]
    label         0 or 1 (`scenes.class_of`)
    boxes         float32 [tracks, 16, 4], (x0, y0, x1, y1) in pixels, zero where not visible
    visible       bool [tracks, 16]
    persistent    bool [tracks]; the others are transient
    frame_labels  bool [16]: a transient shows
    seed, index   what it was made from
    """
    scene, video = scenes.draw(seed, index, parameters)
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


def digest_of(sample: Mapping[str, Any]) -> str:
    """SHA-256 of what a sample says, whichever layout it came from."""
    names = ("video", "boxes", "visible", "persistent", "frame_labels")
    return hashlib.sha256(
        f"{sample['label']} {array_cache.digest_of(*(sample[name].numpy() for name in names))}".encode()
    ).hexdigest()


def load_sample(path: Path) -> dict[str, Any]:
    """The dict of `make_sample`; BadInput where the file is torn or is something else."""
    try:
        sample: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"video", "label", "boxes", "visible", "persistent", "frame_labels"} - set(sample)
    except (*UNREADABLE, TypeError) as error:
        raise BadInput(f"{path} cannot be read as a sample ({type(error).__name__}); make the dataset again") from error
    if missing:
        raise BadInput(f"{path} is no sample of this dataset: it lacks {', '.join(sorted(missing))}")
    return sample


# --- reading it --------------------------------------------------------------------------------------


class VideoDataset(Dataset[dict[str, Any]]):
    """One split of the dataset under `root`; item i is the dict of `make_sample`; the packed layout is preferred.

    Raises BadInput at construction unless the dataset is whole and the split has `at_least` samples. `limit` keeps
    the first samples only.
    """

    def __init__(self, root: Path, split: str, at_least: int = 1, limit: int | None = None) -> None:
        if split not in SPLITS:
            raise BadInput(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
        self.root, self.split = Path(root), split
        self.record, self.source = open_dataset(self.root)
        self.identity = identity_of(self.record)
        count = len(self.source)
        self.whole = split_ranges(count)[split]
        self.indices = self.whole if limit is None else self.whole[:limit]  # of the samples, in the whole dataset
        if len(self.indices) < max(1, at_least):
            raise BadInput(
                f"the {split} split of {root} has {len(self.indices)} samples, at least {max(1, at_least)} are needed"
                f" ({count} in all); make a larger dataset: python -m workers.dataset generate --out DIR --samples N"
            )

    def first(self, count: int) -> VideoDataset:
        """At most `count` samples of this split."""
        part = copy.copy(self)
        part.indices = self.indices[:count]
        return part

    def __reduce__(self) -> Any:
        """Another process opens it for itself."""
        return _part_of, (self.root, self.split, self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.indices[index]]


@lru_cache(maxsize=1)
def _part_of(root: Path, split: str, indices: range) -> VideoDataset:
    part = VideoDataset(root, split)
    part.indices = indices
    return part


class PtFiles(Sequence[dict[str, Any]]):
    """The samples of the `.pt` layout, in the order of their names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = sorted((root / FOLDER).glob(PATTERN))

    def __reduce__(self) -> Any:
        return _pt_files, (self.root,)

    def stamp(self) -> str:
        """Changes when any of the files does, without reading them."""
        digest = hashlib.sha256()
        for path in self.paths:
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return load_sample(self.paths[index])


@lru_cache(maxsize=1)
def _pt_files(root: Path) -> PtFiles:
    return PtFiles(root)


def identity_of(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in IDENTITY if key in record}


def open_dataset(root: Path, packed: bool = True) -> tuple[dict[str, Any], PtFiles | PackedVideos]:
    """The record and the samples of a finished dataset; BadInput says what was looked for, where, and what is there."""
    files, record = PtFiles(root), read_json(root / MARKER)
    remedy = f"make or finish it: python -m workers.dataset generate --out {root}"
    if packed and record is not None and (root / PACKED_FOLDER).is_dir():
        wrong = array_cache.what_is_wrong(root / PACKED_FOLDER, identity_of(record), checksums=False)
        if not wrong:
            return record, PackedVideos(root)
        if not len(files):
            raise BadInput(f"{root / PACKED_FOLDER} cannot be used: {wrong}; {remedy} --layout packed")
        print(f"WARNING: {root / PACKED_FOLDER} is not used: {wrong}; pack it again", flush=True)
    if not len(files):
        raise BadInput(f"looked for {FOLDER}/{PATTERN} in {root} and found none; {_what_is_there(root)}; {remedy}")
    if record is None:
        raise BadInput(f"{root} is not a finished dataset: {len(files)} samples but no {MARKER}; {remedy}")
    if record.get("count") != len(files):
        raise BadInput(f"{root} is torn: {MARKER} says {record.get('count')} samples, {len(files)} are there; {remedy}")
    return record, files


def _what_is_there(root: Path) -> str:
    if not root.is_dir():
        return "there is no such directory"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(root))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"the directory holds {', '.join(names[:5])}{more}" if names else "the directory is empty"
