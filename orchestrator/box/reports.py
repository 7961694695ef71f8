"""What a box says of its runs, as checked models: nothing of it is believed before it is validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from orchestrator.errors import AgentUnusable, OrchError
from orchestrator.text import shortened
from remote.contract.goals import GoalResult, judge, parse_goals
from remote.contract.paths import NAME, RUN_ID
from remote.contract.protocol import Ended, Running, RunState, Succeeded, fraction_done, state_from_json

LONGEST_TEXT = 4096  # characters of one text
MOST_ENTRIES = 200  # metrics or goals of a run
MOST_METRICS_BYTES = 64 * 1024
LONGEST_PROBLEM = 300  # characters
MOST_PROBLEMS = 5  # that are told one by one
MOST_RUNS = 10_000  # of one box; what is beyond is not read
FAR = 1e11  # seconds: no time or duration of a run is as large
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Steps = Annotated[int, Field(ge=0, lt=10**12)]


def _seconds(value: Any) -> Any:
    """A time or a duration that a run can have, or None."""
    return None if isinstance(value, (int, float)) and not abs(value) < FAR else value


Seconds = Annotated[float | None, BeforeValidator(_seconds)]


class _Said(BaseModel):
    """What comes from a box: unknown keys are passed over, so that a newer box can say more."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)


class HeartbeatSaid(_Said):
    phase: Text
    epoch: Steps | None = None
    epochs: Steps | None = None
    step: Steps | None = None
    steps: Steps | None = None
    eta_s: Seconds = None

    @property
    def fraction(self) -> float | None:
        return fraction_done(self.epoch, self.epochs, self.step, self.steps)


class CodeSaid(_Said):
    tree: Text | None = None
    commit: Text | None = None
    branch: Text | None = None
    dirty: bool | None = None


class Forecast(_Said):
    """What a rehearsal measured. Seconds, bytes; None for what a job does not say."""

    seconds_per_epoch: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    seconds_total: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    epochs: Count | None = None
    peak_host_bytes: Count | None = None
    token_bytes_in_run: Count = 0  # what the whole run holds in memory beyond what the rehearsal held
    peak_gpu_bytes: Count | None = None
    checkpoint_bytes: Count = 0
    checkpoints: Count = 0

    @property
    def host_bytes(self) -> int:
        return (self.peak_host_bytes or 0) + self.token_bytes_in_run


def _state(value: Any) -> Any:
    """The state with its texts cut and its times within bounds; None for what is not a state."""
    if not isinstance(value, Mapping):
        return value
    numbers = [item for item in value.values() if isinstance(item, (int, float))]
    if not all(abs(number) < FAR for number in numbers):
        return None
    return state_from_json({key: item[:LONGEST_TEXT] if isinstance(item, str) else item for key, item in value.items()})


def _metrics(value: Any) -> Any:
    """A worker's own numbers; None where they are more than anyone could read."""
    if not isinstance(value, Mapping) or len(value) > MOST_ENTRIES or len(str(value)) > MOST_METRICS_BYTES:
        return None
    return value


def _heartbeat(value: Any) -> Any:
    return _as_agreed(HeartbeatSaid, value)


def _forecast(value: Any) -> Any:
    return _as_agreed(Forecast, value)


def _as_agreed(model: type[_Said], value: Any) -> _Said | None:
    """Treat a malformed worker file as missing."""
    try:
        return model.model_validate(value) if isinstance(value, dict) else None
    except ValidationError:
        return None


ForecastSaid = Annotated[Forecast | None, BeforeValidator(_forecast)]


class RunReport(_Said):
    """One run, by the box's own files and clock.

    `host`, `note` and `is_missing` are this machine's words; a box that sends them is not heard.
    """

    job: str = Field(pattern=f"^{NAME.pattern}$")
    run_id: str = Field(pattern=f"^{RUN_ID.pattern}$")
    host: Text | None = None
    created: Seconds = None
    started: Seconds = None  # when its first attempt left the queue
    now: Seconds = None
    state: Annotated[RunState | None, BeforeValidator(_state)] = None
    supervised: bool | None = None
    heartbeat: Annotated[HeartbeatSaid | None, BeforeValidator(_heartbeat)] = None
    heartbeat_age: Seconds = None
    metrics: Annotated[dict[str, Any] | None, BeforeValidator(_metrics)] = None
    forecast: ForecastSaid = None
    goals: dict[Text, Text] = Field(default_factory=dict, max_length=MOST_ENTRIES)
    log_bytes: Count = 0
    disk_free: Count | None = None  # bytes, where the run writes
    code: CodeSaid = CodeSaid()
    attach: Text = ""
    note: Text = ""  # what a person has to know before anything else of the run
    is_missing: bool = False  # the box does not have it

    @property
    def has_ended(self) -> bool:
        return isinstance(self.state, Ended)

    @property
    def has_succeeded(self) -> bool:
        return isinstance(self.state, Succeeded)

    @property
    def is_running(self) -> bool:
        return isinstance(self.state, Running)

    @property
    def is_lost(self) -> bool:
        """Not ended, and nothing supervises it: `lost` is the laptop's word."""
        return self.supervised is False and not self.has_ended

    @property
    def verdict(self) -> list[GoalResult]:
        try:
            return judge(parse_goals(self.goals), self.metrics or {})
        except ValueError:
            return []


OURS = ("host", "note", "is_missing")  # fields that this machine fills in


@dataclass(frozen=True)
class HostStatus:
    """The runs of one host, or why it did not answer.

    `problems` are sentences about entries of its answer that cannot be used, `notes` about runs that are left out.
    """

    host: str
    runs: tuple[RunReport, ...] = ()
    error: OrchError | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> list[OrchError]:
        """What a command that has asked this host ends with."""
        return [*([self.error] if self.error else []), *map(AgentUnusable, self.problems)]


def read_report(host: str, record: Any) -> RunReport:
    """Return the run that a box describes in `record`.

    A field that is malformed counts as absent, and the run's `note` says so. Raise AgentUnusable where `record` does
    not name a run.
    """
    said = {key: value for key, value in record.items() if key not in OURS} if isinstance(record, Mapping) else {}
    problem = said.pop("problem", None)
    malformed: list[str] = []
    while True:
        try:
            report = RunReport.model_validate(said)
            break
        except ValidationError as error:
            field = str(error.errors()[0]["loc"][0])
            if field in ("job", "run_id"):
                raise AgentUnusable(
                    f"reading the status of {host}: invalid {field} of a run: {shortened(repr(said.get(field)), 100)}"
                ) from None
            malformed.append(field)
            del said[field]
    if problem:
        note = f"{host} cannot report it: {shortened(problem, LONGEST_PROBLEM)}"
    else:
        note = f"{host} sent an invalid {', '.join(malformed)}" if malformed else ""
    return report.model_copy(update={"host": host, "note": note})


def read_reports(host: str, result: Mapping[str, Any]) -> HostStatus:
    """Return the runs that a box lists, each (job, run id) once.

    What does not name a run is a problem of that entry alone. Raise AgentUnusable where there is no list.
    """
    records = result.get("runs")
    if not isinstance(records, list):
        raise AgentUnusable(f"reading the status of {host}: the reply has no list of runs")
    runs: dict[tuple[str, str], RunReport] = {}
    problems = []
    for record in records[:MOST_RUNS]:
        try:
            run = read_report(host, record)
            runs.setdefault((run.job, run.run_id), run)
        except AgentUnusable as error:
            problems.append(error.message)
    if len(records) > MOST_RUNS:
        problems.append(f"{host} lists {len(records)} runs; only the first {MOST_RUNS} are read")
    if len(problems) > MOST_PROBLEMS:
        problems = [*problems[:MOST_PROBLEMS], f"{host}: {len(problems) - MOST_PROBLEMS} more invalid runs"]
    return HostStatus(host, tuple(runs.values()), problems=tuple(problems))
