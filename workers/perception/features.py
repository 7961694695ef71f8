"""Frozen ResNet-18 features of object crops, computed once per dataset and weights, and kept in half precision.

The cache (arrays.py) has a key of the objects, the weights, the preprocessing and the code; several jobs share it.
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
from workers.common.parallel import spread, spread_over_threads
from workers.dataset.videos import VideoDataset
from workers.perception import resnet
from workers.perception.objects import Found, Objects

CROP = 32  # pixels: side of a crop as the network sees it
WIDTH = 512  # features of ResNet-18 before its classifier
GEOMETRY_WIDTH = 8
CROPS_AT_ONCE = 256
VIDEOS_AT_ONCE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the ImageNet weights were trained with
FORMAT = 1  # of the array


class Appearance:
    """512 frozen ResNet-18 features of the object's crop, then its 8 of geometry."""

    size = WIDTH + GEOMETRY_WIDTH

    def __init__(self, weights: str, device: torch.device) -> None:
        """`weights` is auto, imagenet, random or the path of a state_dict; BadInput where they cannot be had."""
        network, self.weights = resnet.load_resnet(weights)
        self.digest = resnet.digest_of(network)
        self.device, self.dtype = device, resnet.quickest(device)
        # cuDNN has kernels of its own for small maps.
        self.network = resnet.frozen(network, side=CROP if device.type == "cpu" else 0).to(device, self.dtype)

    def looks(self, dataset: VideoDataset, found: Found, run: Run) -> Tensor:
        """float16 [n + 1, 512] of the dataset's objects, the last row zero: from the cache, or into it."""
        about = {
            "format": FORMAT,
            "objects": found.about,
            "weights": self.digest,
            "preprocessing": {"crop": CROP, "mean": MEAN, "std": STD},
            "precision": str(self.dtype),
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
        """Arrays [*, 512], in the order of the samples."""
        work = partial(looks_of, self.network, self.device, self.dtype, dataset, found.objects)
        indices, what = range(len(dataset)), "computing features"
        if self.device.type == "cpu":
            return spread_over_threads(work, indices, run, what, VIDEOS_AT_ONCE)
        return spread(work, indices, run, what, processes=1, chunk=VIDEOS_AT_ONCE)


@torch.no_grad()
def looks_of(
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    dataset: VideoDataset,
    objects: Objects,
    numbers: Sequence[int],
) -> NDArray[np.float16]:
    """[detections of these samples, 512]."""
    ends = objects.lengths.cumsum(0)
    crops = []
    for number in numbers:
        rows = slice(int(ends[number] - objects.lengths[number]), int(ends[number]))
        crops.append(crop(dataset[number]["video"].to(device), objects.boxes[rows], objects.frame[rows]))
    together = torch.cat(crops).to(dtype).contiguous(memory_format=torch.channels_last)
    vectors = [network(part).half() for part in together.split(CROPS_AT_ONCE) if len(part)]
    return torch.cat(vectors or [torch.zeros(0, WIDTH, dtype=torch.float16)]).cpu().numpy()


def crop(video: Tensor, boxes: Tensor, frame: Tensor) -> Tensor:
    """Each box of `video` (uint8 [frames, height, width, 3]) as [n, 3, 32, 32], bilinear, scaled for ImageNet weights.

    Boxes [n, 4] and their frame numbers [n] may be on any device; the crops are on the video's.
    """
    images = video.permute(0, 3, 1, 2).float().contiguous()
    mean, std = (torch.tensor(value, device=video.device).view(1, 3, 1, 1) for value in (MEAN, STD))
    regions = torch.cat([frame.to(video.device, torch.float32)[:, None], boxes.to(video.device)], dim=1)
    images.div_(255).sub_(mean).div_(std)
    crops: Tensor = roi_align(images, regions, output_size=CROP, sampling_ratio=1, aligned=True)
    return crops
