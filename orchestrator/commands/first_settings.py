"""Find the settings of a first job that fit its script: its test, how it resumes, its results, data and metrics."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.code.command_line import Option, with_option
from orchestrator.code.readme_commands import ReadmeCommand
from orchestrator.code.repository_scan import LIBRARIES, Scan, Script
from orchestrator.code.script_kinds import has_name, imported_libraries
from orchestrator.code.script_writes import Written, checkpoint_patterns, find_written, says_checkpoint
from orchestrator.commands.first_command import OUTPUT_KEY, FirstCommand

_STEPS = (
    *("max_steps", "max_iters", "max_iter", "max_train_steps", "train_steps", "total_steps", "num_steps", "n_steps"),
    *("num_train_steps", "num_iters", "iterations", "steps", "max_batches"),
)
_QUICK = ("dry_run", "smoke_test", "smoke", "quick", "fast_dev_run")
_EPOCHS = ("epochs", "num_epochs", "n_epochs", "max_epochs", "num_train_epochs", "epoch")
_RESUME = (
    *("resume_from_checkpoint", "resume_from", "resume_path", "resume_checkpoint", "resume_ckpt", "resume"),
    *("init_from", "ckpt_path", "auto_resume", "continue_training", "continue_from", "restore_from", "restore"),
    *("load_checkpoint", "load_ckpt"),
)
_METRIC = re.compile(
    r"(?i)\b(val|valid|validation|eval|test)[ _/-](loss|acc(?:uracy)?|ppl|perplexity|f1|auc|bleu|mse|mae)\b"
)
_PREPARES = re.compile(r"(?i)(?:^|[_-])(?:prepare|preprocess|download|tokenize|make|build|get)(?:$|[_-])")
_DATA_FOLDER = re.compile(r"(?i)data|corpus|corpora|inputs?|images")
_LIGHTNING = {"lightning", "pytorch_lightning"}
_MAY_START_ANEW = ("restore_from", "restore", "load_checkpoint", "load_ckpt")  # may only load weights


@dataclass(frozen=True)
class Resume:
    """How a script resumes: the arguments for it, and the files or folders that are its checkpoints."""

    arguments: tuple[str, ...]
    checkpoints: str
    is_certain: bool


def project_python(directory: Path) -> str:
    """Return the Python of the project's virtual environment or of the active one; "" if it runs orch itself."""
    folders = [name for name in (".venv", "venv", "env") if (directory / name / "pyvenv.cfg").is_file()]
    active = [os.environ[name] for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(name)]
    for folder in (*folders, *active):
        python = directory / folder / "bin" / "python"
        if os.access(python, os.X_OK):
            is_own = os.path.realpath(python.parent.parent) == os.path.realpath(sys.prefix)
            return "" if is_own else f"{folder}/bin/python"
    return ""


# --- before the run ----------------------------------------------------------------------------------------------


def short_command(command: FirstCommand) -> tuple[tuple[str, ...], bool]:
    """Return a command that ends after two steps or one epoch, and whether it does little else; () if there is none."""
    line = command.script.command_line if command.script else None
    if line is None:
        return (), False
    option = line.find(*_STEPS)
    if option and not option.is_flag:
        return with_option(command.words, option, "2"), True
    option = line.find(*_QUICK)
    if option and (option.is_flag or isinstance(option.default, bool)):
        return with_option(command.words, option, "True"), True
    option = line.find(*_EPOCHS)
    return (with_option(command.words, option, "1"), False) if option and not option.is_flag else ((), False)


def prepare_commands(scan: Scan, command: FirstCommand) -> list[ReadmeCommand]:
    """Return the commands of the README that make the data: those for the dataset of `command`, if it names one."""
    found = [
        each
        for each in scan.commands
        if not each.has_placeholder and not each.folder and not each.env
        if each.target in scan.files and (command.script is None or each.target != command.script.path)
        if _PREPARES.search(each.target.rpartition("/")[2].removesuffix(".py"))
    ]
    values = {value for value in command.values.values() if isinstance(value, str) and value}
    return [each for each in found if values & set(each.target.split("/")[:-1])] or found


def data_folder(scan: Scan, command: FirstCommand) -> str:
    """Return the folder of data at the top that git ignores, but the script names; "" if there is none or several."""
    if command.script is None:
        return ""
    texts = [*_texts(command.script), *(value for value in command.values.values() if isinstance(value, str))]
    named = {text.removeprefix("./").partition("/")[0] for text in texts}
    found = [name for name in scan.ignored if name in named and _DATA_FOLDER.search(name)]
    return found[0] if len(found) == 1 else ""


def how_to_resume(command: FirstCommand, written: Sequence[Written]) -> Resume | None:
    """Return how the script resumes, or None if it has no option for it."""
    script = command.script
    option = script.command_line.find(*_RESUME) if script else None
    if script is None or option is None:
        return None
    newest = option.given("$ORCH_RESUME")
    if script.command_line.kind == "hf":
        if not has_name(script.trees, "resume_from_checkpoint", "get_last_checkpoint"):
            return None
        folder = str(command.values.get("output_dir") or "out").strip("/")
        return Resume(newest, f"{folder}/checkpoint-*", True)
    patterns = checkpoint_patterns(written)
    if _uses_lightning(script) and not patterns:
        pattern = f"{_lightning_logs(command)}/version_*/checkpoints/*.ckpt"
        return Resume(newest, pattern, not option.is_flag)
    is_certain = bool(patterns) and (len(patterns) == 1 or says_checkpoint(patterns[0]))
    is_certain = is_certain and script.command_line.kind != "hydra"  # which may write below a new directory each time
    arguments = option.given(_resume_value(script, option))
    return Resume(arguments, patterns[0] if patterns else "", is_certain and option.key not in _MAY_START_ANEW)


def _resume_value(script: Script, option: Option) -> str:
    if option.is_flag or option.default is False:
        return "True"
    return "resume" if option.key == "init_from" and option.default == "scratch" else "$ORCH_RESUME"


def _uses_lightning(script: Script) -> bool:
    return script.command_line.kind == "lightning" or bool(_LIGHTNING & imported_libraries(script.trees))


def _lightning_logs(command: FirstCommand) -> str:
    root = str(command.values.get("trainer.default_root_dir") or "").strip("/")
    return f"{root}/lightning_logs" if root else "lightning_logs"


# --- what it writes ----------------------------------------------------------------------------------------------


def results(command: FirstCommand) -> list[Written]:
    """Return the files and folders that the script writes, as far as they were found; folders first."""
    script = command.script
    if script is None:
        return []
    found = find_written(script.trees, command.values)
    kind = script.command_line.kind
    if kind == "hydra":
        folder = str(command.values.get("hydra.run.dir") or "outputs").partition("$")[0].rstrip("/")
        found.append(Written(folder or "outputs", True))
    if _uses_lightning(script):
        found.append(Written(_lightning_logs(command), True))
    for key, value in command.values.items():
        if OUTPUT_KEY.match(key) and isinstance(value, str) and re.fullmatch(r"(?:\./)?[A-Za-z0-9_][\w./=-]*", value):
            path = value.removeprefix("./").rstrip("/")
            if ".." not in path and path not in [each.path for each in found]:
                found.append(Written(path, "." not in path.rpartition("/")[2]))
    outer = [each.path for each in found if each.is_folder]
    kept = [each for each in found if not any(each.path.startswith(f"{folder}/") for folder in outer)]
    return sorted(kept, key=lambda each: not each.is_folder)


def final_files(command: FirstCommand) -> list[str]:
    """Return the files with weights that the script writes under a name that is certain."""
    script = command.script
    found = find_written(script.trees, command.values) if script else []
    return [each.path for each in found if each.is_checkpoint and "*" not in each.path]


def missing_libraries(command: FirstCommand) -> list[str]:
    """Return the libraries for training that the script imports, but the Python that runs orch does not have."""
    needed = imported_libraries(command.script.trees) & LIBRARIES if command.script else set()
    return sorted(name for name in needed if importlib.util.find_spec(name) is None)


def metric_names(script: Script | None) -> list[str]:
    """Return names of validation metrics that the script prints or logs."""
    texts = _texts(script) if script else ()
    names = {f"{found[1]}_{found[2]}".lower() for text in texts for found in _METRIC.finditer(text[:2000])}
    return sorted(names, key=lambda name: (not name.startswith("val"), name))


def _texts(script: Script) -> Iterator[str]:
    for tree in script.trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
