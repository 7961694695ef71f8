"""Named arrays in a directory, memory-mapped, with checksums; a cache of them that the first who needs it builds.

    DIR/NAME.npy ...      the arrays
    DIR/manifest.json     what they are (`about`), and the size and SHA-256 of each file; written last

A directory appears whole, by rename. One whose manifest says other things than are asked for is stale, one whose files
do not match it is torn; either is built anew and never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from remote.contract.files import TEMP_PREFIX, read_json, sha256_file, sync_directory, temp_beside, write_json
from remote.contract.locks import try_lock
from remote.worker import Run
from workers.common.errors import BadInput, TrainingStopped

ENV_CACHE_DIR = "ORCH_CACHE_DIR"
MANIFEST = "manifest.json"
LOCK_PATIENCE = 1.0  # seconds between two heartbeats while another process builds
UNUSED = 30 * 86400.0  # seconds without use, after which an entry of a cache makes room
OURS = re.compile(r"[a-z]+-[0-9a-f]{16}|" + re.escape(TEMP_PREFIX) + "[0-9a-f]{16}")  # or what a crash left

Arrays = dict[str, NDArray[Any]]


class Writer:
    """Writes one array row by row. A full disk is an OSError, where writing through a memory map would be a SIGBUS."""

    def __init__(self, path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
        self.dtype, self.row, self.left = np.dtype(dtype), shape[1:], shape[0]
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, header)

    def append(self, rows: NDArray[Any]) -> None:
        if rows.shape[1:] != self.row or len(rows) > self.left:
            raise ValueError(f"{list(rows.shape)} does not fit {self.left} more rows of {list(self.row)}")
        self.left -= len(rows)
        self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        if kind is None and self.left:
            raise ValueError(f"{self.left} rows are missing")


@contextmanager
def new_directory(path: Path, about: Mapping[str, Any]) -> Iterator[Path]:
    """A directory to write arrays into; it gets its manifest and becomes `path` in one step, or leaves no trace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = temp_beside(path)
    temp.mkdir(mode=0o700)
    try:
        yield temp
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in sorted(temp.iterdir())
        }
        write_json(temp / MANIFEST, {"schema": 1, "about": about, "files": files}, durable=True)
        shutil.rmtree(path, ignore_errors=True)  # a stale or torn one; who has mapped it keeps it
        os.replace(temp, path)
        sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise


def save(path: Path, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    with new_directory(path, about) as temp:
        for name, array in arrays.items():
            with Writer(temp / f"{name}.npy", array.dtype, array.shape) as writer:
                writer.append(array)


def what_is_wrong(path: Path, about: Mapping[str, Any] | None = None, checksums: bool = True) -> str:
    """Why the arrays at `path` must not be used, in words; empty where nothing is wrong."""
    manifest = read_json(path / MANIFEST)
    if manifest is None or not isinstance(manifest.get("files"), dict):
        return "it has no manifest"
    if about is not None and manifest.get("about") != json.loads(json.dumps(about)):
        return "it was made from something else"
    for name, record in manifest["files"].items():
        try:
            file = path / name
            if file.stat().st_size != record["bytes"]:
                return f"{name} has another size than when it was written"
            if checksums and sha256_file(file) != record["sha256"]:
                return f"{name} has another checksum than when it was written"
        except (OSError, KeyError, TypeError) as error:
            return f"{name} cannot be read ({error})"
    return ""


def load(path: Path) -> Arrays:
    """The arrays, mapped: writing to one changes memory, never the file. Whether they are sound is not looked at."""
    return {file.stem: np.load(file, mmap_mode="c") for file in sorted(path.glob("*.npy"))}


def cached(
    path: Path, about: Mapping[str, Any], build: Callable[[Path], None], run: Run, name: str
) -> tuple[Arrays, bool]:
    """The arrays of `about` under `path`, built into a directory by `build` where they are not, and whether they were.

    Of several processes that need them, one builds and the others wait. Raises TrainingStopped when the run is asked to
    stop, BadInput where nothing can be written. Whoever builds removes what nobody has used for UNUSED.
    """
    with suppress(OSError):  # not there yet, or not ours to write to
        os.utime(path / MANIFEST)
    if not what_is_wrong(path, about):
        return load(path), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock"), run, name):
            wrong = what_is_wrong(path, about)  # perhaps not any more: another process may have built it meanwhile
            if wrong:
                if path.exists():
                    print(f"WARNING: the cache {path} is not used and is built anew: {wrong}", flush=True)
                _make_room(path.parent)
                with new_directory(path, about) as temp:
                    build(temp)
            return load(path), bool(wrong)
    except OSError as error:
        raise BadInput(
            f"the cache of {name} cannot be written to {path.parent} ({error});"
            " make room there, or name another directory: ORCH_CACHE_DIR"
        ) from error


def _make_room(folder: Path) -> None:
    for path in folder.iterdir():
        if not OURS.fullmatch(path.name):
            continue
        with suppress(OSError):  # another process finished or removed it meanwhile; without a manifest it is not ours
            last_used = (path if path.name.startswith(TEMP_PREFIX) else path / MANIFEST).stat().st_mtime
            if time.time() - last_used > UNUSED:
                shutil.rmtree(path)  # who has mapped it keeps it
                print(f"{path} was not used for {UNUSED / 86400:.0f} days and is removed", flush=True)


@contextmanager
def _locked(path: Path, run: Run, name: str) -> Iterator[None]:
    said = False
    while (descriptor := try_lock(path, LOCK_PATIENCE if said else 0)) is None:
        if not said:
            print(f"another process is making the {name}; waiting for it", flush=True)
            said = True
        if run.stop_requested:
            raise TrainingStopped(f"stopped while waiting for the {name}")
        run.beat("prepare")
    try:
        yield
    finally:
        os.close(descriptor)


def cache_folder(root: Path) -> Path:
    """Where what is derived from the dataset `root` is kept: ORCH_CACHE_DIR, else beside it, else under ~/.cache.

    A place that several datasets share is safe: names carry the key of what they hold.
    """
    named = os.environ.get(ENV_CACHE_DIR)
    if named:
        return Path(named)
    return root / "cache" if os.access(root, os.W_OK) else Path.home() / ".cache" / "orch"


def key_of(about: Mapping[str, Any]) -> str:
    """Enough of a hash to name it."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def code_of(*modules: ModuleType) -> str:
    """A hash of the modules' sources: what they made by other code is stale."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def digest_of(*arrays: NDArray[Any]) -> str:
    """SHA-256 of the arrays' bytes, types and shapes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
