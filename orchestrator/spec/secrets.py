"""The values of secrets: read on this machine, each at most once, and masked in all output."""

from __future__ import annotations

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
from typing import TYPE_CHECKING

from orchestrator.errors import SpecError
from orchestrator.spec.wording import header, toml_key
from remote.contract.masking import Mask
from remote.contract.variables import expand

if TYPE_CHECKING:
    from orchestrator.spec.models import Job, Secret, Spec

LIMIT_S = 120.0  # seconds for a command: long enough to type a passphrase
MAX_BYTES = 64 * 1024  # size of one secret; Linux does not accept a variable of more than 128 KiB
SET_DUMPABLE = 4  # PR_SET_DUMPABLE of prctl(2); exec resets it
LINE_END = 2  # bytes of the line end that may follow the value


class SecretValues:
    """The secrets of one project. They leave this machine only in a launch request, on the agent's stdin."""

    def __init__(self, spec: Spec) -> None:
        self._directory, self._jobs = spec.directory, tuple(spec.jobs.values())
        self._source = spec.path.name
        self._outputs: dict[tuple[str, ...], str] = {}  # by command
        self._known: dict[str, str] = {}  # by the name that stands in for the value in masked output
        self._lock = threading.Lock()

    def for_job(self, job: Job) -> dict[str, str]:
        """Return the job's secrets by variable name. May run commands that prompt at the terminal.

        Raises:
            SpecError: A secret is missing or malformed. The message never contains a value.
        """
        if job.secrets:
            _forbid_core_dump()
        found = {}
        for name, secret in job.secrets.items():
            where = f"{self._source}: {header('jobs', job.name)} secrets.{toml_key(name)}"
            found[name] = self._value(secret, where)
            self._remember(name, found[name], job.name)
        return found

    def mask(self, data: bytes) -> bytes:
        """Replace the secrets in `data`: those read so far, and those in the environment."""
        for job in self._jobs:
            for name, secret in job.secrets.items():
                if secret.env and os.environ.get(secret.env):
                    self._remember(name, os.environ[secret.env], job.name)
        if not self._known:
            return data
        with self._lock:  # the mask has state, and the threads of several hosts may write at the same time
            mask = _mask(tuple(self._known.items()))
            return mask.feed(data) + mask.flush()

    def _remember(self, name: str, value: str, job: str) -> None:
        if self._known.setdefault(name, value) != value:
            self._known[f"{name} of {job}"] = value

    def _value(self, secret: Secret, where: str) -> str:
        if secret.command:
            if secret.command not in self._outputs:
                self._outputs[secret.command] = _checked(output_of(secret.command, self._directory, where), where)
            return self._outputs[secret.command]
        name = secret.env or ""
        if name not in os.environ:
            raise SpecError(f"{where}: {name} is not in the environment", f"export {name}=..., then launch again")
        return _checked(os.environ[name], where)


def _forbid_core_dump() -> None:
    """Disable core dumps of this process: one in the project directory would become part of a snapshot."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    try:
        ctypes.CDLL(None).prctl(SET_DUMPABLE, 0, 0, 0, 0)
    except (OSError, AttributeError):
        pass


@lru_cache(maxsize=1)
def _mask(secrets: tuple[tuple[str, str], ...]) -> Mask:
    return Mask(dict(secrets))


def _checked(value: str, where: str) -> str:
    if not value:
        raise SpecError(f"{where}: the value is empty", "give it a value, or remove it from `secrets`")
    if "\0" in value:
        raise SpecError(f"{where}: the value contains a NUL character, which a variable cannot")
    if len(os.fsencode(value)) > MAX_BYTES:
        raise _too_large(where)
    return value


def _too_large(where: str) -> SpecError:
    hint = "put it into a file on the box, and the path of that file into `env`"
    return SpecError(f"{where}: the value is larger than {MAX_BYTES // 1024} KiB", hint)


def output_of(command: Sequence[str], directory: Path, where: str, limit_s: float = LIMIT_S) -> str:
    """Run a command and return its output without the line end. It may prompt for a passphrase at the terminal.

    Args:
        command: The program and its arguments; variables of the environment are expanded.
        directory: The working directory.
        where: The key of jobs.toml that names the command, for errors.
        limit_s: How long the command may take, in seconds.

    Raises:
        SpecError: The command failed, took too long, or printed something that cannot be a secret.
    """
    doing = f"{where}: `{shorten(join(command), 80)}`"
    words = expand(command, os.environ)
    try:
        process = subprocess.Popen(words, cwd=directory, stdout=subprocess.PIPE)
    except OSError as error:
        raise SpecError(f"{doing}: {error.strerror}", "correct the command, or install the program here") from None
    with process:
        try:
            output = _read(process, time.monotonic() + limit_s)
        finally:
            process.kill()  # does nothing if the process has ended
    if output is None:
        raise SpecError(f"{doing} did not finish within {limit_s:g} s", f"run it by hand in {directory}")
    if len(output) > MAX_BYTES + LINE_END:
        raise _too_large(where)
    if process.returncode != 0:
        raise SpecError(f"{doing} ended with exit code {process.returncode}", f"run it by hand in {directory}")
    try:
        return output.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SpecError(f"{doing} printed output that is not UTF-8", f"run it by hand in {directory}") from None


def _read(process: subprocess.Popen[bytes], until: float) -> bytes | None:
    """Return the output, slightly more than MAX_BYTES at most; None if the process has not ended by `until`."""
    assert process.stdout is not None  # stdout is a pipe
    output = b""
    while len(output) <= MAX_BYTES + LINE_END:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        data = os.read(process.stdout.fileno(), MAX_BYTES)
        if not data:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                return None
            return output
        output += data
    return output
