"""The dataset on disk, made by `python -m workers.dataset generate`, read by `VideoDataset`.

    DIR/output/augmented_traj_00000.pt    one sample each: a dict of the fields of `VideoSample`
    DIR/packed/                           the same, memory-mapped (packing.py); either layout is enough
    DIR/dataset.json                      written last; a directory without it is unfinished

Sample i depends only on (seed, i) and the parameters, byte for byte. The splits are ranges of i: the first 80 % train,
then 10 % validation, the rest test.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from remote.contract.schema import to_json
from workers.common import array_cache
from workers.common.errors import BadInput
from workers.dataset.dataset_record import MARKER, SPLITS, DatasetRecord, split_ranges
from workers.dataset.packing import FOLDER as PACKED_FOLDER
from workers.dataset.packing import PackedVideos
from workers.dataset.video_sample import VideoSample, load_sample

FOLDER, PATTERN = "output", "augmented_traj_*.pt"


def sample_path(root: Path, index: int) -> Path:
    """Return the file of sample `index` in the `.pt` layout."""
    return root / FOLDER / f"augmented_traj_{index:05d}.pt"


class VideoDataset(Dataset[VideoSample]):
    """One split of the dataset under `root`. The packed layout is preferred."""

    def __init__(self, root: Path, split: str, at_least: int = 1, limit: int | None = None) -> None:
        """Open a split, and check that the dataset is complete.

        Args:
            root: directory of the dataset.
            split: one of SPLITS.
            at_least: how many samples the split must have.
            limit: keep only the first samples.

        Raises:
            BadInput: the dataset is missing, incomplete or too small.
        """
        if split not in SPLITS:
            raise BadInput(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        self.root, self.split = Path(root), split
        self.record, self.source = open_dataset(self.root)
        self.identity = self.record.identity
        count = len(self.source)
        self.whole = split_ranges(count)[split]
        self.indices = self.whole if limit is None else self.whole[:limit]  # of the samples, in the whole dataset
        if len(self.indices) < max(1, at_least):
            raise BadInput(
                f"the {split} split of {root} has {len(self.indices)} samples, at least {max(1, at_least)} are needed"
                f" ({count} in all); make a larger dataset: python -m workers.dataset generate --out DIR --samples N"
            )

    def first(self, count: int) -> VideoDataset:
        """Return the first samples of this split, at most `count`."""
        part = copy.copy(self)
        part.indices = self.indices[:count]
        return part

    def __reduce__(self) -> Any:
        """Pickle only the location: another process opens the files itself."""
        return _part_of, (self.root, self.split, self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> VideoSample:
        return self.source[self.indices[index]]


@lru_cache(maxsize=1)
def _part_of(root: Path, split: str, indices: range) -> VideoDataset:
    part = VideoDataset(root, split)
    part.indices = indices
    return part


class PtFiles(Sequence[VideoSample]):
    """The samples of the `.pt` layout, in the order of their names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = sorted((root / FOLDER).glob(PATTERN))

    def __reduce__(self) -> Any:
        return _pt_files, (self.root,)

    def stamp(self) -> str:
        """Return a text that changes when any of the files does, without reading them."""
        digest = hashlib.sha256()
        for path in self.paths:
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def total(self) -> tuple[int, int]:
        """Return the number of files and their bytes together."""
        return len(self.paths), sum(path.stat().st_size for path in self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return load_sample(self.paths[index])


@lru_cache(maxsize=1)
def _pt_files(root: Path) -> PtFiles:
    return PtFiles(root)


def open_dataset(root: Path, packed: bool = True) -> tuple[DatasetRecord, PtFiles | PackedVideos]:
    """Return the record and the samples of a finished dataset.

    Args:
        root: directory of the dataset.
        packed: use the packed layout if it exists.

    Raises:
        BadInput: says what was looked for, where, and what is there.
    """
    files, record = PtFiles(root), DatasetRecord.read(root)
    remedy = f"make or finish it: python -m workers.dataset generate --out {root}"
    if packed and record is not None and (root / PACKED_FOLDER).is_dir():
        wrong = array_cache.what_is_wrong(root / PACKED_FOLDER, to_json(record.identity), checksums=False)
        if not wrong:
            return record, PackedVideos(root)
        if not len(files):
            raise BadInput(f"{root / PACKED_FOLDER} cannot be used: {wrong}; {remedy} --layout packed")
        print(f"WARNING: {root / PACKED_FOLDER} is not used: {wrong}; pack it again", flush=True)
    if not len(files):
        raise BadInput(f"looked for {FOLDER}/{PATTERN} in {root} and found none; {_content_of(root)}; {remedy}")
    if record is None:
        raise BadInput(f"{root} is not a finished dataset: {len(files)} samples but no {MARKER}; {remedy}")
    if record.identity.count != len(files):
        raise BadInput(
            f"{root} is incomplete: {MARKER} names {record.identity.count} samples, found {len(files)}; {remedy}"
        )
    return record, files


def _content_of(root: Path) -> str:
    if not root.is_dir():
        return "there is no such directory"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(root))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"the directory holds {', '.join(names[:5])}{more}" if names else "the directory is empty"
