"""jobs.toml as frozen models: the project, its hosts, its jobs. docs/jobs-toml.md is the reference of its keys."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from orchestrator.errors import SpecError
from orchestrator.spec.problems import Invalid, Loc, Report, Table, header, show, suggestion
from orchestrator.spec.values import (
    SECRET_HINT,
    check_env_name,
    check_glob,
    check_goal,
    check_relative,
    check_ssh,
    check_text,
    looks_like,
    parse_bytes,
    parse_command,
    parse_duration,
    parse_env_value,
    parse_host_gpus,
    parse_rehearse,
    parse_secrets,
    parse_share,
)
from remote.contract.paths import NAME
from remote.contract.run_record import DataRecord, HostRecord, JobRecord, Launcher, PrepareRecord

FILE_NAME = "jobs.toml"
RESULTS, ORCH = "results", ".orch"  # beside it: what runs made, copied from boxes and on this machine
MIRROR_RECORDS = ".mirror"  # in RESULTS: what this machine knows of its runs
MIRROR_MARKS = (".hosts", ".adopted")  # in MIRROR_RECORDS: another program's folder of that name has neither
LOCAL = "local"  # the host that always exists: this machine
MERGED = ("env", "goals")  # tables that [defaults] and a job share key by key

_PLAIN_WORD = re.compile(r"(?!-)[A-Za-z0-9_./+~-]+")  # means the same with or without a shell

NamedTable = TypeVar("NamedTable", bound=Table)
Text = Annotated[str, AfterValidator(check_text)]
Name = Annotated[
    str, looks_like(NAME.pattern, "name", "use at most 64 letters, digits, '-' and '_'; start with a letter or digit")
]
Relative = Annotated[str, AfterValidator(check_relative)]
EnvName = Annotated[str, AfterValidator(check_env_name)]
EnvValue = Annotated[str, BeforeValidator(parse_env_value)]
Condition = Annotated[str, AfterValidator(check_goal)]
Count = Annotated[int, Field(strict=True, ge=0)]
Size = Annotated[int, BeforeValidator(parse_bytes)]
Duration = Annotated[float, BeforeValidator(parse_duration)]  # seconds
Rehearse = Annotated[bool | tuple[str, ...], BeforeValidator(parse_rehearse)]
Command = Annotated[tuple[str, ...], BeforeValidator(parse_command)]


class ProjectSettings(Table):
    name: Name
    include: tuple[
        Annotated[Relative, AfterValidator(check_glob)], ...
    ] = ()  # shipped although their names look like secrets
    exclude: tuple[Annotated[Text, AfterValidator(check_glob)], ...] = ()  # gitignore-style globs, never shipped
    max_size: Size = 10**9  # bytes; more is asked about before it is shipped
    max_files: Annotated[int, Field(strict=True, ge=1)] = 20_000  # likewise
    known_hosts: Relative | None = None  # None: the files that OpenSSH would read


class Ec2(Table):
    instance_id: Annotated[str, looks_like(r"i-[0-9a-f]{8,17}", "instance id", "it looks like i-0123456789abcdef0")]
    region: Annotated[str, looks_like(r"[a-z]{2}(-[a-z]+)+-[0-9]+", "region", "it looks like us-east-1")]
    price_per_hour: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None  # USD


class Host(Table):
    name_is_header: ClassVar[bool] = True

    name: Name
    ssh: Annotated[str, AfterValidator(check_ssh)] | None = None  # None: this machine
    identity: Path | None = None
    root: Text
    python: Text
    launcher: Launcher = "nohup"
    gpus: Annotated[int | tuple[int, ...] | None, BeforeValidator(parse_host_gpus)] = None  # None: ask the box
    survive_reboot: bool = True  # runs go on by themselves after the host was restarted
    ec2: Ec2 | None = None

    def record(self) -> HostRecord:
        """Return the host as its runs need it."""
        return HostRecord(self.name, self.python, self.launcher, self.gpus, self.survive_reboot)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        here = values.get("ssh") is None
        return {"root": ORCH if here else "~/orch", "python": sys.executable if here else "python3", **values}

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Host:
        if self.ssh is None:
            for key in ("identity", "ec2"):
                if getattr(self, key) is not None:
                    raise Invalid(f"{key!r} needs 'ssh'; without 'ssh' the host is this machine")
            return self
        if self.name == LOCAL:
            raise Invalid("'ssh': this host is always this machine", "give the other machine another name")
        for key in ("root", "python"):
            if not _PLAIN_WORD.fullmatch(getattr(self, key)):
                raise Invalid(f"{key}: {show(getattr(self, key))} must be a path of letters, digits and _ . / + ~ -")
        return self


class Prepare(Table):
    command: Command
    inputs: tuple[Relative, ...] = ()  # (): the whole snapshot


class Data(Table):
    path: Text | None = None  # on the box; None: what `prepare` made
    pattern: Relative = "*"
    at_least: Annotated[int, Field(strict=True, ge=1)] = 1


class Secret(Table):
    """Where the value of a secret comes from on this machine: a variable, or what a command prints."""

    env: EnvName | None = None
    command: Command | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_table(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            raise Invalid("expected a table", SECRET_HINT)  # and is not repeated: it may be the secret itself
        return values

    @model_validator(mode="after")
    def _has_one_source(self) -> Secret:
        if (self.env is None) == (self.command is None):
            raise Invalid("it needs 'env' or 'command'", SECRET_HINT)
        return self


class Job(Table):
    name_is_header: ClassVar[bool] = True

    name: Name
    host: str = LOCAL
    command: Command
    prepare: Prepare | None = None
    rehearse: Rehearse = True  # True: `command`, with ORCH_REHEARSAL=1
    env: dict[EnvName, EnvValue] = Field(default_factory=dict)
    secrets: Annotated[dict[EnvName, Secret], BeforeValidator(parse_secrets)] = Field(default_factory=dict)
    gpus: Annotated[float, BeforeValidator(parse_share)] = 0.0
    data: Data | None = None
    expects: tuple[Relative, ...] = ()
    restarts: Count = 0
    stall_after: Duration = 1800.0
    deadline: Duration | None = None
    stop_grace: Duration = 60.0
    keep_checkpoints: Annotated[int, Field(strict=True, ge=1)] = 3  # of the newest, beside the best one
    needs: tuple[str, ...] = ()
    goals: dict[Text, Condition] = Field(default_factory=dict)

    def record(self) -> JobRecord:
        """Return the job as its box needs it. Of secrets only the names are in it."""
        return JobRecord(
            name=self.name,
            command=self.command,
            prepare=PrepareRecord(self.prepare.command, self.prepare.inputs) if self.prepare else None,
            env=dict(self.env),
            secrets=tuple(self.secrets),
            gpus=self.gpus,
            data=DataRecord(self.data.path, self.data.pattern, self.data.at_least) if self.data else None,
            expects=self.expects,
            restarts=self.restarts,
            stall_after=self.stall_after,
            deadline=self.deadline,
            stop_grace=self.stop_grace,
            keep_checkpoints=self.keep_checkpoints,
            needs=self.needs,
            goals=dict(self.goals),
        )

    @field_validator("prepare", "data", "deadline", mode="before")
    @classmethod
    def _switched_off(cls, value: object) -> object:
        return None if value is False else value  # TOML has no null to take back what [defaults] say

    @field_validator("prepare", mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"command": value} if isinstance(value, (str, list, tuple)) else value


class Spec(BaseModel):
    """A jobs.toml that holds. `directory` is the project directory, the one that the file is in."""

    model_config = ConfigDict(frozen=True)

    path: Path
    directory: Path
    project: ProjectSettings
    hosts: dict[str, Host]
    jobs: dict[str, Job]

    def job(self, name: str) -> Job:
        if name not in self.jobs:
            raise SpecError(f"{self.path.name}: no job {name!r}", suggestion(name, self.jobs, "jobs"))
        return self.jobs[name]

    def host(self, name: str) -> Host:
        if name not in self.hosts:
            raise SpecError(f"{self.path.name}: no host {name!r}", suggestion(name, self.hosts, "hosts"))
        return self.hosts[name]

    def with_overrides(self, jobs: str | Iterable[str], overrides: Iterable[str]) -> Spec:
        """The spec with every KEY=VALUE applied to each of `jobs`: `env.EPOCHS=5`, `deadline=2h`."""
        report = Report("--set")
        pairs = [_parse_override(text) for text in overrides]
        changed = dict(self.jobs)
        for name in [jobs] if isinstance(jobs, str) else jobs:
            values = self.job(name).model_dump(mode="json", exclude={"name"})
            for key, value in pairs:
                _override(values, key, value)
            job = build(Job, "jobs", name, values, {}, report)
            if job is not None:
                changed[name] = job
        check_references(self.hosts, self.jobs, changed, lambda name, key: header("jobs", name), report)
        report.raise_if_any()
        return self.model_copy(update={"jobs": changed})


# --- tables, references, overrides ---------------------------------------------------------------------------


def build(
    model: type[NamedTable], kind: str, name: str, own: Mapping[str, Any], defaults: Mapping[str, Any], report: Report
) -> NamedTable | None:
    if "name" in own:
        report.add(header(kind, name), "unknown key 'name'", f"the name is the one in {header(kind, name)}")
    values = {**defaults, **own, "name": name}
    for key in MERGED:
        if isinstance(defaults.get(key), dict) and isinstance(own.get(key), dict):
            values[key] = {**defaults[key], **own[key]}
    return report.check(model, values, lambda loc: table_of(kind, name, own, defaults, loc))


def table_of(kind: str, name: str, own: Mapping[str, Any], defaults: Mapping[str, Any], loc: Loc) -> str:
    """Where the value at `loc` was written: the table of the job or host itself, or [defaults]."""
    key = loc[0] if loc else ""
    if key in MERGED and len(loc) > 1 and isinstance(own.get(key), dict) and isinstance(defaults.get(key), dict):
        own, defaults, key = own[key], defaults[key], loc[1]
    return "[defaults]" if key in defaults and key not in own else header(kind, name)


def check_references(
    hosts: Iterable[str],
    names: Iterable[str],
    jobs: Mapping[str, Job],
    table_of: Callable[[str, str], str],
    report: Report,
) -> None:
    """`names` are all the jobs of the file, `jobs` those of them that are sound in themselves."""
    for job in jobs.values():
        if job.host not in hosts:
            report.add(table_of(job.name, "host"), f"host: no host {job.host!r}", suggestion(job.host, hosts, "hosts"))
        for need in job.needs:
            if need not in names:
                report.add(table_of(job.name, "needs"), f"needs: no job {need!r}", suggestion(need, names, "jobs"))
            elif need in jobs and jobs[need].host != job.host:
                where = f"{need!r} runs on {jobs[need].host!r}, this job on {job.host!r}"
                report.add(
                    table_of(job.name, "needs"), f"needs: {where}", "a job must run on the host of the jobs it needs"
                )
    try:
        TopologicalSorter({job.name: [need for need in job.needs if need in jobs] for job in jobs.values()}).prepare()
    except CycleError as error:
        cycle = error.args[1][::-1]
        report.add(table_of(cycle[0], "needs"), f"needs: jobs need each other in a circle: {', '.join(cycle)}")


def _parse_override(text: str) -> tuple[str, Any]:
    """KEY and VALUE, which is TOML where it parses as such and else text."""
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise SpecError(f"--set: {show(text)} is not KEY=VALUE", "write for example --set env.EPOCHS=5")
    try:
        document = tomllib.loads(f"value = {raw}")
        value = document["value"] if len(document) == 1 else raw
    except (ValueError, RecursionError):
        value = raw
    return key, raw if key.startswith("env.") and not isinstance(value, str) else value


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `deadline`, `env.EPOCHS` or `secrets.TOKEN.command`. In another table than `secrets` all after the first dot
    is one key: the name of a metric may hold dots.
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
