"""Decide which variables of this shell the jobs on the host `local` inherit.

Over SSH, a job inherits nothing from the shell that launched it. On this machine it inherits what a program needs to
run (paths, caches, proxies, threads), but no credentials. A job is given the credentials that its `secrets` name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.spec.models import Spec

# Whole words of a name, and parts of words. TOKENIZERS_PARALLELISM, MAX_TOKENS and KEYBOARD do not match.
_WORDS = frozenset({"AUTH", "COOKIE", "DSN", "JWT", "KEY", "KEYS", "PASS", "PAT", "PRIVATE", "PWD"})
_PARTS = re.compile(r"PASSWORD|PASSWD|PASSPHRASE|SSHPASS|SECRET|CREDENTIAL|APIKEY|TOKEN(_|$)")
_HARMLESS = frozenset({"PWD", "OLDPWD"})
_PASSWORD_IN_URL = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_PROXY = re.compile(r"(HTTP|HTTPS|FTP|ALL)_PROXY")


def named_sources(spec: Spec) -> frozenset[str]:
    """Return the variables that the `secrets` of any job set or read."""
    secrets = [pair for job in spec.jobs.values() for pair in job.secrets.items()]
    return frozenset(name for name, _ in secrets) | {secret.env for _, secret in secrets if secret.env}


def inherited(environment: Mapping[str, str], sources: Collection[str]) -> dict[str, str]:
    """Return `environment` without the variables in `sources` and those that look like credentials."""
    return {
        name: value
        for name, value in environment.items()
        if name not in sources and not looks_like_credential(name, value)
    }


def left_out(environment: Mapping[str, str], sources: Collection[str]) -> list[str]:
    """Return the variables that look like credentials and are not in `sources`.

    SSH_AUTH_SOCK is not among them: every desktop sets it, so a warning about it would be noise.
    """
    return sorted(
        name
        for name, value in environment.items()
        if name not in sources and name != "SSH_AUTH_SOCK" and looks_like_credential(name, value)
    )


def looks_like_credential(name: str, value: str) -> bool:
    """Return True if the name suggests a credential, or the value is a URL with a password and not that of a proxy."""
    upper = name.upper()
    if upper in _HARMLESS or not value:
        return False
    if not _WORDS.isdisjoint(upper.split("_")) or _PARTS.search(upper):
        return True
    return bool(_PASSWORD_IN_URL.search(value)) and not _PROXY.fullmatch(upper)
