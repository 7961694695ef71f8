"""The values of secrets: taken on this machine, each asked for once, never shown."""

from __future__ import annotations

import ctypes
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from shlex import join
from textwrap import shorten

from orchestrator.errors import SpecError
from orchestrator.spec.models import Job, Secret, Spec
from orchestrator.spec.problems import header, toml_key
from remote.contract.masking import Mask

LIMIT_S = 120.0  # for a command: long enough to type a passphrase
MOST_BYTES = 64 * 1024  # Linux takes no variable of more than 128 KiB
SET_DUMPABLE = 4  # PR_SET_DUMPABLE of prctl(2); exec takes it back
LINE_END = 2  # bytes that may follow the value


class Vault:
    """Secrets of one project. They travel in the launch request, on the agent's stdin, and nowhere else."""

    def __init__(self, spec: Spec) -> None:
        self._directory, self._jobs = spec.directory, tuple(spec.jobs.values())
        self._source = spec.path.name
        self._told: dict[tuple[str, ...], str] = {}  # by the command that told it
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()

    def values(self, job: Job) -> dict[str, str]:
        """The job's secrets by the variables that they go into. Raises SpecError, which quotes none of them."""
        if job.secrets:
            _forbid_core_dump()
        found = {}
        for name, secret in job.secrets.items():
            where = f"{self._source}: {header('jobs', job.name)} secrets.{toml_key(name)}"
            found[name] = self._value(secret, where)
            self._remember(name, found[name], job.name)
        return found

    def mask(self, data: bytes) -> bytes:
        """`data` without the secrets that are known here: those taken so far, and those in the environment."""
        for job in self._jobs:
            for name, secret in job.secrets.items():
                if secret.env and os.environ.get(secret.env):
                    self._remember(name, os.environ[secret.env], job.name)
        if not self._known:
            return data
        with self._lock:  # a mask has a state, and the thread of a host may speak at the same time
            mask = _mask(tuple(self._known.items()))
            return mask.feed(data) + mask.flush()

    def _remember(self, name: str, value: str, job: str) -> None:
        if self._known.setdefault(name, value) != value:
            self._known[f"{name} of {job}"] = value

    def _value(self, secret: Secret, where: str) -> str:
        if secret.command:
            if secret.command not in self._told:
                self._told[secret.command] = _checked(ask(secret.command, self._directory, where), where)
            return self._told[secret.command]
        name = secret.env or ""
        if name not in os.environ:
            raise SpecError(f"{where}: {name} is not in the environment", f"export {name}=..., then launch again")
        return _checked(os.environ[name], where)


def _forbid_core_dump() -> None:
    """Keep this process, not what it starts, from leaving a core dump in the project, which a snapshot would ship."""
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(None).prctl(SET_DUMPABLE, 0, 0, 0, 0)
    except (OSError, AttributeError):
        pass


@lru_cache(maxsize=1)
def _mask(secrets: tuple[tuple[str, str], ...]) -> Mask:
    return Mask(dict(secrets))


def _checked(value: str, where: str) -> str:
    if not value:
        raise SpecError(f"{where}: it is empty", "give it a value, or remove it from `secrets`")
    if "\0" in value:
        raise SpecError(f"{where}: it contains a NUL character, which a variable cannot")
    if len(os.fsencode(value)) > MOST_BYTES:
        raise _too_large(where)
    return value


def _too_large(where: str) -> SpecError:
    hint = "put it into a file on the box, and the path of that file into `env`"
    return SpecError(f"{where}: it is larger than {MOST_BYTES // 1024} KiB, which is more than a secret needs", hint)


def ask(command: Sequence[str], directory: Path, where: str, limit_s: float = LIMIT_S) -> str:
    """What the command prints, without the line end. It has the terminal: it may ask for a passphrase there."""
    doing = f"{where}: `{shorten(join(command), 80)}`"
    words = [os.path.expandvars(word) for word in command]
    try:
        process = subprocess.Popen(words, cwd=directory, stdout=subprocess.PIPE)
    except OSError as error:
        raise SpecError(f"{doing}: {error.strerror}", "correct the command, or install the program here") from None
    with process:
        try:
            said = _read(process, time.monotonic() + limit_s)
        finally:
            process.kill()  # nothing to end where it is at its end
    if said is None:
        raise SpecError(f"{doing} did not finish within {limit_s:g} s", f"run it by hand in {directory}")
    if len(said) > MOST_BYTES + LINE_END:
        raise _too_large(where)
    if process.returncode != 0:
        raise SpecError(f"{doing} ended with exit code {process.returncode}", f"run it by hand in {directory}")
    try:
        return said.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SpecError(f"{doing} printed output that is not UTF-8", f"run it by hand in {directory}") from None


def _read(process: subprocess.Popen[bytes], until: float) -> bytes | None:
    """All that it prints, a little more than MOST_BYTES at most; None where it has not ended by `until`."""
    assert process.stdout is not None  # a pipe was asked for
    said = b""
    while len(said) <= MOST_BYTES + LINE_END:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        data = os.read(process.stdout.fileno(), MOST_BYTES)
        if not data:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                return None
            return said
        said += data
    return said
