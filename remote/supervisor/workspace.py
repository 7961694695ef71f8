"""work/: the working directory of a run, a private, writable copy of its snapshot. All attempts of the run share it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Dict, Mapping, Optional

from remote.contract.files import TEMP_PREFIX, remove, write_atomic
from remote.contract.files import to_json as json_line
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.records import write_record
from remote.contract.run_record import JobRecord, RunRecord
from remote.contract.schema import to_json
from remote.contract.trees import read_manifest
from remote.contract.variables import Unresolved, expand_value
from remote.host.clone import copy_additions, copy_file
from remote.host.outputs import Outputs, WorkspaceRecord, is_same


def directory(run: RunPaths, record: RunRecord) -> Path:
    """Return the working directory of the run's job: its own, or the snapshot if the job asks for that."""
    return run.work if record.job.cwd == "work" else ProjectPaths.of_run(run).tree(record.code.tree)


def make(run: RunPaths, record: RunRecord, prepared_key: Optional[str], env: Mapping[str, str]) -> None:
    """Make work/, unless it exists.

    Args:
        run: The run.
        record: Its record.
        prepared_key: The key of the job's `prepare`, whose files beside its code are added; None without one.
        env: The variables that targets of links may refer to.

    Raises:
        AgentError: It cannot be made: the snapshot is incomplete, the disk is full, or a link is not possible.
    """
    if record.job.cwd != "work" or (run.work.is_dir() and not run.work.is_symlink()):
        return
    paths, draft = ProjectPaths.of_run(run), run.root / (TEMP_PREFIX + "work")
    try:
        remove_tree(draft)
        copy_snapshot(paths.tree(record.code.tree), draft)
        additions = paths.prepared_additions(prepared_key) if prepared_key else None
        if additions and additions.is_dir():
            copy_additions(str(additions), str(draft))
        _make_links(draft, _targets(record.job, env))
        write_record(run.workspace, WorkspaceRecord(record.code.tree, prepared_key, dict(record.job.links)))
        if os.path.lexists(str(run.work)):  # a worker put a file or a link there
            run.work.rename(f"{run.work}.displaced-{os.urandom(4).hex()}")
        draft.rename(run.work)
    except OSError as error:
        raise _no_workspace(run.work, error) from None
    finally:
        remove_tree(draft)  # left if it could not be completed; its files would be copied to the laptop


def copy_snapshot(tree: Path, target: Path) -> None:
    """Copy the files of a snapshot, and nothing that was added to its directory later, to a new directory.

    Raises:
        AgentError: `no_code`: the snapshot is missing or incomplete.
        OSError: A file cannot be written.
    """
    entries = read_manifest(tree)
    if entries is None or not tree.is_dir():
        raise AgentError("no_code", f"the code of this run, {tree}, is no longer on the box")
    target.mkdir(mode=0o700)
    made = {target}
    for name, entry in entries.items():
        place = target / name
        if place.parent not in made:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.add(place.parent)
        try:
            if entry.kind == "link":
                place.symlink_to(os.readlink(str(tree / name)))
            else:
                copy_file(str(tree / name), str(place), 0o700 if entry.kind == "exec" else 0o600)
        except FileNotFoundError:
            raise AgentError("no_code", f"{tree / name} was deleted on the box") from None


def keep_additions(tree: Path, work: Path) -> None:
    """Remove from a copy of a snapshot what is unchanged, so that only what a `prepare` added or changed is left."""
    for name in read_manifest(tree) or {}:
        copy = work / name
        try:
            if is_same(os.fsencode(tree / name), os.fsencode(copy), copy.lstat()):
                copy.unlink()
        except OSError:
            continue  # `prepare` removed it
    for base, _, _ in os.walk(str(work), topdown=False):
        try:
            os.rmdir(base)
        except OSError:
            pass  # not empty


def summarise(run: RunPaths) -> None:
    """Write outputs.json and outputs.jsonl: which files the run has at its end."""
    outputs = Outputs(run)
    try:
        if run.work.is_dir():
            write_record(run.outputs, outputs.summary())
        listed = outputs.listed()
        if listed is not None:
            write_atomic(run.output_list, b"".join(json_line(to_json(file)) for file in listed))
    except OSError:
        pass  # for example a full disk


def remove_temporaries(run: RunPaths) -> None:
    """Remove temporary files of orch that a killed process left behind."""
    for place in (run.root, run.checkpoints):
        for path in place.glob(TEMP_PREFIX + "*"):
            if path != run.reserve and path.is_file():
                remove(path)


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it, or nothing if it is not there."""
    if not os.path.lexists(str(path)):
        return
    for base, _, _ in os.walk(str(path)):
        try:
            os.chmod(base, 0o700)  # files in a read-only directory cannot be removed
        except OSError:
            pass
    import shutil  # imported only here, so that a supervisor starts faster

    shutil.rmtree(str(path), ignore_errors=True)


def _targets(job: JobRecord, env: Mapping[str, str]) -> Dict[str, str]:
    """Return the links of a job with the variables in their targets replaced."""
    if not job.expand_env:
        return dict(job.links)
    try:
        return {name: expand_value(target, env, f"links.{name}") for name, target in job.links.items()}
    except Unresolved as error:
        raise AgentError("bad_env", str(error)) from None


def _make_links(work: Path, links: Mapping[str, str]) -> None:
    for name, target in links.items():
        place, there = work / name, Path(target).expanduser()
        if os.path.lexists(str(place)):
            raise AgentError("bad_link", f"links: {name!r} is already a part of the code")
        if not there.exists():
            raise AgentError("bad_link", f"links: {name!r} leads to {there}, which is not on the box")
        for folder in place.parents:
            if folder == work:
                break
            if folder.is_symlink() and work.resolve() not in folder.resolve().parents:  # it would be made there
                raise AgentError("bad_link", f"links: {name!r} is below {folder.relative_to(work)}, which is a link")
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.symlink_to(there)


def _no_workspace(work: Path, error: OSError) -> AgentError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return AgentError("disk_full", f"copying the code to {work}: {error.strerror}")
    return AgentError("no_workspace", f"making {work}: {error}")
