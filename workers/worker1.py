"""worker1: geometry tokens, and losses that move attention to persistent objects.

python -m workers.worker1 --data DIR --epochs 30
"""

from __future__ import annotations

from collections.abc import Sequence

from workers.runs import entry
from workers.runs.variants import WORKER1
from workers.training.distributed import Group


def main(argv: Sequence[str] | None = None) -> int:
    """Train worker1. Return the exit code of `entry.main`."""
    return entry.main(WORKER1, argv)


if __name__ == "__main__":
    Group.exit(main())
