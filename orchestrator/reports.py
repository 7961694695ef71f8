"""What a box says of its runs, as checked models: nothing of it is believed before it is validated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from orchestrator.errors import AgentUnusable, HostError
from remote.goals import GoalResult, judge, parse_goals
from remote.paths import NAME, RUN_ID
from remote.protocol import Ended, Running, RunState, Succeeded, fraction_done, state_from_json

Text = Annotated[str, Field(max_length=4096)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Said(BaseModel):
    """What comes from a box: unknown keys are passed over, so that a newer box can say more."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)


class HeartbeatSaid(_Said):
    phase: Text
    epoch: Count | None = None
    epochs: Count | None = None
    step: Count | None = None
    steps: Count | None = None
    eta_s: float | None = Field(None, ge=0, allow_inf_nan=False)

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
    return state_from_json(value) if isinstance(value, Mapping) else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _heartbeat(value: Any) -> Any:
    return _as_agreed(HeartbeatSaid, value)


def _forecast(value: Any) -> Any:
    return _as_agreed(Forecast, value)


def _as_agreed(model: type[_Said], value: Any) -> _Said | None:
    """A worker's own file: where it is not as agreed, it is as if it were not there."""
    try:
        return model.model_validate(value) if isinstance(value, dict) else None
    except ValidationError:
        return None


ForecastSaid = Annotated[Forecast | None, BeforeValidator(_forecast)]


class RunReport(_Said):
    """One run, by the box's own files and clock."""

    job: str = Field(pattern=f"^{NAME.pattern}$")
    run_id: str = Field(pattern=f"^{RUN_ID.pattern}$")
    host: Text | None = None
    created: float | None = None
    started: Annotated[float | None, BeforeValidator(_finite)] = None  # when its first attempt left the queue
    now: float = 0.0
    state: Annotated[RunState | None, BeforeValidator(_state)] = None
    supervised: bool | None = None
    heartbeat: Annotated[HeartbeatSaid | None, BeforeValidator(_heartbeat)] = None
    heartbeat_age: Annotated[float | None, BeforeValidator(_finite)] = None
    metrics: dict[str, Any] | None = None
    forecast: ForecastSaid = None
    goals: dict[str, str] = Field(default_factory=dict)
    log_bytes: Count = 0
    disk_free: Count | None = None  # bytes, where the run writes
    code: CodeSaid = CodeSaid()
    attach: Text = ""

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


@dataclass(frozen=True)
class HostStatus:
    """The runs of one host, or why it did not answer."""

    host: str
    runs: tuple[RunReport, ...] = ()
    error: HostError | None = None


def read_report(host: str, record: Any) -> RunReport:
    """Raise AgentUnusable for a report that is not as agreed."""
    try:
        report = RunReport.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AgentUnusable(f"reading the status of {host}: {where}: {first['msg']}") from None
    return report.model_copy(update={"host": host})


def read_reports(host: str, result: Mapping[str, Any]) -> tuple[RunReport, ...]:
    records = result.get("runs")
    if not isinstance(records, list):
        raise AgentUnusable(f"reading the status of {host}: no list of runs")
    return tuple(read_report(host, record) for record in records)
