"""A command in a real terminal, for tests: what a person types and sees."""

from __future__ import annotations

import fcntl
import os
import subprocess
import termios
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import wait_until


class InTerminal:
    """A command in a terminal of its own, as a shell would start it."""

    def __init__(self, command: Sequence[str], folder: Path, **streams: Any) -> None:
        self._ours, self._theirs = terminal = os.openpty()
        self.shown = ""
        self._seen = 0
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(terminal[1], termios.TIOCSCTTY, 0),
            pass_fds=[self._theirs],
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
            **{name: streams.get(name, self._theirs) for name in ("stdin", "stdout", "stderr")},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def expect(self, text: str) -> str:
        """Wait until the terminal shows `text`, after what was expected before. Return what it shows in between."""
        wait_until(lambda: text in self.shown[self._seen :], 60, f"{text!r}; the terminal shows {self.shown!r}")
        before, _, _ = self.shown[self._seen :].partition(text)
        self._seen += len(before) + len(text)
        return before

    def since(self) -> str:
        """Return what the terminal shows after what was expected."""
        return self.shown[self._seen :]

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait(self) -> int:
        return self.process.wait(60)

    def echoes(self) -> bool:
        """Return whether the terminal shows what is typed."""
        return bool(termios.tcgetattr(self._theirs)[3] & termios.ECHO)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in filter(None, (self.process.stdin, self.process.stdout)):
            pipe.close()
        os.close(self._theirs)
        self._reader.join(10)
        os.close(self._ours)

    def _read(self) -> None:
        while True:
            try:
                self.shown += os.read(self._ours, 1 << 16).decode()
            except OSError:  # EIO: no process has the terminal open any more
                return
