from __future__ import annotations

import signal
import subprocess
import sys

from tests.support import ROOT

PRESS_DURING_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
{before}
from orchestrator.program import main
main()
"""


def run(before: str) -> subprocess.CompletedProcess[str]:
    source = PRESS_DURING_IMPORT.format(before=before)
    return subprocess.run(
        [sys.executable, "-c", source, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_interrupt_during_the_imports_prints_no_traceback() -> None:
    done = run("")
    assert done.returncode == -signal.SIGINT
    assert done.stdout + done.stderr == ""


def test_ignored_interrupt_stays_ignored() -> None:
    done = run("signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert done.returncode == 0
