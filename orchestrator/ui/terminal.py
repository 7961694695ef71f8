"""The only writer to the terminal: lines, notes, one live line below them, the bytes of a log, errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.errors import Interrupted, OrchError
from orchestrator.text import LogText, clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

SPINNER_COLUMNS = 3  # beside the live line
WIDE = 200  # columns where the output is not a terminal


class Terminal:
    """Where text goes: results to stdout; notes, progress and errors to stderr."""

    def __init__(self) -> None:
        self.mask: Callable[[bytes], bytes] = bytes  # removes secrets from everything that is written
        self._status: Status | None = None
        self._log_text = LogText()

    def say(self, text: str, style: str = "") -> None:
        """A line on stdout."""
        self._console.print(self._plain(text), style=style, soft_wrap=True)

    def show(self, renderable: Any, soft_wrap: bool = False) -> None:
        """A table, or anything else that rich can lay out, on stdout."""
        self._console.print(renderable, soft_wrap=soft_wrap)

    def write(self, line: str) -> None:
        """A line on stdout as it is, for programs."""
        print(line, flush=True)

    @contextmanager
    def redrawn(self) -> Iterator[Callable[[Any], None]]:
        """Yield a function that replaces what is shown on the terminal by what it is given."""
        from rich.live import Live

        with Live(console=self._console, auto_refresh=False) as live:
            yield lambda renderable: live.update(renderable, refresh=True)

    def note(self, text: str) -> None:
        """A line on stderr: what a person wants to know and a pipe does not."""
        self._error_console.print(self._plain(text), style="dim", soft_wrap=True)

    def log(self, data: bytes) -> None:
        """Bytes of a log: unchanged into a file or a pipe, made harmless on a terminal."""
        if self._status is not None:
            self._status.stop()
        data = self.mask(data)
        sys.stdout.buffer.write(self._log_text.feed(data).encode() if self.is_interactive else data)
        sys.stdout.buffer.flush()
        if self._status is not None and data.endswith(b"\n"):
            self._status.start()

    def live(self, text: str) -> None:
        """One line that is kept up to date below everything else; on stderr, and only on a terminal."""
        if not sys.stderr.isatty():
            return
        if self._status is None:
            self._status = self._error_console.status("", spinner="line")
            self._status.start()
        line = self._plain(text)
        # A second row would be erased by its redrawing together with the row of the log above it.
        line.truncate(max(1, self._error_console.width - SPINNER_COLUMNS), overflow="ellipsis")
        self._status.update(line)

    def quiet(self) -> None:
        """Remove the live line."""
        if self._status is not None:
            status, self._status = self._status, None
            with suppress(IndexError):  # Ctrl-C came while rich was starting it: there is nothing to stop yet
                status.stop()

    def approval(self, yes: bool) -> Callable[[str], bool]:
        """Return a function that asks a yes-or-no question.

        With `yes` it answers yes without asking; where stdin is not a terminal it answers no.
        """

        def approve(question: str) -> bool:
            if yes or not sys.stdin.isatty():
                return yes
            import typer

            self.quiet()
            try:
                return typer.confirm(self.masked(clean(question)), err=True)
            except typer.Abort:
                return False

        return approve

    def problem(self, error: OrchError) -> None:
        """An error and its hint, on stderr."""
        style = "yellow" if isinstance(error, Interrupted) else "bold red"
        self._error_console.print(self._plain(f"orch: {error.message}"), style=style, soft_wrap=True)
        if error.hint:
            self._error_console.print(self._plain(f"  hint: {error.hint}"), soft_wrap=True)

    def masked(self, text: str) -> str:
        """Return `text` without secrets."""
        return self.mask(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    @property
    def is_interactive(self) -> bool:
        """Whether stdout is a terminal."""
        return sys.stdout.isatty()

    def _plain(self, text: str) -> Text:
        from rich.text import Text

        # Never markup: a log line or a path may hold brackets. Hidden characters are made visible here, once for all.
        return Text(clean_lines(self.masked(text)))

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)

    @cached_property
    def _error_console(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDE)


def clean_lines(text: str) -> str:
    """Several lines, each made harmless."""
    return "\n".join(clean(part) for part in text.split("\n"))
