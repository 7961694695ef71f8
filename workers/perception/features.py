"""Frozen ResNet-18 features of object crops, computed once per dataset and weights, in half precision.

They are kept in a cache (`array_cache`) that several jobs share. Its key covers the objects, the weights, the
preprocessing and the code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import roi_align

from remote.worker import Run
from workers.common import array_cache
from workers.common.parallel import spread
from workers.dataset.videos import VideoDataset
from workers.perception import resnet
from workers.perception.objects import Found, Objects

CROP = 32  # pixels: side of a crop for the network
WIDTH = 512  # features of ResNet-18 before its classifier
CROPS_AT_ONCE = 256
VIDEOS_AT_ONCE = 32
MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # mean and deviation of the images that the ImageNet weights were trained on
FORMAT = 1  # version of the array's format


class Appearance:
    """512 frozen ResNet-18 features of the crop of an object, to put before its geometry."""

    def __init__(self, weights: str, device: torch.device) -> None:
        """Load the network.

        Args:
            weights: auto, imagenet, random, or the path of a state_dict.
            device: where to compute.

        Raises:
            BadInput: the weights are not available.
        """
        network, self.weights = resnet.load_resnet(weights)
        self.digest = resnet.digest_of(network)
        self.device = device
        self.network = resnet.frozen(network).to(device)

    def looks(self, dataset: VideoDataset, found: Found, run: Run) -> Tensor:
        """Return float16 [n + 1, 512] of the dataset's objects, the last row zero, from the cache or computed."""
        about = {
            "format": FORMAT,
            "objects": found.about,
            "weights": self.digest,
            "preprocessing": {"crop": CROP, "mean": MEAN, "std": STD},
            "code": array_cache.code_of(resnet, sys.modules[__name__]),
        }
        path = found.path.parent / f"features-{array_cache.key_of(about)}"
        if not found.is_whole:
            if array_cache.what_is_wrong(path, about):
                rows = np.concatenate([*self._compute(dataset, found, run), np.zeros((1, WIDTH), dtype=np.float16)])
                return torch.from_numpy(rows)
            part = torch.from_numpy(array_cache.load(path)["looks"])[: len(found.objects.frame) + 1].clone()
            part[-1] = 0
            return part
        began = perf_counter()

        def build(folder: Path) -> None:
            shape = (len(found.objects.frame) + 1, WIDTH)
            with array_cache.Writer(folder / "looks.npy", np.float16, shape) as writer:
                for rows in self._compute(dataset, found, run):
                    writer.append(rows)
                writer.append(np.zeros((1, WIDTH), dtype=np.float16))

        name = f"features of the {dataset.split} split"
        made, built = array_cache.cached(path, about, build, run, name)
        how = f"computed in {perf_counter() - began:.1f} s" if built else "from the cache"
        print(f"{name}: {len(made['looks']) - 1}, {how}", flush=True)
        return torch.from_numpy(made["looks"])

    def _compute(self, dataset: VideoDataset, found: Found, run: Run) -> Iterator[NDArray[np.float16]]:
        """Yield arrays [*, 512], in the order of the samples."""
        work = partial(looks_of, self.network, self.device, dataset, found.objects)
        # On a CPU, processes with one thread each are faster than convolutions that share their threads.
        processes = 0 if self.device.type == "cpu" else 1
        return spread(work, range(len(dataset)), run, "computing features", processes, VIDEOS_AT_ONCE)


@torch.no_grad()
def looks_of(
    network: nn.Module, device: torch.device, dataset: VideoDataset, objects: Objects, numbers: Sequence[int]
) -> NDArray[np.float16]:
    """Return the features [detections of these samples, 512]."""
    ends = objects.lengths.cumsum(0)
    crops = []
    for number in numbers:
        rows = slice(int(ends[number] - objects.lengths[number]), int(ends[number]))
        crops.append(crop(dataset[number].video.to(device), objects.boxes[rows], objects.frame[rows]))
    together = torch.cat(crops).contiguous(memory_format=torch.channels_last)
    vectors = [network(part).half() for part in together.split(CROPS_AT_ONCE) if len(part)]
    return torch.cat(vectors or [torch.zeros(0, WIDTH, dtype=torch.float16)]).cpu().numpy()


def crop(video: Tensor, boxes: Tensor, frame: Tensor) -> Tensor:
    """Cut out boxes, bilinear, and scale their values for ImageNet weights.

    Args:
        video: uint8 [frames, height, width, 3].
        boxes: [n, 4] in pixels, on any device.
        frame: int64 [n], on any device.

    Returns:
        float32 [n, 3, 32, 32], on the device of the video.
    """
    images = video.permute(0, 3, 1, 2).float().contiguous()
    mean, std = (torch.tensor(value, device=video.device).view(1, 3, 1, 1) for value in (MEAN, STD))
    regions = torch.cat([frame.to(video.device, torch.float32)[:, None], boxes.to(video.device)], dim=1)
    images.div_(255).sub_(mean).div_(std)
    crops: Tensor = roi_align(images, regions, output_size=CROP, sampling_ratio=1, aligned=True)
    return crops
