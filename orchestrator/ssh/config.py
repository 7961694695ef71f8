"""What the OpenSSH client would do for a host, asked of the client itself: `ssh -G`.

Bulk files go over `ssh`, everything else over a library; both must see the same user, keys, jumps and known
hosts. So one configuration file is written, ours before the user's, and both read that.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from orchestrator.errors import HostError, SpecError
from orchestrator.system import cache

CONNECT_S = 10  # for a connection to the port
HANDSHAKE_S = 15  # for the banner, for each try to log in, for starting a command
ALIVE_S = 15  # seconds between two signs of life on an idle connection
# The first value wins in ssh_config, so these hold for every hop, whatever the user's file says. None of the user's may
# lead rsync's `ssh` to another machine than the one that was checked: an old master behind ControlPath, or a key that
# is trusted by DNS, by a command or for being local.
OURS = f"""\
BatchMode yes
StrictHostKeyChecking yes
UpdateHostKeys no
ForwardAgent no
ForwardX11 no
ClearAllForwardings yes
PermitLocalCommand no
RemoteCommand none
RequestTTY no
ControlMaster no
ControlPath none
Tunnel no
VerifyHostKeyDNS no
NoHostAuthenticationForLocalhost no
ConnectTimeout {CONNECT_S}
ServerAliveInterval {ALIVE_S}
ServerAliveCountMax 3
"""
KNOWN_HOSTS_COMMAND = "KnownHostsCommand none\n"  # an error for an OpenSSH older than 8.5
_USER = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*"
_NAME = r"[A-Za-z0-9_.][A-Za-z0-9_.-]*"
_V6 = r"[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9]+)?"
_DESTINATION = re.compile(
    rf"(?:ssh://)?(?:(?P<user>{_USER})@)?(?:(?P<host>{_NAME})|\[(?P<quoted>{_V6})\]|(?P<bare>{_V6}(?!.)))"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)


@dataclass(frozen=True)
class Destination:
    """`host`, `user@host`, `user@host:port`; `host` may be an alias, or an IPv6 address (with a port: in brackets)."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Destination:
        match = _DESTINATION.fullmatch(text)
        if match is None:
            raise SpecError(f"{text!r} does not name an SSH host", "write an alias, user@host or user@host:port")
        host = match["host"] or match["quoted"] or match["bare"]
        return cls(host, match["user"], int(match["port"]) if match["port"] else None)

    def options(self) -> list[str]:
        """What `ssh` needs beside the host."""
        user = ["-l", self.user] if self.user else []
        return user + (["-p", str(self.port)] if self.port else [])


@dataclass(frozen=True)
class Algorithms:
    """What the configuration allows, in its order of preference; an empty list is one that it did not state."""

    host_keys: tuple[str, ...] = ()  # HostKeyAlgorithms
    user_keys: tuple[str, ...] = ()  # PubkeyAcceptedAlgorithms
    kex: tuple[str, ...] = ()
    ciphers: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    rsa_bits: int = 0  # RequiredRSASize: no RSA key may be shorter


@dataclass(frozen=True)
class Endpoint:
    """One hop, with every question of the configuration answered."""

    name: str
    hostname: str
    port: int
    user: str
    identities: tuple[Path, ...]
    identities_only: bool
    agent: str | None  # the socket of the key agent
    known_hosts: tuple[Path, ...]
    key_alias: str | None
    jumps: tuple[str, ...]
    proxy_command: str | None
    connect_s: int = CONNECT_S  # ConnectTimeout
    alive_s: int = ALIVE_S  # ServerAliveInterval
    alive_count: int = 0  # ServerAliveCountMax
    algorithms: Algorithms = Algorithms()
    pin_file: Path | None = None  # the known-hosts file that is written
    revoked_file: Path | None = None  # RevokedHostKeys
    check_address: bool = False  # CheckHostIP

    @property
    def silence_s(self) -> int:
        """Seconds without a sign of life after which the OpenSSH client ends a connection."""
        return self.alive_s * self.alive_count

    def __str__(self) -> str:
        return f"{self.user}@{self.hostname}:{self.port}"


class SshConfig:
    """The configuration of one host. `config` stands in for the user's and the system's file, as `ssh -F` does, and
    `known_hosts` for every known-hosts file that they name, on each hop.
    """

    def __init__(
        self, destination: Destination, identity: Path | None, config: Path | None, known_hosts: Path | None = None
    ) -> None:
        self._destination, self._identity, self._config = destination, identity, config
        self._known_hosts = known_hosts.absolute() if known_hosts else None

    def file(self) -> Path:
        """The file for `ssh -F`. A jump that `ssh` starts is given the same file.

        Named by its content and kept in the cache, so that nothing has to be removed, however this process ends.
        """
        data = self._text().encode("utf-8", "surrogateescape")
        return cache.place(f"{cache.SSH_PREFIX}{sha256(data).hexdigest()[:16]}.conf", data)

    def endpoint(self, destination: Destination) -> Endpoint:
        command = ["ssh", "-G", "-F", str(self.file()), *destination.options(), "--", destination.host]
        found = endpoint_of(destination.host, parse_options(run(command, f"the configuration of {destination.host}")))
        own = self._known_hosts
        return replace(found, known_hosts=(own,), pin_file=own) if own else found

    def _text(self) -> str:
        text = OURS + (KNOWN_HOSTS_COMMAND if _openssh_version() >= (8, 5) else "")
        if self._known_hosts is not None:
            text += f"UserKnownHostsFile {_quoted(self._known_hosts)}\nGlobalKnownHostsFile {os.devnull}\n"
        if self._identity is not None:
            key = _quoted(Path(os.path.abspath(self._identity.expanduser())))
            # Only for the destination: its jumps have identities of their own.
            text += f"Host {self._destination.host}\n  IdentitiesOnly yes\n  IdentityFile {key}\nHost *\n"
        if self._config is not None:
            return text + f"Include {_quoted(self._config.absolute())}\n"
        users = _quoted(Path.home() / ".ssh" / "config")  # $HOME counts here: one who sets it wants another home
        return text + f"Include {users}\nInclude /etc/ssh/ssh_config\n"


def parse_options(text: str) -> dict[str, list[str]]:
    """The output of `ssh -G`: option, in lower case, to its values."""
    options: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        options.setdefault(name.lower(), []).append(value.strip())
    return options


def endpoint_of(name: str, options: Mapping[str, list[str]]) -> Endpoint:
    """What `ssh -G` answered for the host that the user calls `name`."""

    def value(option: str, default: str = "") -> str:
        found = options.get(option, [default])[0]
        return "" if found.lower() == "none" else found

    def number(option: str) -> int:
        return int(found) if (found := value(option)).isdecimal() else 0  # an unset one is said in words

    hostname, port, user = value("hostname", name), number("port") or 22, value("user")
    tokens = {"h": hostname, "n": name, "p": str(port), "r": user, "u": _me().pw_name, "d": _me().pw_dir, "%": "%"}
    proxy = value("proxycommand")
    if value("proxyusefdpass") == "yes":
        hint = "use a ProxyCommand that carries the data on its stdin and stdout"
        raise HostError(f"reading the configuration of {name}: ProxyUseFdpass is not supported", hint)

    def files(option: str) -> list[Path]:
        paths = [Path(_expand(file, tokens)) for file in split_paths(value(option))]
        return [path for path in paths if str(path) != os.devnull]

    def algorithms(*options: str) -> tuple[str, ...]:
        found = next((text for option in options if (text := value(option))), "")
        return tuple(word for word in found.split(",") if word)

    return Endpoint(
        name=name,
        hostname=hostname,
        port=port,
        user=user,
        identities=tuple(Path(_expand(file, tokens)) for file in options.get("identityfile", []) if file != "none"),
        identities_only=value("identitiesonly") == "yes",
        agent=_agent(options, tokens),
        known_hosts=(*files("userknownhostsfile"), *files("globalknownhostsfile")),
        key_alias=value("hostkeyalias").lower() or None,
        jumps=tuple(jump.strip() for jump in value("proxyjump").split(",") if jump.strip()),
        proxy_command=_expand(proxy, tokens) if proxy else None,
        connect_s=number("connecttimeout"),
        alive_s=number("serveraliveinterval"),
        alive_count=number("serveralivecountmax"),
        algorithms=Algorithms(
            host_keys=algorithms("hostkeyalgorithms"),
            user_keys=algorithms("pubkeyacceptedalgorithms", "pubkeyacceptedkeytypes"),  # the name before 8.5
            kex=algorithms("kexalgorithms"),
            ciphers=algorithms("ciphers"),
            macs=algorithms("macs"),
            rsa_bits=number("requiredrsasize"),
        ),
        pin_file=next(iter(files("userknownhostsfile")), None),
        revoked_file=next(iter(files("revokedhostkeys")), None),
        check_address=value("checkhostip") == "yes",
    )


@lru_cache(None)
def _openssh_version() -> tuple[int, int]:
    try:
        said = subprocess.run(["ssh", "-V"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30).stderr
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.match(rb"OpenSSH_([0-9]{1,3})\.([0-9]{1,3})", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _agent(options: Mapping[str, list[str]], tokens: Mapping[str, str]) -> str | None:
    said = options.get("identityagent", ["SSH_AUTH_SOCK"])[0]
    if said == "none":
        return None
    if said == "SSH_AUTH_SOCK" or said.startswith("$"):
        return os.environ.get(said.lstrip("$").strip("{}")) or None
    return _expand(said, tokens)


def split_paths(text: str) -> list[str]:
    """The files in a list that `ssh -G` prints without quotes: a space belongs to a name where such a file is."""
    words, paths = text.split(" "), []
    while words:
        ends = [end for end in range(len(words), 1, -1) if os.path.exists(" ".join(words[:end]))]
        end = ends[0] if ends else 1
        paths.append(" ".join(words[:end]))
        del words[:end]
    return [path for path in paths if path]


def _expand(text: str, tokens: Mapping[str, str]) -> str:
    if text == "~" or text.startswith("~/"):
        text = _me().pw_dir + text[1:]  # as ssh: the account's own home, whatever $HOME says
    return re.sub(r"%(.)", lambda match: tokens.get(match[1], match[0]), text)


def _me() -> pwd.struct_passwd:
    return pwd.getpwuid(os.getuid())


def _quoted(path: Path) -> str:
    text = str(path)
    if re.search(r'["\\\n]', text):
        raise SpecError(f"the path {text!r} contains a quote, a backslash or a newline", "rename the file")
    return '"' + text.replace("%", "%%") + '"'


def run(command: list[str], what: str, good: tuple[int, ...] = (0,)) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    except FileNotFoundError:
        raise HostError(f"reading {what}: {command[0]} is not installed here", "install the OpenSSH client") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"reading {what}: {shlex.join(command)} did not finish") from None
    if done.returncode not in good:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise HostError(f"reading {what}: {said[0]}", "correct the SSH configuration")
    return done.stdout.decode("utf-8", "replace")
