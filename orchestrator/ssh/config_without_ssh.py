"""Read the OpenSSH configuration of a host where the program `ssh` is not installed.

Only the user's or the project's file counts: /etc/ssh/ssh_config belongs to OpenSSH. What cannot be resolved without
`ssh` is refused by name, because a setting that is ignored may lead to another host, key or user.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import HostError
from orchestrator.ssh.endpoint import account, matches

DEFAULTS = {
    "identityfile": ["~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519"],
    "userknownhostsfile": ["~/.ssh/known_hosts ~/.ssh/known_hosts2"],
    "globalknownhostsfile": ["/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"],
    "requiredrsasize": ["1024"],
}
ALGORITHMS = (
    *("ciphers", "macs", "kexalgorithms", "hostkeyalgorithms", "pubkeyacceptedalgorithms", "pubkeyacceptedkeytypes"),
)
MATCHES = ("all", "host", "originalhost", "user", "localuser")
NOT_RESOLVED = ("include", "canonicalizehostname", "tag", "knownhostscommand", "proxyusefdpass", "securitykeyprovider")
_LINE = re.compile(r"(\w+)(?:\s*=\s*|\s+)(.+)")
INSTALL_SSH = "remove it, or install the OpenSSH client: orch then reads the configuration with `ssh -G`"


def options_of(host: str, user: str | None, port: int | None, own: str, file: Path) -> dict[str, list[str]]:
    """Return the options of a host, as `parse_options` returns the output of `ssh -G`.

    Args:
        host: The host as the user or the configuration names it.
        user: The user, if it is known already.
        port: The port, if it is known already.
        own: orch's own settings, which come first.
        file: The configuration file; a missing one counts as empty.

    Raises:
        HostError: The file cannot be read, or has a setting that only `ssh` can resolve.
    """
    doing = f"reading the configuration of {host}"
    try:
        text = file.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise HostError(f"{doing}: {file}: {error.strerror}", "check its permissions") from None
    for problem in _unresolved(text):
        raise HostError(f"{doing}: {file}: {problem} cannot be resolved without the program `ssh`", INSTALL_SSH)
    options: dict[str, list[str]] = {}
    if user:
        options["user"] = [user]
    if port:
        options["port"] = [str(port)]
    try:
        _collect(options, host, own + text)
    except ValueError as error:
        raise HostError(f"{doing}: {file}: {error}", "correct the SSH configuration") from None
    for name in ("identitiesonly", "checkhostip"):
        options[name] = ["yes" if options.get(name, [""])[0].lower() in ("yes", "true") else "no"]
    options["hostname"] = [options.get("hostname", ["%h"])[0].replace("%h", host)]
    return {**DEFAULTS, "user": [account()[0]], **options}


def _collect(options: dict[str, list[str]], host: str, text: str) -> None:
    """Add to `options` those in `text` for `host`: the first value of each, and all values of IdentityFile.

    Raises:
        ValueError: A line is malformed.
    """
    applies = True
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"malformed line: {line:.100}")
        name, value = found[1].lower(), found[2]
        if name == "host":
            applies = matches(host, shlex.split(value))
        elif name == "match":
            applies = _is_match(shlex.split(value), host, options)
        elif applies:
            value = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' and value.count('"') == 2 else value
            if name == "identityfile":
                options.setdefault(name, []).append(value)
            else:
                options.setdefault(name, [value])


def _is_match(words: list[str], host: str, options: dict[str, list[str]]) -> bool:
    """Return whether a line `Match` applies to `host`, by the options so far."""
    if words == ["all"]:
        return True
    me = account()[0]
    names = {
        "host": options.get("hostname", ["%h"])[0].replace("%h", host),
        "originalhost": host,
        "user": options.get("user", [me])[0],
        "localuser": me,
    }
    if not words or len(words) % 2 or any(kind.removeprefix("!") not in names for kind in words[::2]):
        raise ValueError(f"malformed line: Match {shlex.join(words):.100}")
    return all(
        matches(names[kind.removeprefix("!")], patterns.split(",")) != kind.startswith("!")
        for kind, patterns in zip(words[::2], words[1::2], strict=True)
    )


def _unresolved(text: str) -> Iterator[str]:
    """Yield the settings that only `ssh` can resolve."""
    for line in text.splitlines():
        found = re.match(r"\s*(\w+)\s*=?\s*(.*)", line)
        if found is None:
            continue
        name, value = found[1].lower(), found[2].strip()
        if name in NOT_RESOLVED and value.lower() not in ("no", "none", ""):
            yield found[1]
        elif name == "proxyjump" and "%" in value or name in ALGORITHMS and (value[:1] in "+-^" or "*" in value):
            yield f"{found[1]} {value}"
        elif name == "match":
            words = re.sub(r'"[^"]*"', "x", value).split()
            for word in words[::2]:
                if word.removeprefix("!") not in MATCHES:
                    yield f"Match {word}"
