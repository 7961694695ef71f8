"""Frozen ResNet-18 features of object crops, computed once a run, and where its weights come from.

Source of the weights: torchvision's ResNet18_Weights.IMAGENET1K_V1 (ImageNet, 69.8 % top-1).
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.ops import roi_align

from remote.files import sha256_file
from workers.detector import Detections
from workers.errors import BadInput
from workers.tokens import geometry

CROP = 32  # pixels: side of a crop as the network sees it
WIDTH = 512  # features of ResNet-18 before its classifier
CROPS_AT_ONCE = 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the ImageNet weights were trained with
DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer; a box without a way out would otherwise wait for minutes


class Appearance:
    """512 frozen ResNet-18 features of the object's crop, then its 8 of geometry."""

    size = WIDTH + 8

    def __init__(self, weights: str, device: torch.device) -> None:
        """`weights` is auto, imagenet, random or the path of a state_dict; BadInput where they cannot be had."""
        network, self.weights = load_resnet(weights)
        self.network = network.requires_grad_(False).eval().to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, videos: Sequence[Tensor], found: Sequence[Detections]) -> list[Tensor]:
        crops = [crop(video.to(self.device), each.boxes, each.frame) for video, each in zip(videos, found, strict=True)]
        together = torch.cat(crops).split(CROPS_AT_ONCE)
        vectors = torch.cat([self.network(part) for part in together if len(part)] or [torch.zeros(0, WIDTH)]).cpu()
        parts = vectors.split([len(each) for each in found])
        return [
            torch.cat([part, geometry(video, each)], dim=1)
            for part, video, each in zip(parts, videos, found, strict=True)
        ]


def crop(video: Tensor, boxes: Tensor, frame: Tensor) -> Tensor:
    """Each box of `video` (uint8 [frames, height, width, 3]) as [n, 3, 32, 32], bilinear, scaled for ImageNet weights.

    Boxes [n, 4] and their frame numbers [n] may be on any device; the crops are on the video's.
    """
    images = video.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(value, device=video.device).view(1, 3, 1, 1) for value in (MEAN, STD))
    regions = torch.cat([frame.to(video.device, torch.float32)[:, None], boxes.to(video.device)], dim=1)
    crops: Tensor = roi_align((images - mean) / std, regions, output_size=CROP, sampling_ratio=1, aligned=True)
    return crops


def load_resnet(weights: str) -> tuple[nn.Module, str]:
    """ResNet-18 without its classifier, and in words which weights it has."""
    if weights == "random":
        return _headless(_random_resnet()), "random"
    if weights == "imagenet":
        return _headless(_imagenet_resnet()), _IMAGENET
    if weights != "auto":
        return _headless(_resnet_from(Path(weights))), _file_in_words(Path(weights))
    try:
        return _headless(_imagenet_resnet()), _IMAGENET
    except BadInput as error:
        print(f"WARNING: {error}", flush=True)
        print("WARNING: RANDOM ResNet-18 weights are used: the result says nothing about pre-training", flush=True)
        return _headless(_random_resnet()), "random (ImageNet weights could not be had)"


_IMAGENET = f"imagenet {ResNet18_Weights.IMAGENET1K_V1}"


def _random_resnet() -> nn.Module:
    """The same network in every run, whatever the run's seed, so that a resumed run has the features it began with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = resnet18(weights=None)
    return network


def _imagenet_resnet() -> nn.Module:
    try:
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            network: nn.Module = resnet18(weights=ResNet18_Weights.IMAGENET1K_V1, progress=False)
    except (OSError, RuntimeError) as error:  # no network; a broken download
        raise BadInput(
            f"the ImageNet weights of ResNet-18 could not be loaded ({error}); put {ResNet18_Weights.IMAGENET1K_V1.url}"
            f" into {Path(torch.hub.get_dir()) / 'checkpoints'}, or name a file: --weights FILE"
        ) from error
    _warn_unless_trained(network, f"torchvision's {ResNet18_Weights.IMAGENET1K_V1}")
    return network


def _resnet_from(path: Path) -> nn.Module:
    network = _random_resnet()
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"--weights {path} is no state_dict of torchvision's resnet18 ({reason})") from error
    _warn_unless_trained(network, str(path))
    return network


def _file_in_words(path: Path) -> str:
    return f"file {path.name} sha256:{sha256_file(path)[:12]}"


def _warn_unless_trained(network: nn.Module, source: str) -> None:
    """Files that say `pretrained` and are not have batch-norm statistics as they were made: mean 0, variance 1."""
    state = network.state_dict()
    if bool((state["bn1.running_mean"] == 0).all()) and bool((state["bn1.running_var"] == 1).all()):
        print(f"WARNING: {source} was never trained: its batch-norm statistics are untouched", flush=True)


def _headless(network: nn.Module) -> nn.Module:
    network.fc = nn.Identity()
    return network


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
