"""Named arrays in a directory, memory-mapped, with checksums; and a cache of such directories.

    DIR/NAME.npy ...      the arrays
    DIR/manifest.json     what they are (`about`), and the size and SHA-256 of each file; written last

A directory is complete when it appears, because it is renamed. It is stale if its manifest has another `about`, and
damaged if a file does not match the manifest. A stale or damaged directory is never used, but built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
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
LOCK_WAIT = 1.0  # seconds between two heartbeats while another process builds
UNUSED = 30 * 86400.0  # seconds without use after which an entry is removed
OURS = re.compile(r"[a-z]+-[0-9a-f]{16}|" + re.escape(TEMP_PREFIX) + "[0-9a-f]{16}")  # entries and their leftovers

Arrays = dict[str, NDArray[Any]]

About = dict[str, Any]
"""What arrays were made from, as any JSON value. Two entries are the same if their values are equal."""


class Writer:
    """Writes one array row by row. A full disk is an OSError; through a memory map it would be a SIGBUS."""

    def __init__(self, path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
        self.dtype, self.row, self.left = np.dtype(dtype), shape[1:], shape[0]
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, header)

    def append(self, rows: NDArray[Any]) -> None:
        """Write more rows. Raise ValueError if their shape does not fit."""
        if rows.shape[1:] != self.row or len(rows) > self.left:
            raise ValueError(f"{list(rows.shape)} does not fit {self.left} more rows of {list(self.row)}")
        self.left -= len(rows)
        self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())

    def close(self) -> None:
        """Write everything to the disk."""
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
def new_directory(path: Path, about: About) -> Iterator[Path]:
    """Yield a directory to write arrays into. After the block, write its manifest and rename it to `path`.

    If the block raises, nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = temp_beside(path)
    temp.mkdir(mode=0o700)
    try:
        yield temp
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in sorted(temp.iterdir())
        }
        write_json(temp / MANIFEST, {"schema": 1, "about": about, "files": files}, durable=True)
        shutil.rmtree(path, ignore_errors=True)  # stale or damaged; processes that mapped it keep it
        os.replace(temp, path)
        sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise


def save(path: Path, about: About, arrays: Arrays) -> None:
    """Write arrays to the directory `path`."""
    with new_directory(path, about) as temp:
        for name, array in arrays.items():
            with Writer(temp / f"{name}.npy", array.dtype, array.shape) as writer:
                writer.append(array)


def what_is_wrong(path: Path, about: About | None = None, checksums: bool = True) -> str:
    """Return why the arrays at `path` must not be used; empty if nothing is wrong.

    Args:
        path: the directory.
        about: what they should have been made from.
        checksums: also read all files and compare their checksums.
    """
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
    """Return the arrays, mapped, without checking them. Writing to one changes memory, never the file."""
    return {file.stem: np.load(file, mmap_mode="c") for file in sorted(path.glob("*.npy"))}


def cached(path: Path, about: About, build: Callable[[Path], None], run: Run, name: str) -> tuple[Arrays, bool]:
    """Return the arrays at `path`, building them first if needed.

    If several processes need them, one builds and the others wait. The one that builds also removes the entries that
    have not been used for the time UNUSED.

    Args:
        path: the directory of the entry.
        about: what the arrays are made from.
        build: writes them into a directory.
        run: gets heartbeats while waiting, and may ask to stop.
        name: what the arrays are, for messages.

    Returns:
        The arrays, and whether they were built now.

    Raises:
        TrainingStopped: the run was asked to stop.
        BadInput: the cache cannot be written.
    """
    with suppress(OSError):  # missing, or not writable for us
        os.utime(path / MANIFEST)
    if not what_is_wrong(path, about):
        return load(path), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock"), run, name):
            wrong = what_is_wrong(path, about)  # another process may have built it in the meantime
            if wrong:
                if path.exists():
                    print(f"WARNING: the cache {path} is not used and is built again: {wrong}", flush=True)
                _remove_unused(path.parent)
                with new_directory(path, about) as temp:
                    build(temp)
            return load(path), bool(wrong)
    except OSError as error:
        raise BadInput(
            f"the cache of {name} cannot be written to {path.parent} ({error});"
            " free disk space there, or choose another directory with ORCH_CACHE_DIR"
        ) from error


def _remove_unused(folder: Path) -> None:
    for path in folder.iterdir():
        if not OURS.fullmatch(path.name):
            continue
        with suppress(OSError):  # another process has removed it, or it has no manifest
            last_used = (path if path.name.startswith(TEMP_PREFIX) else path / MANIFEST).stat().st_mtime
            if time.time() - last_used > UNUSED:
                shutil.rmtree(path)  # processes that mapped it keep it
                print(f"removed {path}: not used for {UNUSED / 86400:.0f} days", flush=True)


@contextmanager
def _locked(path: Path, run: Run, name: str) -> Iterator[None]:
    said = False
    while (descriptor := try_lock(path, LOCK_WAIT if said else 0)) is None:
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
    """Return the cache for the dataset `root`: ORCH_CACHE_DIR, else in the dataset, else under ~/.cache.

    Several datasets may share it, because the names of its entries are keys of their content.
    """
    named = os.environ.get(ENV_CACHE_DIR)
    if named:
        return Path(named)
    return root / "cache" if os.access(root, os.W_OK) else Path.home() / ".cache" / "orch"


def key_of(about: About) -> str:
    """Return a short hash, for the name of an entry."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def code_of(*modules: ModuleType) -> str:
    """Return a hash of the modules' sources, because arrays made by other code are stale."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def digest_of(*arrays: NDArray[Any]) -> str:
    """Return the SHA-256 of the arrays' bytes, types and shapes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
