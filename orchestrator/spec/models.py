"""jobs.toml as frozen models: the project, its hosts and its jobs. docs/jobs-toml.md describes every key."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from orchestrator.errors import SpecError
from orchestrator.spec.job_environment import JobEnvironment
from orchestrator.spec.problems import Invalid, Table, show, suggestion
from orchestrator.spec.values import (
    SECRET_HINT,
    check_env,
    check_env_name,
    check_glob,
    check_goal,
    check_line_pattern,
    check_metrics_file,
    check_relative,
    check_resume,
    check_ssh,
    check_text,
    looks_like,
    one_or_more,
    parse_bytes,
    parse_command,
    parse_duration,
    parse_env_value,
    parse_host_gpus,
    parse_rehearse,
    parse_secrets,
    parse_share,
)
from remote.contract.choices import Launcher, StopSignal
from remote.contract.files import MAX_INT
from remote.contract.paths import NAME

if TYPE_CHECKING:
    from remote.contract.run_record import HostRecord, JobRecord, MetricsRecord

FILE_NAME = "jobs.toml"
RESULTS, ORCH = "results", ".orch"  # directories next to jobs.toml: runs copied from boxes, and runs on this machine
MIRROR_RECORDS = ".mirror"  # in RESULTS: this machine's records of runs
MIRROR_MARKS = (".hosts", ".adopted")  # MIRROR_RECORDS has at least one of them; a folder of another program has none
LOCAL = "local"  # the host that always exists: this machine
MERGED = ("env", "goals", "links")  # tables of [defaults] to which a job adds its own keys

_PLAIN_WORD = re.compile(r"(?!-)[A-Za-z0-9_./+~-]+")  # means the same with or without a shell

Text = Annotated[str, AfterValidator(check_text)]
Name = Annotated[
    str, looks_like(NAME.pattern, "name", "use at most 64 letters, digits, '-' and '_'; start with a letter or digit")
]
Relative = Annotated[str, AfterValidator(check_relative)]
Glob = Annotated[Text, AfterValidator(check_glob)]
RelativeGlob = Annotated[Relative, AfterValidator(check_glob)]
EnvName = Annotated[str, AfterValidator(check_env_name)]
EnvValue = Annotated[str, BeforeValidator(parse_env_value)]
Condition = Annotated[str, AfterValidator(check_goal)]
Count = Annotated[int, Field(strict=True, ge=0, le=MAX_INT)]  # a box would read a larger one as null
Positive = Annotated[int, Field(strict=True, ge=1, le=MAX_INT)]
Size = Annotated[int, BeforeValidator(parse_bytes)]
Duration = Annotated[float, BeforeValidator(parse_duration)]  # seconds
Rehearse = Annotated[bool | tuple[str, ...], BeforeValidator(parse_rehearse)]
LinePattern = Annotated[str, AfterValidator(check_line_pattern)]
MetricsFile = Annotated[Relative, AfterValidator(check_metrics_file)]
Command = Annotated[tuple[str, ...], BeforeValidator(parse_command)]


class ProjectSettings(Table):
    """The table [project]."""

    name: Name
    include: tuple[RelativeGlob, ...] = ()  # shipped even if their names look like secrets
    exclude: tuple[Glob, ...] = ()  # gitignore-style, never shipped
    max_size: Size = 10**9  # bytes; larger code is sent only after confirmation
    max_files: Positive = 20_000  # code with more files needs confirmation too
    known_hosts: Relative | None = None  # None: the files that OpenSSH would read


class Ec2(Table):
    """The EC2 instance of a host, the table [hosts.NAME.ec2]."""

    instance_id: Annotated[str, looks_like(r"i-[0-9a-f]{8,17}", "instance id", "it looks like i-0123456789abcdef0")]
    region: Annotated[str, looks_like(r"[a-z]{2}(-[a-z]+)+-[0-9]+", "region", "it looks like us-east-1")]
    price_per_hour: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None  # USD


class Host(Table):
    """A machine that runs jobs, the table [hosts.NAME]."""

    name_is_header: ClassVar[bool] = True

    name: Name
    ssh: Annotated[str, AfterValidator(check_ssh)] | None = None  # None: this machine
    identity: Path | None = None
    client: Literal["openssh", "fabric"] | None = None  # None: openssh if this machine has ssh and rsync
    root: Text
    python: Text
    launcher: Launcher = "nohup"
    gpus: Annotated[int | tuple[int, ...] | None, BeforeValidator(parse_host_gpus)] = None  # None: ask the box
    survive_reboot: bool = True  # runs continue without a command after the host was restarted
    ec2: Ec2 | None = None

    def record(self) -> HostRecord:
        """Return what the supervisors of runs on the host need to know of it."""
        from remote.contract.run_record import HostRecord

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
            for key in ("identity", "client", "ec2"):
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
    """The command that creates a job's data, the table [jobs.NAME.prepare]."""

    command: Command
    inputs: tuple[Relative, ...] = ()  # (): the whole snapshot


class Data(Table):
    """The data that a job reads, the table [jobs.NAME.data]."""

    path: Text | None = None  # on the box; None: what `prepare` made
    source: Annotated[Text | None, Field(alias="from")] = None  # on this machine: sent to the box
    pattern: Relative = "*"
    at_least: Positive = 1

    @model_validator(mode="before")
    @classmethod
    def _is_table(cls, values: Any) -> Any:
        if isinstance(values, str):
            raise Invalid(f"expected a table, got {show(values)}", f"write {{ path = {show(values)} }}")
        if isinstance(values, dict) and values.get("path") is not None and values.get("from") is not None:
            raise Invalid("has both 'path' and 'from'", "`from` is on this machine, `path` on the box: keep one")
        return values


class Metrics(Table):
    """Where a job's metrics and progress are read that it does not report itself, the table [jobs.NAME.metrics]."""

    log: Annotated[tuple[LinePattern, ...], BeforeValidator(one_or_more)] = ()
    file: Annotated[tuple[MetricsFile, ...], BeforeValidator(one_or_more)] = ()
    epochs: Annotated[int, Field(strict=True, ge=1)] | None = None  # None: as the output or `command` says
    steps: Annotated[int, Field(strict=True, ge=1)] | None = None

    def record(self) -> MetricsRecord:
        """Return what the supervisor needs to read them."""
        from remote.contract.run_record import MetricsRecord

        return MetricsRecord(self.log, self.file, self.epochs, self.steps)


class Secret(Table):
    """Where the value of a secret comes from on this machine: a variable, or the output of a command."""

    env: EnvName | None = None
    command: Command | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_table(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            raise Invalid("expected a table", SECRET_HINT)  # without the value, which may be the secret itself
        return values

    @model_validator(mode="after")
    def _has_one_source(self) -> Secret:
        if (self.env is None) == (self.command is None):
            raise Invalid("needs either 'env' or 'command'", SECRET_HINT)
        return self


class Job(Table):
    """A command to run, and its conditions: the table [jobs.NAME]."""

    name_is_header: ClassVar[bool] = True

    name: Name
    host: str = LOCAL
    command: Command
    prepare: Prepare | None = None
    environment: JobEnvironment | None = None  # None: the Python of the host, as it is
    rehearse: Rehearse = True  # True: `command`, with ORCH_REHEARSAL=1
    rehearse_start: Duration = 60.0  # for a program without heartbeats to show a first sign of progress
    rehearse_progress: Duration = 20.0  # for it to run on after that
    env: Annotated[dict[EnvName, EnvValue], AfterValidator(check_env)] = Field(default_factory=dict)
    secrets: Annotated[dict[EnvName, Secret], BeforeValidator(parse_secrets)] = Field(default_factory=dict)
    gpus: Annotated[float, BeforeValidator(parse_share)] = 0.0  # the preflight tells 0 from a key that is not set
    data: Data | None = None
    expects: tuple[Relative, ...] = ()
    restarts: Count = 0
    stall_after: Duration = 1800.0
    deadline: Duration | None = None
    queue_deadline: Duration | None = None
    stop_grace: Duration = 60.0
    stop_signal: StopSignal = "SIGTERM"
    keep_checkpoints: Positive = 3  # the newest ones, in addition to the best one
    pty: bool = False  # its stdout and stderr are a pseudo-terminal
    checkpoints: Annotated[tuple[RelativeGlob, ...], BeforeValidator(one_or_more)] = ()  # in the working directory
    resume: Command | None = None  # arguments that are added to `command` to resume
    needs: tuple[str, ...] = ()
    cwd: Literal["work", "code"] = "work"  # a directory of the run's own, or the snapshot
    outputs: tuple[Relative, ...] = ()  # (): all files that the job adds or changes in its working directory
    keep: bool = False  # of files that the job deletes, keep the copies on this machine
    links: dict[Relative, Text] = Field(default_factory=dict)  # path in the working directory -> path on the box
    goals: dict[Text, Condition] = Field(default_factory=dict)
    metrics: Metrics | None = Metrics()  # None: the output is not read

    def record(self) -> JobRecord:
        """Return the job as it is sent to the box. It contains the names of the secrets, not their values."""
        from remote.contract.run_record import DataRecord, JobRecord, PrepareRecord

        return JobRecord(
            name=self.name,
            command=self.command,
            prepare=PrepareRecord(self.prepare.command, self.prepare.inputs) if self.prepare else None,
            environment=self.environment.record() if self.environment else None,
            env=dict(self.env),
            expand_env=True,
            secrets=tuple(self.secrets),
            gpus=self.gpus,
            data=DataRecord(self.data.path, self.data.pattern, self.data.at_least) if self.data else None,
            expects=self.expects,
            restarts=self.restarts,
            stall_after=self.stall_after,
            deadline=self.deadline,
            queue_deadline=self.queue_deadline,
            stop_grace=self.stop_grace,
            stop_signal=self.stop_signal,
            keep_checkpoints=self.keep_checkpoints,
            pty=self.pty,
            checkpoints=self.checkpoints,
            resume=self.resume or (),
            needs=self.needs,
            cwd=self.cwd,
            outputs=self.outputs,
            links=dict(self.links),
            goals=dict(self.goals),
            metrics=self.metrics.record() if self.metrics else None,
        )

    @field_validator("prepare", "environment", "data", "deadline", "queue_deadline", "metrics", "resume", mode="before")
    @classmethod
    def _switched_off(cls, value: object) -> object:
        return None if value is False else value  # TOML has no null, so `false` cancels a value of [defaults]

    @model_validator(mode="after")
    def _can_resume(self) -> Job:
        check_resume(self.command, self.resume or (), self.checkpoints)
        return self

    @field_validator("prepare", mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"command": value} if isinstance(value, (str, list, tuple)) else value

    @field_validator("environment", mode="before")
    @classmethod
    def _only_file(cls, value: object) -> object:
        return {"file": value} if isinstance(value, str) else value


class Spec(BaseModel):
    """A valid jobs.toml. `directory` is the directory of the file, which is the project directory."""

    model_config = ConfigDict(frozen=True)

    path: Path
    directory: Path
    project: ProjectSettings
    hosts: dict[str, Host]
    jobs: dict[str, Job]

    def job(self, name: str) -> Job:
        """Return a job. Raise SpecError, with the nearest name as hint, if there is no such job."""
        if name not in self.jobs:
            raise SpecError(f"{self.path.name}: no job {name!r}", suggestion(name, self.jobs, "jobs"))
        return self.jobs[name]

    def host(self, name: str) -> Host:
        """Return a host. Raise SpecError, with the nearest name as hint, if there is no such host."""
        if name not in self.hosts:
            raise SpecError(f"{self.path.name}: no host {name!r}", suggestion(name, self.hosts, "hosts"))
        return self.hosts[name]

    def jobs_by_host(self, names: Iterable[str], on: str | None = None) -> dict[str, list[Job]]:
        """Return the jobs by the names of their hosts, or all of them by the host `on`. Keeps the order of `names`.

        Raises:
            SpecError: There is no such job or host.
        """
        found: dict[str, list[Job]] = {}
        for job in map(self.job, names):
            found.setdefault(self.host(on or job.host).name, []).append(job)
        return found
