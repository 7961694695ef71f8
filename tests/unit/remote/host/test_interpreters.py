from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from remote.contract.job_facts import TorchFacts
from remote.host.interpreters import ask, find, parse_torch, torch_of


def test_interpreter_describes_itself() -> None:
    found = ask(sys.executable)
    assert found.version == "{}.{}.{}".format(*sys.version_info[:3])
    assert (found.prefix, found.is_virtual) == (sys.prefix, sys.prefix != sys.base_prefix)
    assert found.has_venv and set(found.packages) <= set(sys.path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("#!/bin/sh\nexit 3\n", "does not run: exit code 3"), ("#!/bin/sh\necho '{}'\n", "does not run"), ("", "not run")],
)
def test_interpreter_that_does_not_run_is_reported(tmp_path: Path, text: str, message: str) -> None:
    python = tmp_path / "python"
    python.write_text(text)
    python.chmod(0o700)
    with pytest.raises(ValueError, match=message):
        ask(str(python))
    assert torch_of(str(python)) is None


def test_torch_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('imported')\n")
    (package / "version.py").write_text("__version__ = '2.5.1+cu121'\ncuda: Optional[str] = '12.1'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert torch_of(sys.executable) == TorchFacts(sys.executable, "2.5.1+cu121", "12.1", None)
    (package / "version.py").unlink()
    assert torch_of(sys.executable) is None


@pytest.mark.parametrize(
    ("text", "version", "cuda", "hip"),
    [
        ("__version__ = '1.13.1+cu117'\ncuda = '11.7'\ngit_version = 'x'\nhip = None\n", "1.13.1+cu117", "11.7", None),
        ("__version__ = '2.9.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", "2.9.0+cpu", None, None),
        ('__version__ = "2.9.0+rocm6.4"\nhip: Optional[str] = "6.4.1"\n', "2.9.0+rocm6.4", None, "6.4.1"),
        ("__all__ = ['__version__', 'cuda']\n__version__ = '2.14.1+cu130'\ncuda: Optional[str] = '13.0'\n",
         "2.14.1+cu130", "13.0", None),
    ],
)  # fmt: skip
def test_version_of_torch_is_read(text: str, version: str, cuda: str | None, hip: str | None) -> None:
    assert parse_torch("py", f"from typing import Optional\n{text}") == TorchFacts("py", version, cuda, hip)


def test_file_without_a_version_is_no_torch() -> None:
    assert parse_torch("py", "cuda = '12.1'\n") is None


def test_program_is_found_as_jobs_toml_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "python3.9").symlink_to(sys.executable)
    assert find("~/python3.9", {}) == str(tmp_path / "python3.9")
    assert find("python3.9", {"PATH": str(tmp_path)}) == str(tmp_path / "python3.9")
    assert find("python2.2", {"PATH": os.environ["PATH"]}) is None
