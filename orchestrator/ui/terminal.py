"""The only module that writes to the terminal: lines, notes, logs, errors, and one live line below them."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.errors import Interrupted, OrchError
from orchestrator.text import clean, log_text
from orchestrator.ui.folded_log import FoldedLog

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.status import Status
    from rich.text import Text

SPINNER_COLUMNS = 3  # columns of the live line that the spinner takes
FIRST_PLAIN, PLAIN_EVERY = 5.0, 10.0  # seconds until the first live line is written without a terminal; between two
WIDE = 200  # columns if the output is not a terminal
UP = "\x1b[{}A"  # moves the cursor up by that many lines
ERASE_BELOW = "\x1b[J"  # from the cursor to the end of the screen


class Terminal:
    """Writes results to stdout, and notes, progress and errors to stderr. Makes text safe to show.

    While another program asks the user something (`asking`), all that writes waits.

    Attributes:
        mask: Replaces secrets in everything that is written.
    """

    def __init__(self, plain_after: float = FIRST_PLAIN) -> None:
        """Create the writer. `plain_after`: see FIRST_PLAIN."""
        self.mask: Callable[[bytes], bytes] = bytes
        self._writing = threading.RLock()
        self._status: Status | None = None
        self._table: Live | None = None
        self._log = FoldedLog()
        self._live_lines: list[str] = []  # of the log, as they are on the terminal now
        self._plain_at = time.monotonic() + plain_after

    def say(self, text: str, style: str = "") -> None:
        """Write a line to stdout."""
        with self._writing:
            self._leave_log()
            self._console.print(self._plain(text), style=style, soft_wrap=True)

    def show(self, renderable: Any, soft_wrap: bool = False) -> None:
        """Write a table, or anything else that rich can lay out, to stdout. The caller masks its secrets."""
        with self._writing:
            self._leave_log()
            self._console.print(renderable, soft_wrap=soft_wrap)

    def write(self, line: str) -> None:
        """Write a line to stdout unchanged, for programs. The caller masks its secrets."""
        with self._writing:
            print(line, flush=True)

    @contextmanager
    def redrawn(self) -> Iterator[Callable[[Any], None]]:
        """Yield a function that shows its argument in place of the previous one."""
        from rich.live import Live

        def redraw(renderable: Any) -> None:
            with self._writing:
                live.update(renderable, refresh=True)

        live = Live(console=self._console, auto_refresh=False)
        try:
            with self._writing:
                self._table = live
                live.start()
            yield redraw
        finally:  # without waiting: the command may be ending because of Ctrl-C
            self._table = None
            live.stop()

    def note(self, text: str) -> None:
        """Write a dim line to stderr, for what is not part of the result."""
        with self._writing:
            self._leave_log()
            self._error_console.print(self._plain(text), style="dim", soft_wrap=True)

    def log(self, data: bytes) -> None:
        """Write bytes of a log to stdout, folded (see `FoldedLog`).

        A file or a pipe gets the lines that have settled, unchanged. On a terminal, they are made safe to show, and
        the live lines are redrawn below them.
        """
        settled = self._log.feed(self.mask(data))
        with self._writing:
            if self.is_interactive:
                self._draw(settled)
            else:
                _write(settled)

    def end_log(self) -> None:
        """Write what is left of the log: nothing follows."""
        rest = self._log.finish()
        with self._writing:
            if not self.is_interactive:
                _write(rest)
            elif rest or self._live_lines:
                self._draw(rest if rest.endswith(b"\n") else rest + b"\n")

    def _draw(self, settled: bytes) -> None:
        """Replace the live lines of the log on the terminal: by lines that have settled, and the live ones of now."""
        size = shutil.get_terminal_size()
        lines = [_cut(log_text(line), size.columns - 1) for line in self._log.live[-max(1, size.lines - 2) :]]
        if not settled and lines == self._live_lines:
            return
        if self._status is not None:
            self._status.stop()
        erase = f"\r{UP.format(len(self._live_lines) - 1) if len(self._live_lines) > 1 else ''}{ERASE_BELOW}"
        text = (erase if self._live_lines else "") + log_text(settled) + "\n".join(lines)
        self._live_lines = lines
        _write(text.encode())
        if self._status is not None and not lines:
            self._status.start()

    def _leave_log(self) -> None:
        """Leave the live lines of the log where they are: something else follows them."""
        if self._live_lines:
            self._live_lines = []
            _write(b"\n")

    def live(self, text: str, is_long: bool = False) -> None:
        """Show `text` as the live line, which stays below everything else.

        If stderr is not a terminal, do nothing. With `is_long` write it as a note, at most every PLAIN_EVERY seconds.
        """
        if not sys.stderr.isatty():
            if is_long and time.monotonic() >= self._plain_at:
                self._plain_at = time.monotonic() + PLAIN_EVERY
                self.note(text)
            return
        line = self._plain(text)
        # Only one row, because rich would erase a second one together with the row of the log above it.
        line.truncate(max(1, self._error_console.width - SPINNER_COLUMNS), overflow="ellipsis")
        with self._writing:
            if self._status is None:
                self._status = self._error_console.status("", spinner="line")
            self._status.update(line)
            if not self._live_lines:
                self._status.start()

    def quiet(self) -> None:
        """Remove the live line."""
        if self._status is not None:
            status, self._status = self._status, None
            with suppress(IndexError):  # Ctrl-C interrupted the start of the live line, so there is nothing to stop
                status.stop()

    def approval(self, yes: bool) -> Callable[[str], bool]:
        """Return a function that asks the user a yes-or-no question.

        It returns True without asking if `yes` is set, and False if stdin is not a terminal.
        """

        def approve(question: str) -> bool:
            if yes or not sys.stdin.isatty():
                return yes
            import typer

            self.quiet()
            try:
                with self._writing:
                    return typer.confirm(self.masked(clean(question)), err=True)
            except typer.Abort:
                return False

        return approve

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Let another program ask the user something in the block.

        The live line and the table disappear meanwhile, and other threads wait before they write.
        """
        with self._writing:
            self._leave_log()
            if self._status is not None:
                self._status.stop()
            if self._table is not None:
                self._table.transient = True  # erase it
                self._table.stop()
                self._table.transient = False
            try:
                yield
            finally:
                if self._table is not None:
                    self._table.start()
                if self._status is not None:
                    self._status.start()

    def problem(self, error: OrchError) -> None:
        """Write an error and its hint to stderr."""
        with self._writing:
            self._leave_log()
            style = "yellow" if isinstance(error, Interrupted) else "bold red"
            self._error_console.print(self._plain(f"orch: {error.message}"), style=style, soft_wrap=True)
            if error.hint:
                self._error_console.print(self._plain(f"  hint: {error.hint}"), soft_wrap=True)

    def masked(self, text: str) -> str:
        """Return `text` with secrets replaced."""
        return self.mask(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    @property
    def is_interactive(self) -> bool:
        """True if stdout is a terminal."""
        return sys.stdout.isatty()

    def _plain(self, text: str) -> Text:
        from rich.text import Text

        # A Text, because rich would read brackets in a str, such as those of a path, as markup.
        return Text(clean_lines(self.masked(text)))

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)

    @cached_property
    def _error_console(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDE)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _cut(line: str, columns: int) -> str:
    """Return the beginning of a line that fits on one row of the terminal."""
    from rich.text import Text

    text = Text(line.expandtabs())
    text.truncate(max(1, columns))
    return text.plain


def clean_lines(text: str) -> str:
    """Return `text` with each line made safe to show, and the line breaks kept."""
    return "\n".join(clean(part) for part in text.split("\n"))
