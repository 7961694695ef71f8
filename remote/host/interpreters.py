"""What a Python interpreter of the box is, asked from itself, and which torch it would import."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional, Tuple

from remote.contract.files import open_to_read, parse_object
from remote.contract.job_facts import TorchFacts
from remote.contract.schema import Malformed, from_json
from remote.host.commands import run_command

LIMIT_S = 10.0  # seconds for an interpreter to start
MAX_BYTES = 64 * 1024  # of torch/version.py

CODE = """
import importlib.util, json, os, site, sys, sysconfig
torch = importlib.util.find_spec("torch")
print("\\n" + json.dumps({
    "version": "%d.%d.%d" % sys.version_info[:3],
    "prefix": sys.prefix,
    "base_prefix": sys.base_prefix,
    "platform": sysconfig.get_platform(),
    "packages": [path for path in site.getsitepackages() if os.path.isdir(path)],
    "has_venv": all(map(importlib.util.find_spec, ("venv", "ensurepip"))),
    "torch": list(torch.submodule_search_locations or ()) if torch else [],
}))
"""

_VERSION = re.compile(r"^__version__[^=\n]{0,40}=[ \t]*['\"]([^'\"\n]{1,100})['\"]", re.MULTILINE)
_BUILD = re.compile(r"^(cuda|hip)\b[^=\n]{0,40}=[ \t]*['\"]([^'\"\n]{1,100})['\"]", re.MULTILINE)


@dataclass(frozen=True)
class Interpreter:
    """A Python of the box."""

    version: str
    prefix: str
    base_prefix: str  # differs from `prefix` in a virtual environment
    platform: str
    packages: Tuple[str, ...] = ()  # its site-packages
    has_venv: bool = False  # whether it can make virtual environments
    torch: Tuple[str, ...] = ()  # the folder of its torch

    @property
    def is_virtual(self) -> bool:
        """Whether it is that of a virtual environment."""
        return self.prefix != self.base_prefix


def find(python: str, env: Mapping[str, str]) -> Optional[str]:
    """Return the path of a program that is named as in jobs.toml; None if it is not on the box."""
    return shutil.which(os.path.expanduser(python), path=env.get("PATH"))


def ask(python: str) -> Interpreter:
    """Return what the interpreter at the path `python` is.

    Raises:
        ValueError: It does not run, or its answer is malformed.
    """
    try:
        output = run_command([python, "-c", CODE], LIMIT_S, most=MAX_BYTES)
    except OSError as error:
        raise ValueError(f"{python} does not run: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"{python} gave no answer within {LIMIT_S:g} s") from None
    answer = parse_object(output.out.strip().rpartition(b"\n")[2]) if output.code == 0 else None
    try:
        return from_json(Interpreter, answer or {})
    except Malformed:
        said = output.err.decode("utf-8", "replace").strip().rpartition("\n")[2][:300]
        raise ValueError(f"{python} does not run: {said or f'exit code {output.code}'}") from None


def torch_of(python: str) -> Optional[TorchFacts]:
    """Return the torch that the interpreter would import; None if there is none, or it cannot be told."""
    try:
        places = ask(python).torch
    except ValueError:
        return None
    for place in places:
        try:
            with open_to_read(Path(place) / "version.py", follow=True) as file:
                return parse_torch(python, file.read(MAX_BYTES).decode("utf-8", "replace"))
        except OSError:
            continue
    return None


def parse_torch(python: str, text: str) -> Optional[TorchFacts]:
    """Parse the version.py of a torch; return None if it names no version."""
    version = _VERSION.search(text)
    builds = dict(_BUILD.findall(text))
    return TorchFacts(python, version[1], builds.get("cuda"), builds.get("hip")) if version else None
