"""docs/your-own-script.md, followed to the letter: each file is written, each command is run, each output compared."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, SshdBox

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)  # and what it prints
# The box of this test has no GPU, and the user's crontab is left alone.
HOST = f'"{sys.executable}"\ngpus = 0\nsurvive_reboot = false'
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.timeout(300)
def test_page_for_newcomers_is_right(
    tmp_path: Path, home: Path, sshd_box: SshdBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    sshd_box.add_host("gpu1")
    (home / ".ssh").mkdir(mode=0o700)
    shutil.copy(sshd_box.config, home / ".ssh" / "config")
    project = tmp_path / "blobs"
    project.mkdir()
    seen = 0
    for kind, text in BLOCK.findall((ROOT / "docs" / "your-own-script.md").read_text()):
        first, _, rest = text.partition("\n")
        if kind == "python":
            (project / first.removeprefix("# ")).write_text(rest)
        elif kind == "toml":
            with (project / "jobs.toml").open("a") as spec:  # the page says that it is added to the end
                spec.write("\n" + text.replace('"/path/on/the/box/to/python"', HOST))
        elif kind == "console":
            for command, output in COMMAND.findall(text):
                compare(command, output, project)
                seen += 1
    assert seen > 10


def compare(command: str, output: str, project: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=project,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    said = f"$ {command}\n{done.stdout}"
    assert done.returncode == 0, said
    assert doctest.OutputChecker().check_output(output, done.stdout, SAME), f"{said}\nthe page says:\n{output}"
