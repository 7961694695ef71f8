from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from workers.evaluation.heatmaps import CAPTION, SCALE, Attended, attended, draw
from workers.perception.batching import Packed, collate


@pytest.fixture
def sample() -> Attended:
    """Two objects in frame 0 and one in frame 1 of two black frames; the first has twice the attention."""
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]])
    video = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    kinds = ["persistent", "transient", "neither"]
    return Attended("right-0007", video, boxes, torch.tensor([0, 0, 1]), kinds, torch.tensor([0.4, 0.2, 0.0]), "a\nb")


def pixel(picture: Image.Image, x: int, y: int) -> tuple[int, ...]:
    """Of frame 0 of the grid, in pixels of the video."""
    return tuple(np.asarray(picture.convert("RGB"))[CAPTION + y * SCALE, x * SCALE].tolist())


def test_more_attention_is_brighter_and_outlines_show_the_kind(sample: Attended, tmp_path: Path) -> None:
    written = draw(tmp_path / "maps", [sample])
    assert [path.name for path in written] == ["right-0007.png", "right-0007.gif"]
    grid = Image.open(written[0])
    strong, weak, none = pixel(grid, 16, 16), pixel(grid, 48, 48), pixel(grid, 48, 16)
    assert sum(strong) > sum(weak) > sum(none) == 0
    assert pixel(grid, 0, 0) == (255, 255, 255) and pixel(grid, 32, 32) == (255, 60, 60)


def test_the_animation_shows_every_frame_next_to_the_video(sample: Attended, tmp_path: Path) -> None:
    with Image.open(draw(tmp_path, [sample])[1]) as animation:
        assert animation.n_frames == 2 and animation.info["loop"] == 0  # type: ignore[attr-defined]
        assert animation.size == (2 * (64 * SCALE + 2), CAPTION + 64 * SCALE)


def test_a_sample_is_taken_out_of_its_batch(samples: dict[str, Packed]) -> None:
    batch = collate(samples["train"][:2])
    row, tokens = 1, len(samples["train"][1].features)
    attention = torch.arange(batch.padding.shape[1]) / 100
    video = torch.zeros(16, 64, 64, 3, dtype=torch.uint8)
    found = attended("x", video, batch, row, attention, predicted=1)
    assert len(found.attention) == len(found.frame) == len(found.boxes) == len(found.kinds) == tokens
    assert [kind == "persistent" for kind in found.kinds] == samples["train"][1].persistent.tolist()
    mean = attention[:tokens][samples["train"][1].persistent].mean()
    assert found.caption.startswith(f"class {samples['train'][1].label}, predicted 1\n")
    assert f"persistent {mean:.4f}" in found.caption


def test_a_sample_without_a_token_is_drawn_too(sample: Attended, tmp_path: Path) -> None:
    empty = Attended("e", sample.video, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [], torch.zeros(0), "")
    assert all(path.stat().st_size for path in draw(tmp_path, [empty]))
