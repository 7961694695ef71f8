"""The command line `python -m workers.dataset generate | pack | inspect | verify`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from remote.contract.protocol import ENV_DATA_DIR
from remote.contract.schema import to_json
from remote.worker import Run
from workers.common.errors import BadInput, WorkerError
from workers.dataset import scenes
from workers.dataset.generate import LAYOUTS, generate, pack, verify
from workers.dataset.packing import PackedVideos
from workers.dataset.scenes import PRESETS, Parameters
from workers.dataset.videos import open_dataset

COMMANDS = ("generate", "pack", "inspect", "verify")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Return the exit code: 0 done, 1 the dataset is damaged, 2 bad input, 143 stopped."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    # Options without a command mean `generate`: earlier versions had no commands.
    options = parser.parse_args(words if words and words[0] in (*COMMANDS, "-h", "--help") else ["generate", *words])
    if options.out is None:
        parser.error(f"no directory given: use --out DIR or set {ENV_DATA_DIR}")
    try:
        run = Run.current()
        run.catch_sigterm()
        options.work(options, run)
    except WorkerError as error:
        print(f"workers.dataset: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        print(f"workers.dataset: {options.command} of {options.out}: {error}", file=sys.stderr, flush=True)
        return BadInput.exit_code
    return 0


def _generate(options: argparse.Namespace, run: Run) -> None:
    values = {item.name: getattr(options, item.name) for item in fields(Parameters)}
    given: Any = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if value is not None
    }
    parameters = replace(PRESETS[options.preset], **given)
    generate(options.out, options.samples, options.seed, run, parameters, options.layout)


def _inspect(options: argparse.Namespace, run: Run) -> None:
    record, source = open_dataset(options.out)
    content = to_json(record)
    for name in ("version", "seed", "count", "splits", "positive_share", "parameters", "sha256"):
        print(f"{name:15} {content[name]}")
    print(f"{'read from':15} {'packed/' if isinstance(source, PackedVideos) else 'output/'}")
    if not 0 <= options.sample < len(source):
        raise BadInput(f"sample {options.sample} does not exist; there are {len(source)}, numbered from 0")
    sample = source[options.sample]
    shape = " x ".join(map(str, sample.video.shape))
    print(f"{f'sample {options.sample}':15} class {sample.label}, video {shape} {sample.video.dtype}")
    for boxes, visible, persistent in zip(sample.boxes, sample.visible, sample.persistent, strict=True):
        frames = torch.nonzero(visible).flatten().tolist()
        box = ", ".join(f"{value:.1f}" for value in boxes[frames[0]].tolist())
        kind = "persistent" if persistent else "transient"
        print(f"  {kind:10}    frames {frames[0]} to {frames[-1]}, first at ({box})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workers.dataset", description="Make, pack, inspect or verify the dataset.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, work: Any, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        default, help_text = os.environ.get(ENV_DATA_DIR), f"default: ${ENV_DATA_DIR}"
        added.add_argument("--out", "--data", dest="out", type=Path, metavar="DIR", default=default, help=help_text)
        added.set_defaults(work=work)
        return added

    _add_parameters(command("generate", _generate, "make or finish a dataset; the same options give the same bytes"))
    command("pack", lambda options, run: pack(options.out, run), "make the packed layout from the .pt files")
    inspect = command("inspect", _inspect, "describe a dataset and one of its samples")
    inspect.add_argument("--sample", type=int, default=0, metavar="INDEX")
    command(
        "verify",
        lambda options, run: print("\n".join(verify(options.out, run)), flush=True),
        "read every byte and check it",
    )
    return parser


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--samples", type=_at_least(10), default=10_000, help="10 or more, because no split may be empty"
    )
    parser.add_argument("--seed", type=_at_least(0), default=0)
    parser.add_argument("--layout", choices=LAYOUTS, default="pt")
    parser.add_argument("--preset", choices=list(PRESETS), default="default", help="defaults for the options below")
    for item in fields(Parameters):
        option, value = f"--{item.name.replace('_', '-')}", getattr(scenes.DEFAULT, item.name)
        if isinstance(value, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None)
        elif isinstance(value, tuple):
            parser.add_argument(option, type=type(value[0]), nargs=2, metavar=("MIN", "MAX"))
        else:
            parser.add_argument(option, type=type(value), metavar="N")


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
