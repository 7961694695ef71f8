"""The only writer to the terminal: lines, notes, one live line below them, JSON documents, errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.errors import Interrupted, OrchError
from orchestrator.text import LogText, clean
from orchestrator.ui.documents import error_record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

SCHEMA = 1
SPINNER_COLUMNS = 3  # beside the live line
WIDE = 200  # columns where the output is no terminal: a line a run, uncut


class Terminal:
    """Where text goes. With `as_json`, stdout holds JSON documents and nothing else."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.mask: Callable[[bytes], bytes] = bytes  # takes secrets out of all that is written
        self._status: Status | None = None
        self._has_result = False
        self._log_text = LogText()

    # --- lines and documents -------------------------------------------------------------------------

    def say(self, text: str, style: str = "") -> None:
        if not self.as_json:
            self._console.print(self._plain(text), style=style, soft_wrap=True)

    def show(self, renderable: Any) -> None:
        """A table, or what else rich can lay out."""
        self._console.print(renderable)

    @contextmanager
    def redrawn(self) -> Iterator[Callable[[Any], None]]:
        """What is given last is what stands there; on a terminal."""
        from rich.live import Live

        with Live(console=self._console, auto_refresh=False) as live:
            yield lambda renderable: live.update(renderable, refresh=True)

    def note(self, text: str) -> None:
        """On stderr: what a person wants to know and a pipe does not."""
        self._error_console.print(self._plain(text), style="dim", soft_wrap=True)

    def document(self, kind: str, **facts: Any) -> None:
        print(json.dumps({"schema": SCHEMA, "kind": kind, **self._masked(facts)}), flush=True)
        self._has_result = True

    def log(self, data: bytes) -> None:
        """Bytes of a log: as they are into a file or a pipe, made harmless on a terminal."""
        if self._status is not None:
            self._status.stop()
        data = self.mask(data)
        sys.stdout.buffer.write(self._log_text.feed(data).encode() if sys.stdout.isatty() else data)
        sys.stdout.buffer.flush()
        if self._status is not None and data.endswith(b"\n"):
            self._status.start()

    def live(self, text: str) -> None:
        """One line that is kept up to date below everything else; on stderr, and only on a terminal."""
        if self.as_json or not sys.stderr.isatty():
            return
        if self._status is None:
            self._status = self._error_console.status("", spinner="line")
            self._status.start()
        line = self._plain(text)
        # A second row would be erased by its redrawing together with the row of the log above it.
        line.truncate(max(1, self._error_console.width - SPINNER_COLUMNS), overflow="ellipsis")
        self._status.update(line)

    def approval(self, yes: bool) -> Callable[[str], bool]:
        """A function that asks a question and says whether the answer is yes: to all of them with `yes`, to none
        where nobody sits at stdin.
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

    def quiet(self) -> None:
        if self._status is not None:
            status, self._status = self._status, None
            with suppress(IndexError):  # Ctrl-C came while rich was starting it: there is nothing to stop yet
                status.stop()

    def error(self, error: OrchError) -> None:
        """The error that ends the command, as far as the streams can still be written: they may be what failed."""
        with suppress(OSError):
            self.quiet()
        with suppress(OSError):
            if self.as_json and not self._has_result:  # a result names the errors that it has met itself
                self.document("error", error=error_record(error))
        with suppress(OSError):
            self.problem(error)

    def problem(self, error: OrchError) -> None:
        """An error, on stderr; the command goes on."""
        style = "yellow" if isinstance(error, Interrupted) else "bold red"
        self._error_console.print(self._plain(f"orch: {error.message}"), style=style, soft_wrap=True)
        if error.hint:
            self._error_console.print(self._plain(f"  hint: {error.hint}"), soft_wrap=True)

    def masked(self, text: str) -> str:
        return self.mask(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def _plain(self, text: str) -> Text:
        from rich.text import Text

        # Never markup: a log line or a path may hold brackets. What is hidden is made visible here too, once for all.
        return Text(clean_lines(self.masked(text)))

    def _masked(self, value: Any) -> Any:
        """A value of a document; the keys too, since a worker names its metrics."""
        if isinstance(value, str):
            return self.masked(value)
        if isinstance(value, Mapping):
            return {self.masked(key): self._masked(item) for key, item in value.items()}
        return [self._masked(item) for item in value] if isinstance(value, (list, tuple)) else value

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
