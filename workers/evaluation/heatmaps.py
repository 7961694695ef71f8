"""Heatmaps: the frames of a video, each object tinted by the attention of CLS on its token.

For each sample there is a PNG of all frames, and a GIF with the tinted frames next to the plain video. The tint goes
from none through purple and orange to yellow, for the most attended token of the sample. The outline of a box shows the
kind: white persistent, red transient, grey neither. Pillow draws them: torchvision needs it anyway, and it writes both
formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from workers.perception.batching import Batch

SCALE = 3  # screen pixels per pixel of the video
COLUMNS = 4  # columns of the grid
CAPTION = 30  # screen pixels: two lines of text
MILLISECONDS = 250  # per frame in the animation
TINTS = ((0, 0, 0), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # of matplotlib's inferno
OPAQUE = 0.85  # opacity of the tint
OUTLINES = {"persistent": (255, 255, 255), "transient": (255, 60, 60), "neither": (128, 128, 128)}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Attended:
    """One sample and the attention on its tokens."""

    name: str
    video: Tensor  # uint8 [frames, height, width, 3]
    boxes: Tensor  # [tokens, 4], 0 to 1
    frame: Tensor  # int64 [tokens]
    kinds: Sequence[str]  # of each token, one of OUTLINES
    attention: Tensor  # [tokens]
    caption: str


def attended(name: str, video: Tensor, batch: Batch, row: int, attention: Tensor, predicted: int) -> Attended:
    """Take a sample out of a batch.

    Args:
        name: the name of its files.
        video: uint8 [frames, height, width, 3].
        batch: holds the sample.
        row: its row in the batch.
        attention: [tokens], padding included.
        predicted: the predicted class.
    """
    there = ~batch.padding[row].cpu()
    persistent, transient = (mask[row].cpu()[there] for mask in (batch.persistent, batch.transient))
    kinds = [_kind(*pair) for pair in zip(persistent.tolist(), transient.tolist(), strict=True)]
    seen = attention.float().cpu()[there]
    means = (float(seen[mask].mean()) if mask.any() else 0.0 for mask in (persistent, transient))
    label = int(batch.labels[row])
    caption = f"class {label}, predicted {predicted}\nmean attention: persistent {{:.4f}}, transient {{:.4f}}"
    boxes, frame = batch.boxes[row].cpu()[there], batch.frame[row].cpu()[there]
    return Attended(name, video, boxes, frame, kinds, seen, caption.format(*means))


def _kind(persistent: bool, transient: bool) -> str:
    return "persistent" if persistent else "transient" if transient else "neither"


def draw(folder: Path, samples: Sequence[Attended]) -> list[Path]:
    """Write NAME.png and NAME.gif of each sample into `folder`, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for sample in samples:
        frames = [_tinted(sample, number) for number in range(len(sample.video))]
        written += [folder / f"{sample.name}.png", folder / f"{sample.name}.gif"]
        _grid(frames, sample.caption).save(written[-2])
        plain = [_enlarged(frame.numpy()) for frame in sample.video]
        # This method of choosing 256 colours takes a tenth of the time of the default one.
        pairs = [
            _beside([one, two], sample.caption).quantize(method=Image.Quantize.FASTOCTREE)
            for one, two in zip(plain, frames, strict=True)
        ]
        pairs[0].save(written[-1], save_all=True, append_images=pairs[1:], duration=MILLISECONDS, loop=0)
    return written


def _tinted(sample: Attended, number: int) -> Image.Image:
    """Frame `number` with its objects tinted and outlined."""
    pixels = sample.video[number].numpy()
    height, width, _ = pixels.shape
    strongest = max(float(sample.attention.max()), 1e-12) if len(sample.attention) else 1.0
    heat = np.zeros((height, width))
    here = torch.nonzero(sample.frame == number)[:, 0].tolist()
    boxes = (sample.boxes * torch.tensor([width, height, width, height])).tolist()
    for token in here:
        disc = _disc(boxes[token], height, width)
        heat[disc] = np.maximum(heat[disc], float(sample.attention[token]) / strongest)
    picture = _enlarged(_tint(pixels, heat))
    pen = ImageDraw.Draw(picture)
    for token in here:
        corners = [round(value * SCALE) for value in boxes[token]]
        pen.rectangle(corners, outline=OUTLINES[sample.kinds[token]])
    return picture


def _disc(box: Sequence[float], height: int, width: int) -> NDArray[np.bool_]:
    """The ellipse in the box (x0, y0, x1, y1), in pixels."""
    x0, y0, x1, y1 = box
    rows, columns = np.ogrid[:height, :width]
    across = (columns + 0.5 - (x0 + x1) / 2) / max(x1 - x0, 1.0)
    down = (rows + 0.5 - (y0 + y1) / 2) / max(y1 - y0, 1.0)
    inside: NDArray[np.bool_] = across**2 + down**2 <= 0.25
    return inside


def _tint(pixels: Pixels, heat: NDArray[Any]) -> Pixels:
    """Lay `heat` [height, width], 0 to 1, over the pixels. Where it is 0 they only become darker."""
    places = np.linspace(0, 1, len(TINTS))
    tints = np.stack([np.interp(heat, places, [tint[channel] for tint in TINTS]) for channel in range(3)], axis=-1)
    alpha = np.where(heat > 0, OPAQUE, 0.4)[:, :, None]
    return (pixels * (1 - alpha) + tints * alpha).astype(np.uint8)


def _enlarged(pixels: Pixels) -> Image.Image:
    height, width, _ = pixels.shape
    return Image.fromarray(pixels).resize((width * SCALE, height * SCALE), Image.Resampling.NEAREST)


def _grid(frames: Sequence[Image.Image], caption: str) -> Image.Image:
    width, height = frames[0].size
    rows = -(-len(frames) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (width + 2), CAPTION + rows * (height + 2)))
    for number, frame in enumerate(frames):
        row, column = divmod(number, COLUMNS)
        sheet.paste(frame, (column * (width + 2), CAPTION + row * (height + 2)))
    return _captioned(sheet, caption)


def _beside(frames: Sequence[Image.Image], caption: str) -> Image.Image:
    width, height = frames[0].size
    sheet = Image.new("RGB", (len(frames) * (width + 2), CAPTION + height))
    for number, frame in enumerate(frames):
        sheet.paste(frame, (number * (width + 2), CAPTION))
    return _captioned(sheet, caption)


def _captioned(sheet: Image.Image, caption: str) -> Image.Image:
    ImageDraw.Draw(sheet).multiline_text((4, 2), caption, font=ImageFont.load_default(), fill=(255, 255, 255))
    return sheet
