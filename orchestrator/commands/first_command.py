"""Choose the command of the first job of a repository."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.code.command_line import Option, values_of_words, with_option
from orchestrator.code.config_files import option_values
from orchestrator.code.readme_commands import ReadmeCommand
from orchestrator.code.repository_scan import CLEAR_SCORE, Scan, Script, read_text, runs
from orchestrator.code.script_kinds import has_name, is_distributed, needs_torchrun
from orchestrator.code.script_values import Value
from orchestrator.text import shortened

CLEAR_LEAD = 3  # points by which the most likely script leads, if there is no doubt
NEEDS_GPU = ("cuda", "use_cuda", "gpu", "use_gpu", "fp16")  # keys of flags
OUTPUT_KEY = re.compile(
    r"(?i)^(?:output|out|save|log|logs|work|result|results|model|checkpoints?|ckpt|exp)_?(?:dir|path|folder)$|^save$"
)

_MAX_NAMED = 4
_MAX_NOTE = 200  # characters
_TO_SET = "SET_THIS"
_CONFIG_KEY = re.compile(r"(?i)(?:^|[_-])(?:config|cfg|conf)(?:$|[_-])|config_?(?:file|path|name)$")
_DATA_KEY = re.compile(r"(?i)^(?:data|dataset|datasets|train|root|corpus|input)_?(?:dir|path|root|folder|file)?$")
_DATA_NAMES = ("data", "dataset", "datasets")
_TRAINS = re.compile(r"^(?:train|fit|pretrain|finetune|run)")
_PROCESSES = re.compile(r"--(?:nproc[-_]per[-_]node|num[-_]processes|num[-_]gpus)[ =](\d+)")


@dataclass(frozen=True)
class FirstCommand:
    """The command of a first job.

    Attributes:
        words: The program and its arguments.
        script: The script that it runs, if one was found.
        env: The variables that the README sets for it.
        notes: What a reader of jobs.toml has to know about it.
        to_set: What the user has to decide before it can work.
        candidates: All scripts that may train, if they cannot be told apart.
        values: The values of the options of the script, by key.
    """

    words: tuple[str, ...]
    script: Script | None = None
    env: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    to_set: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    values: dict[str, Value] = field(default_factory=dict)


@dataclass
class _Draft:
    """A command in the making, and what there is to say about it."""

    words: list[str]
    env: tuple[tuple[str, str], ...] = ()
    notes: list[str] = field(default_factory=list)
    to_set: list[str] = field(default_factory=list)


def choose(scan: Scan, has_gpu: bool, has_torchrun: bool) -> FirstCommand:
    """Return the command that most likely trains, and all that is not certain about it.

    Args:
        scan: What was found in the repository.
        has_gpu: Whether this machine has a GPU.
        has_torchrun: Whether jobs on this machine find the program torchrun.
    """
    if not scan.scripts:
        return _without_script(scan)
    script = scan.scripts[0]
    close = [each.path for each in scan.scripts if script.score - each.score < CLEAR_LEAD]
    draft = _from_readme(scan, script, has_gpu) or _from_script(scan, script)
    if len(close) > 1:
        draft.notes.insert(0, f"Not certain: {_named(close)} look alike. This is the first of them.")
    elif script.score < CLEAR_SCORE:
        draft.notes.insert(0, "Not certain: this is the script here that looks most like training.")
    if is_distributed(script.trees) and draft.words[0] == "python":
        draft.notes.append("For several processes, write `torchrun --standalone --nproc_per_node=2` for `python`.")
    if script.command_line.kind == "hydra":
        draft.notes.append(
            "Hydra makes a new directory at each start; for a script that resumes, add hydra.run.dir=out"
        )
    if draft.words[0] == "torchrun" and not has_torchrun:
        draft.words[:1] = ["python", "-m", "torch.distributed.run"]  # the same, if torch is there without its programs
    _fit_to_machine(draft, script, has_gpu)
    values = option_values(
        script.command_line,
        [word for word in draft.words if word != script.path],
        scan.files,
        lambda name: read_text(scan.directory / name),
    )
    _note_missing_data(draft, scan, script, values)
    notes = tuple(shortened(note, _MAX_NOTE) for note in draft.notes)
    candidates = tuple(close) if len(close) > 1 else ()
    return FirstCommand(tuple(draft.words), script, draft.env, notes, tuple(draft.to_set), candidates, values)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _without_script(scan: Scan) -> FirstCommand:
    if not scan.notebooks:
        return FirstCommand(("python", "train.py"), to_set=("the command; no script that trains was found",))
    chosen = next((name for name in scan.notebooks if re.search("(?i)train|fit", name)), scan.notebooks[0])
    words = ("python", "-m", "nbconvert", "--to", "notebook", "--execute", "--ExecutePreprocessor.timeout=-1")
    notes = (
        f"Not certain: there are only notebooks here. This runs {shortened(chosen, _MAX_NOTE)} from start to end.",
        "Better make a script of it, which prints its progress: jupyter nbconvert --to script",
    )
    candidates = scan.notebooks if len(scan.notebooks) > 1 else ()
    return FirstCommand((*words, "--output-dir", "out", chosen), notes=notes, candidates=candidates)


# --- from the README ---------------------------------------------------------------------------------------------


def _from_readme(scan: Scan, script: Script, has_gpu: bool) -> _Draft | None:
    """Return the first command of the README that runs the script and can be used as it is; None if there is none."""
    usual = _usual(scan, script)
    usable = [command for command in usual if _is_usable(command, script)]
    if not usable:
        return None
    chosen = min(usable, key=lambda each: (_processes(each), not has_gpu and "cpu" not in " ".join(each.words)))
    if chosen.target in scan.programs:
        draft = _from_script(scan, script, with_arguments=False)
        draft.words += chosen.words[1:]
    else:
        draft = _Draft([script.path if word.removeprefix("./") == chosen.target else word for word in chosen.words])
        if "/" not in chosen.target and chosen.target == script.module:
            draft.words = list(chosen.words)
    draft.env = tuple((name, value) for name, value in chosen.env if name != "CUDA_VISIBLE_DEVICES")
    draft.notes.append(f"From the README{', which runs it in ' + chosen.folder + '/' if chosen.folder else ''}.")
    others = [" ".join(command.words) for command in usable if command is not chosen]
    draft.notes += [f"It also has: {other}" for other in others[: _MAX_NAMED - 1]]
    return draft


def _usual(scan: Scan, script: Script) -> list[ReadmeCommand]:
    """Return the commands of the README that run the script, also by a console script."""

    def is_program(command: ReadmeCommand) -> bool:
        return scan.programs.get(command.target, "").partition(":")[0] == script.module != ""

    return [each for each in scan.commands if runs(each, script.path, script.module) or is_program(each)]


def _is_usable(command: ReadmeCommand, script: Script) -> bool:
    """Return whether nothing in the command has to be replaced, and the script knows all of its options."""
    if command.has_placeholder:
        return False
    line = script.command_line
    if not line.is_complete:
        return True
    given = {word.partition("=")[0] for word in command.arguments if word.startswith("-")}
    spellings = [{option.name, *option.other_names} for option in line.options if not option.is_positional]
    required = [{option.name, *option.other_names} for option in line.options if option.is_required]
    known = {name for names in spellings for name in names}
    long = {name for name in given if name.startswith("--")}
    return long <= known and all(names & given for names in required if not all(n[0] != "-" for n in names))


def _processes(command: ReadmeCommand) -> int:
    """Return how many processes a command starts, as far as it says so."""
    found = _PROCESSES.search(" ".join(command.words))
    return int(found[1]) if found else 1


# --- from the script ---------------------------------------------------------------------------------------------


def _from_script(scan: Scan, script: Script, with_arguments: bool = True) -> _Draft:
    """Return a command that runs the script with all that it does not run without."""
    draft = _Draft(["python", script.path])
    program = next((name for name, target in scan.programs.items() if target.partition(":")[0] == script.module), "")
    is_module = bool(script.module) and (script.has_main or script.module.endswith("__main__"))
    if needs_torchrun(script.trees):
        draft.notes.append("It needs torchrun. --nproc_per_node: the number of processes, one for each GPU of the job.")
        run = ["-m", script.module] if is_module else [script.path]
        draft.words = ["torchrun", "--standalone", "--nproc_per_node=1", *run]
    elif is_module:
        draft.words = ["python", "-m", script.module.removesuffix(".__main__")]
    elif script.module and program:
        module, _, function = scan.programs[program].partition(":")
        draft.notes.append(f"This is what the console script {program} runs.")
        draft.words = ["python", "-c", f"from {module} import {function.partition('.')[0]}; {function}()"]
    if with_arguments:
        draft.notes += [f"The README has: {' '.join(each.words)}" for each in _usual(scan, script)[: _MAX_NAMED - 1]]
        _add_required(draft, scan, script)
    return draft


def _add_required(draft: _Draft, scan: Scan, script: Script) -> None:
    line = script.command_line
    if line.subcommands:
        fitting = [name for name in line.subcommands if _TRAINS.search(name)]
        draft.words.append((fitting or line.subcommands)[0])
        if not fitting:
            draft.to_set.append(f"the subcommand: {_named(line.subcommands)}")
    config = _config_words(draft, scan, script)
    draft.words += config
    if line.kind == "hf":
        output, trains = line.find("output_dir"), line.find("do_train")
        draft.words += output.given("out") if output else ()
        draft.words += [trains.name] if trains and has_name(script.trees, "do_train") else []
    for option in line.options:
        is_given = any(word.partition("=")[0] == option.name for word in draft.words)
        if not option.is_required or is_given or (config and _CONFIG_KEY.search(option.key)):
            continue
        value = _value_for(option, scan)
        if value == _TO_SET or (_DATA_KEY.match(option.key) and not (scan.directory / value).exists()):
            draft.to_set.append(f"{option.name.lstrip('-')}; the script does not run without it")
        draft.words += option.given(value)


def _value_for(option: Option, scan: Scan) -> str:
    if OUTPUT_KEY.match(option.key):
        return "out"
    if _DATA_KEY.match(option.key):
        names = (*_DATA_NAMES, option.key)
        return next((name for name in names if (scan.directory / name).exists()), _DATA_NAMES[0])
    return _TO_SET


def _config_words(draft: _Draft, scan: Scan, script: Script) -> list[str]:
    """Return the words that name the configuration of the script, if it takes one and only one file fits."""
    line = script.command_line
    option = next((each for each in line.options if _CONFIG_KEY.search(each.key) and not each.is_flag), None)
    if line.kind == "globals":
        files = [name for name in scan.files if re.fullmatch(r"configs?/[\w-]+\.py", name)]
    elif line.kind == "lightning":
        files = [name for name in scan.files if re.search(r"\.ya?ml$", name) and _is_of_lightning(scan, name)]
    elif option and option.is_required:
        files = [name for name in scan.files if re.search(r"\.(?:ya?ml|json|toml|py)$", name)]
        files = [name for name in files if re.match(r"(?i)conf|cfg|exp", name) or _CONFIG_KEY.search(Path(name).stem)]
    else:
        return []
    if len(files) > 1:
        draft.notes.append(f"It takes a configuration: {_named(files)}")
    if len(files) != 1:
        return []
    return list(option.given(files[0])) if option else files


def _is_of_lightning(scan: Scan, name: str) -> bool:
    return re.search(r"(?m)^(?:fit|trainer|model|data):", read_text(scan.directory / name)) is not None


def _fit_to_machine(draft: _Draft, script: Script, has_gpu: bool) -> None:
    """Leave out what needs a GPU if this machine has none."""
    if has_gpu:
        return
    line = script.command_line
    flags = {name for option in line.options if option.key in NEEDS_GPU for name in (option.name, *option.other_names)}
    dropped = [word for word in draft.words if word in flags]
    if dropped:
        draft.notes.append(f"Without {' '.join(dropped)}, as this machine has no GPU.")
        draft.words = [word for word in draft.words if word not in flags]
    device = line.find("device")
    if device and str(values_of_words(draft.words, line).get(device.key, device.default)).startswith("cuda"):
        draft.words = list(with_option(draft.words, device, "cpu"))
        draft.notes.append(f"With {' '.join(device.given('cpu'))}, as this machine has no GPU.")


def _note_missing_data(draft: _Draft, scan: Scan, script: Script, values: dict[str, Value]) -> None:
    """Say if the data of the script is not here, unless the script downloads it."""
    if has_name(script.trees, "download", "urlretrieve", "load_dataset"):
        return
    for option in script.command_line.options:
        value = values.get(option.key)
        is_path = isinstance(value, str) and "/" in value
        if is_path and _DATA_KEY.match(option.key) and not (scan.directory / str(value)).exists():
            draft.notes.append(f"{option.name} is {value}, which is not here.")
