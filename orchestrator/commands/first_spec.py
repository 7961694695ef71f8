"""Write the text of a first jobs.toml for a repository, with suggestions that fit what was found there."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence

from orchestrator.code.repository_scan import Scan
from orchestrator.code.script_kinds import has_name, imported_libraries
from orchestrator.code.script_writes import find_written
from orchestrator.commands.first_command import FirstCommand
from orchestrator.commands.first_settings import (
    Resume,
    data_folder,
    final_files,
    how_to_resume,
    metric_names,
    missing_libraries,
    prepare_commands,
    project_python,
    results,
    short_command,
)
from orchestrator.spec.command_words import parse_command
from orchestrator.spec.tables import Invalid
from orchestrator.spec.wording import toml_key

_SECRETS = {
    "wandb": "WANDB_API_KEY",
    "huggingface_hub": "HF_TOKEN",
    "comet_ml": "COMET_API_KEY",
    "neptune": "NEPTUNE_API_TOKEN",
}
_LOWER_IS_BETTER = re.compile("loss|ppl|perplexity|mse|mae")
_MAX_NAMED = 6


def first_spec(scan: Scan, command: FirstCommand, name: str, has_gpu: bool) -> str:
    """Return the text of a jobs.toml.

    Args:
        scan: What was found in the repository.
        command: The command of the job.
        name: The name of the project.
        has_gpu: Whether this machine has a GPU.
    """
    script = command.script
    resume = how_to_resume(command, find_written(script.trees, command.values)) if script else None
    lines = [
        "# What to run, and where. `orch init` wrote this after reading the code here; it ran none of it.",
        "# A line such as `# key = value` is a suggestion: remove the `# ` to use it.",
        "",
        "[project]",
        f"name = {_toml(name)}",
        "",
        *_hosts(scan, has_gpu),
        "",
        "[jobs.train]",
        *_command(command),
        *_environment(scan, command),
        *_data(scan, command),
        "",
        *_rehearsal(command),
        "",
        *_resume(resume),
        "",
        *_results(command, resume),
        "",
        *_metrics(command),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _toml(value: object) -> str:
    """Return a text, or a list of texts, as TOML."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def command_text(words: Sequence[str]) -> str:
    """Return a command as TOML: as text if it can be read back from text, else as a list."""
    is_plain = all(re.fullmatch(r"[^\s'\"\\]+", word) for word in words)
    text = " ".join(words) if is_plain else shlex.join(words)
    try:
        return _toml(text if parse_command(text) == tuple(words) else list(words))
    except Invalid:
        return _toml(list(words))


# --- hosts -------------------------------------------------------------------------------------------------------


def _hosts(scan: Scan, has_gpu: bool) -> Iterator[str]:
    yield "[hosts.local]  # this machine"
    if python := project_python(scan.directory):
        yield f"python = {_toml(python)}  # found here; the `python` of a command becomes it"
    if not has_gpu:
        yield "gpus = 0  # run on the CPU; remove this line to use the GPUs of this machine"
    yield from (
        "",
        "# A remote machine. Then: orch doctor box, orch launch train --on box",
        "# [hosts.box]",
        '# ssh = "user@address"  # or an alias of ~/.ssh/config',
        '# python = "/path/on/the/box/to/python"',
        "# gpus = 1",
    )


# --- the job -----------------------------------------------------------------------------------------------------


def _command(command: FirstCommand) -> Iterator[str]:
    yield from (f"# SET THIS: {each}" for each in command.to_set)
    yield from (f"# {each}" for each in command.notes)
    yield f"command = {command_text(command.words)}"
    if command.env:
        yield f"env = {{ {', '.join(f'{name} = {_toml(value)}' for name, value in command.env)} }}"


def _environment(scan: Scan, command: FirstCommand) -> Iterator[str]:
    script = command.script
    if scan.environments:
        line = f"environment = {_toml(scan.environments[0])}  # each host builds it once; `python` is then its python"
        missing = [] if project_python(scan.directory) else missing_libraries(command)
        if missing:
            yield f"# The Python that runs orch has no {' and no '.join(missing)}."
        yield line if missing else f"# {line}"
    if script and has_name(script.trees, "cuda"):
        yield "# gpus = 1  # on a host that has some"
    libraries = imported_libraries(script.trees) if script else set()
    names = [secret for library, secret in _SECRETS.items() if library in libraries]
    if names:
        yield f"# secrets = {_toml(names)}  # variables of this machine that the job gets"


def _data(scan: Scan, command: FirstCommand) -> Iterator[str]:
    prepares = prepare_commands(scan, command)
    if len(prepares) == 1:
        yield "# From the README. It runs once; what it adds next to the code is copied into every run."
        yield f"prepare = {command_text(prepares[0].words)}"
    elif prepares:
        yield "# From the README; one of them, or a script that runs them. It runs once, before the first run."
        yield from (f"# prepare = {command_text(each.words)}" for each in prepares[:_MAX_NAMED])
    folder = data_folder(scan, command)
    if not folder:
        return
    link = f"links = {{ {toml_key(folder)} = {_toml(str(scan.directory.resolve() / folder))} }}"
    yield f"# git ignores {folder}/, so it is not uploaded with the code. Here it is linked; for a box, write instead:"
    yield f"# data = {{ from = {_toml(folder)} }}  # orch sends it there, once"
    yield f"# {link}" if prepares else link


def _rehearsal(command: FirstCommand) -> Iterator[str]:
    words, is_short = short_command(command)
    if words and is_short:
        yield "# The test before a launch. Without it, orch runs `command` until it has seen that it trains."
        yield f"rehearse = {command_text(words)}"
        return
    yield "# Before a launch, orch runs `command` until it has seen that it trains. To test more, or something else:"
    own = command_text(words) if words else '"python train.py --max_steps 2"  # if there is an option for it'
    yield f"# rehearse = {own}"


def _resume(found: Resume | None) -> Iterator[str]:
    mark = "" if found and found.is_certain else "# "
    yield "# After a crash, a stall or a reboot, it starts again in the same directory, so often at most:"
    yield f"{mark}restarts = 2"
    if found is None:
        yield "# No option was found that resumes from a checkpoint. If the program has one:"
        yield '# resume = "--resume $ORCH_RESUME"'
        yield '# checkpoints = "checkpoints/*.pt"'
        return
    if mark and found.checkpoints:
        yield "# Not certain: see whether these are its checkpoints, and whether it resumes from them."
    yield "# It then has these arguments, if there is a checkpoint; $ORCH_RESUME is the newest one."
    yield f"{mark}resume = {command_text(found.arguments)}"
    if found.checkpoints:
        yield f"{mark}checkpoints = {_toml(found.checkpoints)}"
    else:
        yield '# checkpoints = "checkpoints/*.pt"  # not certain: set the names of its checkpoints'


def _results(command: FirstCommand, resume: Resume | None) -> Iterator[str]:
    yield "# All that a run adds or changes next to the code is downloaded. To download only some of it:"
    names = [each.path for each in results(command)]
    yield f"# outputs = {_toml(names[:_MAX_NAMED] or ['out', '*.pt'])}"
    yield "# The run succeeds only if it wrote these:"
    expected = final_files(command)[:2] or [resume.checkpoints if resume and resume.checkpoints else "out/*.pt"]
    yield f"# expects = {_toml(expected)}"
    if "save_total_limit" in " ".join(command.words):
        yield "# keep = true  # keep the copies here of the checkpoints that it deletes"
    yield '# deadline = "12h"'


def _metrics(command: FirstCommand) -> Iterator[str]:
    yield "# orch finds progress and metrics in the output, and `orch status` shows them. What they have to reach:"
    yield "# [jobs.train.goals]"
    for name in metric_names(command.script)[:2] or ["val_accuracy"]:
        yield f'# {name} = "{"<= 0.5" if _LOWER_IS_BETTER.search(name) else ">= 75 %"}"'
    yield from ("", "# If it finds none, or the wrong ones:", "# [jobs.train.metrics]")
    written = find_written(command.script.trees, command.values) if command.script else []
    files = [each.path for each in written if re.search(r"\.(?:csv|tsv|jsonl)$", each.path)]
    if command.script and has_name(command.script.trees, "SummaryWriter"):
        files.append("runs/**/events.out.tfevents.*")
    yield from (f"# file = {_toml(each)}" for each in files[:1])
    yield "# log = 'step (?P<step>\\d+) .* loss (?P<loss>\\S+)'"
