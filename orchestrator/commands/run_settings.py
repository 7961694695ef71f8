"""The settings of a run, as in its run.json, and the command that starts a run with the same ones."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.errors import SpecError
from orchestrator.spec.models import SWITCHES, Job, Spec
from orchestrator.spec.overrides import typed, with_overrides
from orchestrator.text import clean
from remote.contract.run_record import JobRecord, RunRecord
from remote.contract.schema import to_json

if TYPE_CHECKING:
    from orchestrator.box.known_runs import KnownRun
    from orchestrator.commands.project import OpenedProject

TABLES = ("env", "goals", "links")  # whose settings have keys of their own
# Settings that `--set` can give the value of run.json.
SETTABLE = (
    *("command", "gpus", "restarts", "stall_after", "deadline", "queue_deadline", "stop_grace", "stop_signal"),
    *("keep_checkpoints", "pty", "expects", "outputs", "checkpoints", "resume", "needs", "cwd"),
)
# What depends on the launch: the place of `data.from` on the box, links to it, and what only rehearsals have.
ADDED = ("data", "links", "expand_env", "attempt_limit", "slot_patience", "rehearse_start", "rehearse_progress")


class Setting(NamedTuple):
    """A setting of a run's job, as in run.json. The key is that of `--set`, such as `env.SEED`."""

    key: str
    value: Any


def settings_of(job: JobRecord) -> tuple[Setting, ...]:
    """Return the settings of a job that differ from the defaults, by their keys."""
    records = (JobRecord(job.name), Job(name=job.name, command=()).record())  # of earlier versions, and of this one
    defaults = [set(map(repr, all_settings(record))) for record in records]
    return tuple(setting for setting in all_settings(job) if not any(repr(setting) in known for known in defaults))


def all_settings(job: JobRecord) -> list[Setting]:
    """Return all settings of a job, those of its tables such as `env` one by one."""
    found: list[Setting] = []
    for key, value in to_json(job).items():
        if isinstance(value, dict) and key in TABLES:
            found += [Setting(f"{key}.{name}", value[name]) for name in sorted(value)]
        elif key != "name":
            found.append(Setting(key, value))
    return found


def command_again(project: OpenedProject, run: KnownRun, record: RunRecord | None) -> tuple[str, tuple[str, ...]]:
    """Return the command that runs the job again, and the settings that it does not restore.

    Args:
        project: The project that has the run.
        run: The run.
        record: Its run.json; None if there is none.

    Returns:
        The command, or "" if jobs.toml does not have the job any more; and the keys of the settings.
    """
    job = project.spec.jobs.get(run.job)
    if job is None:
        return "", ()
    words = ["orch", "launch", job.name]
    host = project.host_of(run)
    if host is not None and host != job.host:
        words += ["--on", host]
    if record is None:
        return shlex.join(words), ()
    before = _comparable(record.job)
    overrides = _overrides(project.spec, job, before)
    now = _of_today(with_overrides(project.spec, [job.name], overrides.values()), job.name)
    texts = list(overrides.values())
    if not job.sweep.keys() <= overrides.keys():  # a launch varies them, and the run has no value for one of them
        texts.append("sweep={}")
    words += [word for text in texts for word in ("--set", text)]
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return shlex.join(words), tuple(changed)


def _overrides(spec: Spec, job: Job, before: dict[str, Setting]) -> dict[str, str]:
    """Return the texts for `--set`, by key, that restore the settings `before`, as far as that is possible."""
    today = _of_today(spec, job.name)
    wanted = {
        key: text
        for key, setting in before.items()
        if (key.startswith("env.") or key in SETTABLE) and (setting != today.get(key) or key in job.sweep)
        if (text := override_text(*setting)) is not None
    }
    if _is_valid(spec, job, wanted.values()):
        return wanted
    # One of them, such as a setting of an earlier version, is refused. Some may only be valid together with others.
    found: dict[str, str] = {}
    while fitting := [
        key for key, text in wanted.items() if key not in found and _is_valid(spec, job, [*found.values(), text])
    ]:
        found[fitting[0]] = wanted[fitting[0]]
    return found


def _is_valid(spec: Spec, job: Job, overrides: Iterable[str]) -> bool:
    try:
        with_overrides(spec, [job.name], overrides)
    except SpecError:
        return False
    return True


def override_text(key: str, value: Any) -> str | None:
    """Return the text for `--set` that gives a setting a value of run.json; None if there is none."""
    if key in SWITCHES and (value is None or value == []):
        return f"{key}=false"
    if key.startswith("env.") and isinstance(value, str) and _is_shown(value) and typed(key, value) == value:
        return f"{key}={value}"
    text = "".join(map(_escaped, json.dumps(value, ensure_ascii=False)))
    return f"{key}={text}" if typed(key, text) == value else None


def _is_shown(text: str) -> bool:
    """Return whether the text is shown as it is, so that it can be copied."""
    return text.isprintable() and clean(text) == text


def _escaped(character: str) -> str:
    r"""Return a character as a string of TOML may have it: DEL and those that are not shown as `\u007f`."""
    if _is_shown(character):
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _of_today(spec: Spec, name: str) -> dict[str, Setting]:
    return _comparable(spec.notify.added_to(spec.job(name).record()))


def _comparable(job: JobRecord) -> dict[str, Setting]:
    """Return the settings of a job by key, without those that depend on the launch."""
    return {setting.key: setting for setting in all_settings(job) if setting.key.partition(".")[0] not in ADDED}
