"""Scenes of the dataset: which spheres move where, and what they look like.

White spheres are persistent: they are in all frames. Red spheres are transient: each is there for a few frames in a
row. The class is 1 if at least 20 % of the frames show a transient (4 or more of 16), else 0. `Parameters` sets how
hard that is to see. Lengths are in pixels; pixel i covers [i, i + 1). All randomness comes from (seed, index).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.common.errors import BadInput

FRAMES, SIZE, CHANNELS = 16, 64, 3
TRANSIENT_SHARE = 0.2  # minimum share of frames with a transient for class 1
WHITE, RED = (255, 255, 255), (255, 40, 40)
SHADE = 0.6  # brightness at the rim of a sphere; it is 1 at the centre
MAX_DRAWS = 2000  # how often to draw the transients of one scene until it has the wanted class
DARKEST_SPHERE = 96  # of 255; the noise is darker, so that a detector can distinguish it from a sphere


@dataclass(frozen=True)
class Parameters:
    """How hard a dataset is. Ranges include both ends."""

    persistent: tuple[int, int] = (1, 3)  # spheres per scene
    transients: tuple[int, int] = (0, 6)
    transient_frames: tuple[int, int] = (1, 3)
    persistent_radius: tuple[float, float] = (5.0, 8.0)
    transient_radius: tuple[float, float] = (4.0, 6.0)
    overlaps: float = 0.0  # share of the transients that touch or cover another sphere when they appear
    speed: float = 2.5  # largest along one axis, pixels per frame
    noise: int = 16  # the background is uniform over 0 to noise - 1, of 255
    colour_free: bool = (
        False  # all spheres are white, of similar size, at random depth: only time distinguishes the kinds
    )

    def __post_init__(self) -> None:
        for name in ("persistent", "transients", "transient_frames", "persistent_radius", "transient_radius"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise BadInput(f"{name} is {low} to {high}, but must be a range from 0 on")
        if self.persistent[0] < 1 or self.transient_frames[0] < 1 or self.transient_frames[1] > FRAMES:
            raise BadInput(f"a scene needs 1 or more persistent spheres, and a transient lasts 1 to {FRAMES} frames")
        if not (0 <= self.overlaps <= 1 and 0 <= self.speed <= SIZE and 1 <= self.noise <= DARKEST_SPHERE):
            raise BadInput(f"overlaps must be 0 to 1, speed 0 to {SIZE}, noise 1 to {DARKEST_SPHERE}")
        smallest = min(self.persistent_radius[0], self.transient_radius[0])
        if smallest < 1 or max(self.persistent_radius[1], self.transient_radius[1]) > SIZE / 4:
            raise BadInput(f"a radius must be 1 to {SIZE // 4} pixels")


DEFAULT = Parameters()
PRESETS = {
    "default": DEFAULT,
    "hard": Parameters(persistent=(2, 4), transients=(0, 8), overlaps=0.5, noise=64),
    "colour-free": Parameters(transient_radius=(5.0, 8.0), colour_free=True),
}


@dataclass(frozen=True)
class Scene:
    """The ground truth of one video. Persistent tracks come first."""

    label: int
    centres: NDArray[np.float32]  # [tracks, frames, 2], (x, y)
    radii: NDArray[np.float32]  # [tracks]
    visible: NDArray[np.bool_]  # [tracks, frames]
    persistent: NDArray[np.bool_]  # [tracks]

    def boxes(self) -> NDArray[np.float32]:
        """Return [tracks, frames, 4] as (x0, y0, x1, y1), zero where the track is not visible."""
        radii = self.radii[:, None, None]
        boxes = np.concatenate([self.centres - radii, self.centres + radii], axis=2)
        return (boxes * self.visible[:, :, None]).astype(np.float32)

    def frame_labels(self) -> NDArray[np.bool_]:
        """Return [frames]: does the frame show a transient?"""
        return _any_track(self.visible[~self.persistent])


def _any_track(visible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[tracks, frames] -> [frames]; there may be no track."""
    return np.logical_or.reduce(visible, axis=0)


def class_of(frame_labels: NDArray[np.bool_]) -> int:
    """Return the class: the rule of the dataset, applied to [frames]."""
    return int(np.count_nonzero(frame_labels) >= TRANSIENT_SHARE * len(frame_labels))


def draw(seed: int, index: int, parameters: Parameters = DEFAULT) -> tuple[Scene, NDArray[np.uint8]]:
    """Return scene `index` of dataset `seed`, and its video [frames, height, width, 3]."""
    rng = np.random.default_rng([seed, index])
    scene = draw_scene(rng, parameters)
    return scene, _render(scene, rng, parameters)


def draw_scene(rng: np.random.Generator, parameters: Parameters = DEFAULT) -> Scene:
    """Return a scene without its video."""
    label = int(rng.integers(2))
    whites = int(rng.integers(parameters.persistent[0], parameters.persistent[1] + 1))
    transient = _transient_visible(rng, label, parameters)
    reds = len(transient)
    sizes = (parameters.persistent_radius, whites), (parameters.transient_radius, reds)
    radii = np.concatenate([rng.uniform(*limits, count) for limits, count in sizes])
    visible = np.concatenate([np.ones((whites, FRAMES), dtype=bool), transient])
    return Scene(
        label=label,
        centres=_centres(rng, radii, visible, whites, parameters),
        radii=radii.astype(np.float32),
        visible=visible,
        persistent=np.arange(whites + reds) < whites,
    )


def _transient_visible(rng: np.random.Generator, label: int, parameters: Parameters) -> NDArray[np.bool_]:
    """[transients, frames], drawn again until the class is `label`, so that both classes are equally likely."""
    times = np.arange(FRAMES)
    (fewest, most), (shortest, longest) = parameters.transients, parameters.transient_frames
    for _ in range(MAX_DRAWS):
        count = int(rng.integers(fewest, most + 1))
        length = rng.integers(shortest, longest + 1, count)
        start = rng.integers(0, FRAMES - length + 1)
        visible: NDArray[np.bool_] = (times >= start[:, None]) & (times < (start + length)[:, None])
        if class_of(_any_track(visible)) == label:
            return visible
    raise BadInput(f"{fewest} to {most} transients of {shortest} to {longest} frames almost never give class {label}")


def _centres(
    rng: np.random.Generator, radii: NDArray[Any], visible: NDArray[np.bool_], whites: int, parameters: Parameters
) -> NDArray[np.float32]:
    """Straight lines at constant speed, reflected where the sphere touches the border: [tracks, frames, 2]."""
    room = (SIZE - 2 * radii)[:, None, None]
    start = rng.uniform(0, 1, (len(radii), 1, 2)) * room
    velocity = rng.uniform(-parameters.speed, parameters.speed, (len(radii), 1, 2))
    centres = _reflected(start, velocity, room, radii)
    for track in range(whites, len(radii)) if parameters.overlaps else ():
        if rng.uniform() < parameters.overlaps:
            # In its first frame it touches, or partly covers, a persistent sphere.
            frame, other = int(np.argmax(visible[track])), int(rng.integers(whites))
            angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1) * (radii[track] + radii[other])
            wanted = centres[other, frame] + distance * np.array([np.cos(angle), np.sin(angle)])
            inside = np.clip(wanted - radii[track], 0, room[track, 0, 0])
            start[track, 0] = inside - velocity[track, 0] * frame
            centres[track] = _reflected(start[track], velocity[track], room[track], radii[track, None, None])[0]
    return centres.astype(np.float32)


def _reflected(
    start: NDArray[Any], velocity: NDArray[Any], room: NDArray[Any], radii: NDArray[Any]
) -> NDArray[np.float64]:
    """start, velocity [tracks, 1, 2], room [tracks, 1, 1] -> centres [tracks, frames, 2]."""
    travelled = np.mod(start + velocity * np.arange(FRAMES)[None, :, None], 2 * room)
    return radii.reshape(-1, 1, 1) + np.minimum(travelled, 2 * room - travelled)


def _render(scene: Scene, rng: np.random.Generator, parameters: Parameters) -> NDArray[np.uint8]:
    noise = np.frombuffer(rng.bytes(FRAMES * SIZE * SIZE * CHANNELS), dtype=np.uint8) % parameters.noise
    video = noise.reshape(FRAMES, SIZE, SIZE, CHANNELS)
    middles = np.arange(SIZE, dtype=np.float32) + 0.5
    tracks = range(len(scene.radii))
    # Transients are in front of persistent spheres, unless that would identify them.
    for track in rng.permutation(len(scene.radii)) if parameters.colour_free else tracks:
        radius = scene.radii[track]
        frames = np.flatnonzero(scene.visible[track])
        offsets = (middles[None, :, None] - scene.centres[track, frames][:, None, :]) ** 2  # [shown, pixel, axis]
        depth = 1 - (offsets[:, :, None, 1] + offsets[:, None, :, 0]) / radius**2  # [shown, y, x]; 0 at the rim
        shown, rows, columns = np.nonzero(depth > 0)
        light = SHADE + (1 - SHADE) * np.sqrt(depth[shown, rows, columns])
        white = scene.persistent[track] or parameters.colour_free
        colour = np.asarray(WHITE if white else RED, dtype=np.float32)
        video[frames[shown], rows, columns] = (light[:, None] * colour).astype(np.uint8)
    return video
