"""dataset.json: what a dataset is. It is written last, so that a directory without it is unfinished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remote.contract.files import read_json
from remote.contract.records import write_record
from remote.contract.schema import Malformed, from_json, to_json
from workers.common.errors import BadInput
from workers.dataset.scenes import Parameters

MARKER = "dataset.json"
VERSION = 1  # of the videos that `scenes.draw` makes; increase it if the same seed would make another video
SPLITS = ("train", "val", "test")


def split_ranges(count: int) -> dict[str, range]:
    """Divide `count` samples 8 : 1 : 1 into train, val and test, by index."""
    train, validation = count * 8 // 10, count // 10
    return {
        "train": range(train),
        "val": range(train, train + validation),
        "test": range(train + validation, count),
    }


@dataclass(frozen=True)
class DatasetIdentity:
    """What makes two datasets the same."""

    version: int
    count: int
    seed: int
    parameters: Parameters
    # The SHA-256 of the digests of all samples; empty while the dataset is being made:
    sha256: str = field(default="", metadata={"omit": True})

    @property
    def text(self) -> str:
        """A short text that differs for different datasets."""
        return f"{self.count} samples of seed {self.seed}, sha256 {self.sha256[:16]}"

    def differences(self, other: DatasetIdentity) -> str:
        """Return the fields, checksum aside, in which this dataset differs from another, with its values."""
        mine, theirs = to_json(self), to_json(other)
        names = ("version", "count", "seed", "parameters")
        return ", ".join(f"{name} {mine[name]}" for name in names if mine[name] != theirs[name])


@dataclass(frozen=True)
class DatasetRecord:
    """The content of dataset.json."""

    identity: DatasetIdentity = field(metadata={"inline": True})
    bytes: int | None = None  # total size of the `.pt` files; None if there are none
    pattern: str = ""  # the glob of the `.pt` files
    splits: dict[str, int] = field(default_factory=dict)  # number of samples in each split
    positive_share: dict[str, float] = field(default_factory=dict)  # share of class 1 in each split

    @classmethod
    def of(cls, identity: DatasetIdentity, labels: Sequence[int], size: int | None, pattern: str) -> DatasetRecord:
        """Return the record of a dataset whose samples have these labels."""
        ranges = split_ranges(len(labels))
        shares = {
            name: sum(labels[index] for index in indices) / len(indices) if indices else 0.0
            for name, indices in ranges.items()
        }
        return cls(identity, size, pattern, {name: len(indices) for name, indices in ranges.items()}, shares)

    @classmethod
    def read(cls, root: Path) -> DatasetRecord | None:
        """Return the record of the dataset under `root`, or None if it has none.

        Raises:
            BadInput: the file is not such a record.
        """
        record = read_json(root / MARKER)
        if record is None:
            return None
        try:
            return from_json(cls, record)
        except Malformed as error:
            raise BadInput(
                f"{root / MARKER} is not the record of a dataset: {error}; make the dataset again"
            ) from error

    def write(self, root: Path) -> None:
        """Write it to dataset.json."""
        write_record(root / MARKER, self, durable=True)
