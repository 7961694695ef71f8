"""Making the dataset, in either layout, to the byte, by several processes; and proving that it is what it says."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from remote.contract.files import read_json, write_atomic, write_json
from remote.worker import Run
from workers.common import array_cache
from workers.common.errors import BadInput, WorkerError
from workers.common.parallel import spread
from workers.dataset import packing
from workers.dataset.packing import PackedVideos
from workers.dataset.scenes import DEFAULT, Parameters
from workers.dataset.videos import (
    FOLDER,
    MARKER,
    PATTERN,
    VERSION,
    PtFiles,
    digest_of,
    identity_of,
    load_sample,
    make_sample,
    open_dataset,
    sample_path,
    split_ranges,
)

LAYOUTS = ("pt", "packed", "both")

Facts = list[tuple[int, str]]  # label and digest of each sample


def generate(
    root: Path, samples: int, seed: int, run: Run, parameters: Parameters = DEFAULT, layout: str = "pt"
) -> dict[str, Any]:
    """Make or finish the dataset under `root`; returns what its dataset.json says. Does nothing where it is whole."""
    wanted = {"version": VERSION, "count": samples, "seed": seed, "parameters": parameters.record()}
    record = read_json(root / MARKER)
    if record is not None:
        other = {key: record.get(key) for key, value in wanted.items() if record.get(key) != value}
        if other:
            raise BadInput(f"{root} already holds another dataset ({_words(other)}); choose another --out or delete it")
        if _is_whole(root, record, layout):
            print(f"{root} is whole: {samples} samples", flush=True)
            return record
    root.mkdir(parents=True, exist_ok=True)
    if layout == "packed":
        return _generate_packed(root, wanted, seed, parameters, run)
    (root / FOLDER).mkdir(exist_ok=True)
    work = partial(_ensure_samples, root, seed, parameters)
    facts = [fact for part in spread(work, range(samples), run, "making the dataset") for fact in part]
    files, size = _pt_bytes(root)
    if files != samples:
        raise BadInput(f"{root / FOLDER} holds {files} samples, not {samples}; delete it or choose another --out")
    record = _mark_whole(root, _record(wanted, facts, size))
    if layout == "both":
        pack(root, run)
    return record


def _is_whole(root: Path, record: Mapping[str, Any], layout: str) -> bool:
    whole_pt = _pt_bytes(root) == (record.get("count"), record.get("bytes"))
    folder = root / packing.FOLDER
    whole_packed = layout != "pt" and not array_cache.what_is_wrong(folder, identity_of(record), checksums=False)
    return {"pt": whole_pt, "packed": whole_packed, "both": whole_pt and whole_packed}[layout]


def _ensure_samples(root: Path, seed: int, parameters: Parameters, indices: Sequence[int]) -> Facts:
    """Write these samples unless they are there, whole and the right ones."""
    facts = []
    for index in indices:
        sample, path = make_sample(seed, index, parameters), sample_path(root, index)
        digest = digest_of(sample)
        if not _holds(path, digest):
            buffer = io.BytesIO()
            torch.save(sample, buffer)
            write_atomic(path, buffer.getvalue())
        facts.append((int(sample["label"]), digest))
    return facts


def _holds(path: Path, digest: str) -> bool:
    try:
        return path.exists() and digest_of(load_sample(path)) == digest
    except (BadInput, AttributeError):  # torn, or something else
        return False


def _generate_packed(
    root: Path, wanted: Mapping[str, Any], seed: int, parameters: Parameters, run: Run
) -> dict[str, Any]:
    made = spread(partial(_make_samples, seed, parameters), range(wanted["count"]), run, "making the dataset")
    facts: Facts = []
    identity: dict[str, Any] = dict(wanted)
    with array_cache.new_directory(root / packing.FOLDER, identity) as temp:
        with packing.Packer(temp, wanted["count"]) as packer:
            for part in made:
                for sample in part:
                    packer.add(sample)
                    facts.append((sample["label"], sample["digest"]))
        record = _record(wanted, facts, None)
        identity.update(identity_of(record))
    return _mark_whole(root, record)


def _make_samples(seed: int, parameters: Parameters, indices: Sequence[int]) -> list[dict[str, Any]]:
    """As arrays: tensors would travel between processes through shared memory, a descriptor each."""
    samples = [make_sample(seed, index, parameters) for index in indices]
    return [{**_as_arrays(sample), "digest": digest_of(sample)} for sample in samples]


def _as_arrays(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in sample.items()}


def _record(wanted: Mapping[str, Any], facts: Facts, size: int | None) -> dict[str, Any]:
    labels, ranges = [label for label, _ in facts], split_ranges(len(facts))
    return {
        **wanted,
        "sha256": _together(facts),
        "bytes": size,
        "pattern": f"{FOLDER}/{PATTERN}",
        "splits": {name: len(indices) for name, indices in ranges.items()},
        "positive_share": {name: _mean([labels[i] for i in indices]) for name, indices in ranges.items()},
    }


def _together(facts: Facts) -> str:
    return hashlib.sha256("".join(digest for _, digest in facts).encode()).hexdigest()


def _mark_whole(root: Path, record: dict[str, Any]) -> dict[str, Any]:
    write_json(root / MARKER, record, durable=True)
    print(f"{root}: {record['count']} samples, {_words(record['splits'])}", flush=True)
    return record


def _pt_bytes(root: Path) -> tuple[int, int]:
    """How many samples there are in the `.pt` layout, and their bytes together."""
    sizes = [path.stat().st_size for path in PtFiles(root).paths]
    return len(sizes), sum(sizes)


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def _words(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in record.items())


# --- packing and proving -----------------------------------------------------------------------------


def pack(root: Path, run: Run) -> Path:
    """Make the packed layout from the `.pt` files, which must be what dataset.json says; nothing where it is there."""
    folder = root / packing.FOLDER
    record = read_json(root / MARKER)
    if record is not None and not array_cache.what_is_wrong(folder, identity_of(record)):
        print(f"{folder} is whole", flush=True)
        return folder
    record, source = open_dataset(root, packed=False)
    facts: Facts = []
    work = partial(_read_samples, source)
    with array_cache.new_directory(folder, identity_of(record)) as temp:
        with packing.Packer(temp, len(source)) as packer:
            for part in spread(work, range(len(source)), run, "packing the dataset", processes=1):
                for sample in part:
                    packer.add(sample)
                    facts.append((sample["label"], sample["digest"]))
        if _together(facts) != record.get("sha256"):
            raise BadInput(f"{root / FOLDER} does not hold what {MARKER} says; see: python -m workers.dataset verify")
    print(f"{folder}: {len(source)} samples", flush=True)
    return folder


def _read_samples(source: PtFiles | PackedVideos, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
    for index in indices:
        sample = source[index]
        yield {**_as_arrays(sample), "digest": digest_of(sample)}


def verify(root: Path, run: Run) -> list[str]:
    """Read every byte of every layout that is there; WorkerError names what is wrong, else what was found sound."""
    record, sound = read_json(root / MARKER), []
    if record is None:
        raise BadInput(f"{root} is not a finished dataset: there is no {MARKER}")
    folder = root / packing.FOLDER
    if folder.is_dir():
        wrong = array_cache.what_is_wrong(folder, identity_of(record))
        if wrong:
            raise WorkerError(f"{folder} is not sound: {wrong}; delete it and pack again")
        sound.append(_verify_samples(root, PackedVideos(root), record, run))
    if not folder.is_dir() or len(PtFiles(root)):
        sound.append(_verify_samples(root, open_dataset(root, packed=False)[1], record, run))
    return sound


def _verify_samples(root: Path, source: PtFiles | PackedVideos, record: Mapping[str, Any], run: Run) -> str:
    name = packing.FOLDER if isinstance(source, PackedVideos) else FOLDER
    parts = list(spread(partial(_facts, source), range(len(source)), run, f"verifying {name}/"))
    facts = [fact for part in parts for fact in part]
    if _together(facts) == record.get("sha256"):
        return f"{name}/: {len(facts)} samples as they were made"
    raise WorkerError(f"{root / name} is not what {MARKER} says: {_first_wrong(facts, record)}; make it again")


def _facts(source: PtFiles | PackedVideos, indices: Sequence[int]) -> Facts:
    return [(int(sample["label"]), digest_of(sample)) for sample in map(source.__getitem__, indices)]


def _first_wrong(facts: Facts, record: Mapping[str, Any]) -> str:
    if record.get("version") != VERSION:
        return f"it was made by version {record.get('version')} of the scenes, this is {VERSION}"
    parameters = Parameters.of(record["parameters"])
    for index, (_, digest) in enumerate(facts):
        if digest != digest_of(make_sample(record["seed"], index, parameters)):
            return f"sample {index} is the first that differs"
    return f"the samples are right, the checksum in {MARKER} is not"
