"""Make a dataset in either layout, byte-exact, with several processes; and verify one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from remote.contract.schema import to_json
from remote.worker import Run
from workers.common import array_cache
from workers.common.array_cache import Arrays
from workers.common.errors import BadInput, WorkerError
from workers.common.parallel import spread
from workers.dataset import packing
from workers.dataset.dataset_record import MARKER, VERSION, DatasetIdentity, DatasetRecord
from workers.dataset.packing import PackedVideos
from workers.dataset.scenes import DEFAULT, Parameters
from workers.dataset.video_sample import load_sample, make_sample
from workers.dataset.videos import FOLDER, PATTERN, PtFiles, open_dataset, sample_path

LAYOUTS = ("pt", "packed", "both")

Facts = list[tuple[int, str]]  # label and digest of each sample


def generate(
    root: Path, samples: int, seed: int, run: Run, parameters: Parameters = DEFAULT, layout: str = "pt"
) -> DatasetRecord:
    """Make or finish the dataset under `root`. A complete one is left alone.

    Args:
        root: directory of the dataset.
        samples: the number of samples.
        seed: the seed of the dataset.
        run: gets heartbeats, and may ask to stop.
        parameters: the difficulty of the dataset.
        layout: one of LAYOUTS.

    Returns:
        The content of dataset.json.

    Raises:
        BadInput: the directory holds another dataset.
        TrainingStopped: the run was asked to stop; the same call finishes the dataset.
    """
    wanted = DatasetIdentity(VERSION, samples, seed, parameters)
    record = DatasetRecord.read(root)
    if record is not None:
        differences = record.identity.differences(wanted)
        if differences:
            raise BadInput(f"{root} already holds another dataset ({differences}); choose another --out or delete it")
        if _is_complete(root, record, layout):
            print(f"{root} is complete: {samples} samples", flush=True)
            return record
    root.mkdir(parents=True, exist_ok=True)
    if layout == "packed":
        return _generate_packed(root, wanted, run)
    (root / FOLDER).mkdir(exist_ok=True)
    work = partial(_ensure_samples, root, seed, parameters)
    facts = [fact for part in spread(work, range(samples), run, "making the dataset") for fact in part]
    files, size = PtFiles(root).total()
    if files != samples:
        raise BadInput(f"{root / FOLDER} holds {files} samples, not {samples}; delete it or choose another --out")
    record = _write_record(root, wanted, facts, size)
    if layout == "both":
        pack(root, run)
    return record


def _is_complete(root: Path, record: DatasetRecord, layout: str) -> bool:
    has_pt = PtFiles(root).total() == (record.identity.count, record.bytes)
    folder, about = root / packing.FOLDER, to_json(record.identity)
    has_packed = layout != "pt" and not array_cache.what_is_wrong(folder, about, checksums=False)
    return {"pt": has_pt, "packed": has_packed, "both": has_pt and has_packed}[layout]


def _ensure_samples(root: Path, seed: int, parameters: Parameters, indices: Sequence[int]) -> Facts:
    """Write these samples, except those that are already there and correct."""
    facts = []
    for index in indices:
        sample, path = make_sample(seed, index, parameters), sample_path(root, index)
        digest = sample.digest()
        if not _holds(path, digest):
            sample.save(path)
        facts.append((sample.label, digest))
    return facts


def _holds(path: Path, digest: str) -> bool:
    try:
        return path.exists() and load_sample(path).digest() == digest
    except (BadInput, AttributeError):  # damaged, or something else
        return False


def _generate_packed(root: Path, wanted: DatasetIdentity, run: Run) -> DatasetRecord:
    work = partial(_make_arrays, wanted.seed, wanted.parameters)
    facts: Facts = []
    about = to_json(wanted)
    with array_cache.new_directory(root / packing.FOLDER, about) as temp:
        with packing.Packer(temp, wanted.count) as packer:
            for part in spread(work, range(wanted.count), run, "making the dataset"):
                for label, digest, arrays in part:
                    packer.add(label, arrays)
                    facts.append((label, digest))
        about["sha256"] = _combined(facts)  # into the manifest, which is written at the end of the block
    return _write_record(root, wanted, facts, None)


def _make_arrays(seed: int, parameters: Parameters, indices: Sequence[int]) -> list[tuple[int, str, Arrays]]:
    samples = [make_sample(seed, index, parameters) for index in indices]
    return [(sample.label, sample.digest(), sample.arrays()) for sample in samples]


def _combined(facts: Facts) -> str:
    return sha256("".join(digest for _, digest in facts).encode()).hexdigest()


def _write_record(root: Path, wanted: DatasetIdentity, facts: Facts, size: int | None) -> DatasetRecord:
    identity = replace(wanted, sha256=_combined(facts))
    record = DatasetRecord.of(identity, [label for label, _ in facts], size, f"{FOLDER}/{PATTERN}")
    record.write(root)
    splits = ", ".join(f"{name} {count}" for name, count in record.splits.items())
    print(f"{root}: {identity.count} samples, {splits}", flush=True)
    return record


# --- packing and verifying ---------------------------------------------------------------------------


def pack(root: Path, run: Run) -> Path:
    """Make the packed layout from the `.pt` files. Do nothing if it exists.

    Raises:
        BadInput: the files do not match dataset.json.
    """
    folder = root / packing.FOLDER
    record = DatasetRecord.read(root)
    if record is not None and not array_cache.what_is_wrong(folder, to_json(record.identity)):
        print(f"{folder} is complete", flush=True)
        return folder
    record, source = open_dataset(root, packed=False)
    facts: Facts = []
    work = partial(_read_arrays, source)
    with array_cache.new_directory(folder, to_json(record.identity)) as temp:
        with packing.Packer(temp, len(source)) as packer:
            for part in spread(work, range(len(source)), run, "packing the dataset", processes=1):
                for label, digest, arrays in part:
                    packer.add(label, arrays)
                    facts.append((label, digest))
        if _combined(facts) != record.identity.sha256:
            raise BadInput(f"{root / FOLDER} does not match {MARKER}; see: python -m workers.dataset verify")
    print(f"{folder}: {len(source)} samples", flush=True)
    return folder


def _read_arrays(source: PtFiles | PackedVideos, indices: Sequence[int]) -> Iterator[tuple[int, str, Arrays]]:
    for index in indices:
        sample = source[index]
        yield sample.label, sample.digest(), sample.arrays()


def verify(root: Path, run: Run) -> list[str]:
    """Read every byte of every layout that exists.

    Returns:
        One line for each layout, which says that it is correct.

    Raises:
        WorkerError: names what is wrong.
        BadInput: the dataset is unfinished.
    """
    record, lines = DatasetRecord.read(root), []
    if record is None:
        raise BadInput(f"{root} is not a finished dataset: there is no {MARKER}")
    folder = root / packing.FOLDER
    if folder.is_dir():
        wrong = array_cache.what_is_wrong(folder, to_json(record.identity))
        if wrong:
            raise WorkerError(f"{folder} is damaged: {wrong}; delete it and pack again")
        lines.append(_verify_samples(root, PackedVideos(root), record, run))
    if not folder.is_dir() or len(PtFiles(root)):
        lines.append(_verify_samples(root, open_dataset(root, packed=False)[1], record, run))
    return lines


def _verify_samples(root: Path, source: PtFiles | PackedVideos, record: DatasetRecord, run: Run) -> str:
    name = packing.FOLDER if isinstance(source, PackedVideos) else FOLDER
    parts = list(spread(partial(_facts, source), range(len(source)), run, f"verifying {name}/"))
    facts = [fact for part in parts for fact in part]
    if _combined(facts) == record.identity.sha256:
        return f"{name}/: all {len(facts)} samples are correct"
    raise WorkerError(f"{root / name} does not match {MARKER}: {_first_wrong(facts, record.identity)}; make it again")


def _facts(source: PtFiles | PackedVideos, indices: Sequence[int]) -> Facts:
    return [(sample.label, sample.digest()) for sample in map(source.__getitem__, indices)]


def _first_wrong(facts: Facts, made: DatasetIdentity) -> str:
    if made.version != VERSION:
        return f"it was made by version {made.version} of the scenes, this is {VERSION}"
    for index, (_, digest) in enumerate(facts):
        if digest != make_sample(made.seed, index, made.parameters).digest():
            return f"sample {index} is the first that differs"
    return f"the samples are correct, but the checksum in {MARKER} is not"
