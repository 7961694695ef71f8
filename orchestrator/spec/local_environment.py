"""Which variables of this shell the jobs of the host `local` inherit.

Over SSH a job sees nothing of the shell that launched it. Here it inherits what a program needs to run (paths, caches,
proxies, threads), and no credential: a job gets those that its `secrets` name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from orchestrator.spec.models import Spec

# By whole words of a name, and by parts of a word. TOKENIZERS_PARALLELISM, MAX_TOKENS and KEYBOARD are none.
_WORDS = frozenset({"AUTH", "COOKIE", "DSN", "JWT", "KEY", "KEYS", "PASS", "PAT", "PRIVATE", "PWD"})
_PARTS = re.compile(r"PASSWORD|PASSWD|PASSPHRASE|SSHPASS|SECRET|CREDENTIAL|APIKEY|TOKEN(_|$)")
_HARMLESS = frozenset({"PWD", "OLDPWD"})
_PASSWORD_IN_URL = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_PROXY = re.compile(r"(HTTP|HTTPS|FTP|ALL)_PROXY")


def named_sources(spec: Spec) -> frozenset[str]:
    """Return the variables that some job's `secrets` name, or take a value from."""
    secrets = [pair for job in spec.jobs.values() for pair in job.secrets.items()]
    return frozenset(name for name, _ in secrets) | {secret.env for _, secret in secrets if secret.env}


def inherited(environment: Mapping[str, str], sources: Collection[str]) -> dict[str, str]:
    """Return `environment` without the variables in `sources`, and without what looks like a credential."""
    return {
        name: value
        for name, value in environment.items()
        if name not in sources and not looks_like_credential(name, value)
    }


def left_out(environment: Mapping[str, str], sources: Collection[str]) -> list[str]:
    """Return the variables that no job is given, and that no `secrets` names; every desktop has an SSH agent."""
    return sorted(
        name
        for name, value in environment.items()
        if name not in sources and name != "SSH_AUTH_SOCK" and looks_like_credential(name, value)
    )


def looks_like_credential(name: str, value: str) -> bool:
    """Whether the variable's name says so, or its value is a URL with a password (that of a proxy is passed on)."""
    upper = name.upper()
    if upper in _HARMLESS or not value:
        return False
    if not _WORDS.isdisjoint(upper.split("_")) or _PARTS.search(upper):
        return True
    return bool(_PASSWORD_IN_URL.search(value)) and not _PROXY.fullmatch(upper)
