"""The import rules of docs/architecture.md, checked on the sources; `remote` runs on Python 3.8 without packages."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGES = ("orchestrator", "remote", "workers")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}

# A room imports itself and the rooms before it.
ROOMS = {
    "orchestrator": ["errors", "text", "system", "spec", "box", "ssh", "code", "checks", "commands", "ui", "cli"],
    "remote": ["contract", "checkpoints", "worker", "host", "shim", "supervisor", "agent"],
    "workers": ["common", "dataset", "perception", "model", "evaluation", "training", "runs", "train", "*"],
}
# The rooms that a package may import from another package; "" means all of them.
NEIGHBOURS = {
    "orchestrator": {"remote": ["contract"]},
    "remote": {},
    "workers": {"remote": ["contract", "checkpoints", "worker"]},
}
PACKER = ("orchestrator.box.agent_bundle", "remote")  # zips the package for the box, and so needs its location
TRAINING = {"torch", "torchvision", "numpy", "scipy", "workers"}
SSH = {"fabric", "paramiko", "invoke"}
FREE_FORM = r"\b(?:dict|Dict|Mapping)\[str, (?:Any|object)\]"
MAX_FREE_FORM = 40  # lines: what TOML, JSON and workers hold, and where it is read and written
SAME_MEANING = {"errors", "__init__", "__main__"}  # module names that may occur in several rooms


# --- the rules ----------------------------------------------------------------------------------------


def imports(source: str) -> set[str]:
    """Return the dotted names of all modules that `source` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "use absolute imports: relative ones hide the name of the module"
            assert node.module
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in MODULES} or {node.module}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return found


def room(module: str) -> tuple[str, int]:
    """Return the name of the room of a module, and its place among the rooms of its package."""
    package, name, *_ = [*module.split("."), ""]
    order = ROOMS[package]
    return name, order.index(name) if name in order else len(order) - 1


def broken_rules(module: str, source: str) -> list[str]:
    return [
        f"{module} imports {target}: {why}" for target in sorted(imports(source)) if (why := why_not(module, target))
    ]


def why_not(module: str, target: str) -> str:
    package, top = module.partition(".")[0], target.partition(".")[0]
    if top == package:
        return "" if room(target)[1] <= room(module)[1] else "an upward import"
    if top in PACKAGES:
        known = (module, target) == PACKER or room(target)[0] in NEIGHBOURS[package].get(top, [])
        return "" if known else "this package must not import that part"
    if package == "remote" and top not in sys.stdlib_module_names:
        return "remote may import only the standard library"
    if package == "orchestrator" and top in TRAINING:
        return "the laptop's side must not import a training library"
    if top in SSH and room(module)[0] != "ssh":
        return "only ssh/ may import the SSH libraries"
    return ""


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or not."""
    reach = {module: set(targets) for module, targets in graph.items()}
    for middle in graph:
        for module in graph:
            if middle in reach[module]:
                reach[module] |= reach[middle]
    found = {frozenset(m for m in reach[module] if module in reach[m]) for module in graph if module in reach[module]}
    return sorted(sorted(group) for group in found)


def public_classes(source: str) -> set[str]:
    return {
        node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }


def repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def test_packages_are_found() -> None:
    assert {module.partition(".")[0] for module in MODULES} == set(PACKAGES)
    named = {f"{package}.{name}" for package, names in ROOMS.items() for name in names if name != "*"}
    assert named <= {".".join(module.split(".")[:2]) for module in MODULES}


def documented_rooms(page: str, package: str) -> list[tuple[str, str]]:
    """Return each module that the tables of docs/architecture.md list, with its room; "" for the top level."""
    table = page.split(f"### {package}/")[1].split("\n### ")[0].split("\n## ")[0]
    found, current = [], ""
    for row in (line for line in table.splitlines() if line.startswith("| ")):
        first, modules = (cell.strip() for cell in row.split("|")[1:3])
        current = first.strip("`/") if first.startswith("`") else current
        place = "" if "(top level)" in modules or current == "" else current
        found += [(place, name) for name in re.findall(r"`(\w+)\.py`", modules)]
    return found


@pytest.mark.parametrize("package", ["orchestrator", "remote"])
def test_every_module_is_documented_in_its_room(package: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    parts = [module.split(".")[1:] for module in MODULES if module.startswith(f"{package}.")]
    modules = [(part[0] if len(part) == 2 else "", part[-1]) for part in parts if part[-1] != "__init__"]
    assert sorted(documented_rooms(page, package)) == sorted(modules)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_rules(module: str) -> None:
    assert broken_rules(module, MODULES[module]) == []


def free_form(sources: Iterable[str]) -> list[str]:
    """Return the lines with annotations that do not say what an object holds, in any spelling or by an alias."""
    lines = [line.strip() for source in sources for line in source.splitlines()]
    aliases = [found[1] for line in lines if (found := re.match(rf"(\w+) = {FREE_FORM}(?: *#.*)?$", line))]
    pattern = re.compile("|".join([FREE_FORM, *(rf"(?::|->|\[|= ) ?{name}\b" for name in aliases)]))
    return [line for line in lines if not line.startswith(("from ", "import ", "#")) and pattern.search(line)]


def test_number_of_free_form_objects_does_not_grow() -> None:
    assert len(free_form(MODULES.values())) <= MAX_FREE_FORM, "give it a dataclass in remote/contract/"


def test_free_form_object_is_detected() -> None:
    assert len(free_form(["def f(x: dict[str, Any]) -> Mapping[str, object]: ...\nJ = Dict[str, Any]"])) == 2
    assert len(free_form(["J = Dict[str, Any]", "from a import J\nx: Optional[J] = None\ndef f() -> J: ..."])) == 3
    assert free_form(["from remote.contract.files import JsonObject\nx: dict[str, int]"]) == []


def test_modules_do_not_import_each_other() -> None:
    graph = {module: {target for target in imports(source) if target in MODULES} for module, source in MODULES.items()}
    assert circles(graph) == []


def test_no_two_modules_share_a_name() -> None:
    names = [module.rpartition(".")[2] for module in MODULES]
    assert repeated(name for name in names if name not in SAME_MEANING) == []


def test_no_two_public_classes_share_a_name() -> None:
    assert repeated(name for source in MODULES.values() for name in public_classes(source)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("orchestrator.box.poll", "import torch"),
        ("orchestrator.box.poll", "def f():\n    from torchvision import models"),
        ("orchestrator.ui.screen", "import importlib\nimportlib.import_module('numpy')"),
        ("orchestrator.cli", "from workers import worker1"),
        ("orchestrator.box.poll", "from remote.supervisor import policy"),
        ("orchestrator.box.poll", "from remote.supervisor.policy import decide"),
        ("orchestrator.box.poll", "import remote"),
        ("orchestrator.cli", "import fabric"),
        ("orchestrator.box.probe", "from paramiko.client import SSHClient"),
        ("orchestrator.box.poll", "from orchestrator.checks.preflight import check"),
        ("orchestrator.errors", "from orchestrator.spec import models"),
        ("remote.agent.main", "import pydantic"),
        ("remote.agent.main", "from orchestrator import errors"),
        ("remote.supervisor.supervisor", "import workers.training.trainer"),
        ("remote.contract.trees", "from remote.agent import main"),
        ("remote.worker", "from remote.host import process"),
        ("workers.training.trainer", "from orchestrator.spec.models import Job"),
        ("workers.training.trainer", "from remote.host import process"),
        ("workers.common.errors", "from workers.training import trainer"),
    ],
)
def test_broken_rule_is_detected(module: str, source: str) -> None:
    assert len(broken_rules(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("orchestrator.box.agent_bundle", "import remote"),
        ("orchestrator.ssh.fabric", "import fabric, paramiko"),
        ("orchestrator.box.poll", "from remote.contract import protocol\nfrom remote.contract.trees import tree_hash"),
        ("orchestrator.commands.launch", "from orchestrator.checks import preflight"),
        ("remote.contract.trees", "from remote.contract.files import sha256_file"),
        ("workers.training.trainer", "from remote.contract.paths import RunPaths"),
        ("workers.training.trainer", "import torch\nfrom remote.worker import Run"),
    ],
)
def test_allowed_import_passes(module: str, source: str) -> None:
    assert broken_rules(module, source) == []


def test_import_cycle_is_detected() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_repeated_name_is_detected() -> None:
    assert repeated(["Job", "Host", "Job"]) == ["Job"]
    assert public_classes("class Job: ...\nclass _Own: ...\ndef f():\n    class Inner: ...") == {"Job"}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_runs_nothing_when_imported(package: str) -> None:
    running = []
    for path in (ROOT / package).rglob("__init__.py"):
        module = ast.parse(path.read_text())
        is_docstring = len(module.body) == 1 and ast.get_docstring(module) is not None
        if module.body and not is_docstring:
            running.append(path)
    assert running == []


# --- remote on Python 3.8 alone -------------------------------------------------------------------------

REMOTE = [module for module in MODULES if module.startswith("remote.") and not module.endswith("__init__")]
BUILTIN_TYPES = {"dict", "list", "tuple", "set", "frozenset", "type", "int", "float", "str", "bytes", "bool", "object"}
NEWER_METHODS = {"removeprefix", "removesuffix", "is_relative_to", "hardlink_to", "with_stem"}  # of str and Path


def newer_than_38(source: str) -> list[str]:
    """Return what vermin misses: types built at run time, and methods of values of unknown type."""
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
    """Yield every expression that is evaluated; annotations are not, with `from __future__ import annotations`."""
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
def test_newer_python_is_detected(planted: str) -> None:
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
        pytest.skip("Python 3.8 is not installed; only the static checks cover it")
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
    """Return whether it really is 3.8: a pyenv shim of that name exists even if no 3.8 is selected."""
    done = subprocess.run([python, "--version"], capture_output=True, text=True, timeout=60)
    return done.returncode == 0 and done.stdout.startswith("Python 3.8")


# --- lazy imports ---------------------------------------------------------------------------------------

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


# What a command must not import, itself or by what it imports: each of them takes milliseconds of every start.
HEAVY = {*TRAINING, *SSH, "ctypes", "pathspec", "ssl", "unittest"}
# `orch status` of this machine needs no code, no checks and no records of jobs to be launched.
NOT_FOR_STATUS = {
    *HEAVY,
    "orchestrator.box.host_facts",
    "orchestrator.box.inventory",
    "orchestrator.checks.preflight",
    "orchestrator.code",
    "orchestrator.commands.launch",
    "orchestrator.commands.sync",
    "orchestrator.commands.watch",
    "orchestrator.ssh",
    "pydantic",
    "remote.contract.answers",
    "remote.contract.launches",
    "remote.contract.run_record",
    "remote.contract.uploads",
    "rich.live",
    "rich.table",
}
NOT_FOR_HELP = {*NOT_FOR_STATUS, "email", "importlib.metadata", "orchestrator.commands", "remote", "rich"}


@pytest.mark.parametrize(("command", "unwanted"), [("--help", NOT_FOR_HELP), ("status", NOT_FOR_STATUS)])
def test_local_command_imports_only_what_it_needs(command: str, unwanted: set[str], tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text(JOBS)
    seen = tmp_path / "modules.json"
    probe = [sys.executable, "-c", PROBE, str(seen), command]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(probe, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    modules = set(json.loads(seen.read_text()))
    assert "orchestrator.cli" in modules
    assert modules & unwanted == set()
