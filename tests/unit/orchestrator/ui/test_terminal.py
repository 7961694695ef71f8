from __future__ import annotations

import pytest

from orchestrator.ui.terminal import Terminal


def test_long_wait_is_written_sparsely_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """capsys is no terminal."""
    early, terminal = Terminal(plain_after=600), Terminal(plain_after=0)
    early.live("rehearsing train: 1 s", is_long=True)
    terminal.live("sending 3 files")
    for second in (14, 15):
        terminal.live(f"rehearsing train: {second} s of at most 60 s", is_long=True)
    assert capsys.readouterr().err == "rehearsing train: 14 s of at most 60 s\n"
