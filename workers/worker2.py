"""worker2: frozen pre-trained ResNet-18 features of the objects, a Transformer on top, cross-entropy alone.

python -m workers.worker2 --data DIR --epochs 30 --weights imagenet
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from workers import entry
from workers.features import Appearance
from workers.losses import Classification


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        default="auto",
        help="imagenet, random, or a state_dict file; auto: imagenet, or random with a warning where it cannot be had",
    )


WORKER = entry.Worker(
    name="worker2",
    purpose="Train a Transformer over frozen ResNet-18 features of the objects.",
    features=lambda options, device: Appearance(options.weights, device),
    objective=lambda options: Classification(),
    add_options=_add_options,
)


def main(argv: Sequence[str] | None = None) -> int:
    return entry.main(WORKER, argv)


if __name__ == "__main__":
    sys.exit(main())
