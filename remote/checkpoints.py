"""The checkpoints of a run: written atomically with a checksum, verified before use, pruned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Sequence, Tuple

from remote.contract.files import read_bytes, remove, sha256_file, sha256_of, sync_directory, temp_beside, write_atomic
from remote.contract.paths import RunPaths
from remote.contract.records import read_record, write_record
from remote.contract.reported import BestCheckpoint

CHECKSUM_BYTES = 4096  # most bytes of a checksum file


class CheckpointStore:
    """Writes checkpoints of one run. Keeps the `keep` newest ones and the best one."""

    def __init__(self, run: RunPaths, keep: int) -> None:
        self._run, self._keep = run, keep
        self._verified: Dict[Path, Tuple[int, int]] = {}  # verified checkpoints: (mtime in ns, size)

    def save(self, epoch: int, write: Callable[[BinaryIO], Any], score: Optional[Sequence[float]] = None) -> Path:
        """Write a checkpoint, as `Run.save_checkpoint` describes."""
        target = self._run.checkpoint(epoch)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        temp = temp_beside(target)
        try:
            with open(os.open(str(temp), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                digest = sha256_of(file)
            # The checksum is written first, together with that of the file which will be replaced. So whichever of the
            # two files exists after a crash matches a checksum.
            digests = [digest, *([sha256_file(target)] if matches_checksum(target) else [])]
            write_atomic(self._run.checksum(target), "\n".join([*digests, ""]).encode(), durable=True)
            os.replace(str(temp), str(target))
        except BaseException:
            remove(temp)
            raise
        sync_directory(target.parent)
        best = self._best(target, score)
        for path in self._superfluous(best):
            remove(path)
            remove(self._run.checksum(path))
        return target

    def newest(self) -> Optional[Path]:
        """Return the newest checkpoint that matches its checksum, or None."""
        return next((path for path in self._run.checkpoints_newest_first() if matches_checksum(path)), None)

    def _best(self, newest: Path, score: Optional[Sequence[float]]) -> Optional[str]:
        """Update best.json. Return the name of the best checkpoint so far; None if there was never a score."""
        best = read_record(BestCheckpoint, self._run.best_checkpoint)
        if best and not os.path.isfile(str(self._run.checkpoints / best.checkpoint)):
            best = None
        if score is not None and (best is None or tuple(score) >= best.score):
            best = BestCheckpoint(newest.name, tuple(score))
            write_record(self._run.best_checkpoint, best, durable=True)
        return best.checkpoint if best else None

    def _superfluous(self, best: Optional[str]) -> List[Path]:
        """Return the checkpoints to remove. Only verified ones count as kept: damaged ones must not replace them."""
        kept, superfluous = 0, []
        for path in self._run.checkpoints_newest_first():
            if kept >= self._keep and path.name != best:
                superfluous.append(path)
            kept += kept < self._keep and self._is_verified(path)
        return superfluous

    def _is_verified(self, path: Path) -> bool:
        """Return the result of `matches_checksum`, but do not read an unchanged file again."""
        found = path.stat()
        as_found = (found.st_mtime_ns, found.st_size)
        if self._verified.get(path) != as_found and matches_checksum(path):
            self._verified[path] = as_found
        return self._verified.get(path) == as_found


def matches_checksum(checkpoint: Path) -> bool:
    """Return whether the checkpoint matches one of its checksums, so that it is not damaged."""
    try:
        return sha256_file(checkpoint).encode() in _checksums(checkpoint)
    except OSError:
        return False


def _checksums(checkpoint: Path) -> List[bytes]:
    return (read_bytes(RunPaths.checksum(checkpoint), CHECKSUM_BYTES) or b"").split()
