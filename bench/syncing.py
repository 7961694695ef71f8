"""Downloads: two runs, many files, a large file, many runs, nothing new; and the overviews of many runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.by_hand import ByHand
from bench.figures import Figure, Limit, interleaved
from bench.setting import ORCH, Laptop, Link, job, laptop

MB = 1 << 20
RSYNC = "one rsync -a"


class Copies:
    """Syncs by orch and by hand, each from nothing or again after the last one."""

    def __init__(self, here: Laptop, bulk: bool = False) -> None:
        """Keep what the laptop knows now: each download starts from it.

        Args:
            here: A laptop that has launched runs which have ended, and has not synced them.
            bulk: Whether to write everything to disk before each download, so that none pays for another's writes.
        """
        self._here, self._bulk, self._script = here, bulk, ByHand(here)
        self._before, self._target = here.project.parent / "results-before", here.project.parent / "by-hand"
        shutil.copytree(here.results, self._before, symlinks=True)

    def orch_new(self) -> float:
        shutil.rmtree(self._here.results)
        shutil.copytree(self._before, self._here.results, symlinks=True)
        self._here.disconnect()
        self._settle()
        return self.orch_again()

    def rsync_new(self) -> float:
        shutil.rmtree(self._target, ignore_errors=True)
        self._target.mkdir()
        self._settle()
        return self.rsync_again()

    def orch_cold_again(self) -> float:
        self._here.disconnect()
        return self.orch_again()

    def orch_again(self) -> float:
        return self._here.seconds([ORCH, "sync"])

    def rsync_again(self) -> float:
        return self._here.seconds(self._script.sync(self._target))

    def compare(self) -> None:
        """Raise AssertionError if the two copies differ in what jobs wrote."""
        mine, other = (_outputs(folder) for folder in (self._here.results, self._target))
        assert mine == other and mine, f"orch has {len(mine)} files of jobs, rsync {len(other)}"

    def _settle(self) -> None:
        if self._bulk:
            os.sync()


def _outputs(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for run in folder.glob("*/2*")
        for path in run.glob("work/out/*")
    }


def two_runs(folder: Path, rounds: int, link: Link) -> Iterator[Figure]:
    """Measure the sync of two finished runs of 1 MB, and one that finds nothing new."""
    tables = job("one", "write", 1, MB, here=folder) + job("two", "write", 1, MB, here=folder)
    delay = link.delay_ms
    with laptop(folder, tables, link) as here:
        _launch(here, "one", "two")
        copies = Copies(here)
        new = interleaved(rounds, {"orch": copies.orch_new, "rsync": copies.rsync_new})
        yield Figure("sync: two runs of 1 MB", RSYNC, new["orch"], new["rsync"], Limit(1.5), delay)
        copies.compare()
        ways: dict[str, Callable[[], float]] = {
            "orch": copies.orch_cold_again,
            "rsync": copies.rsync_again,
            "orch warm": copies.orch_again,
        }
        again = interleaved(rounds, ways)
        yield Figure("sync: nothing new", RSYNC, again["orch"], again["rsync"], Limit(1.5), delay)
        yield Figure("sync: nothing new, warm", RSYNC, again["orch warm"], again["rsync"], None, delay)


def one_run(
    folder: Path, rounds: int, files: int, size: int, limit: float, link: Link, bulk: bool = False
) -> Iterator[Figure]:
    """Measure the sync of one run with so many files of `size` bytes."""
    name = f"sync: {files:,} files" if files > 1 else f"sync: one file of {size // 1_000_000} MB"
    with laptop(folder, job("one", "write", files, size, here=folder), link) as here:
        _launch(here, "one")
        copies = Copies(here, bulk)
        new = interleaved(rounds, {"orch": copies.orch_new, "rsync": copies.rsync_new})
        yield Figure(name, RSYNC, new["orch"], new["rsync"], Limit(limit), link.delay_ms)
        copies.compare()


def many_runs(folder: Path, rounds: int, many: int, link: Link) -> Iterator[Figure]:
    """Measure the sync of many finished runs of 1.1 MB, then `status` and `runs` beside a project with two."""
    with ExitStack() as stack:
        few, lots = (
            stack.enter_context(laptop(folder / name, _tables(folder / name), link)) for name in ("few", "lots")
        )
        for here, runs in ((few, 2), (lots, many)):
            _launch(here, "one")
            _multiply(here.run_of("one"), runs)
        copies = Copies(lots, bulk=True)
        new = interleaved(rounds, {"orch": copies.orch_new, "rsync": copies.rsync_new}, first=0)
        yield Figure(f"sync: {many:,} runs of 1.1 MB", RSYNC, new["orch"], new["rsync"], Limit(1.3))
        copies.compare()
        few.orch("sync")
        for here in (few, lots):
            here.orch("launch", "hold")  # the box is asked only while a run may change
        for name in ("status", "runs"):
            command = [ORCH, name]
            times = interleaved(rounds, {"lots": partial(lots.seconds, command), "few": partial(few.seconds, command)})
            yield Figure(f"{name}: {many:,} runs", f"orch {name}, 2 runs", times["lots"], times["few"], Limit(1.5))


def _tables(folder: Path) -> str:
    return job("one", "write", 1, 1_100_000, here=folder) + job("hold", "hold", here=folder)


def _launch(here: Laptop, *jobs: str) -> None:
    here.orch("launch", *jobs, "--wait")
    here.wait_for_the_end()


def _multiply(run: Path, runs: int) -> None:
    """Copy a finished run under new ids until there are so many in all."""
    for number in range(runs - 1):
        run_id = f"20260101T{number // 3600:02}{number // 60 % 60:02}{number % 60:02}-{number:04x}"
        copy = run.parent / run_id
        shutil.copytree(run, copy, symlinks=True)
        record = json.loads((copy / "run.json").read_text())
        record["run_id"] = run_id
        (copy / "run.json").write_text(json.dumps(record))
