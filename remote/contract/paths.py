"""The directory and file names of a box and of a run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Iterator, List, Pattern, Type

from remote.contract.files import TEMP_PREFIX

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # a project or a job
RUN_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{4}")  # UTC start and four hex digits: sorts by time
CHECKPOINT = re.compile(r"epoch-(\d{4,})\.pt")
TREE_HASH = re.compile(r"[0-9a-f]{64}")
SUPERVISOR_LOCK = "supervisor.lock"
CHECKSUMS = "checksums.jsonl"
SHIM_LOCK = "keeper.lock"  # the name of every version: do not change it
OUTPUT_FOLDERS = ("work", "results", "checkpoints")  # in a run directory: what is in them belongs to the job
QUEUE = "queue"  # in the directory of the GPU slots: a file for each run that waits for devices
PARTIAL = TEMP_PREFIX + "partial"  # a folder with incomplete files, which a copy keeps so that it can continue
STAGING_PREFIX = TEMP_PREFIX + "incoming-"  # of folders that a copy uses while it runs


class _In:
    """A path in a run directory. It is made when it is used: a list of many runs needs few of them."""

    def __init__(self, *parts: str) -> None:
        self._parts = parts

    def __get__(self, run: RunPaths, owner: Type[RunPaths]) -> Path:
        return run.root.joinpath(*self._parts)


class RunPaths:
    """The paths in a run directory. They are the same on the box and in the laptop's copy."""

    run = _In("run.json")
    state = _In("state.json")
    events = _In("events.jsonl")
    heartbeat = _In("heartbeat.json")
    metrics = _In("metrics.jsonl")
    latest_metrics = _In("latest_metrics.json")
    output = _In("output.json")
    samples = _In("samples.jsonl")
    log = _In("training.log")
    log_parts = _In("log")
    worker = _In("worker.json")
    failure = _In("failure.json")
    checkpoints = _In("checkpoints")
    best_checkpoint = _In("checkpoints", "best.json")
    diagnostics = _In("evidence")
    stacks = _In("evidence", "stacks.txt")  # written by the faulthandler in the worker
    results = _In("results")
    work = _In("work")  # the working directory of the job
    workspace = _In("work.json")  # what `work` was made from
    environment = _In("environment.json")  # which environment the job uses
    outputs = _In("outputs.json")  # what the run added or changed in `work`
    output_list = _In("outputs.jsonl")  # every file of OUTPUT_FOLDERS at the end of the run
    checksums = _In(CHECKSUMS)  # of files that a laptop has compared; not copied
    stop = _In("stop.json")
    restarted = _In("restart.json")
    supervisor_lock = _In(SUPERVISOR_LOCK)
    supervisor = _In("supervisor.json")
    supervisor_log = _In("supervisor.log")
    shim_lock = _In(SHIM_LOCK)
    reserve = _In(TEMP_PREFIX + "reserve")  # its space is used on a full disk, so that the state can be written

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def named(self) -> List[Path]:
        """Return the paths above, without `root`."""
        return [getattr(self, name) for name, path in vars(RunPaths).items() if isinstance(path, _In)]

    @property
    def forecast(self) -> Path:
        """Return the file with the measurements of a rehearsal."""
        return self.results / "rehearsal.json"

    @property
    def job(self) -> str:
        """Return the name of the job."""
        return self.root.parent.name

    @property
    def run_id(self) -> str:
        """Return the id of the run."""
        return self.root.name

    def checkpoints_newest_first(self) -> List[Path]:
        """Return all checkpoints, the highest epoch first, whether they can be loaded or not."""
        found = [(CHECKPOINT.fullmatch(path.name), path) for path in self.checkpoints.glob("epoch-*.pt")]
        return [path for _, path in sorted(((int(name[1]), path) for name, path in found if name), reverse=True)]

    def checkpoint(self, epoch: int) -> Path:
        """Return the checkpoint of an epoch."""
        return self.checkpoints / f"epoch-{epoch:04d}.pt"

    @staticmethod
    def checksum(checkpoint: Path) -> Path:
        """Return the file with the SHA-256 of a checkpoint."""
        return checkpoint.with_name(checkpoint.name + ".sha256")


class ProjectPaths:
    """The paths of one project on a box. The GPU slots belong to the box: all projects under the root share them."""

    def __init__(self, root: Path, project: str) -> None:
        self.box, self.project = Path(root), project
        self.root = self.box / project
        self.code = self.root / "code"
        self.incoming = self.code / ".incoming"
        self.runs = self.root / "runs"
        self.rehearsals = self.root / "rehearsals"
        self.passed = self.root / "passed"  # rehearsals that need not be repeated
        self.prepared = self.root / "prepared"
        self.environments = self.root / "environments"
        self.data = self.root / "data"  # what `data.from` and `orch push` sent
        self.bytecode = self.root / "pycache"
        self.secrets = self.root / "secrets"  # not in a run directory: all files there are downloaded
        self.pipes = self.root / "pipes"  # from each worker to its shim
        self.slots = self.box / "slots"
        self.queue = self.slots / QUEUE
        self.reboot_lock = self.box / "reboot.lock"

    def rehearsing(self) -> ProjectPaths:
        """Return the paths of the same project with its rehearsals as its runs."""
        paths = ProjectPaths(self.box, self.root.name)
        paths.runs = self.rehearsals
        return paths

    @property
    def is_rehearsing(self) -> bool:
        """Return whether the runs are rehearsals (see `rehearsing`)."""
        return self.runs == self.rehearsals

    @classmethod
    def of_run(cls, run: RunPaths) -> ProjectPaths:
        """Return the paths of the project that the run belongs to."""
        project = run.root.parents[2]
        return cls(project.parent, project.name)

    def is_rehearsal(self, run: RunPaths) -> bool:
        """Return whether a run of this project is a rehearsal."""
        return run.root.parents[1] == self.rehearsals

    def tree(self, tree_hash: str) -> Path:
        """Return the directory of a snapshot."""
        return self.code / tree_hash

    def run(self, job: str, run_id: str) -> RunPaths:
        """Return the paths of a run, whether it exists or not."""
        return RunPaths(self.runs / job / run_id)

    def prepared_additions(self, key: str) -> Path:
        """Return the directory of the files that a `prepare` added beside its code, while it runs with its code."""
        return self.prepared / f"{key}.work"

    def secrets_of(self, run: RunPaths) -> Path:
        """Return the file with the secrets of a run."""
        return self.secrets / f"{run.job}.{run.run_id}.json"

    def pipe_of(self, run: RunPaths) -> Path:
        """Return the pipe from the worker of a run to its shim."""
        return self.pipes / f"{run.job}.{run.run_id}"

    def launch_lock(self) -> Path:
        """Return the lock file that a launch or restart holds while it checks and creates runs."""
        return self.root / "launch.lock"

    def all_runs(self) -> Iterator[RunPaths]:
        """Yield all runs of the project, job by job, the oldest first."""
        for job in _directories(self.runs, NAME):
            for run in _directories(job, RUN_ID):
                yield RunPaths(run)


def _directories(path: Path, names: Pattern[str]) -> List[Path]:
    """Return the directories in `path` with such names, sorted; none if it cannot be read. A symlink is not one."""
    try:
        with os.scandir(str(path)) as entries:
            found = [entry.name for entry in entries if names.fullmatch(entry.name) and _is_directory(entry)]
    except OSError:
        return []
    return [path / name for name in sorted(found)]


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
