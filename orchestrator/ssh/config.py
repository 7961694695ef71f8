"""Read the OpenSSH configuration of a host with `ssh -G`, or without it where `ssh` is not installed.

Both SSH clients must use the same user, keys, jump hosts and known hosts. So orch writes one configuration file, with
its own settings before the user's, and both use that file.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from orchestrator.errors import HostError, SpecError
from orchestrator.ssh.config_without_ssh import options_of
from orchestrator.ssh.endpoint import ALIVE_S, CONNECT_S, PROMPT_S, Endpoint, endpoint_of, parse_options
from orchestrator.ssh.key_files import problem_of
from orchestrator.system import cache

# The first value of an option wins in ssh_config, so these override the user's on every hop. The user's values must not
# lead rsync's `ssh` to another machine than the one whose key was checked, for example through an old master behind
# ControlPath, or through a key that is trusted because of DNS, a command or a local address.
OURS = f"""\
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
KNOWN_HOSTS_COMMAND = "KnownHostsCommand none\n"  # OpenSSH before 8.5 rejects it
MAX_HOPS = 9  # the host and its jump hosts
_USER = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*"
_NAME = r"[A-Za-z0-9_.][A-Za-z0-9_.-]*"
_V6 = r"[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9]+)?"
_DESTINATION = re.compile(
    rf"(?:ssh://)?(?:(?P<user>{_USER})@)?(?:(?P<host>{_NAME})|\[(?P<quoted>{_V6})\]|(?P<bare>{_V6}(?!.)))"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)


@dataclass(frozen=True)
class Destination:
    """Where to connect. `host` is a host name, an address or an alias of the SSH configuration."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Parse `host`, `user@host`, `user@host:port` or `ssh://...`. An IPv6 address with a port is in brackets.

        Raises:
            SpecError: The text has none of these forms.
        """
        match = _DESTINATION.fullmatch(text)
        if match is None:
            raise SpecError(f"{text!r} does not name an SSH host", "write an alias, user@host or user@host:port")
        host = match["host"] or match["quoted"] or match["bare"]
        return cls(host, match["user"], int(match["port"]) if match["port"] else None)

    def options(self) -> list[str]:
        """Return the options of `ssh` for the user and the port."""
        user = ["-l", self.user] if self.user else []
        return user + (["-p", str(self.port)] if self.port else [])


class SshConfig:
    """The SSH configuration of one host and of the hops to it."""

    def __init__(
        self, destination: Destination, identity: Path | None, config: Path | None, known_hosts: Path | None = None
    ) -> None:
        """Read nothing yet.

        Args:
            destination: The host.
            identity: A private key for the host, tried first. With it, keys of the agent that the configuration does
                not name are not offered.
            config: Replaces the user's and the system's configuration file, as `ssh -F` does.
            known_hosts: Replaces all known-hosts files of the configuration, on every hop.
        """
        self._destination, self._identity, self._config = destination, identity, config
        self._known_hosts = known_hosts.absolute() if known_hosts else None
        self._route: Sequence[tuple[Destination, Endpoint]] | None = None

    def file(self, asks: bool = False) -> Path:
        """Write the configuration file for `ssh -F` and return its path. `ssh` passes it on to its jump hosts.

        The file is in the cache and has a name made from its content, so nothing must be removed afterwards.

        Args:
            asks: Whether ssh may ask for a password or the like.

        Raises:
            SpecError: A path contains a character that a configuration file cannot hold.
            HostError: The file cannot be written.
        """
        file = self._file()
        if found := re.search(r"[*?\[%]", str(file)):
            why = f"OpenSSH cannot include {str(file)!r}: {found[0]!r} has a meaning of its own there"
            raise SpecError(f"connecting to {self._destination.host}: {why}", "rename the directory")
        text = self._text() + f"Include {_quoted(file)}\n"
        if self._config is None:
            text += "Include /etc/ssh/ssh_config\n"
        # A jump host that asks shows no banner of the next hop before it got its answer.
        text = f"ConnectTimeout {PROMPT_S}\n{text}" if asks else f"BatchMode yes\n{text}"
        data = text.encode("utf-8", "surrogateescape")
        return cache.place(f"{cache.SSH_PREFIX}{sha256(data).hexdigest()[:16]}.conf", data)

    def endpoint(self, destination: Destination) -> Endpoint:
        """Return the resolved settings of one hop: of the host itself or of a jump host.

        Raises:
            HostError: `ssh -G` fails, or the configuration has a setting that orch does not support.
        """
        if shutil.which("ssh") is None:
            found = endpoint_of(
                destination.host,
                options_of(destination.host, destination.user, destination.port, self._text(), self._file()),
            )
            return self._with_known_hosts(found)
        command = ["ssh", "-G", "-F", str(self.file()), *destination.options(), "--", destination.host]
        found = endpoint_of(destination.host, parse_options(run(command, f"the configuration of {destination.host}")))
        return self._with_known_hosts(found)

    def _with_known_hosts(self, found: Endpoint) -> Endpoint:
        own = self._known_hosts
        return replace(found, known_hosts=(own,), pin_file=own) if own else found

    def route(self) -> Sequence[tuple[Destination, Endpoint]]:
        """Return every hop to the host and its settings, the host itself last. They are read once, until `forget`.

        As in OpenSSH, the first jump host may have jump hosts of its own, the others have not.

        Raises:
            HostError: The jump hosts lead in a circle, or `endpoint` fails.
        """
        if self._route is not None:
            return self._route
        hops = [(self._destination, self.endpoint(self._destination))]
        while jumps := hops[0][1].jumps:
            before = [Destination.parse(jump) for jump in jumps]
            hops = [*((hop, replace(self.endpoint(hop), jumps=())) for hop in before[1:]), *hops]
            hops.insert(0, (before[0], self.endpoint(before[0])))
            if len(hops) > MAX_HOPS:
                name = self._destination.host
                raise HostError(f"connecting to {name}: ProxyJump leads in a circle through {before[0].host}")
        self._route = hops
        return hops

    def forget(self) -> None:
        """Read the configuration again at the next use: the host may have another address now."""
        self._route = None

    def _text(self) -> str:
        """Return orch's own settings, which come before those of the configuration."""
        text = OURS + (KNOWN_HOSTS_COMMAND if _openssh_version() >= (8, 5) else "")
        if self._known_hosts is not None:
            text += f"UserKnownHostsFile {_quoted(self._known_hosts)}\nGlobalKnownHostsFile {os.devnull}\n"
        if self._identity is not None:
            path = Path(os.path.abspath(self._identity.expanduser()))
            if problem := problem_of(path):
                hint = f"correct `identity` of the host in jobs.toml, or make the key: ssh-keygen -f {path}"
                if path.exists():
                    hint = "correct the file, or `identity` of the host in jobs.toml"
                raise SpecError(f"connecting to {self._destination.host}: the identity file {path}: {problem}", hint)
            key = _quoted(path)
            # Only for the destination: jump hosts use those of the configuration.
            text += f"Host {self._destination.host}\n  IdentitiesOnly yes\n  IdentityFile {key}\nHost *\n"
        return text

    def _file(self) -> Path:
        """Return the configuration file of the user or of the project. The user's is that below $HOME.

        `ssh` does not use $HOME, but a user who sets it wants that home directory.
        """
        return self._config.absolute() if self._config is not None else Path.home() / ".ssh" / "config"


@lru_cache(None)
def _openssh_version() -> tuple[int, int]:
    try:
        output = subprocess.run(["ssh", "-V"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30).stderr
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.match(rb"OpenSSH_([0-9]{1,3})\.([0-9]{1,3})", output)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _quoted(path: Path) -> str:
    text = str(path)
    if re.search(r'["\\\n]', text):
        raise SpecError(f"the path {text!r} contains a quote, a backslash or a newline", "rename the file")
    return '"' + text.replace("%", "%%") + '"'


def run(command: list[str], what: str, good: tuple[int, ...] = (0,)) -> str:
    """Run a program of OpenSSH and return its stdout.

    Args:
        command: The program and its arguments.
        what: What the program reads, for messages.
        good: The exit codes of success.

    Raises:
        HostError: The program is not installed, fails, or takes longer than 30 s.
    """
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    except FileNotFoundError:
        raise HostError(f"reading {what}: {command[0]} is not installed here", "install the OpenSSH client") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"reading {what}: {shlex.join(command)} did not finish within 30 s") from None
    if done.returncode not in good:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise HostError(f"reading {what}: {lines[0]}", "correct the SSH configuration")
    return done.stdout.decode("utf-8", "replace")
