"""Load ResNet-18 without its classifier, and freeze it.

Source of the weights: torchvision's ResNet18_Weights.IMAGENET1K_V1 (ImageNet, 69.8 % top-1).
"""

from __future__ import annotations

import hashlib
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet18_Weights, resnet18

from remote.contract.files import sha256_file
from workers.common.errors import BadInput

DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer; otherwise a download without a network would hang for minutes


def load_resnet(weights: str) -> tuple[nn.Module, str]:
    """Return ResNet-18 without its classifier, and a text that says which weights it has.

    Args:
        weights: auto, imagenet, random, or the path of a state_dict.

    Raises:
        BadInput: the weights are not available.
    """
    if weights == "random":
        return _headless(_random_resnet()), "random"
    if weights == "imagenet":
        return _headless(_imagenet_resnet()), _IMAGENET
    if weights != "auto":
        return _headless(_resnet_from(Path(weights))), _file_text(Path(weights))
    try:
        return _headless(_imagenet_resnet()), _IMAGENET
    except BadInput as error:
        print(f"WARNING: {error}", flush=True)
        print("WARNING: RANDOM ResNet-18 weights are used: the result says nothing about pre-training", flush=True)
        return _headless(_random_resnet()), "random (ImageNet weights are not available)"


_IMAGENET = f"imagenet {ResNet18_Weights.IMAGENET1K_V1}"


def _random_resnet() -> nn.Module:
    """Return the same network for every run and seed, so that a resumed run has the same features."""
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
        raise BadInput(f"--weights {path} is not a state_dict of torchvision's resnet18 ({reason})") from error
    _warn_unless_trained(network, str(path))
    return network


def _file_text(path: Path) -> str:
    return f"file {path.name} sha256:{sha256_file(path)[:12]}"


def _warn_unless_trained(network: nn.Module, source: str) -> None:
    """Warn about files that are called pretrained but are not: their batch-norm statistics are 0 and 1 everywhere."""
    state = network.state_dict()
    if bool((state["bn1.running_mean"] == 0).all()) and bool((state["bn1.running_var"] == 1).all()):
        print(f"WARNING: {source} was never trained: its batch-norm statistics are still 0 and 1", flush=True)


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


def digest_of(network: nn.Module) -> str:
    """Return the SHA-256 of the weights and statistics."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def frozen(network: nn.Module) -> nn.Module:
    """Prepare a ResNet for inference: fold each batch norm into the convolution before it, and use channels last.

    The result is the same up to rounding, and on a CPU it takes half the time.
    """
    network = network.requires_grad_(False).eval()
    for parent in list(network.modules()):
        names = list(parent._modules)
        for first, second in zip(names, names[1:], strict=False):  # in a ResNet a norm comes after its convolution
            convolution, norm = parent._modules[first], parent._modules[second]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                parent._modules[first] = fuse_conv_bn_eval(convolution, norm)
                parent._modules[second] = nn.Identity()
    return network.to(memory_format=torch.channels_last)
