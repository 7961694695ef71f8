"""How `orch ls`, `orch cat` and `orch open` show their results."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.errors import Refused
from orchestrator.text import clean, counted, size_text
from orchestrator.ui.columns import aligned
from orchestrator.ui.look_objects import (
    ContentObject,
    ListingObject,
    OpenedObject,
    content_to_json,
    listing_to_json,
    opened_to_json,
)
from orchestrator.ui.show_text import age_text

if TYPE_CHECKING:
    from orchestrator.commands.run_contents import DirectoryListing, Entry, Opened, RunFile
    from orchestrator.ui.terminal import Terminal

MAX_SHOWN = 1 << 20  # bytes of a file that are written to a terminal, or into a document
BINARY = b"\0"


class ListView:
    """The entries of one directory of a run."""

    kind = "ls"

    def __init__(self, listing: DirectoryListing) -> None:
        self._listing = listing

    def write(self, terminal: Terminal) -> None:
        """Write one line for each entry: its size, whether it is here, its path."""
        listing = self._listing
        if listing.seen.error:
            terminal.note(f"{listing.seen.error.message}; what is here is listed")
        rows = [
            [size_text(entry.bytes), "" if entry.is_here else "not here", _named(entry)] for entry in listing.entries
        ]
        for text in aligned(rows) if rows else ():
            terminal.say(text)
        age = age_text(listing.seen, time.time())
        if age:
            terminal.note(age)

    def facts(self) -> ListingObject:
        """Return the document."""
        return listing_to_json(self._listing)


def _named(entry: Entry) -> str:
    files = f" ({counted(entry.files, 'file')})" if entry.path.endswith("/") else ""
    return clean(entry.path) + files


class ContentView:
    """The content of a file: byte by byte into a pipe or a file, safe to show on a terminal."""

    kind = "cat"

    def __init__(self, file: RunFile) -> None:
        self._file = file

    def write(self, terminal: Terminal) -> None:
        """Write the content. Raise Refused if it is binary and would be written to a terminal."""
        file = self._file
        if file.seen.error:
            terminal.note(f"{file.seen.error.message}; the copy of {clean(file.path)} here is shown")
        if not terminal.is_interactive:
            for piece in file.pieces():
                terminal.content(piece)
            return
        start = b"".join(_start(file))
        if BINARY in start:
            words = clean(shlex.join([file.seen.known.run_id, file.path]))
            raise Refused(f"{clean(file.path)} is not text", f"to get it: orch cat {words} > FILE")
        terminal.content(start if not start or start.endswith(b"\n") else start + b"\n")
        if file.size > len(start):
            terminal.note(f"the first {size_text(len(start))} of {size_text(file.size)}; all of it: {file.place}")

    def facts(self) -> ContentObject:
        """Return the document, with at most MAX_SHOWN bytes of the content."""
        return content_to_json(self._file, b"".join(_start(self._file)))


def _start(file: RunFile) -> Iterator[bytes]:
    left = MAX_SHOWN
    for piece in file.pieces():
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return


class OpenedView:
    """The directory of the copy of a run."""

    kind = "open"

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    def write(self, terminal: Terminal) -> None:
        """Write the directory, whether a file manager shows it or not."""
        terminal.say(str(self._opened.directory))

    def facts(self) -> OpenedObject:
        """Return the document."""
        return opened_to_json(self._opened)
