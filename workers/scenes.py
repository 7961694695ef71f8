"""Scenes of the persistence-augmented dataset: what moves where, and what it looks like.

White spheres are persistent: they are there in all frames. Red spheres are transient: each is there for 1 to 3
frames in a row. The class is 1 when at least 20 % of the frames show a transient (4 or more of 16), else 0.
Lengths are pixels; pixel i covers [i, i + 1). Every draw comes from (seed, index) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAMES, SIZE, CHANNELS = 16, 64, 3
TRANSIENT_SHARE = 0.2  # share of frames showing a transient from which on the class is 1
PERSISTENT_COUNT = (1, 3)  # spheres per scene, both ends included
TRANSIENT_COUNT = (0, 6)
TRANSIENT_FRAMES = (1, 3)
PERSISTENT_RADIUS = (5.0, 8.0)
TRANSIENT_RADIUS = (4.0, 6.0)
SPEED = 2.5  # largest speed along one axis, pixels a frame
NOISE = 16  # the background is uniform over 0 .. NOISE - 1 of 255
WHITE, RED = (255, 255, 255), (255, 40, 40)
SHADE = 0.6  # brightness at a sphere's rim; 1 at its centre


@dataclass(frozen=True)
class Scene:
    """The ground truth of one video; persistent tracks first, later tracks in front of earlier ones."""

    label: int
    centres: NDArray[np.float32]  # [tracks, frames, 2], (x, y)
    radii: NDArray[np.float32]  # [tracks]
    visible: NDArray[np.bool_]  # [tracks, frames]
    persistent: NDArray[np.bool_]  # [tracks]

    def boxes(self) -> NDArray[np.float32]:
        """[tracks, frames, 4] as (x0, y0, x1, y1); zero where the track is not visible."""
        radii = self.radii[:, None, None]
        boxes = np.concatenate([self.centres - radii, self.centres + radii], axis=2)
        return (boxes * self.visible[:, :, None]).astype(np.float32)

    def frame_labels(self) -> NDArray[np.bool_]:
        """[frames]: does a transient show?"""
        return _any_track(self.visible[~self.persistent])


def _any_track(visible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[tracks, frames] -> [frames]; tracks may be none."""
    return np.logical_or.reduce(visible, axis=0)


def class_of(frame_labels: NDArray[np.bool_]) -> int:
    """The rule of the dataset, for [frames] flags of `a transient shows`."""
    return int(np.count_nonzero(frame_labels) >= TRANSIENT_SHARE * len(frame_labels))


def draw(seed: int, index: int) -> tuple[Scene, NDArray[np.uint8]]:
    """Scene `index` of dataset `seed` and its video [frames, height, width, 3]."""
    rng = np.random.default_rng([seed, index])
    scene = draw_scene(rng)
    return scene, _render(scene, rng)


def draw_scene(rng: np.random.Generator) -> Scene:
    """The scene alone, without its video."""
    label = int(rng.integers(2))
    whites = int(rng.integers(PERSISTENT_COUNT[0], PERSISTENT_COUNT[1] + 1))
    transient = _transient_visible(rng, label)
    reds = len(transient)
    radii = np.concatenate([rng.uniform(*PERSISTENT_RADIUS, whites), rng.uniform(*TRANSIENT_RADIUS, reds)])
    return Scene(
        label=label,
        centres=_centres(rng, radii),
        radii=radii.astype(np.float32),
        visible=np.concatenate([np.ones((whites, FRAMES), dtype=bool), transient]),
        persistent=np.arange(whites + reds) < whites,
    )


def _transient_visible(rng: np.random.Generator, label: int) -> NDArray[np.bool_]:
    """[reds, frames], drawn again until the class is `label`, so that both classes are equally likely."""
    times = np.arange(FRAMES)
    while True:
        count = int(rng.integers(TRANSIENT_COUNT[0], TRANSIENT_COUNT[1] + 1))
        length = rng.integers(TRANSIENT_FRAMES[0], TRANSIENT_FRAMES[1] + 1, count)
        start = rng.integers(0, FRAMES - length + 1)
        visible: NDArray[np.bool_] = (times >= start[:, None]) & (times < (start + length)[:, None])
        if class_of(_any_track(visible)) == label:
            return visible


def _centres(rng: np.random.Generator, radii: NDArray[Any]) -> NDArray[np.float32]:
    """Straight lines at constant speed, reflected where the sphere touches the border: [tracks, frames, 2]."""
    room = (SIZE - 2 * radii)[:, None, None]
    start = rng.uniform(0, 1, (len(radii), 1, 2)) * room
    velocity = rng.uniform(-SPEED, SPEED, (len(radii), 1, 2))
    travelled = np.mod(start + velocity * np.arange(FRAMES)[None, :, None], 2 * room)
    centres = radii[:, None, None] + np.minimum(travelled, 2 * room - travelled)
    return centres.astype(np.float32)


def _render(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    noise = np.frombuffer(rng.bytes(FRAMES * SIZE * SIZE * CHANNELS), dtype=np.uint8) % NOISE
    video = noise.reshape(FRAMES, SIZE, SIZE, CHANNELS)
    middles = np.arange(SIZE, dtype=np.float32) + 0.5
    for track, radius in enumerate(scene.radii):
        frames = np.flatnonzero(scene.visible[track])
        offsets = (middles[None, :, None] - scene.centres[track, frames][:, None, :]) ** 2  # [shown, pixel, axis]
        depth = 1 - (offsets[:, :, None, 1] + offsets[:, None, :, 0]) / radius**2  # [shown, y, x]; 0 at the rim
        shown, rows, columns = np.nonzero(depth > 0)
        light = SHADE + (1 - SHADE) * np.sqrt(depth[shown, rows, columns])
        colour = np.asarray(WHITE if scene.persistent[track] else RED, dtype=np.float32)
        video[frames[shown], rows, columns] = (light[:, None] * colour).astype(np.uint8)
    return video
