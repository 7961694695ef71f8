"""Which SSH server a host has, and which key exchange `ssh` uses with it."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress

from orchestrator.box.transport import Handshake
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.endpoint import CONNECT_S, HANDSHAKE_S
from orchestrator.ssh.master_login import end_group
from orchestrator.system.limits import calling_after

MAX_LINES = 1000  # of the messages of ssh
_SOFTWARE = re.compile(rb"debug1: Remote protocol version [0-9.]+, remote software version ([^\r\n]{1,300})")
_KEX = re.compile(rb"debug1: kex: algorithm: ([!-~]{1,100})")


def handshake_of(destination: Destination, config: SshConfig) -> Handshake | None:
    """Return what the server and `ssh` tell each other; None if they do not get that far.

    A master does not report it, so this connects once more. It does not log in: it ends when the key exchange is known.
    The option, unlike `-v`, is not passed on to the `ssh` of a jump host, whose messages would be mixed with these.
    """
    options = ["-o", "LogLevel=DEBUG1", "-o", "PreferredAuthentications=none", *destination.options()]
    command = ["ssh", "-F", str(config.file()), *options, "-N", "--", destination.host]
    software = b""
    with suppress(OSError):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stderr is not None
        limit_s = (CONNECT_S + HANDSHAKE_S) * len(config.route())
        try:
            with process.stderr, calling_after(limit_s, lambda: end_group(process)):
                for _ in range(MAX_LINES):
                    line = process.stderr.readline(1 << 16)
                    if found := _SOFTWARE.match(line):
                        software = found[1]
                    elif found := _KEX.match(line):
                        return Handshake(software.decode("utf-8", "replace"), found[1].decode("ascii"))
                    elif not line:
                        break
        finally:
            end_group(process)
            process.wait()
    return None
