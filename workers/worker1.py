"""worker1: geometry tokens, and a loss that steers attention to persistent objects.

python -m workers.worker1 --data DIR --epochs 30
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from workers import entry
from workers.losses import LAYERS, TARGET_RATIO, AttentionSupervised
from workers.tokens import Geometry


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--attention-weight", type=float, default=1.0, help="of the attention loss")
    parser.add_argument("--attention-target", type=float, default=TARGET_RATIO, help="the attention ratio to aim at")
    parser.add_argument("--attention-layers", choices=LAYERS, default="all", help="which layers are supervised")


WORKER = entry.Worker(
    name="worker1",
    purpose="Train a Transformer over object tokens with supervised attention.",
    features=lambda options, device: Geometry(),
    objective=lambda options: AttentionSupervised(
        options.attention_weight, options.attention_target, options.attention_layers
    ),
    add_options=_add_options,
)


def main(argv: Sequence[str] | None = None) -> int:
    return entry.main(WORKER, argv)


if __name__ == "__main__":
    sys.exit(main())
