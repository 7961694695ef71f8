"""Train any variant: python -m workers.train NAME --data DIR. The names are in workers/runs/variants.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from workers.runs import entry
from workers.runs.variants import VARIANTS
from workers.training.distributed import Group


def main(argv: Sequence[str] | None = None) -> int:
    """Train the variant that the first argument names. Return the exit code of `entry.main`."""
    name, *options = sys.argv[1:] if argv is None else argv or [""]
    if name in ("-h", "--help"):
        print("usage: workers.train NAME [options]; for its options: NAME --help\n")
        print("\n".join(f"  {variant.name:12} {variant.purpose}" for variant in VARIANTS.values()))
        return 0
    if name not in VARIANTS:
        print(f"workers.train: unknown variant {name!r}; choose one of {', '.join(VARIANTS)}", file=sys.stderr)
        return 2
    return entry.main(VARIANTS[name], options)


if __name__ == "__main__":
    Group.exit(main())
