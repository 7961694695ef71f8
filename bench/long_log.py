"""A long log, as the shim leaves it, through `orch tail`."""

from __future__ import annotations

import gzip
import os
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.by_hand import ByHand
from bench.figures import Figure, Limit, interleaved
from bench.setting import ORCH, Link, job, laptop
from remote.contract.logs import PART_BYTES


def long_log(folder: Path, rounds: int, megabytes: int, link: Link) -> Iterator[Figure]:
    """Measure how long a whole log takes, beside `cat` of one file with the same bytes."""
    with laptop(folder, job("one", "write", 1, 1, here=folder), link) as here:
        here.orch("launch", "one", "--wait")
        here.wait_for_the_end()
        plain = here.box.home / "plain.log"
        size = _lengthen(here.run_of("one"), plain, megabytes * 1_000_000)
        ways = {
            "orch": shlex.join([ORCH, "tail", "one", "--from", "0", "--no-follow"]),
            "cat": shlex.join(ByHand(here).ssh("box", f"cat {plain}")),
        }

        def seconds(command: str) -> float:
            os.sync()
            target = here.project.parent / "counted"
            taken = here.seconds(["bash", "-c", f"set -o pipefail; {command} | wc -c > {target}"])
            assert int(target.read_text()) >= size, f"{command}: {target.read_text()} of {size} bytes"
            return taken

        times = interleaved(rounds, {name: partial(seconds, text) for name, text in ways.items()}, first=0)
        # 1.25 of the time is 80 % of the speed.
        yield Figure(f"tail: {megabytes:,} MB of log", "ssh cat", times["orch"], times["cat"], Limit(1.25))


def _lengthen(run: Path, plain: Path, size: int) -> int:
    """Give a finished run a log of so many bytes, write the same bytes to `plain`, and return how many they are."""
    lines = (f"epoch {n // 1000} step {n} loss={1 / (n + 1):.6f} lr={3e-4 * 0.9999**n:.3e}\n" for n in range(200_000))
    text = "".join(lines).encode()
    part = (text * (PART_BYTES // len(text) + 1))[:PART_BYTES]
    parts, rest = divmod(size, PART_BYTES)
    (run / "log").mkdir(exist_ok=True)
    packed = gzip.compress(part, compresslevel=1)
    with plain.open("wb") as file:
        for number in range(parts):
            start = number * PART_BYTES
            (run / "log" / f"{start:015d}-{start + PART_BYTES:015d}.gz").write_bytes(packed)
            file.write(part)
        file.write(part[:rest])
    (run / "training.log").write_bytes(part[:rest])
    return size
