"""The only module that writes to the terminal: lines, notes, logs, errors, and one live line below them."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.errors import Interrupted, OrchError
from orchestrator.text import clean, log_text
from orchestrator.ui.folded_log import FoldedLog

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from orchestrator.ui.live_line import LiveLine

WAIT_S = 1.0  # seconds until the user is told what a command waits for
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
        self._status: LiveLine | None = None
        self._waits: dict[object, tuple[str, float]] = {}  # what is waited for, and since when
        self._status_is_wait = False  # the live line shows only what is waited for
        self._live_text, self._live_since = "", 0.0  # the last text of `live`, and since when
        self._table: Live | None = None
        self._log = FoldedLog()
        self._live_lines: list[str] = []  # of the log, as they are on the terminal now
        self._plain_at = time.monotonic() + plain_after

    def say(self, text: str, style: str = "") -> None:
        """Write a line to stdout, above the live line."""
        with self._writing:
            self._leave_log()
            is_live = self._status is not None and self._status.is_shown
            if self._status is not None and is_live:
                self._status.stop()  # while it is shown, rich sends stdout to stderr
            self._console.print(self._plain(text), style=style, soft_wrap=True)
            if self._status is not None and is_live:
                self._status.start()

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
                if self._status_is_wait:
                    self.quiet()  # the table says what is waited for
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

    def content(self, data: bytes) -> None:
        """Write a piece of a file to stdout: unchanged into a pipe or a file, safe to show on a terminal."""
        with self._writing:
            self._leave_log()
            _write(log_text(self.mask(data)).encode() if self.is_interactive else data)

    def end_log(self) -> None:
        """Write what is left of the log: nothing follows."""
        rest = self._log.finish()
        with self._writing:
            if not self.is_interactive:
                _write(rest)
            elif rest or self._live_lines:
                self._draw(rest if rest.endswith(b"\n") else rest + b"\n")

    def log_lines(self, label: str, style: str, lines: bytes) -> None:
        """Write lines of the log of one of several runs to stdout, each after `label`.

        To a file or a pipe they are written unchanged.
        """
        from rich.text import Text

        with self._writing:
            for line in lines.split(b"\n")[: None if lines[-1:] not in (b"", b"\n") else -1]:
                if self.is_interactive:
                    text = Text.assemble((f"{label} | ", style), log_text(line.replace(b"\r", b"")))
                    self._console.print(text, soft_wrap=True)
                else:
                    _write(f"{self.masked(label)} | ".encode() + line + b"\n")

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

    def live(self, text: str, is_long: bool = False, has_time: bool = True) -> None:
        """Show `text` as the live line, which stays below everything else.

        If stderr is not a terminal, do nothing. With `is_long` write it as a note, at most every PLAIN_EVERY seconds.

        Args:
            text: One line.
            is_long: Whether the wait may be long. Such a text says itself how long it has taken.
            has_time: Whether to add for how long it has been the text.
        """
        if not sys.stderr.isatty():
            if is_long and time.monotonic() >= self._plain_at:
                self._plain_at = time.monotonic() + PLAIN_EVERY
                self.note(text)
            return
        with self._writing:
            if text != self._live_text or self._status is None:
                self._live_text, self._live_since = text, time.monotonic()
            self._status_is_wait = False
            self._show_live(text, self._live_since if has_time and not is_long else None)

    def _show_live(self, text: str, since: float | None) -> None:
        if self._status is None:
            from orchestrator.ui.live_line import LiveLine  # rich takes a while to import

            self._status = LiveLine(self._error_console)
        self._status.update(self._plain(text), since)
        if not self._live_lines and not self._status.is_shown:
            self._status.start()

    def quiet(self) -> None:
        """Remove the live line."""
        if self._status is not None:
            status, self._status = self._status, None
            status.stop()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show `what` and the seconds on a terminal if the block takes longer than WAIT_S and nothing else is live."""
        if not sys.stderr.isatty():
            yield
            return
        wait = object()
        with self._writing:
            self._waits[wait] = what, time.monotonic()
        timer = threading.Timer(WAIT_S, self._show_waits)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._writing:
                del self._waits[wait]
                self._show_waits()

    def _show_waits(self) -> None:
        with self._writing:
            if self._table is not None or (self._status is not None and not self._status_is_wait):
                return
            old = time.monotonic() - WAIT_S
            found = {what: since for what, since in self._waits.values() if since <= old}
            self._status_is_wait = bool(found)
            if found:
                self._show_live(", ".join(found), min(found.values()))
            else:
                self.quiet()

    @property
    def has_hidden_cursor(self) -> bool:
        """Whether something live has hidden the cursor of the terminal."""
        return self._table is not None or (self._status is not None and self._status.is_shown)

    def approval(self, yes: bool) -> Callable[[str], bool]:
        """Return a function that asks the user a yes-or-no question.

        It returns True without asking if `yes` is set, and False if stdin is not a terminal.
        """

        def approve(question: str) -> bool:
            return yes if yes or not sys.stdin.isatty() else self.confirmed(question, err=True)

        return approve

    def confirmed(self, question: str, err: bool = False) -> bool:
        """Ask the user a yes-or-no question. Return False if stdin has ended.

        Raises:
            KeyboardInterrupt: The user pressed Ctrl-C.
        """
        import typer

        self.quiet()
        try:
            with self._writing:
                return typer.confirm(self.masked(clean(question)), err=err)
        except typer.Abort as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            return False

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
            for message, hint in error.mistakes or ((error.message, error.hint),):
                self._error_console.print(self._plain(f"orch: {message}"), style=style, soft_wrap=True)
                if hint:
                    self._error_console.print(self._plain(f"  hint: {hint}"), soft_wrap=True)

    def masked(self, text: str) -> str:
        """Return `text` with secrets replaced."""
        return self.mask(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def safe(self, text: str) -> str:
        """Return `text` as one line without secrets that is safe to show."""
        return clean(self.masked(text))

    @property
    def is_interactive(self) -> bool:
        """True if stdout is a terminal."""
        return sys.stdout.isatty()

    @property
    def has_marks(self) -> bool:
        """True if stdout can show signs such as ✓."""
        stream = sys.__stdout__ or sys.stdout  # rich replaces sys.stdout while a table is redrawn
        try:
            "✓✗".encode(stream.encoding or "ascii")
        except (LookupError, UnicodeEncodeError):
            return False
        return True

    def lines_of(self, renderable: Any) -> int:
        """Return how many lines of the terminal something takes."""
        return len(self._console.render_lines(renderable))

    @property
    def height(self) -> int:
        """The lines of the terminal."""
        return shutil.get_terminal_size().lines

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
