"""`prepare`: make a job's dataset or environment once per distinct input, for all jobs with the same input.

prepared/<key>/        its output; the key is the hash of its command, its inputs and the variables that it names
prepared/<key>.work/   its working directory; after its end, what it added there, for the work/ of each run
prepared/<key>.json    written when the output is complete
prepared/<key>.lock    held by the run that makes the output
"""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

from remote.contract.files import read_json, sha256_file, to_json, write_json
from remote.contract.locks import try_lock
from remote.contract.paths import ProjectPaths
from remote.contract.protocol import ENV_PREPARED_DIR, AgentError
from remote.contract.run_record import PrepareRecord
from remote.contract.variables import expand, variables_in, with_references
from remote.supervisor.workspace import copy_snapshot, keep_additions, remove_tree


class Prepared:
    """The output of one job's `prepare`, identified by its key."""

    def __init__(self, paths: ProjectPaths, code: Path, prepare: PrepareRecord, env: Mapping[str, str]) -> None:
        self._code = code
        self.command = prepare.command
        named = with_references(variables_in(self.command), env)
        self.env = {name: value for name, value in env.items() if name in named}  # as in jobs.toml, without secrets
        inputs = _hash_inputs(code, prepare.inputs)
        what = {"command": self.command, "env": sorted(self.env.items()), "inputs": sorted(inputs.items())}
        self.key = sha256(to_json(what)).hexdigest()[:32]
        self.directory = paths.prepared / self.key
        self.additions = paths.prepared_additions(self.key)
        self.marker = paths.prepared / (self.key + ".json")
        self._lock_path = paths.prepared / (self.key + ".lock")
        self._lock: Optional[int] = None

    def is_done(self) -> bool:
        """Return whether the output exists and is complete."""
        return read_json(self.marker) is not None and self.directory.is_dir()

    def try_begin(self) -> bool:
        """Take the lock and create an empty directory. Return False while another run makes the output."""
        self._lock_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = try_lock(self._lock_path)
        if self._lock is None:
            return False
        if not self.is_done():
            remove_tree(self.directory)  # left by an interrupted run
            self.directory.mkdir(mode=0o700)
        return True

    def make_workspace(self) -> Path:
        """Return a new working directory for the command: a copy of the snapshot, without what a failed one left.

        Raises:
            AgentError: It cannot be made.
        """
        try:
            remove_tree(self.additions)
            copy_snapshot(self._code, self.additions)
        except OSError as error:
            raise AgentError("no_workspace", f"prepare: making {self.additions}: {error}") from None
        return self.additions

    @property
    def descriptors(self) -> List[int]:
        """The descriptor of the lock, for the process that makes the output: the lock is held while it lives."""
        return [] if self._lock is None else [self._lock]

    def finish(self) -> None:
        """Mark the output as complete. Of the working directory, keep what the command added or changed."""
        if self.additions.is_dir():
            keep_additions(self._code, self.additions)
        record = {"time": time.time(), "command": self.command, "env": self.env}
        write_json(self.marker, record, durable=True)

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def argv(self, own: Mapping[str, str]) -> List[str]:
        """Return the command with its variables replaced by those of the job, `own`."""
        return expand(self.command, {**own, ENV_PREPARED_DIR: str(self.directory)})


def _hash_inputs(code: Path, inputs: Sequence[str]) -> Dict[str, str]:
    """Return the hashes of the named files of the snapshot; of the whole snapshot if none are named.

    Raises:
        AgentError: `prepare_failed`: a pattern matches no file.
    """
    if not inputs:
        return {"": code.name}
    hashes = {}
    for pattern in inputs:
        found = [path for path in sorted(code.glob(pattern)) if path.is_file()]
        if not found:
            raise AgentError("prepare_failed", f"prepare: the input {pattern!r} matches no file of the snapshot")
        hashes.update({str(path.relative_to(code)): sha256_file(path) for path in found})
    return hashes
