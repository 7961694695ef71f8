"""Parse and check the commands in jobs.toml, which run without a shell. See `values.py`."""

from __future__ import annotations

import re
import shlex

from orchestrator.spec.tables import Invalid
from orchestrator.spec.values import ENV_NAME, OWN_ENV
from orchestrator.spec.wording import show
from remote.contract.protocol import ENV_NEEDS, ENV_RESUME
from remote.contract.variables import named_outside, script_words

_SHELL = re.compile(
    r"""\\. | '[^']*' | "(?P<quoted>(?:\\.|[^"\\])*)" | (?P<operator>&&|\|\||>>|<<|\$\(|[|;&<>`])""",
    re.VERBOSE | re.DOTALL,
)
_SHELL_IN_QUOTES = re.compile(r"(?<!\\)(`|\$\()")  # a shell expands these two inside double quotes as well


def parse_command(value: object) -> tuple[str, ...]:
    """Return the words of a command. `$NAME` is kept, because the box expands it, whatever quotes were around it."""
    if isinstance(value, str):
        words = _split(value)
    elif isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value):
        words = tuple(value)
    else:
        raise Invalid(f"expected text or a list of texts, got {show(value)}")
    if not words or not words[0].strip():
        raise Invalid("must not be empty", 'write a program and its arguments, such as "python -m train"')
    if any("\0" in word for word in words):
        raise Invalid("must not contain a NUL character")
    return words


def parse_arguments(value: object) -> tuple[str, ...]:
    """Return arguments that are added to a command."""
    if value in ("", [], ()):
        raise Invalid("must not be empty", 'write arguments, such as "--resume $ORCH_RESUME"; `false` switches it off')
    return parse_command(value)


def parse_rehearse(value: object) -> bool | tuple[str, ...]:
    """Return the command of the rehearsal, True for the command of the job, or False for no rehearsal."""
    return value if isinstance(value, bool) else parse_command(value)


def _split(text: str) -> tuple[str, ...]:
    for match in _SHELL.finditer(text):
        quoted = _SHELL_IN_QUOTES.search(match["quoted"] or "")
        operator = match["operator"] or (quoted and quoted[1])
        if operator:
            raise Invalid(
                f"{operator!r} needs a shell, but the command runs without one", 'write ["bash", "-c", "..."]'
            )
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise Invalid(f"{show(text)} cannot be split into words: {str(error).lower()}") from None
    if words and re.match(rf"{ENV_NAME.pattern}=", words[0]):
        raise Invalid(
            f"{show(words[0])} needs a shell, but the command runs without one", "put it into `env` of the job"
        )
    return tuple(words)


def check_resume(command: tuple[str, ...], resume: tuple[str, ...], checkpoints: tuple[str, ...]) -> None:
    """Require that the arguments of `resume` reach the program, and that their checkpoint can be found."""
    for name in sorted(named_outside(resume)):
        if name.startswith("ORCH_") and name not in OWN_ENV and not name.startswith(ENV_NEEDS):
            raise Invalid(f"'resume' uses ${name}, which orch does not set", f"write ${ENV_RESUME}")
    if ENV_RESUME in named_outside(resume) and not checkpoints:
        hint = 'write for example checkpoints = "out/checkpoint-*"'
        raise Invalid(f"'resume' uses ${ENV_RESUME}, but 'checkpoints' does not say where checkpoints are", hint)
    scripts = [command[index] for index in script_words(command)]
    if resume and scripts and not any("$@" in script or "$*" in script for script in scripts):
        hint = f"write ${{{ENV_RESUME}:+--resume ${ENV_RESUME}}} in the script, and remove 'resume'"
        raise Invalid("'resume': the script in 'command' does not pass its arguments on", hint)
