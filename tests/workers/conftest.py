"""A small real dataset, its tokens, and a substitute for an accelerator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from remote.contract.goals import parse_goals
from remote.contract.paths import RunPaths
from remote.worker import Run
from workers.dataset.dataset_record import SPLITS
from workers.dataset.generate import generate
from workers.dataset.videos import VideoDataset
from workers.perception.batching import Packed
from workers.perception.detector import ObjectDetector
from workers.perception.tokens import Geometry, tokenise

SAMPLES = 80


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-exact comparisons need the same number of threads, and all tests share a few cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    generate(root, SAMPLES, seed=0, run=Run(None, []))
    return root


@pytest.fixture(scope="session")
def samples(data: Path) -> dict[str, Packed]:
    run, detector = Run(None, []), ObjectDetector()
    return {split: tokenise(VideoDataset(data, split), detector, Geometry(), run) for split in SPLITS}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Return a run in the directory tmp_path/NAME. The same name is the same run, started again."""

    def make(name: str = "run", kind: type[Run] = Run, **goals: str) -> Run:
        (tmp_path / name).mkdir(exist_ok=True)
        return kind(RunPaths(tmp_path / name), parse_goals(goals))

    return make


class MixedDevicesError(AssertionError):
    pass


class OneDevice(TorchDispatchMode):
    """Refuses every operation on tensors of two devices, except copies between devices.

    The meta device replaces an accelerator. It computes no values, so every number read from it is 1. PyTorch itself
    is more lenient (it accepts a CPU index of a CUDA tensor), so what passes here passes on a GPU.
    """

    COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        home = kwargs.get("device") == torch.device("cpu") and bool(tensors) and tensors[0].is_meta
        if func is torch.ops.aten._to_copy.default and home:
            return torch.ones(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        if func is torch.ops.aten._local_scalar_dense.default and tensors[0].is_meta:
            return True if tensors[0].dtype == torch.bool else 1.0
        devices = {str(tensor.device) for tensor in tensors}
        if len(devices) > 1 and func not in self.COPIES:
            raise MixedDevicesError(f"{func} on {', '.join(sorted(devices))}")
        return func(*args, **kwargs)


@pytest.fixture
def one_device() -> Iterator[None]:
    with OneDevice():
        yield


@pytest.fixture
def mixed_devices() -> type[MixedDevicesError]:
    return MixedDevicesError
