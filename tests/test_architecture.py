"""The import rules of docs/architecture.md, read off the sources; and that `remote` runs on a bare, old Python."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("orchestrator", "remote", "workers")
MODULES = {
    f"{package}.{path.stem}": path.read_text(encoding="utf-8")
    for package in PACKAGES
    for path in sorted((ROOT / package).glob("*.py"))
}

LEAVES = {"protocol", "files", "goals"}  # of remote: they import nothing of the project
FOR_WORKERS = LEAVES | {"paths"}
# For the laptop too; it imports itself alone. `states` takes `locks` where it reads a run on its box.
CONTRACT = FOR_WORKERS | {
    "locks",
    "logs",
    "masking",
    "ownership",
    "reports",
    "secret_forms",
    "states",
    "trees",
    "uncopied",
}
PACKER = ("transport", "remote")  # transport.py zips the package for the box, and so asks where it lies
STAGES = {"preflight", "snapshot", "launch", "poll", "mirror"}  # they meet in pipeline.py
TRAINING = {"torch", "torchvision", "numpy", "scipy", "workers"}
SSH = {"fabric", "paramiko", "invoke"}
SSH_MODULES = {"ssh", "ssh_config", "ssh_connection", "ssh_login"}


# --- the rules ----------------------------------------------------------------------------------------


def imports(source: str) -> set[str]:
    """Dotted names of every module that `source` names in an import, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what they name"
            assert node.module
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= submodules if node.module in PACKAGES else {node.module}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return found


def broken_rules(module: str, source: str) -> list[str]:
    package, _, name = module.partition(".")
    rules = {"orchestrator": orchestrator_rule, "remote": remote_rule, "workers": workers_rule}
    said = ((target, rules[package](name, target)) for target in sorted(imports(source)))
    return [f"{module} imports {target}: {why}" for target, why in said if why]


def orchestrator_rule(name: str, target: str) -> str:
    top, part = split(target)
    if top in TRAINING:
        return "the laptop's side needs no training library"
    if top == "remote" and part not in CONTRACT and (name, target) != PACKER:
        return "the laptop's side knows the contract of remote alone"
    if top in SSH and name not in SSH_MODULES:
        return "the SSH libraries stay behind ssh*.py"
    if top == "orchestrator" and name in STAGES and part in STAGES:
        return "stages do not know each other"
    if top == "orchestrator" and name == "errors":
        return "errors is a leaf"
    return ""


def remote_rule(name: str, target: str) -> str:
    top, part = split(target)
    if top != "remote":
        return "" if top in sys.stdlib_module_names else "remote has the standard library alone"
    if name in LEAVES or (name in CONTRACT and part not in CONTRACT):
        return "the contract is a leaf"
    return ""


def workers_rule(name: str, target: str) -> str:
    top, part = split(target)
    if top == "orchestrator":
        return "workers run without the laptop's side"
    if top == "remote" and part not in FOR_WORKERS | {"worker", "locks"}:
        return "workers know the worker's side of remote alone"
    return ""


def split(target: str) -> tuple[str, str]:
    """`remote.protocol.Request` -> `remote`, `protocol`."""
    top, part, *_ = [*target.split("."), ""]
    return top, part


def test_the_packages_are_found() -> None:
    assert {module.partition(".")[0] for module in MODULES} == set(PACKAGES)
    assert {f"remote.{leaf}" for leaf in LEAVES} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_rules(module: str) -> None:
    assert broken_rules(module, MODULES[module]) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("orchestrator.poll", "import torch"),
        ("orchestrator.poll", "def f():\n    from torchvision import models"),
        ("orchestrator.report", "import importlib\nimportlib.import_module('numpy')"),
        ("orchestrator.cli", "from workers import worker1"),
        ("orchestrator.poll", "from remote import supervisor"),
        ("orchestrator.poll", "from remote.policy import decide"),
        ("orchestrator.poll", "import remote"),
        ("orchestrator.cli", "import fabric"),
        ("orchestrator.probe", "from paramiko.client import SSHClient"),
        ("orchestrator.launch", "from orchestrator.preflight import check"),
        ("orchestrator.mirror", "from orchestrator import poll"),
        ("orchestrator.errors", "from orchestrator import spec"),
        ("remote.agent", "import pydantic"),
        ("remote.agent", "from orchestrator import errors"),
        ("remote.supervisor", "import workers.loop"),
        ("remote.protocol", "from remote.files import read_json"),
        ("remote.trees", "from remote import agent"),
        ("remote.paths", "from remote import keeper"),
        ("workers.loop", "from orchestrator.spec import Job"),
        ("workers.loop", "from remote import supervisor"),
    ],
)
def test_a_broken_rule_is_seen(module: str, source: str) -> None:
    assert len(broken_rules(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("orchestrator.transport", "import remote"),
        ("orchestrator.ssh", "import fabric, paramiko"),
        ("orchestrator.poll", "from remote import protocol\nfrom remote.trees import tree_hash"),
        ("orchestrator.pipeline", "from orchestrator import launch, preflight"),
        ("remote.trees", "from remote.files import sha256_file"),
        ("workers.loop", "from remote.paths import RunPaths"),
        ("workers.loop", "import torch\nfrom remote.worker import Run"),
    ],
)
def test_what_the_rules_allow(module: str, source: str) -> None:
    assert broken_rules(module, source) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_runs_nothing_when_imported(package: str) -> None:
    assert (ROOT / package / "__init__.py").read_bytes() == b""


# --- remote on a bare, old Python -----------------------------------------------------------------------

REMOTE = [module for module in MODULES if module.startswith("remote.") and not module.endswith("__init__")]
BUILTIN_TYPES = {"dict", "list", "tuple", "set", "frozenset", "type", "int", "float", "str", "bytes", "bool", "object"}
NEWER_METHODS = {"removeprefix", "removesuffix", "is_relative_to", "hardlink_to", "with_stem"}  # of str and Path


def newer_than_38(source: str) -> list[str]:
    """What vermin does not see: types built when the module runs, and methods of values whose type it cannot tell."""
    tree = ast.parse(source, feature_version=(3, 8))
    generics = BUILTIN_TYPES | {"Popen", "PathLike"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("collections", "collections.abc"):
            generics |= {alias.asname or alias.name for alias in node.names}
    return [f"line {node.lineno}: {ast.unparse(node)}" for node in evaluated(tree) if is_newer(node, generics)]


def is_newer(node: ast.AST, generics: set[str]) -> bool:
    if isinstance(node, ast.Subscript):
        return ast.unparse(node.value).rpartition(".")[2] in generics
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return bool({ast.unparse(node.left), ast.unparse(node.right)} & (BUILTIN_TYPES | {"None"}))
    return isinstance(node, ast.Attribute) and node.attr in NEWER_METHODS


def evaluated(tree: ast.Module) -> Iterator[ast.expr]:
    """Every expression that runs: annotations do not, where `from __future__ import annotations` stands."""
    lazy = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.expr):
            yield node
        for name, value in ast.iter_fields(node):
            if not (lazy and name in ("annotation", "returns")):
                children = value if isinstance(value, list) else [value]
                waiting += [child for child in children if isinstance(child, ast.AST)]


@pytest.mark.parametrize("module", REMOTE)
def test_remote_is_python_3_8(module: str) -> None:
    assert newer_than_38(MODULES[module]) == []


@pytest.mark.parametrize(
    "planted",
    [
        "Table = dict[str, int]",
        "class Row(list[int]): ...",
        "from collections.abc import Iterator\nRows = Iterator[int]",
        "Maybe = str | None",
        "def f(x: int | None) -> None: ...",
        "def f(name): return name.removeprefix('x')",
    ],
)
def test_newer_python_is_seen(planted: str) -> None:
    assert len(newer_than_38(planted)) == 1


def test_annotations_may_be_newer() -> None:
    signature = "def f(x: int | None, *y: dict[str, int]) -> list[str]:\n    z: set[int] = g(1 | 2)"
    assert newer_than_38("from __future__ import annotations\n" + signature) == []


@pytest.mark.parametrize("module", REMOTE)
def test_remote_starts_under_a_bare_python(module: str) -> None:
    import_alone(sys.executable, [module])


def test_remote_starts_under_python_3_8() -> None:
    python = find_python_38()
    if python is None:
        pytest.skip("no Python 3.8 here; the static checks stand in for it")
    import_alone(python, REMOTE)


def import_alone(python: str, modules: list[str]) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(modules)}"
    done = subprocess.run([python, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def find_python_38() -> str | None:
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which("python3.8"), *map(str, sorted(versions.glob("3.8.*/bin/python3.8")))]
    return next((python for python in candidates if python and says_38(python)), None)


def says_38(python: str) -> bool:
    """A pyenv shim of that name exists even where no 3.8 is chosen."""
    done = subprocess.run([python, "--version"], capture_output=True, text=True, timeout=60)
    return done.returncode == 0 and done.stdout.startswith("Python 3.8")


# --- nothing heavy before it is needed ------------------------------------------------------------------

PROBE = """
import json, sys
out, sys.argv = sys.argv[1], ["orch", *sys.argv[2:]]
from orchestrator.cli import main
try:
    main()
finally:
    with open(out, "w") as file:
        json.dump(sorted(sys.modules), file)
"""
JOBS = """
[project]
name = "light"

[jobs.nothing]
command = ["true"]
"""


@pytest.mark.parametrize("command", ["--help", "status"])
def test_a_local_command_imports_nothing_heavy(command: str, tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text(JOBS)
    seen = tmp_path / "modules.json"
    probe = [sys.executable, "-c", PROBE, str(seen), command]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(probe, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    modules = {name.partition(".")[0] for name in json.loads(seen.read_text())}
    assert "orchestrator" in modules
    assert modules & (TRAINING | SSH) == set()
