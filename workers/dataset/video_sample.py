"""One sample of the dataset: a video and its ground truth."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from remote.contract.files import write_atomic
from workers.common import array_cache
from workers.common.array_cache import Arrays
from workers.common.errors import BadInput
from workers.dataset import scenes

UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError)
TENSORS = ("video", "boxes", "visible", "persistent", "frame_labels")


@dataclass(frozen=True)
class VideoSample:
    """A video and what it shows. A track is one sphere in all frames."""

    video: Tensor  # uint8 [16 frames, 64 rows, 64 columns, 3 RGB]
    label: int  # 0 or 1 (`scenes.class_of`)
    boxes: Tensor  # float32 [tracks, 16, 4], (x0, y0, x1, y1) in pixels, zero where not visible
    visible: Tensor  # bool [tracks, 16]
    persistent: Tensor  # bool [tracks]; the others are transient
    frame_labels: Tensor  # bool [16]: does the frame show a transient?
    seed: int | None = None  # of the dataset
    index: int | None = None  # in the dataset

    def digest(self) -> str:
        """Return the SHA-256 of the content, which is the same in every layout."""
        arrays = (getattr(self, name).numpy() for name in TENSORS)
        return hashlib.sha256(f"{self.label} {array_cache.digest_of(*arrays)}".encode()).hexdigest()

    def arrays(self) -> Arrays:
        """Return the tensors as arrays. Between processes, a tensor would need a file descriptor."""
        return {name: getattr(self, name).numpy() for name in TENSORS}

    def save(self, path: Path) -> None:
        """Write it atomically, as a dict of its fields."""
        buffer = io.BytesIO()
        torch.save(vars(self), buffer)
        write_atomic(path, buffer.getvalue())


def make_sample(seed: int, index: int, parameters: scenes.Parameters = scenes.DEFAULT) -> VideoSample:
    """Return sample `index` of the dataset of a seed. It depends on nothing else, byte for byte."""
    scene, video = scenes.draw(seed, index, parameters)
    return VideoSample(
        video=torch.from_numpy(video),
        label=scene.label,
        boxes=torch.from_numpy(scene.boxes()),
        visible=torch.from_numpy(scene.visible),
        persistent=torch.from_numpy(scene.persistent),
        frame_labels=torch.from_numpy(scene.frame_labels()),
        seed=seed,
        index=index,
    )


def load_sample(path: Path) -> VideoSample:
    """Read a sample.

    Raises:
        BadInput: the file is damaged or is not a sample.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        missing = {*TENSORS, "label"} - set(saved)
    except UNREADABLE as error:
        raise BadInput(f"{path} cannot be read as a sample ({type(error).__name__}); make the dataset again") from error
    if missing:
        raise BadInput(f"{path} is not a sample of this dataset: it lacks {', '.join(sorted(missing))}")
    tensors = {name: saved[name] for name in TENSORS}
    return VideoSample(**tensors, label=int(saved["label"]), seed=saved.get("seed"), index=saved.get("index"))
