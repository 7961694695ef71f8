from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from orchestrator.ui.terminal import Terminal
from tests.support import wait_until


def test_long_wait_is_written_sparsely_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """capsys is no terminal."""
    early, terminal = Terminal(plain_after=600), Terminal(plain_after=0)
    early.live("rehearsing train: 1 s", is_long=True)
    terminal.live("sending 3 files")
    for second in (14, 15):
        terminal.live(f"rehearsing train: {second} s of at most 60 s", is_long=True)
    assert capsys.readouterr().err == "rehearsing train: 14 s of at most 60 s\n"


@contextmanager
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bytes]]:
    """Make stderr a terminal. Yield a function that returns what it shows since the last call."""
    ours, its = os.openpty()
    os.set_blocking(ours, False)

    def read() -> bytes:
        data = b""
        with suppress(BlockingIOError):
            while chunk := os.read(ours, 65536):
                data += chunk
        return data

    with open(its, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "80")
        patch.setattr(sys, "stderr", stream)
        yield read
    os.close(ours)


def test_nothing_is_written_while_another_program_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_terminal(monkeypatch) as shown:
        check_that_all_wait(shown)


def check_that_all_wait(shown: Callable[[], bytes]) -> None:
    terminal, texts = Terminal(), ["sending 2 files", "a note"]
    terminal.live("sending 1 file")
    wait_until(lambda: b"sending 1 file" in shown(), what="the live line")
    with terminal.asking():
        shown()  # it is erased
        writers = [
            threading.Thread(target=terminal.live, args=[texts[0]]),
            threading.Thread(target=terminal.note, args=[texts[1]]),
        ]
        for writer in writers:
            writer.start()
            writer.join(0.3)  # the spinner turns several times meanwhile
            assert writer.is_alive()
        assert shown() == b""
    for writer in writers:
        writer.join()
    after = b""

    def all_are_written() -> bool:
        nonlocal after
        after += shown()
        return all(text.encode() in after for text in texts)

    wait_until(all_are_written, what="what had to wait")
    terminal.quiet()
