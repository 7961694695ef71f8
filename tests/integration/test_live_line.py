"""What a person sees in a terminal while a command waits: a spinner with the seconds, and a cursor after Ctrl-Z."""

from __future__ import annotations

import shlex

from tests.in_terminal import InTerminal
from tests.integration.conftest import Orch

CTRL_Z = "\x1a"
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def test_terminal_tells_which_host_a_command_waits_for(ssh_orch: Orch) -> None:
    assert ssh_orch.box is not None
    ssh_orch.job("train")
    ssh_orch.box.freeze()
    shown = InTerminal(ssh_orch.command("doctor", "gpu1"), ssh_orch.project)
    try:
        shown.expect("waiting for gpu1")
        shown.expect("  3 s")
        ssh_orch.box.thaw()
        shown.expect("gpu1: connection")
        assert shown.wait() == 0
    finally:
        ssh_orch.box.thaw()
        shown.close()


def test_cursor_is_shown_while_a_command_is_stopped(local_orch: Orch) -> None:
    local_orch.job("train", "end")
    shown = InTerminal(["bash", "--norc", "--noprofile", "-i"], local_orch.project)
    try:
        shown.type(shlex.join(local_orch.command("launch", "train", "--wait")) + "\n")
        shown.expect(HIDE_CURSOR)
        shown.expect("train running")
        shown.type(CTRL_Z)
        assert SHOW_CURSOR in shown.expect("Stopped")
        shown.type("fg\n")
        shown.expect(HIDE_CURSOR)
        local_orch.open("end")
        shown.expect("succeeded")
        shown.type("exit\n")
        assert shown.wait() == 0
    finally:
        shown.close()
