"""Fuzz every parser of foreign bytes: python -m tests.fuzz [--seconds 60] [--seed 1] [--only TARGET] [FILE ...]

Each side gets half of the time. atheris (libFuzzer) searches for inputs that reach new code, starting from recorded
samples; if it is not installed, the seeds are mutated at random. An input that makes a parser raise anything but
its own errors, hang or use too much memory is printed and kept in build/fuzz/; pass it as FILE to repeat it. The first
byte of an input selects the target.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from tests.support import ROOT

FOUND = ROOT / "build" / "fuzz"
SIDES = ("box", "laptop")
INPUT_S = 20  # timeout of one input; most take less than a millisecond
MEMORY_MIB = 2048
MAX_INPUT = 1 << 16  # bytes of an input
PRINTED = 4000  # bytes of an input in a report
CHANGES = (
    b"",
    b"\0",
    b"\xff",
    b"\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"-",
    b"9" * 40,
    b"e999",
    b"null",
    b"\xed\xa0\x80",
)


def main() -> int:
    options = _options()
    if options.child:
        return _fuzz(options.child, options.seconds, options.seed, options.only, options.files)
    print(f"fuzzing for {options.seconds:g} s, seed {options.seed}", flush=True)
    with TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # removed with the files of the targets, however they end
        return _fuzz_sides(options, folder)


def _fuzz_sides(options: argparse.Namespace, folder: str) -> int:
    code = 0
    for side in SIDES:
        if options.only and options.only not in _names(_side(side)):
            continue
        share = options.seconds if options.only else options.seconds / len(SIDES)
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--child",
            side,
            "--seconds",
            str(share),
            "--seed",
            str(options.seed),
        ]
        command += ["--only", options.only, *options.files]
        ended = subprocess.run(command, cwd=ROOT, env=_environment(folder), check=False).returncode
        code = code or ended
    print("nothing found" if code == 0 else f"found something: see above and {FOUND}", flush=True)
    return 1 if code else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="one target")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", help="inputs to try, and nothing else")
    return parser.parse_args()


def _environment(folder: str) -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": "0", "TMPDIR": folder}


def _side(name: str) -> ModuleType:
    return importlib.import_module(f"tests.fuzz.{name}")


def _names(side: ModuleType) -> list[str]:
    return [target.__name__ for target in side.TARGETS]


# --- one side ------------------------------------------------------------------------------------------


def _fuzz(name: str, seconds: float, seed: int, only: str, files: list[str]) -> int:
    """Return the exit code: 0 if nothing was found."""
    FOUND.mkdir(parents=True, exist_ok=True)
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is None or files:
        side = _side(name)
        inputs = (Path(file).read_bytes() for file in files) if files else _changed(_seeds(side, only), seconds, seed)
        return _try_all(_attempt(name, side, only), inputs)
    with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["orchestrator", "remote"]):
        side = _side(name)
    with TemporaryDirectory() as corpus:
        for number, data in enumerate(_seeds(side, only)):
            Path(corpus, str(number)).write_bytes(data)
        flags = [f"-max_total_time={max(1, int(seconds))}", f"-seed={seed}", f"-timeout={INPUT_S}"]
        flags += [
            f"-rss_limit_mb={MEMORY_MIB}",
            f"-max_len={MAX_INPUT}",
            f"-artifact_prefix={FOUND}/{name}-",
            "-verbosity=0",
            "-print_final_stats=1",
        ]
        atheris.Setup(["fuzz", *flags, corpus], _attempt(name, side, only))
        atheris.Fuzz()  # ends the process
    return 0


def _attempt(name: str, side: ModuleType, only: str) -> Callable[[bytes], None]:
    """Try one input; raise what its target must not raise."""
    names = _names(side)

    def attempt(data: bytes) -> None:
        if not data:
            return
        number = names.index(only) if only else data[0] % len(names)
        try:
            side.TARGETS[number](data[1:])
        except side.PROPER:
            pass
        except BaseException:
            kept = FOUND / f"{name}-{names[number]}-{sha256(data).hexdigest()[:8]}"
            kept.write_bytes(data)
            shown = repr(data[1:PRINTED]) + ("..." if len(data) > PRINTED else "")
            print(f"\n{name}: {names[number]} on {shown}\nkept as {kept}", file=sys.stderr, flush=True)
            raise

    return attempt


def _seeds(side: ModuleType, only: str) -> Iterator[bytes]:
    """Return the seeds: recorded samples, complete and by line, and one input per target."""
    for number, name in enumerate(_names(side)):
        if only and name != only:
            continue
        head = bytes([number])
        yield head + b"{}"
        yield head + bytes(range(0, 256, 5))
        for path in sorted(ROOT.glob(side.SAMPLES.get(name, "no samples"))):
            data = path.read_bytes()[: MAX_INPUT - 1] if path.is_file() else b""
            yield from (head + piece for piece in dict.fromkeys([data, *data.splitlines()[:20]]))


# --- without atheris -----------------------------------------------------------------------------------


def _changed(seeds: Iterator[bytes], seconds: float, seed: int) -> Iterator[bytes]:
    chance, known, until = random.Random(seed), list(seeds), time.monotonic() + seconds
    yield from known
    while time.monotonic() < until:
        data = chance.choice(known)
        for _ in range(chance.randint(1, 6)):
            at, size = chance.randint(1, len(data)), chance.choice((0, 0, 1, 1, 2, 8, 64))
            other = chance.choice(known)
            new = chance.choice((*CHANGES, chance.randbytes(chance.randint(1, 9)), other[1 : chance.randint(1, 200)]))
            data = data[:at] + new + data[at + size :]
        yield data


def _try_all(attempt: Callable[[bytes], None], inputs: Iterator[bytes]) -> int:
    count = 0
    for data in inputs:
        count += 1
        try:
            attempt(data)
        except BaseException:  # noqa: BLE001 - whatever it is, it was found
            traceback.print_exc()
            return 1
    print(f"{count} inputs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
