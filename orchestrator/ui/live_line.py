"""The live line of a terminal: a spinner, what is being done, and for how long."""

from __future__ import annotations

import time
from contextlib import suppress

from rich.console import Console
from rich.live import Live
from rich.text import Text

from orchestrator.text import duration

FRAMES, FRAME_S = "-\\|/", 0.13  # the spinner, and how long each of its frames stays
SHOWN_S = 1.0  # seconds until the line says for how long it has been there


class LiveLine:
    """One row below everything else on the terminal, redrawn by a thread of rich."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = Text()
        self._since: float | None = None
        # Transient: it is erased when it stops.
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=True)

    def update(self, text: Text, since: float | None) -> None:
        """Show `text`, and the seconds since the monotonic time `since`, if there is one."""
        self._text, self._since = text, since
        if self._live.is_started:
            self._live.refresh()

    def start(self) -> None:
        """Show the line."""
        self._live.start()

    def stop(self) -> None:
        """Erase the line."""
        with suppress(IndexError):  # Ctrl-C interrupted the start, so there is nothing to stop
            self._live.stop()

    @property
    def is_shown(self) -> bool:
        """Whether the line is on the terminal now."""
        return self._live.is_started

    def _render(self) -> Text:
        now = time.monotonic()
        took = now - self._since if self._since is not None else 0.0
        spinner = FRAMES[int(now / FRAME_S) % len(FRAMES)]
        end = f"  {duration(took)}" if took >= SHOWN_S else ""
        text = self._text.copy()
        # Only one row, because rich would erase a second one together with the row of the log above it.
        text.truncate(max(1, self._console.width - len(f"{spinner} {end}") - 1), overflow="ellipsis")
        return Text.assemble(spinner, " ", text, (end, "dim"))
