"""The packed layout of the dataset: every sample in a few memory-mapped arrays, with checksums.

DIR/packed/video.npy          uint8 [samples, frames, height, width, 3]
DIR/packed/label.npy          int64 [samples]
DIR/packed/frame_labels.npy   bool [samples, frames]
DIR/packed/first_track.npy    int64 [samples + 1]: sample i has tracks first_track[i] to first_track[i + 1] - 1
DIR/packed/boxes.npy          float32 [tracks, frames, 4]
DIR/packed/visible.npy        bool [tracks, frames]
DIR/packed/persistent.npy     bool [tracks]
DIR/packed/manifest.json      the identity of the dataset; sizes and checksums
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from remote.contract.files import read_json
from workers.common import array_cache
from workers.common.array_cache import Arrays
from workers.dataset.scenes import CHANNELS, FRAMES, SIZE
from workers.dataset.video_sample import VideoSample

FOLDER = "packed"
TRACKS = ("boxes", "visible", "persistent")  # one row per track


class PackedVideos(Sequence[VideoSample]):
    """The samples under `root`. Their tensors are views of the maps."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / FOLDER
        self._arrays = array_cache.load(self.path)
        about = (read_json(self.path / array_cache.MANIFEST) or {}).get("about")
        self._seed = (about or {}).get("seed")

    def __reduce__(self) -> Any:
        """Pickle only the location: another process maps the files itself."""
        return _opened, (self.root,)

    def stamp(self) -> str:
        """Return a text that changes when any of the arrays does, without reading them."""
        files = [(file.name, file.stat()) for file in sorted(self.path.iterdir())]
        return " ".join(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in files)

    def __len__(self) -> int:
        return len(self._arrays["label"])

    def __getitem__(self, index: Any) -> Any:
        first, last = self._arrays["first_track"][index : index + 2]
        return VideoSample(
            video=torch.from_numpy(self._arrays["video"][index]),
            label=int(self._arrays["label"][index]),
            **{name: torch.from_numpy(self._arrays[name][first:last]) for name in TRACKS},
            frame_labels=torch.from_numpy(self._arrays["frame_labels"][index]),
            seed=self._seed,
            index=index,
        )


@lru_cache(maxsize=1)
def _opened(root: Path) -> PackedVideos:
    return PackedVideos(root)


class Packer:
    """Writes `count` samples, added in order, into the directory `path`."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._videos = array_cache.Writer(path / "video.npy", np.uint8, (count, FRAMES, SIZE, SIZE, CHANNELS))
        self._labels: list[int] = []
        self._small: dict[str, list[Any]] = {name: [] for name in (*TRACKS, "frame_labels")}

    def add(self, label: int, sample: Arrays) -> None:
        """Add a sample: its label, and its tensors as arrays."""
        self._videos.append(sample["video"][None])
        self._labels.append(label)
        for name, rows in self._small.items():
            rows.append(sample[name])

    def __enter__(self) -> Packer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._videos.__exit__(kind, error, at)
        if kind is not None:
            return
        counts = [len(rows) for rows in self._small["persistent"]]
        small = {
            "label": np.asarray(self._labels, dtype=np.int64),
            "first_track": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            "frame_labels": np.stack(self._small["frame_labels"]),
            **{name: np.concatenate(self._small[name]) for name in TRACKS},
        }
        for name, array in small.items():
            with array_cache.Writer(self._path / f"{name}.npy", array.dtype, array.shape) as writer:
                writer.append(array)
