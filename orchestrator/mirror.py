"""The laptop's copy of every run: results/<job>/<run-id>/ with the box's own names, and `latest` beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.errors import AgentUnusable, OrchError
from orchestrator.reports import RunReport, read_report
from orchestrator.transport import Transport
from remote.files import TEMP_PREFIX, read_json, temp_beside, write_json
from remote.paths import NAME, RUN_ID, RunPaths
from remote.protocol import Request
from remote.reports import report as report_of

NOT_RECORDED = ("runs", "confirm_s", "secrets")  # of a launch request
LAUNCHING = ".launching"  # one empty file for each host that `unheard_of` names
EXCLUDE = (TEMP_PREFIX + "*", "*.lock")


@dataclass(frozen=True)
class Mirrored:
    """One run brought home. `whole` means ended, and every file here has the size that it has on the box."""

    report: RunReport
    directory: Path
    files: int
    bytes: int
    whole: bool
    left_out: tuple[str, ...]  # symlinks and specials, which are never brought home


class Mirror:
    """All runs that this laptop knows of."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, job: str, run_id: str) -> RunPaths:
        return RunPaths(self.directory / job / run_id)

    def remember(self, job: str, run_id: str, record: Mapping[str, Any]) -> None:
        """Keep what was launched, and where, before anything of it has come home; never its secrets."""
        run = self.run(job, run_id)
        run.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(run.run, {key: value for key, value in record.items() if key not in NOT_RECORDED})
        self._point_latest(job)

    def begin_launch(self, host: str) -> None:
        """From now on the host may have runs that are not known here: we may be ended before we hear of them."""
        marker = self.directory / LAUNCHING / host
        marker.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker.touch()

    def end_launch(self, host: str) -> None:
        (self.directory / LAUNCHING / host).unlink(missing_ok=True)

    def unheard_of(self) -> set[str]:
        """Hosts with a launch that did not come to its end here."""
        return {path.name for path in (self.directory / LAUNCHING).glob("*")}

    def reports(self) -> Iterator[RunReport]:
        """Every run known here, oldest first within a job, as it was when last heard of."""
        for run in self._runs():
            record = report_of(run, supervised=None)
            if record["host"]:
                yield read_report(str(record["host"]), record)

    def is_whole(self, report: RunReport) -> bool:
        return read_json(self.run(report.job, report.run_id).mirror) is not None

    def bring_home(self, transport: Transport, address: Mapping[str, str], report: RunReport) -> Mirrored:
        """Bring one run up to date; safe while it writes. Raises OrchError where an ended run's copy is not whole."""
        run = self.run(report.job, report.run_id)
        run.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        request = Request("inventory", {**address, "job": report.job, "run_id": report.run_id})
        before = transport.call(request)
        fresh = read_report(transport.host, before.get("report"))
        files = listed(transport.host, before)
        transport.pull(str(before.get("path")), run.root, files)
        if fresh.has_ended:
            _verify(run, files, transport.host)
            write_json(run.mirror, {"time": time.time(), "files": len(files)})
        self._point_latest(report.job)
        names = before.get("left_out")
        left_out = tuple(map(str, names)) if isinstance(names, list) else ()
        return Mirrored(fresh, run.root, len(files), sum(files.values()), fresh.has_ended, left_out)

    def _runs(self) -> Iterator[RunPaths]:
        for job in sorted(path for path in self.directory.glob("*/") if NAME.fullmatch(path.name)):
            for run in sorted(path for path in job.glob("*/") if RUN_ID.fullmatch(path.name)):
                yield RunPaths(run)

    def _point_latest(self, job: str) -> None:
        runs = sorted(path.name for path in (self.directory / job).iterdir() if RUN_ID.fullmatch(path.name))
        latest = self.directory / job / "latest"
        draft = temp_beside(latest)  # another command may do the same at this moment
        draft.symlink_to(runs[-1])
        draft.replace(latest)


def listed(host: str, inventory: Mapping[str, Any]) -> dict[str, int]:
    """The box's files and sizes; names that would leave the mirror are refused."""
    files: dict[str, int] = {}
    listed = inventory.get("files")
    for entry in listed if isinstance(listed, list) else [listed]:
        name, size = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        path = PurePosixPath(name if isinstance(name, str) else "/")
        is_inside = not path.is_absolute() and ".." not in path.parts and "\0" not in str(path)
        if not is_inside or not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise AgentUnusable(f"bringing results home from {host}: it lists {entry!r:.100} as a file")
        if not any(path.match(pattern) for pattern in EXCLUDE):
            files[str(path)] = size
    return files


def _verify(run: RunPaths, files: Mapping[str, int], host: str) -> None:
    wrong = [name for name, size in files.items() if _size(run.root / name) != size]
    if wrong:
        named = ", ".join(repr(name) for name in wrong[:3])
        raise OrchError(
            f"bringing {run.job} {run.run_id} home from {host}: {len(wrong)} of {len(files)} files did not arrive"
            f" whole ({named})",
            "run `orch sync` again: it goes on where it stopped",
        )


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None
