"""worker2: frozen ResNet-18 features of the objects, and cross-entropy alone.

python -m workers.worker2 --data DIR --epochs 30 --weights imagenet
"""

from __future__ import annotations

from collections.abc import Sequence

from workers.runs import entry
from workers.runs.variants import WORKER2
from workers.training.distributed import Group


def main(argv: Sequence[str] | None = None) -> int:
    """Train worker2. Return the exit code of `entry.main`."""
    return entry.main(WORKER2, argv)


if __name__ == "__main__":
    Group.exit(main())
