"""Checksums of the files of runs: each is made when it is first asked for, and kept in the run directory.

A checksum counts as long as the file has the size and the modification time that it had then.
"""

from __future__ import annotations

import os
import time
from typing import Any, Dict, List, Optional, Tuple

from remote.agent.status import find_run
from remote.contract.content_hash import CHUNK_BYTES, new_hash
from remote.contract.files import append_jsonl, open_to_read, read_jsonl
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.replies import ChecksumsReply
from remote.contract.requests import ChecksumsRequest

REPLY_S = 25.0  # seconds after which no further file is begun: a laptop waits 60 s for a reply
FILE_S = 50.0  # seconds from the request on after which a file is given up
MAX_KEPT = 1 << 27  # bytes of checksums.jsonl that are read
Entry = Optional[List[Any]]


def checksums(paths: ProjectPaths, request: ChecksumsRequest) -> ChecksumsReply:
    """Return the checksums of the first of the requested files, at least one (see `ChecksumsReply`)."""
    began = time.monotonic()
    kept: Dict[Tuple[str, str], Dict[str, List[Any]]] = {}
    found: List[Entry] = []
    for job, run_id, path in request.files:
        if found and time.monotonic() - began > REPLY_S:
            break
        try:
            run = find_run(paths, job, run_id)
            if (job, run_id) not in kept:
                kept[job, run_id] = _kept(run)
            found.append(_checksum(run, path, kept[job, run_id], began + FILE_S))
        except (AgentError, OSError, ValueError):
            found.append(None)
    return ChecksumsReply(tuple(found))


def _kept(run: RunPaths) -> Dict[str, List[Any]]:
    lines = read_jsonl(run.checksums, MAX_KEPT)
    return {str(line.get("path")): [line.get("bytes"), line.get("mtime_ns"), line.get("blake2b")] for line in lines}


def _checksum(run: RunPaths, path: str, kept: Dict[str, List[Any]], until: float) -> Entry:
    """Return [size, mtime in ns, checksum] of a file; None if it takes too long. Raise OSError if it cannot be read."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return None
    with open_to_read(os.path.join(str(run.root), os.fsdecode(path.encode("utf-8", "surrogateescape")))) as file:
        status = os.fstat(file.fileno())
        version = [status.st_size, status.st_mtime_ns]
        known = kept.get(path)
        if known is not None and known[:2] == version and isinstance(known[2], str):
            return known
        made = new_hash()
        while chunk := file.read(CHUNK_BYTES):
            made.update(chunk)
            if time.monotonic() > until:
                return None
        status = os.fstat(file.fileno())
        if [status.st_size, status.st_mtime_ns] != version:
            return None  # it is being written
    entry = [*version, made.hexdigest()]
    try:
        append_jsonl(run.checksums, {"path": path, "bytes": entry[0], "mtime_ns": entry[1], "blake2b": entry[2]})
    except OSError:
        pass  # a full or read-only disk: it is made again the next time
    return entry
