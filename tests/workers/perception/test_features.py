from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from remote.worker import Run
from workers.common import parallel
from workers.common.errors import BadInput
from workers.dataset.video_sample import VideoSample
from workers.dataset.videos import VideoDataset
from workers.perception.detector import ObjectDetector
from workers.perception.features import MEAN, STD, Appearance, crop
from workers.perception.resnet import frozen, load_resnet
from workers.perception.tokens import Geometry, tokenise

NO_RUN = Run(None, [])
CPU = torch.device("cpu")
CACHED_NAME = "resnet18-f37072fd.pth"  # as torchvision keeps the ImageNet weights


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Block the network and use an empty cache. Return the cache."""
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hub" / "checkpoints"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A state_dict whose batch-norm statistics come from some data."""
    torch.manual_seed(5)
    network = resnet18(weights=None).train()
    network(torch.randn(4, 3, 32, 32))
    torch.save(network.state_dict(), tmp_path / "resnet.pt")
    return tmp_path / "resnet.pt"


@pytest.fixture
def few(data: Path) -> VideoDataset:
    return VideoDataset(data, "val", limit=2)


class InMemory(list[VideoSample]):
    """Samples that are not on disk."""

    def stamp(self) -> str:
        return "given"


def test_features_are_those_of_each_crop_then_geometry(few: VideoDataset) -> None:
    appearance = Appearance("random", CPU)
    plain, _ = load_resnet("random")
    samples = tokenise(few, ObjectDetector(), appearance, NO_RUN)
    assert samples.width == 520
    for sample, video in zip(samples, (few[0].video, few[1].video), strict=True):
        found = ObjectDetector().detect(video)
        assert len(sample.features) == len(found) and not sample.features.requires_grad
        with torch.no_grad():
            alone = plain.eval()(crop(video, found.boxes[3:4], found.frame[3:4]))[0]
        assert (sample.features[3, :512] - alone).norm() < 1e-3 * alone.norm()  # stored in half precision
    by_geometry = tokenise(few, ObjectDetector(), Geometry(), NO_RUN)
    assert torch.equal(samples[1].features[:, 512:], by_geometry[1].features)
    assert (samples[0].features[0, :512] - samples[0].features[-1, :512]).abs().max() > 1e-3


def test_several_processes_compute_the_same_features(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, detector = VideoDataset(data, "train", limit=20), ObjectDetector(0.44)
    one = tokenise(dataset, detector, Appearance("random", CPU), NO_RUN)
    monkeypatch.setattr(parallel, "WORTH_PROCESSES", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    two = tokenise(dataset, detector, Appearance("random", CPU), NO_RUN)
    assert one.parts[0].dtype == two.parts[0].dtype == torch.float16
    torch.testing.assert_close(two.parts[0], one.parts[0], rtol=2e-3, atol=2e-3)


def test_videos_without_detections_have_no_features(few: VideoDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = replace(few[0], video=torch.zeros(16, 64, 64, 3, dtype=torch.uint8))
    monkeypatch.setattr(few, "source", InMemory([blank] * 2))
    few.indices = range(2)
    samples = tokenise(few, ObjectDetector(), Appearance("random", CPU), NO_RUN)
    assert [list(sample.features.shape) for sample in samples] == [[0, 520], [0, 520]]


def test_folding_the_norms_does_not_change_the_result(trained: Path) -> None:
    network, _ = load_resnet(str(trained))
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before = network.eval()(images)
        folded = frozen(network)
        torch.testing.assert_close(folded(images), before, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


def test_a_crop_shows_its_box_in_its_frame() -> None:
    video = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    video[1, 8:24, 40:56] = torch.tensor([255, 0, 127], dtype=torch.uint8)
    crops = crop(video, torch.tensor([[40.0, 8, 56, 24], [40, 8, 56, 24]]), torch.tensor([0, 1]))
    assert crops.shape == (2, 3, 32, 32)
    colours = crops * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
    middle = colours[:, :, 2:-2, 2:-2].flatten(2)
    torch.testing.assert_close(middle.mean(dim=2), torch.tensor([[0.0, 0, 0], [1, 0, 127 / 255]]))
    assert middle.std(dim=2).max() < 1e-5


def test_the_network_is_frozen(few: VideoDataset) -> None:
    appearance = Appearance("random", CPU)
    before = {name: value.clone() for name, value in appearance.network.state_dict().items()}
    tokenise(few, ObjectDetector(), appearance, NO_RUN)
    assert not appearance.network.training
    assert not any(parameter.requires_grad for parameter in appearance.network.parameters())
    assert all(torch.equal(before[name], value) for name, value in appearance.network.state_dict().items())


def test_random_weights_are_always_the_same_and_draw_no_random_numbers() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, words = load_resnet("random")
    assert words == "random" and torch.equal(torch.rand(3), expected)
    torch.manual_seed(2)
    second, _ = load_resnet("random")
    assert torch.equal(first.state_dict()["conv1.weight"], second.state_dict()["conv1.weight"])


def test_weights_are_loaded_from_a_file(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, words = load_resnet(str(trained))
    state = torch.load(trained, weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert words.startswith("file resnet.pt sha256:") and capsys.readouterr().out == ""


def test_untrained_weights_give_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "pretrained.pt")
    load_resnet(str(tmp_path / "pretrained.pt"))
    assert "was never trained" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"", b"not weights", {"conv1.weight": torch.zeros(1)}, 3])
def test_a_file_that_is_not_a_state_dict_is_refused_in_one_line(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(BadInput, match=r"weights\.pt is not a state_dict of torchvision's resnet18") as refused:
        load_resnet(str(path))
    assert "\n" not in str(refused.value)


def test_imagenet_weights_without_a_network_are_an_error_of_one_line(no_network: Path) -> None:
    with pytest.raises(BadInput, match="the ImageNet weights of ResNet-18 could not be loaded") as refused:
        load_resnet("imagenet")
    assert "\n" not in str(refused.value) and CACHED_NAME in str(refused.value)
    assert socket.getdefaulttimeout() is None  # only the download has one


def test_auto_falls_back_to_random_weights_with_a_warning(no_network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, words = load_resnet("auto")
    assert words == "random (ImageNet weights are not available)"
    assert "WARNING: RANDOM ResNet-18 weights are used" in capsys.readouterr().out
    assert torch.equal(network.state_dict()["conv1.weight"], load_resnet("random")[0].state_dict()["conv1.weight"])


@pytest.mark.parametrize("weights", ["auto", "imagenet"])
def test_imagenet_weights_are_loaded_from_the_cache_of_torchvision(
    no_network: Path, trained: Path, weights: str
) -> None:
    no_network.mkdir(parents=True)
    trained.rename(no_network / CACHED_NAME)
    network, words = load_resnet(weights)
    state = torch.load(no_network / CACHED_NAME, weights_only=True)
    assert torch.equal(network.state_dict()["conv1.weight"], state["conv1.weight"])
    assert words == "imagenet ResNet18_Weights.IMAGENET1K_V1"
