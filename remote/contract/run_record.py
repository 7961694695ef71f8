"""The content of run.json, stop.json and restart.json: what was launched, and later requests to stop or restart it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, Optional, Tuple, Union

from remote.contract.choices import LAUNCHERS, STOP_SIGNALS, TOOLS
from remote.contract.paths import NAME, RUN_ID, TREE_HASH
from remote.contract.protocol import SCHEMA
from remote.contract.schema import Malformed, from_json, is_text


@dataclass(frozen=True)
class RunRef:
    """The name of a run: its job and its id."""

    job: str = field(metadata={"pattern": NAME})
    run_id: str = field(metadata={"pattern": RUN_ID})


@dataclass(frozen=True)
class PrepareRecord:
    """The `prepare` of a job. Its output is made once, and shared by all jobs with the same `prepare`."""

    command: Tuple[str, ...]
    inputs: Tuple[str, ...] = ()  # globs of the files that it depends on; if there are none, the complete snapshot


@dataclass(frozen=True)
class EnvironmentRecord:
    """The environment of a job: packages that are installed once, for all jobs with the same."""

    file: str  # a requirements file, uv.lock, pyproject.toml or environment.yml, relative to the code
    python: Optional[str] = None  # the interpreter that it is made from; None: that of the host
    system_site_packages: bool = False  # whether the packages of that interpreter can be imported
    extras: Tuple[str, ...] = ()  # of pyproject.toml
    tool: Optional[str] = field(default=None, metadata={"choices": TOOLS})  # None: uv if it is on the box


@dataclass(frozen=True)
class DataRecord:
    """The data that must exist before the worker starts."""

    path: Optional[str] = None  # on the box; None: the output of `prepare`
    pattern: str = "*"
    at_least: int = 1


@dataclass(frozen=True)
class MetricsRecord:
    """Where the metrics of a job are read that does not report them itself. With no values: in well-known forms."""

    log: Tuple[str, ...] = ()  # regular expressions with named groups, for lines of its output
    files: Tuple[str, ...] = ()  # paths or globs of .csv, .jsonl and TensorBoard files
    epochs: Optional[int] = None  # of the run, if its output does not tell
    steps: Optional[int] = None


def _secret_names(value: Any) -> Tuple[str, ...]:
    """Read a list of names, or an object with the names as keys, as versions up to 0.1.0 wrote it."""
    if not isinstance(value, (list, dict)) or not all(map(is_text, value)):
        raise Malformed("", "a list of names")
    return tuple(value)


@dataclass(frozen=True)
class JobRecord:
    """A job of jobs.toml as its run needs it. docs/jobs-toml.md explains the keys; times are seconds."""

    name: str = field(metadata={"pattern": NAME})
    command: Tuple[str, ...] = ()
    prepare: Optional[PrepareRecord] = None
    env: Dict[str, str] = field(default_factory=dict)
    secrets: Tuple[str, ...] = field(default=(), metadata={"read": _secret_names})  # names of variables
    gpus: float = field(default=0.0, metadata={"least": 0})
    data: Optional[DataRecord] = None
    expects: Tuple[str, ...] = ()
    restarts: int = field(default=0, metadata={"least": 0})
    stall_after: float = 1800.0
    deadline: Optional[float] = None  # from the start of the first attempt
    stop_grace: float = 60.0
    keep_checkpoints: Optional[int] = None  # how many of the newest, besides the best; None: the worker's default
    needs: Tuple[str, ...] = ()  # jobs
    # The working directory: "work", or "code" for the snapshot, as in versions that had no other.
    cwd: str = field(default="code", metadata={"choices": ("work", "code")})
    outputs: Tuple[str, ...] = ()  # globs of the files in work/ that are copied to the laptop; (): all that are new
    links: Dict[str, str] = field(default_factory=dict)  # path in work/ to a path on the box
    goals: Dict[str, str] = field(default_factory=dict)
    metrics: Optional[MetricsRecord] = None  # None: the output is not read, as in versions that could not
    queue_deadline: Optional[float] = None  # from the launch to the start of the first attempt
    stop_signal: str = field(default="SIGTERM", metadata={"choices": STOP_SIGNALS})
    pty: bool = False  # whether its stdout and stderr are a pseudo-terminal
    checkpoints: Tuple[str, ...] = ()  # globs of files and directories, in work/ or the run directory
    resume: Tuple[str, ...] = ()  # arguments that are added to `command` to resume
    expand_env: bool = False  # whether variables in `env` and `data.path` are replaced; not in versions up to 0.2.0
    environment: Optional[EnvironmentRecord] = None  # None: the Python of the host, as it is
    # Only for rehearsals:
    attempt_limit: Optional[float] = None  # for the worker's process
    slot_timeout: Optional[float] = field(default=None, metadata={"key": "slot_patience"})  # to wait for devices
    # Of a program that reports no heartbeat. None: it has only the limit of the attempt.
    rehearse_start: Optional[float] = None  # to show a first sign of progress
    rehearse_progress: Optional[float] = None  # to run on after it
    rehearsal_key: Optional[str] = None  # identifies it, see remote/agent/passed_rehearsals.py

    @property
    def is_rehearsal(self) -> bool:
        """Return whether this is the job of a rehearsal."""
        return self.attempt_limit is not None


def _gpus(value: Any) -> Union[int, Tuple[int, ...], None]:
    """Read the number of GPUs that the host has, or the list of those that may be used."""
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise Malformed("", "a number of GPUs or a list of their indices")
    return tuple(numbers) if isinstance(value, list) else numbers[0]


@dataclass(frozen=True)
class HostRecord:
    """A host of jobs.toml as its runs need it."""

    name: str = ""
    python: str = "python3"
    launcher: str = field(default="nohup", metadata={"choices": LAUNCHERS})
    gpus: Union[int, Tuple[int, ...], None] = field(default=None, metadata={"read": _gpus})  # None: ask the machine
    survive_reboot: bool = True


@dataclass(frozen=True)
class CodeRecord:
    """The snapshot, and its state according to git."""

    tree: str = field(metadata={"pattern": TREE_HASH})
    commit: Optional[str] = None
    branch: Optional[str] = None
    dirty: Optional[bool] = None
    patch: Optional[str] = None  # the difference between the commit and the snapshot


@dataclass(frozen=True)
class ResumeRecord:
    """The checkpoint of another run that a run starts from."""

    path: str  # on the box
    run: RunRef


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json. The box sets `created` and the fields after it."""

    json_head: ClassVar[Dict[str, int]] = {"schema": SCHEMA}
    run_id: str = field(metadata={"pattern": RUN_ID})
    project: str = field(metadata={"pattern": NAME})
    job: JobRecord
    host: HostRecord
    code: CodeRecord
    versions: Dict[str, str] = field(default_factory=dict)
    by: str = ""  # user@machine
    created: Optional[float] = None  # seconds since the epoch, by the box's clock
    monotonic: Optional[float] = None  # seconds since boot
    boot: str = ""  # the id of that boot
    needs: Tuple[RunRef, ...] = ()  # the runs that it waits for
    resume_from: Optional[ResumeRecord] = field(default=None, metadata={"omit": True})
    attach: str = ""  # the command that shows the run's terminal on the box

    @classmethod
    def read(cls, value: Any) -> RunRecord:
        """Return the record in `value`, the content of a run.json.

        Raises:
            Malformed: `value` is not such a record.
        """
        return from_json(cls, value, longest=None)


@dataclass(frozen=True)
class StopRecord:
    """The content of stop.json: a request to stop the run."""

    time: Optional[float] = None  # seconds since the epoch
    by: str = "someone"  # user@machine


@dataclass(frozen=True)
class RestartRecord:
    """The content of restart.json: when the ended run was started again, and by whom."""

    time: Optional[float] = None  # seconds since the epoch, by the box's clock
    monotonic: Optional[float] = None  # seconds since boot
    boot: str = ""  # the id of that boot
    by: str = ""  # user@machine
