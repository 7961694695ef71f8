"""What OpenSSH's words on stderr mean: the errors of orch for them, which quote its last line."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from orchestrator.box.transport import TRY_AGAIN
from orchestrator.errors import HostError, HostKeyRefused, HostUnreachable, LoginRefused
from orchestrator.ssh.command import last_line
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.endpoint import CONNECT_S, HANDSHAKE_S, Endpoint
from orchestrator.ssh.key_files import notes_on
from orchestrator.ssh.known_hosts import KnownKeys, is_in_revoked_file, known_keys, parse_known_keys
from orchestrator.ssh.refusals import ALGORITHM_HINT, LOGIN_HINT, KeyRefusal, no_connection, not_reached_from

_HOST_KEY = re.compile(r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED|marked as revoked")
_CERTIFICATE = re.compile(r"Certificate invalid: [^\r\n]+")
_LOGIN = re.compile(r"Permission denied \(|Too many authentication failures|No supported authentication methods")
_ALGORITHM = re.compile(r"Unable to negotiate with|no matching [\w ]+ found|Invalid key length|invalid.*key length")
_CONFIGURATION = re.compile(
    r"[Bb]ad configuration option|terminating, \d+ bad|Bad owner or permissions|keyword .* extra"
)
_FORWARDING = re.compile(r"open failed: (.*)")
_CONNECTION = (
    ("refused", re.compile(r"Connection refused")),
    ("no banner", re.compile(r"timed out during banner exchange")),
    ("no answer", re.compile(r"(?:Connection|Operation) timed out|Connection timeout|No route to host|unreachable")),
    ("name", re.compile(r"Could not resolve hostname")),
)
# What ssh says last if a jump host or a ProxyCommand failed, which has said why before.
_UNHELPFUL = re.compile(rb"^.*(?:UNKNOWN port 65535|kex_exchange_identification: ).*$", re.MULTILINE)
NO_REASON = b"Connection closed by UNKNOWN port 65535"
TOO_MANY_KEYS = (
    "the key agent offers too many keys: set `identity` of this host in jobs.toml, which is then tried first"
)


def is_login_refused(errors: bytes) -> bool:
    """Return whether the server accepted none of what ssh could offer without asking."""
    text = errors.decode("utf-8", "replace")
    return _LOGIN.search(text) is not None and not _HOST_KEY.search(text)


def has_no_reason(errors: bytes) -> bool:
    """Return whether ssh said only that a jump host or a ProxyCommand has ended."""
    return b"UNKNOWN port" in errors and not _UNHELPFUL.sub(b"", errors).strip()


def failure(doing: str, host: str, destination: Destination, config: SshConfig, errors: bytes) -> HostError:
    """Return the error for an `ssh` that could not connect or log in.

    Args:
        doing: The start of the message.
        host: The host's name in jobs.toml.
        destination: The host for ssh.
        config: Its configuration.
        errors: What ssh wrote to stderr.
    """
    text = errors.decode("utf-8", "replace")
    reason = last_line(errors if has_no_reason(errors) else _UNHELPFUL.sub(b"", errors))
    if _HOST_KEY.search(text):
        said = _CERTIFICATE.search(text)
        return _key_refused(doing, host, destination, config, said[0] if said else reason)
    if _ALGORITHM.search(text):
        return HostError(f"{doing}: the host and this machine share no algorithm: {reason}", ALGORITHM_HINT)
    if _LOGIN.search(text):
        hint = TOO_MANY_KEYS if "Too many" in text else LOGIN_HINT
        files = "; ".join([reason, *notes_on(config.endpoint(destination).identities)])
        return LoginRefused(f"{doing}: the host does not accept this user or key: {files}", hint)
    if _CONFIGURATION.search(text):
        return HostError(f"{doing}: {reason}", "correct the SSH configuration")
    route = config.route()
    if len(route) > 1 and (blocked := _FORWARDING.search(text)):
        return not_reached_from(doing, route[-2][1].name, route[-1][1], blocked[1].strip())
    for kind, pattern in _CONNECTION:
        if pattern.search(text):
            return no_connection(doing, kind, f": {reason}")
    if not text.strip():
        reason = "the connection was cut off"
    return HostUnreachable(f"{doing}: {reason}", TRY_AGAIN)


# --- host keys -----------------------------------------------------------------------------------------


def _key_refused(doing: str, host: str, destination: Destination, config: SshConfig, reason: str) -> HostError:
    """Return the error for a host key that ssh refused: the key of the host or of a jump host."""
    for hop, endpoint in config.route():
        shown = shown_key(hop, config)
        if shown is None:
            break
        refusal = refusal_of(endpoint, *shown, reason)
        if refusal is not None and refusal.known.authorities and refusal.why == "unknown" and hop != destination:
            continue  # ssh may have accepted its certificate; the next hops show whether one of them was refused
        if refusal is not None:
            is_host = hop == destination
            label = host if is_host else f"{endpoint.name}, on the way to {host}"
            error = refusal.error(f"connecting to {label} ({endpoint})")
            if is_host:
                error.hint = error.hint.replace("orch trust HOST", f"orch trust {host}")
            return error
    return HostKeyRefused(f"{doing}: {reason}", "compare its key with another source, then pin it: orch trust")


def refusal_of(endpoint: Endpoint, kind: str, key: bytes, reason: str = "it has none") -> KeyRefusal | None:
    """Return why a key that a host shows is not trusted; None if it is. `reason` is what ssh says of a certificate."""
    known = known_keys(endpoint)
    if key in known.revoked or is_in_revoked_file(endpoint, kind, key):
        return KeyRefusal(endpoint, known, kind, key, "revoked")
    if key not in [trusted for _, trusted in known.trusted]:
        why = "changed" if known.trusted else "unknown"
        return KeyRefusal(endpoint, known, kind, key, why, certificate=reason)
    return None


def shown_key(
    destination: Destination, config: SshConfig, run: Callable[[list[str]], object] | None = None
) -> tuple[str, bytes] | None:
    """Return the type of the key that a host shows now, and the key in the wire format; None if it shows none.

    ssh accepts and records any key in an empty file. It does not log in.

    Args:
        destination: The host.
        config: Its configuration.
        run: Runs an `ssh` whose jump hosts may ask; None if they may not.
    """
    with tempfile.TemporaryDirectory(prefix="orch-") as folder:
        file = Path(folder, "known_hosts")
        accept = ["StrictHostKeyChecking=accept-new", f"UserKnownHostsFile={file}", "GlobalKnownHostsFile=/dev/null"]
        accept += [
            "PreferredAuthentications=none",
            "HashKnownHosts=no",
            "RevokedHostKeys=none",
            "ControlPath=none",
            "LogLevel=ERROR",
        ]
        options = [word for option in accept for word in ("-o", option)]
        command = ["ssh", "-F", str(config.file(asks=run is not None)), *options, *destination.options()]
        command += ["-N", "--", destination.host]
        try:
            if run is not None:
                run(command)
            else:
                limit = (CONNECT_S + HANDSHAKE_S) * len(config.route())
                null = subprocess.DEVNULL
                subprocess.run(command, stdin=null, capture_output=True, timeout=limit, start_new_session=True)
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except (OSError, subprocess.TimeoutExpired):
            return None
    found: KnownKeys = parse_known_keys((), lines)
    return found.trusted[0] if found.trusted else None
