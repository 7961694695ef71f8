"""Look at a repository and find what trains there. Everything is found by reading; nothing of it is imported or run."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from orchestrator.code import git
from orchestrator.code.code_files import Rules
from orchestrator.code.command_line import CommandLine
from orchestrator.code.config_files import hydra_command_line
from orchestrator.code.readme_commands import ReadmeCommand, find_commands
from orchestrator.code.script_kinds import imported_libraries
from orchestrator.code.script_options import read_command_line
from orchestrator.code.script_values import calls, constant, name_of, parse
from orchestrator.code.snapshot import code_names
from orchestrator.errors import SpecError
from orchestrator.spec.models import RESULTS

MAX_FILES = 100_000  # files that are listed
MAX_SCRIPTS = 300  # Python files that are read, those nearest to the top first
MAX_BYTES = 400_000  # of a file that is read
MAX_IMPORTED = 25  # modules that count as parts of one script
CLEAR_SCORE = 5  # a script with fewer points may do something else
_LOWEST_SCORE = -2

_ENVIRONMENTS = ("uv.lock", "requirements.txt", "environment.yml", "environment.yaml", "pyproject.toml")
_README = re.compile(r"(?i)readme(?:\.(?:md|rst|txt|markdown))?")
_TRAINS = re.compile(r"(?i)(?:^|[_-])(?:train|training|trainer|pretrain|finetune|fine_tune|fit|sft|learn)(?:$|[_-])")
_MAY_TRAIN = re.compile(r"(?i)^(?:main|run|cli|experiment|launch)(?:$|[_-])|^__main__$|^worker")
_DOES_SOMETHING_ELSE = re.compile(
    r"(?i)(?:^|[_-])(?:eval|evaluate|test|tests|sample|predict|infer|inference|generate|prepare|preprocess|process|"
    r"download|plot|visuali[sz]e|bench|benchmark|export|convert|serve|server|app|demo|setup|conftest|utils?|tokenize|"
    r"noxfile|configurator|config|dataset|data|model|models|losses|metrics)(?:$|[_-])"
)
_OTHER_FOLDERS = {"tests", "test", "docs", "doc", "bench", "benchmarks", "third_party", "vendor", "examples", "example"}
LIBRARIES = {
    *("torch", "tensorflow", "keras", "jax", "flax", "lightning", "pytorch_lightning", "transformers", "accelerate"),
    *("sklearn", "xgboost", "lightgbm", "catboost", "mlx", "paddle", "mxnet", "fastai", "trl", "stable_baselines3"),
}
_TRAINING_CALLS = {"backward", "fit", "Trainer", "LightningCLI", "value_and_grad", "train", "zero_grad", "optimize"}


@dataclass(frozen=True)
class Script:
    """A Python file that can be run.

    Attributes:
        path: Relative to the repository.
        trees: Its own module, and then the modules of the repository that it imports.
        command_line: What it accepts.
        score: How much speaks for it being the one that trains.
        has_main: It has `if __name__ == "__main__"`.
        module: Its dotted name if it is part of a package, else "".
        needs_module: It has relative imports, so it works only with `python -m`.
    """

    path: str
    trees: tuple[ast.Module, ...] = field(repr=False)
    command_line: CommandLine
    score: int
    has_main: bool
    module: str = ""
    needs_module: bool = False


@dataclass(frozen=True)
class Scan:
    """What was found in a repository.

    Attributes:
        files: All files that would be code, relative.
        scripts: Those that may train, the most likely one first.
        commands: The command lines of its README.
        environments: Files that list the packages it needs, the most exact one first.
        notebooks: Jupyter notebooks.
        programs: Its console scripts: name, and `module:function`.
        is_git: Whether it is part of a git repository.
        ignored: The folders at its top that git ignores.
    """

    directory: Path
    files: tuple[str, ...]
    scripts: tuple[Script, ...]
    commands: tuple[ReadmeCommand, ...]
    environments: tuple[str, ...]
    notebooks: tuple[str, ...]
    programs: Mapping[str, str]
    is_git: bool
    ignored: tuple[str, ...] = ()


def scan(directory: Path) -> Scan:
    """Return what is found in `directory`."""
    files, is_git, ignored = _list(directory)
    trees = {name: tree for name in _to_read(files) if (tree := parse(read_text(directory / name)))}
    programs = _programs(directory)
    readmes = [name for name in files if _README.fullmatch(PurePosixPath(name).name) and name.count("/") <= 1]
    text = "\n```\n".join(read_text(directory / name) for name in sorted(readmes, key=lambda name: name.count("/")))
    commands = tuple(find_commands(text, set(programs)))
    scripts = list(_scripts(directory, trees, commands, programs))
    return Scan(
        directory,
        tuple(files),
        tuple(sorted(scripts, key=lambda script: (-script.score, script.path.count("/"), script.path))),
        commands,
        tuple(
            name for name in _ENVIRONMENTS if name in files and (name != "pyproject.toml" or _has_packages(directory))
        ),
        tuple(name for name in files if name.endswith(".ipynb")),
        programs,
        is_git,
        tuple(ignored),
    )


def read_text(path: Path) -> str:
    """Return the text of a regular file that is not larger than MAX_BYTES, else ""."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return ""
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ""


def _list(directory: Path) -> tuple[list[str], bool, list[str]]:
    """Return the files, whether git lists them, and the folders at the top that git ignores."""
    rules = Rules(directory, (), (RESULTS,))
    ignored: list[str] = []
    try:
        with git.opened(directory) as listing:
            is_git = listing is not None
            names, _ = code_names(rules, listing, MAX_FILES)
            if listing is not None:
                folders = sorted(each.name for each in os.scandir(directory) if each.is_dir() and each.name[0] != ".")
                ignored = [name for name in folders if listing.repository.ask("check-ignore", "-q", f"{name}/")]
    except SpecError:  # the repository is damaged; its files can still be read
        is_git, (names, _) = False, code_names(rules, None, MAX_FILES)
    return sorted(name for name in names if name.isprintable() and not rules.owner(name))[:MAX_FILES], is_git, ignored


def _to_read(files: Iterable[str]) -> list[str]:
    scripts = [name for name in files if name.endswith(".py")]
    return sorted(scripts, key=lambda name: (name.count("/"), name))[:MAX_SCRIPTS]


def _programs(directory: Path) -> dict[str, str]:
    project = _pyproject(directory).get("project")
    scripts = project.get("scripts") if isinstance(project, dict) else None
    return {k: v for k, v in scripts.items() if isinstance(v, str)} if isinstance(scripts, dict) else {}


def _has_packages(directory: Path) -> bool:
    document = _pyproject(directory)
    project = document.get("project")
    return isinstance(project, dict) and bool(project.get("dependencies"))


def _pyproject(directory: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(read_text(directory / "pyproject.toml"))
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


# --- scripts -------------------------------------------------------------------------------------------------


def _scripts(
    directory: Path, trees: Mapping[str, ast.Module], commands: Sequence[ReadmeCommand], programs: Mapping[str, str]
) -> Iterator[Script]:
    entries = {target.partition(":")[0] for target in programs.values()}
    for path, tree in trees.items():
        has_main, module = _has_main(tree), _module(path, trees)
        if not has_main and module not in entries and not _acts(tree):
            continue
        parts = (tree, *(trees[name] for name in _imported(path, trees)))
        score = _score(path, parts, commands, module)
        if score >= _LOWEST_SCORE:
            needs_module = any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))
            folder = path.rpartition("/")[0]
            by_hydra = hydra_command_line(parts, folder, lambda name: read_text(directory / name))
            line = by_hydra or read_command_line(parts)
            yield Script(path, parts, line, score, has_main, module, needs_module)


def _has_main(tree: ast.Module) -> bool:
    tests = (node.test for node in tree.body if isinstance(node, ast.If))
    return any(isinstance(test, ast.Compare) and name_of(test.left) == "__name__" for test in tests)


def _acts(tree: ast.Module) -> bool:
    """Return whether the module does something when it is run, besides defining names."""
    for node in tree.body:
        if isinstance(node, (ast.For, ast.While, ast.With)):
            return True
        for _, call in calls(node) if isinstance(node, (ast.Expr, ast.Assign)) else ():
            name = name_of(call.func)
            if name in ("print", "main", "train", "run") or name.endswith(
                ("parse_args", ".fit", ".train", "LightningCLI")
            ):
                return True
    return False


def _score(path: str, trees: Sequence[ast.Module], commands: Sequence[ReadmeCommand], module: str) -> int:
    place = PurePosixPath(path)
    words = [place.stem, *(place.parts[-2:-1] if place.stem == "__main__" else ())]
    score = 0
    if any(map(_TRAINS.search, words)):
        score += 10
    elif any(map(_MAY_TRAIN.search, words)):
        score += 5
    if any(map(_DOES_SOMETHING_ELSE.search, words)):
        score -= 8
    score += 3 if imported_libraries(trees) & LIBRARIES else 0
    called = {name.rpartition(".")[2] for tree in trees[:1] for name, _ in calls(tree)}
    score += 4 if called & _TRAINING_CALLS else 0
    others = {name.rpartition(".")[2] for tree in trees[1:] for name, _ in calls(tree)}
    score += 1 if others & _TRAINING_CALLS else 0
    score += 5 if any(runs(command, path, module) for command in commands) else 0
    score -= 4 * len(_OTHER_FOLDERS.intersection(place.parts[:-1]))
    return score + 1 - len(place.parts[:-1])


def runs(command: ReadmeCommand, path: str, module: str) -> bool:
    """Return whether a command of a README runs the script at `path`."""
    target = os.path.normpath(os.path.join(command.folder, command.target)).replace(os.sep, "/")
    return path in (target, command.target) or (
        module != "" and command.target in (module, module.removesuffix(".__main__"))
    )


def _module(path: str, trees: Mapping[str, ast.Module]) -> str:
    """Return the dotted name of a file of a package that is at the top or in src/, else ""."""
    place = PurePosixPath(path)
    parts = list(place.parts[:-1])
    start = len(parts)
    while start and "/".join([*parts[:start], "__init__.py"]) in trees:
        start -= 1
    if start == len(parts) or parts[:start] not in ([], ["src"]):
        return ""
    return ".".join([*parts[start:], place.stem])


def _names_of_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imported(path: str, trees: Mapping[str, ast.Module]) -> list[str]:
    """Return the files of the repository that the script imports, directly or not."""
    found: dict[str, None] = {path: None}
    waiting = [path]
    while waiting and len(found) <= MAX_IMPORTED:
        current = waiting.pop(0)
        for name in _files_of_imports(current, trees):
            if name not in found:
                found[name] = None
                waiting.append(name)
    return list(found)[1 : MAX_IMPORTED + 1]


def _files_of_imports(path: str, trees: Mapping[str, ast.Module]) -> Iterator[str]:
    folder = PurePosixPath(path).parent
    for node in ast.walk(trees[path]):
        relative = None
        if isinstance(node, ast.ImportFrom) and node.level:
            relative = folder.joinpath(*[".."] * (node.level - 1), *(node.module or "").split("."))
            places = [relative, *(relative / alias.name for alias in node.names)]
        elif isinstance(node, ast.Call) and name_of(node.func) == "open" and node.args:
            opened = constant(node.args[0])  # exec(open("configurator.py").read())
            places = [PurePosixPath(opened).with_suffix("")] if isinstance(opened, str) and opened[-3:] == ".py" else []
        else:
            names = (
                list(_names_of_imports(ast.Module([node], [])))
                if isinstance(node, (ast.Import, ast.ImportFrom))
                else []
            )
            places = [
                base.joinpath(*name.split("."))
                for name in names
                for base in (folder, PurePosixPath(), PurePosixPath("src"))
            ]
        for place in places:
            text = os.path.normpath(place).replace(os.sep, "/")
            yield from (name for name in (f"{text}.py", f"{text}/__init__.py") if name in trees)
