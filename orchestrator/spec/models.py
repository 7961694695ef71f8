"""jobs.toml as frozen dataclasses: the project, its hosts and its jobs. docs/jobs-toml.md describes every key."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from orchestrator.errors import SpecError
from orchestrator.spec.command_words import check_resume, parse_arguments, parse_command, parse_rehearse
from orchestrator.spec.job_environment import JobEnvironment
from orchestrator.spec.tables import Expand, Invalid, Parse, Require, Table, Within
from orchestrator.spec.values import (
    SECRET_HINT,
    check_env,
    check_env_name,
    check_glob,
    check_goal,
    check_line_pattern,
    check_links,
    check_metrics_file,
    check_relative,
    check_ssh,
    check_text,
    looks_like,
    one_or_more,
    parse_bytes,
    parse_duration,
    parse_env_value,
    parse_host_gpus,
    parse_path,
    parse_secrets,
    parse_share,
)
from orchestrator.spec.wording import show, suggestion
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
SWITCHES = ("prepare", "environment", "data", "deadline", "queue_deadline", "metrics", "resume")
MERGED = ("env", "goals", "links")  # tables of [defaults] to which a job adds its own keys

_PLAIN_WORD = re.compile(r"(?!-)[A-Za-z0-9_./+~-]+")  # means the same with or without a shell

Text = Annotated[str, Require(check_text)]
Name = Annotated[
    str, looks_like(NAME.pattern, "name", "use at most 64 letters, digits, '-' and '_'; start with a letter or digit")
]
Relative = Annotated[str, Require(check_relative)]
Glob = Annotated[Text, Require(check_glob)]
RelativeGlob = Annotated[Relative, Require(check_glob)]
EnvName = Annotated[str, Require(check_env_name)]
EnvValue = Annotated[str, Parse(parse_env_value)]
Condition = Annotated[str, Require(check_goal)]
Count = Annotated[int, Within(0, MAX_INT)]  # a box would read a larger one as null
Positive = Annotated[int, Within(1, MAX_INT)]
Size = Annotated[int, Parse(parse_bytes)]
Duration = Annotated[float, Parse(parse_duration)]  # seconds
Rehearse = Annotated[bool | tuple[str, ...], Parse(parse_rehearse)]
LinePattern = Annotated[str, Require(check_line_pattern)]
MetricsFile = Annotated[Relative, Require(check_metrics_file)]
Command = Annotated[tuple[str, ...], Parse(parse_command)]


@dataclass(frozen=True, kw_only=True)
class ProjectSettings(Table):
    """The table [project]."""

    name: Name
    include: tuple[RelativeGlob, ...] = ()  # shipped even if their names look like secrets
    exclude: tuple[Glob, ...] = ()  # gitignore-style, never shipped
    max_size: Size = 10**9  # bytes; larger code is sent only after confirmation
    max_files: Positive = 20_000  # code with more files needs confirmation too
    known_hosts: Relative | None = None  # None: the files that OpenSSH would read


@dataclass(frozen=True, kw_only=True)
class Ec2(Table):
    """The EC2 instance of a host, the table [hosts.NAME.ec2]."""

    instance_id: Annotated[str, looks_like(r"i-[0-9a-f]{8,17}", "instance id", "it looks like i-0123456789abcdef0")]
    region: Annotated[str, looks_like(r"[a-z]{2}(-[a-z]+)+-[0-9]+", "region", "it looks like us-east-1")]
    price_per_hour: Annotated[float, Within(0)] | None = None  # USD


@dataclass(frozen=True, kw_only=True)
class Host(Table):
    """A machine that runs jobs, the table [hosts.NAME]."""

    name_is_header: ClassVar[bool] = True

    name: Name
    ssh: Annotated[str, Require(check_ssh)] | None = None  # None: this machine
    identity: Annotated[Path, Parse(parse_path)] | None = None
    client: Literal["openssh", "fabric"] | None = None  # None: openssh if this machine has ssh and rsync
    root: Text
    python: Text
    launcher: Launcher = "nohup"
    gpus: Annotated[int | tuple[int, ...] | None, Parse(parse_host_gpus)] = None  # None: ask the box
    survive_reboot: bool = True  # runs continue without a command after the host was restarted
    ec2: Ec2 | None = None

    def record(self) -> HostRecord:
        """Return what the supervisors of runs on the host need to know of it."""
        from remote.contract.run_record import HostRecord

        return HostRecord(self.name, self.python, self.launcher, self.gpus, self.survive_reboot)

    @classmethod
    def expanded(cls, values: Any) -> Any:
        """Fill in the root and the Python, which depend on where the host is."""
        if not isinstance(values, dict):
            return values
        here = values.get("ssh") is None
        return {"root": ORCH if here else "~/orch", "python": sys.executable if here else "python3", **values}

    def check(self) -> None:
        """Require keys that fit a host that is another machine, or this one."""
        if self.ssh is None:
            for key in ("identity", "client", "ec2"):
                if getattr(self, key) is not None:
                    raise Invalid(f"{key!r} needs 'ssh'; without 'ssh' the host is this machine")
            return
        if self.name == LOCAL:
            raise Invalid("'ssh': this host is always this machine", "give the other machine another name")
        for key in ("root", "python"):
            if not _PLAIN_WORD.fullmatch(getattr(self, key)):
                raise Invalid(f"{key}: {show(getattr(self, key))} must be a path of letters, digits and _ . / + ~ -")


@dataclass(frozen=True, kw_only=True)
class Prepare(Table):
    """The command that creates a job's data, the table [jobs.NAME.prepare]."""

    command: Command
    inputs: tuple[Relative, ...] = ()  # (): the whole snapshot


@dataclass(frozen=True, kw_only=True)
class Data(Table):
    """The data that a job reads, the table [jobs.NAME.data]."""

    path: Text | None = None  # on the box; None: what `prepare` made
    source: Text | None = field(default=None, metadata={"key": "from"})  # on this machine: sent to the box
    pattern: Relative = "*"
    at_least: Positive = 1

    @classmethod
    def expanded(cls, values: Any) -> Any:
        """Require a table with one place of the data."""
        if isinstance(values, str):
            raise Invalid(f"expected a table, got {show(values)}", f"write {{ path = {show(values)} }}")
        if isinstance(values, dict) and values.get("path") is not None and values.get("from") is not None:
            raise Invalid("has both 'path' and 'from'", "`from` is on this machine, `path` on the box: keep one")
        return values


@dataclass(frozen=True, kw_only=True)
class Metrics(Table):
    """Where a job's metrics and progress are read that it does not report itself, the table [jobs.NAME.metrics]."""

    log: Annotated[tuple[LinePattern, ...], Expand(one_or_more)] = ()
    file: Annotated[tuple[MetricsFile, ...], Expand(one_or_more)] = ()
    epochs: Positive | None = None  # None: as the output or `command` says
    steps: Positive | None = None

    def record(self) -> MetricsRecord:
        """Return what the supervisor needs to read them."""
        from remote.contract.run_record import MetricsRecord

        return MetricsRecord(self.log, self.file, self.epochs, self.steps)


@dataclass(frozen=True, kw_only=True)
class Secret(Table):
    """Where the value of a secret comes from on this machine: a variable, or the output of a command."""

    env: EnvName | None = None
    command: Command | None = None

    @classmethod
    def expanded(cls, values: Any) -> Any:
        """Require a table."""
        if not isinstance(values, dict):
            raise Invalid("expected a table", SECRET_HINT)  # without the value, which may be the secret itself
        return values

    def check(self) -> None:
        """Require one source."""
        if (self.env is None) == (self.command is None):
            raise Invalid("needs either 'env' or 'command'", SECRET_HINT)


@dataclass(frozen=True, kw_only=True)
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
    env: Annotated[dict[EnvName, EnvValue], Require(check_env)] = field(default_factory=dict)
    secrets: Annotated[dict[EnvName, Secret], Expand(parse_secrets)] = field(default_factory=dict)
    gpus: Annotated[float | None, Parse(parse_share)] = None  # None: none, and the job does not say so itself
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
    checkpoints: Annotated[tuple[RelativeGlob, ...], Expand(one_or_more)] = ()  # in the working directory
    resume: Annotated[tuple[str, ...], Parse(parse_arguments)] | None = None  # added to `command` to resume
    needs: tuple[str, ...] = ()
    cwd: Literal["work", "code"] = "work"  # a directory of the run's own, or the snapshot
    outputs: tuple[Relative, ...] = ()  # (): all files that the job adds or changes in its working directory
    keep: bool = False  # of files that the job deletes, keep the copies on this machine
    links: dict[Relative, Text] = field(default_factory=dict)  # path in the working directory -> path on the box
    goals: dict[Text, Condition] = field(default_factory=dict)
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
            gpus=self.gpus or 0.0,
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

    @classmethod
    def expanded(cls, values: Any) -> Any:
        """Replace short forms. TOML has no null, so `false` cancels a value of [defaults]."""
        values = {key: None if key in SWITCHES and value is False else value for key, value in values.items()}
        if isinstance(values.get("prepare"), (str, list, tuple)):
            values["prepare"] = {"command": values["prepare"]}
        if isinstance(values.get("environment"), str):
            values["environment"] = {"file": values["environment"]}
        return values

    def check(self) -> None:
        """Require that the command can be resumed as `resume` says, and that no link is below another."""
        check_resume(self.command, self.resume or (), self.checkpoints)
        check_links(self.links)


@dataclass(frozen=True)
class Spec:
    """A valid jobs.toml. `directory` is the directory of the file, which is the project directory."""

    path: Path
    directory: Path
    project: ProjectSettings
    hosts: Mapping[str, Host]
    jobs: Mapping[str, Job]

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
