"""Change settings of jobs for one command: `--set KEY=VALUE`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.build import build_table, check_references
from orchestrator.spec.models import Job, Spec
from orchestrator.spec.problems import Report
from orchestrator.spec.tables import to_toml
from orchestrator.spec.wording import header, show

SIMILAR = 0.75  # of a mistyped key and the one that is meant; 1 is the same
LIBRARIES = re.compile(  # beginnings of variables that libraries and tools read, not the code itself
    "ACCELERATE_|AWS_|CUBLAS_|CUDA_|CUDNN_|DATASETS_|GLOO_|HF_|HTTPS?_|HUGGINGFACE_|JAX_|KMP_|LC_|LD_|MKL_|MLFLOW_|MPL"
    "|NCCL_|NO_PROXY|NUMEXPR_|NVIDIA_|OMP_|OPENBLAS_|PIP_|PYTHON|PYTORCH_|TF_|TOKENIZERS_|TORCH|TRANSFORMERS_|TRITON_"
    "|UV_|WANDB_|XDG_|XLA_|(?:HOME|LANG|PATH|TMPDIR|TZ)$"
)


def with_overrides(spec: Spec, jobs: Iterable[str], overrides: Iterable[str]) -> Spec:
    """Return the spec with each override applied to each of the jobs.

    Args:
        spec: The spec.
        jobs: The names of the jobs.
        overrides: Texts such as `env.EPOCHS=5` or `deadline=2h`.

    Raises:
        SpecError: There is no such job, or an override is malformed or makes a job invalid.
    """
    report = Report("--set")
    pairs = [parse_override(text) for text in overrides]
    changed = dict(spec.jobs)
    for name in jobs:
        values = to_toml(spec.job(name))
        for key, value in pairs:
            if hint := _hint_for_unknown(spec.job(name), key):
                report.add(header("jobs", name), f"unknown key {key!r}", hint)
            else:
                override(values, key, value)
        job = build_table(Job, "jobs", name, values, {}, report)
        if job is not None:
            changed[name] = job
    check_references(spec.hosts, spec.jobs, changed, lambda name, key: header("jobs", name), report)
    report.raise_if_any()
    return replace(spec, jobs=changed)


def unmentioned_variables(spec: Spec, jobs: Iterable[str], overrides: Iterable[str]) -> list[str]:
    """Return the variables that `overrides` set in `env`, and that nothing in jobs.toml mentions.

    Variables of well-known libraries and tools are not among them: the code need not mention these.
    """
    keys = [parse_override(text)[0] for text in overrides]
    names = [key.partition(".")[2] for key in keys if key.startswith("env.")]
    known = {name for job in spec.jobs.values() for name in job.env}
    texts = [word for name in jobs for word in _words(spec.job(name))]
    return [
        name
        for name in dict.fromkeys(names)
        if name not in known and not LIBRARIES.match(name) and not any(name in text for text in texts)
    ]


def _words(job: Job) -> Iterator[str]:
    """Yield what a job runs and the values of its variables, any of which may name a variable."""
    yield from job.command
    yield from job.resume or ()
    yield from job.env.values()
    if job.prepare:
        yield from job.prepare.command
    if isinstance(job.rehearse, tuple):
        yield from job.rehearse


def _hint_for_unknown(job: Job, key: str) -> str:
    """Return what to write in place of a key that no job has; "" if the key, or the one before the dot, is known."""
    import difflib  # only for an override, and takes a while

    settings = [key for key in Job.toml_keys() if key != "name"]
    head = key.partition(".")[0]
    if head in (*settings, "name") or difflib.get_close_matches(head, settings, 1, SIMILAR):
        return ""
    variable = next((name for name in job.env if name.casefold() == key.casefold()), None)
    if variable:
        return f"did you mean env.{variable}?"
    example = re.sub(r"[^A-Z0-9_]", "_", key.upper())
    return f"for a variable of the program: --set env.{example}=...; the settings of a job are: {', '.join(settings)}"


def parse_override(text: str) -> tuple[str, Any]:
    """Return KEY and VALUE of `KEY=VALUE`.

    Raises:
        SpecError: It is malformed.
    """
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise SpecError(f"--set: {show(text)} is not KEY=VALUE", "write for example --set env.EPOCHS=5")
    return key, typed(key, raw)


def typed(key: str, raw: str) -> Any:
    """Return the value of a setting that was given as text. If it is not valid TOML, it is that text."""
    try:
        document = tomllib.loads(f"value = {raw}")
        value = document["value"] if len(document) == 1 else raw
    except (ValueError, RecursionError):
        value = raw
    return raw if key.startswith("env.") and not isinstance(value, str) else value


def override(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a key such as `deadline`, `env.EPOCHS` or `secrets.TOKEN.command` in the values of a job.

    Except in `secrets`, everything after the first dot is one key, because the name of a metric may contain dots.
    """
    head, dot, rest = key.partition(".")
    if head == "secrets" and "." in rest:
        rest, _, source = rest.partition(".")
        value = {source: value}
    if not dot:
        values[head] = value
    elif isinstance(values.get(head), dict):
        values[head][rest] = value
    else:
        values[head] = {rest: value}
