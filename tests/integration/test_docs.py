"""The pages for newcomers, followed to the letter: each file is written, each command is run, each output compared.

In a page, `...` stands for anything. A Python block begins with the name of its file; a TOML block is added to
jobs.toml. Comments of the page, which readers do not see, tell what happens in between:

    <!-- the box goes off -->  <!-- the box is back -->  <!-- exit code 3 -->   (of the next command)
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import ROOT, SshdBox

PART = re.compile(r"^```(\w+)\n(.*?)^```$|^<!-- ([^\n]*) -->$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)  # and what it prints
# The box of this test has no GPU, and the user's crontab is left alone.
HOST = f'"{sys.executable}"\ngpus = 0\nsurvive_reboot = false'
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass
class Reader:
    """Somebody who follows a page with a box that is called gpu1."""

    directory: Path  # where they are
    box: SshdBox
    commands: int = 0
    expects: int = 0  # the exit code of the next command

    def follow(self, page: Path) -> None:
        for kind, text, remark in PART.findall(page.read_text(encoding="utf-8")):
            if kind == "python":
                first, _, rest = text.partition("\n")
                (self.directory / first.removeprefix("# ")).write_text(rest)
            elif kind == "toml":
                with (self.directory / "jobs.toml").open("a") as spec:
                    spec.write("\n" + text.replace('"/path/on/the/box/to/python"', HOST))
            elif kind == "console":
                for command, output in COMMAND.findall(text):
                    self.type(command, output)
            elif remark == "the box goes off":
                self.box.stop()
            elif remark == "the box is back":
                self.box.start()
            elif code := re.fullmatch(r"exit code (\d)", remark):
                self.expects = int(code[1])

    def type(self, command: str, output: str) -> None:
        self.commands += 1
        if command.startswith("cd "):
            self.directory = (self.directory / command.removeprefix("cd ")).resolve(strict=True)
            return
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        said = f"$ {command}\n{done.stdout}"
        assert done.returncode == self.expects, said
        assert doctest.OutputChecker().check_output(output, done.stdout, SAME), f"{said}\nthe page says:\n{output}"
        self.expects = 0


@pytest.fixture
def reader(tmp_path: Path, home: Path, sshd_box: SshdBox, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A Reader")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "reader@example.com")
    sshd_box.add_host("gpu1")
    (home / ".ssh").mkdir(mode=0o700)
    shutil.copy(sshd_box.config, home / ".ssh" / "config")
    project = tmp_path / "blobs"
    project.mkdir()
    return Reader(project, sshd_box)


@pytest.mark.timeout(300)
def test_page_for_newcomers_is_right(reader: Reader) -> None:
    reader.follow(ROOT / "docs" / "your-own-script.md")
    assert reader.commands > 10


@pytest.mark.timeout(600)
def test_tutorial_is_right(reader: Reader) -> None:
    reader.follow(ROOT / "docs" / "tutorial.md")
    assert reader.commands > 25
