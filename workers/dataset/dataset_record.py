"""dataset.json: what a dataset is. It is written last, so that a directory without it is unfinished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remote.contract.files import read_json, write_json
from workers.common.errors import BadInput
from workers.dataset.scenes import Parameters

MARKER = "dataset.json"
VERSION = 1  # of what `scenes.draw` makes from a seed; raise it when the same seed would make another video
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
    sha256: str = ""  # of the digests of all samples; empty while the dataset is being made

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON, without an empty checksum."""
        record = {**asdict(self), "parameters": self.parameters.to_json()}
        return {name: value for name, value in record.items() if value != ""}

    @property
    def text(self) -> str:
        """A short text that differs for different datasets."""
        return f"{self.count} samples of seed {self.seed}, sha256 {self.sha256[:16]}"

    def differences(self, other: DatasetIdentity) -> str:
        """Return the fields, checksum aside, in which this dataset differs from another, with its values."""
        mine, theirs = self.to_json(), other.to_json()
        names = ("version", "count", "seed", "parameters")
        return ", ".join(f"{name} {mine[name]}" for name in names if mine[name] != theirs[name])


@dataclass(frozen=True)
class DatasetRecord:
    """The content of dataset.json."""

    identity: DatasetIdentity
    bytes: int | None  # of all `.pt` files; None if there are none
    pattern: str  # of the `.pt` files
    splits: Mapping[str, int]  # samples of each
    positive_share: Mapping[str, float]  # share of class 1 in each

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
            identity = DatasetIdentity(
                version=record["version"],
                count=record["count"],
                seed=record["seed"],
                parameters=Parameters.from_json(record["parameters"]),
                sha256=record["sha256"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{root / MARKER} is not the record of a dataset ({error!r}); make the dataset again"
            ) from error
        shares = record.get("positive_share") or {}
        return cls(identity, record.get("bytes"), record.get("pattern") or "", record.get("splits") or {}, shares)

    def write(self, root: Path) -> None:
        """Write it to dataset.json."""
        write_json(root / MARKER, self.to_json(), durable=True)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            **self.identity.to_json(),
            "bytes": self.bytes,
            "pattern": self.pattern,
            "splits": dict(self.splits),
            "positive_share": dict(self.positive_share),
        }
