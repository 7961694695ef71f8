"""The settings of one SSH hop, parsed from the output of `ssh -G`."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.errors import HostError

CONNECT_S = 10  # seconds to connect to the port
HANDSHAKE_S = 15  # seconds for the banner, for each attempt to log in, for starting a command
PROMPT_S = 280  # seconds for a person to answer the questions of a login
ALIVE_S = 15  # seconds between two keepalive messages on an idle connection


@dataclass(frozen=True)
class Algorithms:
    """The algorithms that the configuration allows, in order of preference. Empty: the configuration has no list."""

    host_keys: tuple[str, ...] = ()  # HostKeyAlgorithms
    user_keys: tuple[str, ...] = ()  # PubkeyAcceptedAlgorithms
    kex: tuple[str, ...] = ()
    ciphers: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    rsa_bits: int = 0  # RequiredRSASize: the least length of an RSA key


@dataclass(frozen=True)
class Endpoint:
    """One hop, with all settings of the configuration resolved."""

    name: str
    hostname: str
    port: int
    user: str
    identities: tuple[Path, ...]
    identities_only: bool
    agent: str | None  # path of the key agent's socket; None: use no agent
    known_hosts: tuple[Path, ...]
    key_alias: str | None
    jumps: tuple[str, ...]
    proxy_command: str | None
    connect_s: int = CONNECT_S  # ConnectTimeout
    alive_s: int = ALIVE_S  # ServerAliveInterval
    alive_count: int = 0  # ServerAliveCountMax
    algorithms: Algorithms = Algorithms()
    pin_file: Path | None = None  # the known-hosts file into which new keys are written
    certificates: tuple[Path, ...] = ()  # CertificateFile
    revoked_file: Path | None = None  # RevokedHostKeys
    check_address: bool = False  # CheckHostIP

    @property
    def silence_s(self) -> int:
        """Return after how many seconds of silence the OpenSSH client ends a connection."""
        return self.alive_s * self.alive_count

    def __str__(self) -> str:
        return f"{self.user}@{self.hostname}:{self.port}"


def parse_options(text: str) -> dict[str, list[str]]:
    """Parse the output of `ssh -G` into a mapping from each option, in lower case, to its values."""
    options: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        options.setdefault(name.lower(), []).append(value.strip())
    return options


def endpoint_of(name: str, options: Mapping[str, list[str]]) -> Endpoint:
    """Return the settings of one hop.

    Args:
        name: The host as the user or the configuration names it.
        options: The parsed output of `ssh -G`.

    Raises:
        HostError: The configuration uses ProxyUseFdpass, which is not supported.
    """
    value, number = partial(_value, options), partial(_number, options)
    hostname, port, user = value("hostname", name), number("port") or 22, value("user")
    tokens = {"h": hostname, "n": name, "p": str(port), "r": user, "u": account()[0], "d": account()[1], "%": "%"}
    proxy = value("proxycommand")
    if value("proxyusefdpass") == "yes":
        hint = "use a ProxyCommand that carries the data on its stdin and stdout"
        raise HostError(f"reading the configuration of {name}: ProxyUseFdpass is not supported", hint)

    def files(option: str) -> list[Path]:
        paths = [Path(_expand(file, tokens)) for file in split_paths(value(option))]
        return [path for path in paths if not path.is_char_device()]  # /dev/null, however it is written

    return Endpoint(
        name=name,
        hostname=hostname,
        port=port,
        user=user,
        identities=tuple(Path(_expand(file, tokens)) for file in options.get("identityfile", []) if file != "none"),
        certificates=tuple(Path(_expand(file, tokens)) for file in options.get("certificatefile", [])),
        identities_only=value("identitiesonly") == "yes",
        agent=_agent_socket(options, tokens),
        known_hosts=(*files("userknownhostsfile"), *files("globalknownhostsfile")),
        key_alias=value("hostkeyalias").lower() or None,
        jumps=tuple(jump.strip() for jump in value("proxyjump").split(",") if jump.strip()),
        proxy_command=_expand(proxy, tokens) if proxy else None,
        connect_s=number("connecttimeout"),
        alive_s=number("serveraliveinterval"),
        alive_count=number("serveralivecountmax"),
        algorithms=_algorithms(options),
        pin_file=next(iter(files("userknownhostsfile")), None),
        revoked_file=next(iter(files("revokedhostkeys")), None),
        check_address=value("checkhostip") == "yes",
    )


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name matches a list of patterns of OpenSSH: `*`, `?`, and `!` before a pattern that excludes."""
    is_found = False
    for pattern in patterns:
        expression = re.sub(r"(\\\*)+", ".*", re.escape(pattern.removeprefix("!"))).replace(r"\?", ".")
        if pattern and re.fullmatch(expression, name, re.DOTALL):
            if pattern.startswith("!"):
                return False
            is_found = True
    return is_found


def _value(options: Mapping[str, list[str]], option: str, default: str = "") -> str:
    found = options.get(option, [default])[0]
    return "" if found.lower() == "none" else found


def _number(options: Mapping[str, list[str]], option: str) -> int:
    found = _value(options, option)
    return int(found) if found.isdecimal() else 0  # `ssh -G` prints a word if it is not set


def _algorithms(options: Mapping[str, list[str]]) -> Algorithms:
    def names(option: str) -> tuple[str, ...]:
        return tuple(name for name in _value(options, option).split(",") if name)

    return Algorithms(
        host_keys=names("hostkeyalgorithms"),
        user_keys=names("pubkeyacceptedalgorithms") or names("pubkeyacceptedkeytypes"),  # its name before 8.5
        kex=names("kexalgorithms"),
        ciphers=names("ciphers"),
        macs=names("macs"),
        rsa_bits=_number(options, "requiredrsasize"),
    )


def _agent_socket(options: Mapping[str, list[str]], tokens: Mapping[str, str]) -> str | None:
    configured = options.get("identityagent", ["SSH_AUTH_SOCK"])[0]
    if configured == "none":
        return None
    if configured == "SSH_AUTH_SOCK" or configured.startswith("$"):
        return os.environ.get(configured.lstrip("$").strip("{}")) or None
    return _expand(configured, tokens)


def split_paths(text: str) -> list[str]:
    """Split a list of files that `ssh -G` prints without quotes.

    A space is ambiguous: it belongs to the name if a file with that name exists, else it separates two names.
    """
    words, paths = text.split(" "), []
    while words:
        ends = [end for end in range(len(words), 1, -1) if os.path.exists(" ".join(words[:end]))]
        end = ends[0] if ends else 1
        paths.append(" ".join(words[:end]))
        del words[:end]
    return [path for path in paths if path]


def _expand(text: str, tokens: Mapping[str, str]) -> str:
    if text == "~" or text.startswith("~/"):
        text = account()[1] + text[1:]  # as ssh does: the home of the account, not $HOME
    return re.sub(r"%(.)", lambda match: tokens.get(match[1], match[0]), text)


def account() -> tuple[str, str]:
    """Return the name and the home directory of this user."""
    try:
        import pwd
    except ImportError:  # Windows
        return getpass.getuser(), os.path.expanduser("~")
    me = pwd.getpwuid(os.getuid())
    return me.pw_name, me.pw_dir
