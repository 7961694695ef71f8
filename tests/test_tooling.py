"""Tests of the files that build and check the project."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.chaos import box, harness
from tests.chaos.faults import FAULTS
from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIN = re.compile(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)")
MAKE_TARGETS = (
    "help",
    "env",
    "demo",
    "test",
    "check",
    "format",
    "bench",
    "bench-supervisor",
    "chaos",
    "fuzz",
    "bench-train",
    "constraints",
    "clean",
)


def pins() -> dict[str, str]:
    """Return versions by normalised name; fail on a line that is neither a pin nor a comment."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = PIN.fullmatch(line)
            assert match, f"not a plain pin: {line}"
            found[normal(match[1])] = match[2]
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_direct_dependency_is_pinned() -> None:
    requirements = PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])
    names = {normal(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in requirements}
    assert names - set(pins()) == set()


def test_constraints_do_not_depend_on_the_machine() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://|@ |/[a-z]+/|^-", text, re.MULTILINE)


def test_only_the_workers_extra_installs_torch() -> None:
    assert not [requirement for requirement in PROJECT["dependencies"] if requirement.startswith("torch")]
    assert any(requirement.startswith("torch") for requirement in PROJECT["optional-dependencies"]["workers"])


def test_make_lists_the_documented_targets() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make (\S+)", listed, re.MULTILINE)) == set(MAKE_TARGETS)


@pytest.mark.parametrize("script", [".ci/run", ".ci/packages.sh"])
def test_scripts_are_valid_shell(script: str) -> None:
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)
    assert (ROOT / script).stat().st_mode & 0o111


def vermin(target: Path) -> subprocess.CompletedProcess[str]:
    """Run the check as the Makefile does."""
    flags = re.search(r"^VERMIN := \$\(BIN\)/vermin (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert flags
    program = str(Path(sys.executable).with_name("vermin"))
    return subprocess.run([program, *flags[1].split(), str(target)], capture_output=True, text=True, timeout=60)


def test_remote_passes_the_python_3_8_check() -> None:
    done = vermin(ROOT / "remote")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "planted",
    [
        "print('a'.removeprefix('b'))",
        "import zoneinfo",
        "table = {} | {1: 2}",
        "match 1:\n    case 2:\n        pass",
        "with (open('a') as x, open('b') as y):\n    pass",
    ],
)
def test_python_3_8_check_can_fail(planted: str, tmp_path: Path) -> None:
    file = tmp_path / "planted.py"
    file.write_text(planted + "\n")
    done = vermin(file)
    assert done.returncode == 1
    assert "planted.py" in done.stdout


def test_python_3_8_check_allows_lazy_annotations(tmp_path: Path) -> None:
    file = tmp_path / "lazy.py"
    file.write_text("from __future__ import annotations\n\n\ndef f(x: int | None) -> dict[str, int]: ...\n")
    assert vermin(file).returncode == 0


CONTAIN = [sys.executable, str(ROOT / ".ci" / "contain.py"), "0.5", "bash", "-c"]


def test_contain_returns_the_exit_code_of_its_command() -> None:
    assert subprocess.run([*CONTAIN, "exit 3"], timeout=60).returncode == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a Linux subreaper")
def test_contain_ends_detached_processes(tmp_path: Path) -> None:
    command = f"setsid sleep 600 >/dev/null 2>&1 & echo $! > {tmp_path}/pid"
    done = subprocess.run([*CONTAIN, command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "sleep 600" in done.stdout
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


# --- the short chaos run at the end of `make test` ------------------------------------------------------------


def chaos_run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Start a chaos run that can inject no fault, because the user is not root."""
    without_root = ["unshare", "--user"] if os.getuid() == 0 else []
    command = [*without_root, sys.executable, "-m", "tests.chaos", "--out", str(folder / "chaos.json"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_chaos_run_that_cannot_inject_any_fault_fails(tmp_path: Path) -> None:
    done = chaos_run(folder=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("cannot inject") and "worker: sigkill" in done.stdout
    assert not (tmp_path / "chaos.json").exists()


def test_chaos_run_that_cannot_inject_any_fault_passes_with_allow_missing(tmp_path: Path) -> None:
    done = chaos_run("--allow-missing", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot inject")


def test_chaos_run_without_selected_faults_is_a_usage_error(tmp_path: Path) -> None:
    assert chaos_run("--only", "no such fault", folder=tmp_path).returncode == 2


def test_chaos_run_names_the_faults_that_need_missing_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "missing", lambda: "")
    monkeypatch.setattr(box, "FAKETIME", ())
    left_out = harness.left_out(FAULTS)
    assert [fault.name for faults in left_out.values() for fault in faults] == [
        "box: clock two hours back",
        "box: clock two hours forward",
    ]


def test_make_test_requires_every_fault() -> None:
    dry = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    chaos_runs = [line for line in dry.splitlines() if "-m tests.chaos" in line]
    assert len(chaos_runs) == 1 and "--allow-missing" not in chaos_runs[0]


# --- pages for contributors -----------------------------------------------------------------------------------


def test_hooks_run_the_checks_of_the_makefile_and_download_nothing() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    entries = re.findall(r"^ +entry: (.+)$", hooks, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert set(re.findall(r"- repo: (.+)", hooks)) == {"local"}
    assert [entry.split()[0] for entry in entries] == [
        f".venv/bin/{name}" for name in ("ruff", "ruff", "mypy", "vermin")
    ]
    flags = re.search(r"^VERMIN := \$\(BIN\)/(.*)$", makefile, re.MULTILINE)
    assert flags and f".venv/bin/{flags[1]} remote" in entries


def test_links_in_pages_for_contributors_exist() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
        assert [link for link in links if not (ROOT / link).exists()] == [], page


def test_paths_in_the_contributing_page_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"\b((?:orchestrator|remote|workers|tests|docs|bench)/[\w./-]*)", text)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_changelog_begins_with_the_current_version() -> None:
    versions = re.findall(r"^## (\S+) \(\d{4}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[:1] == [PROJECT["version"]]


# --- the threat model -----------------------------------------------------------------------------------------


def test_tests_named_in_the_threat_model_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    files = {path.relative_to(ROOT / "tests").as_posix(): path for path in (ROOT / "tests").rglob("test_*.py")}
    sources = "\n".join(path.read_text(encoding="utf-8") for path in files.values())

    named_files = set(re.findall(r"`((?:[a-z_]+/)*test_[a-z_]+\.py)`", text))
    named_tests = set(re.findall(r"`(test_[a-z0-9_]+)`", text))

    assert len(named_files) > 10 and len(named_tests) > 30
    assert not [name for name in named_files if not any(path.endswith(name) for path in files)]
    assert not [name for name in named_tests if f"def {name}(" not in sources]
