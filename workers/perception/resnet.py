"""ResNet-18 without its classifier, frozen, and where its weights come from.

Source of the weights: torchvision's ResNet18_Weights.IMAGENET1K_V1 (ImageNet, 69.8 % top-1).
"""

from __future__ import annotations

import hashlib
import math
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet18_Weights, resnet18

from remote.contract.files import sha256_file
from workers.common.errors import BadInput

BF16_FLAGS = {"avx512_bf16", "amx_bf16"}  # of /proc/cpuinfo: this processor multiplies bfloat16, adding in float32
DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer; a box without a way out would otherwise wait for minutes


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


def digest_of(network: nn.Module) -> str:
    """SHA-256 of the weights and statistics, whichever way they came."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def frozen(network: nn.Module, side: int = 0) -> nn.Module:
    """For inference alone: each batch norm folded into the convolution before it, channels last; where `side` is given,
    for images of side x side pixels alone, what convolves a map smaller than its kernel is a product of matrices.

    The same function up to rounding; on a CPU 1.5 to 2 times as fast.
    """
    network = network.requires_grad_(False).eval()
    for parent in list(network.modules()):
        names = list(parent._modules)
        for first, second in zip(names, names[1:], strict=False):  # in a ResNet a norm stands after its convolution
            convolution, norm = parent._modules[first], parent._modules[second]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                parent._modules[first] = fuse_conv_bn_eval(convolution, norm)
                parent._modules[second] = nn.Identity()
    network = network.to(memory_format=torch.channels_last)
    if side:
        _replace_small(network, side)
    return network


def quickest(device: torch.device) -> torch.dtype:
    """What convolutions are worked out in: bfloat16 on a CPU with instructions for it, float32 elsewhere.

    1.7 times as fast there (0.49 and 0.28 ms a crop on an AMD EPYC with avx512_bf16), with features that differ by
    less than 1 %.
    """
    return torch.bfloat16 if device.type == "cpu" and BF16_FLAGS & _processor_flags() else torch.float32


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


class SmallConvolution(nn.Module):
    """A convolution on height x width pixels as one matrix: that much of a kernel lies in the padding, and is left out.

    Takes and gives channels last, in which a pixel's channels lie side by side.
    """

    matrix: Tensor  # [height * width * channels in, height * width * channels out]
    offset: Tensor

    @torch.no_grad()
    def __init__(self, convolution: nn.Conv2d, height: int, width: int) -> None:
        super().__init__()
        inputs = height * width * convolution.in_channels
        each = torch.eye(inputs).view(inputs, height, width, convolution.in_channels).permute(0, 3, 1, 2)
        made = convolution(each).permute(0, 2, 3, 1)
        self.shape = made.shape[1:]  # height, width, channels
        offset = torch.zeros(self.shape) if convolution.bias is None else convolution.bias.expand(self.shape)
        self.register_buffer("matrix", (made - offset).flatten(1))
        self.register_buffer("offset", offset.flatten())

    def forward(self, images: Tensor) -> Tensor:
        rows = images.permute(0, 2, 3, 1).flatten(1)
        return torch.addmm(self.offset, rows, self.matrix).view(-1, *self.shape).permute(0, 3, 1, 2)


def _replace_small(network: nn.Module, side: int) -> None:
    sizes: dict[nn.Module, tuple[int, int]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[module] = (inputs[0].shape[2], inputs[0].shape[3])

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_pre_hook(note) for module in convolutions]
    with torch.no_grad():
        network(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    for parent in list(network.modules()):
        for name, module in parent._modules.items():
            if isinstance(module, nn.Conv2d) and math.prod(sizes[module]) < math.prod(module.kernel_size):
                parent._modules[name] = SmallConvolution(module, *sizes[module])
