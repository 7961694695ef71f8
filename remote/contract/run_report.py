"""The report about one run, made from its directory: on the box for `status`, on the laptop from its copy."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Optional, Tuple

from remote.contract.files import MAX_RECORD_BYTES, disk_space, is_shallow, read_json, read_jsonl
from remote.contract.goals import GoalResult, judge, parse_goals
from remote.contract.logs import log_size
from remote.contract.paths import NAME, RUN_ID, RunPaths
from remote.contract.protocol import Ended, Heartbeat, Running, RunState, Starting, Succeeded, state_from_json
from remote.contract.records import read_record
from remote.contract.schema import FAR, MAX_TEXT, Malformed, from_json

FIRST_EVENTS_BYTES = 256 * 1024  # bytes of events.jsonl that contain the first start
MAX_LARGEST = 3  # outputs of a run that are named
MAX_ENTRIES = 200  # metrics or goals of a run
MAX_METRICS_BYTES = 64 * 1024
MAX_METRICS_LEVELS = (
    16  # of nesting: the laptop refuses a reply with more than files.MAX_LEVELS, and so all of its runs
)
_COUNT = {"least": 0}
_OMIT = {"omit": True}


@dataclass(frozen=True)
class CodeReport:
    """The snapshot of a run, and its state according to git."""

    tree: Optional[str] = None
    commit: Optional[str] = None
    branch: Optional[str] = None
    dirty: Optional[bool] = None


def _forecast_seconds(value: Any) -> float:
    """Read a forecast time of any length: a forecast that is too long must be refused, not ignored."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise Malformed("", "a number of seconds")
    return value


@dataclass(frozen=True)
class Forecast:
    """What a rehearsal measured. A field is None if the job did not report it."""

    seconds_per_epoch: Optional[float] = field(default=None, metadata={"read": _forecast_seconds})
    seconds_total: Optional[float] = field(default=None, metadata={"read": _forecast_seconds})
    epochs: Optional[int] = field(default=None, metadata=_COUNT)
    peak_host_bytes: Optional[int] = field(default=None, metadata=_COUNT)
    token_bytes_in_run: int = field(default=0, metadata=_COUNT)  # memory that only the real run needs
    peak_gpu_bytes: Optional[int] = field(default=None, metadata=_COUNT)
    checkpoint_bytes: int = field(default=0, metadata=_COUNT)
    checkpoints: int = field(default=0, metadata=_COUNT)

    @property
    def host_bytes(self) -> int:
        """Return the forecast memory of a run on the host, in bytes."""
        return (self.peak_host_bytes or 0) + self.token_bytes_in_run


@dataclass(frozen=True)
class OutputSummary:
    """What is in outputs.json: the outputs in work/ when the run ended. Sizes in bytes."""

    files: int = field(default=0, metadata={"least": 0})
    bytes: int = field(default=0, metadata={"least": 0})
    largest: Tuple[Tuple[str, int], ...] = ()  # path in work/, size


def _seconds(value: Any) -> Optional[float]:
    """Read a time or a duration. An impossibly large one becomes None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Malformed("", "a number")
    return value if abs(value) < FAR else None


def _state(value: Any) -> Optional[RunState]:
    """Read a state, with long texts cut. It is None if it is malformed or has an impossibly large number."""
    if not isinstance(value, dict):
        raise Malformed("", "an object")
    numbers = [item for item in value.values() if isinstance(item, (int, float))]
    if not all(abs(number) < FAR for number in numbers):
        return None
    return state_from_json({key: item[:MAX_TEXT] if isinstance(item, str) else item for key, item in value.items()})


def _heartbeat(value: Any) -> Optional[Heartbeat]:
    """Read a heartbeat. It is None without a phase; other malformed fields have their defaults."""
    try:
        return _shown(from_json(Heartbeat, value, problems=[]))
    except Malformed:
        return None


def _shown(heartbeat: Optional[Heartbeat]) -> Optional[Heartbeat]:
    """Return the heartbeat if it can be shown: one without a phase counts only as a sign of life."""
    return heartbeat if heartbeat and heartbeat.phase and len(heartbeat.phase) <= MAX_TEXT else None


def read_forecast(value: Any) -> Optional[Forecast]:
    """Return the forecast in `value`; None if it is malformed."""
    try:
        return from_json(Forecast, value)
    except Malformed:
        return None


def _metrics(value: Any) -> Optional[Dict[str, Any]]:
    """Read the metrics of a worker. They become None if they are too many, too long or too deep to show."""
    if not isinstance(value, dict) or len(value) > MAX_ENTRIES or not is_shallow(value, MAX_METRICS_LEVELS):
        return None
    return value if len(str(value)) <= MAX_METRICS_BYTES else None


def _goals(value: Any) -> Dict[str, str]:
    """Read goals: texts of limited number and length."""
    goals = value if isinstance(value, dict) else {}
    texts = [text for item in goals.items() for text in item]
    if len(goals) > MAX_ENTRIES or not all(isinstance(text, str) and len(text) <= MAX_TEXT for text in texts):
        raise Malformed("", "an object of texts")
    return goals


def _outputs(value: Any) -> Optional[OutputSummary]:
    """Read the summary of a run's outputs. It is None if it is malformed."""
    try:
        found = from_json(OutputSummary, value)
    except Malformed:
        return None
    return replace(found, largest=found.largest[:MAX_LARGEST])


@dataclass(frozen=True)
class RunReport:
    """A run, according to the files and the clock of its machine. Times are in seconds since the epoch.

    `problem` says why the report is incomplete. The laptop sets `host`, `note` and `is_missing`, and ignores them in
    the report of a box.
    """

    job: str = field(metadata={"pattern": NAME})
    run_id: str = field(metadata={"pattern": RUN_ID})
    host: Optional[str] = None
    created: Optional[float] = field(default=None, metadata={"read": _seconds})
    started: Optional[float] = field(default=None, metadata={"read": _seconds})  # when its first attempt left the queue
    now: Optional[float] = field(default=None, metadata={"read": _seconds})
    state: Optional[RunState] = field(default=None, metadata={"read": _state})
    supervised: Optional[bool] = None  # None in a report about a copy of the run
    heartbeat: Optional[Heartbeat] = field(default=None, metadata={"read": _heartbeat})
    heartbeat_age: Optional[float] = field(default=None, metadata={"read": _seconds})  # seconds
    metrics: Optional[Dict[str, Any]] = field(default=None, metadata={"read": _metrics})  # the latest, by any name
    forecast: Optional[Forecast] = field(default=None, metadata={"read": read_forecast})
    goals: Dict[str, str] = field(default_factory=dict, metadata={"read": _goals})
    log_bytes: int = field(default=0, metadata=_COUNT)
    disk_free: Optional[int] = field(default=None, metadata=_COUNT)  # bytes on the disk of the run
    code: CodeReport = CodeReport()
    outputs: Optional[OutputSummary] = field(default=None, metadata={"read": _outputs})  # in work/, at its end
    attach: str = ""
    problem: str = field(default="", metadata=_OMIT)
    note: str = field(default="", metadata=_OMIT)  # a warning to show with the run
    is_missing: bool = field(default=False, metadata=_OMIT)  # whether the box does not have the run

    @property
    def has_ended(self) -> bool:
        """Return whether the run has ended."""
        return isinstance(self.state, Ended)

    @property
    def has_succeeded(self) -> bool:
        """Return whether the run has succeeded."""
        return isinstance(self.state, Succeeded)

    @property
    def is_running(self) -> bool:
        """Return whether the run has a running worker, according to its state."""
        return isinstance(self.state, Running)

    @property
    def is_lost(self) -> bool:
        """Return whether the run has not ended but nothing supervises it: the laptop shows it as `lost`."""
        return self.supervised is False and not self.has_ended

    @property
    def verdict(self) -> List[GoalResult]:
        """Return the result of each goal; none if a goal is malformed."""
        try:
            return judge(parse_goals(self.goals), self.metrics or {})
        except ValueError:
            return []


def _usable_goals(value: Any) -> Dict[str, str]:
    """Read the goals of a job in run.json, as far as they can be reported."""
    goals = value if isinstance(value, dict) else {}
    return _goals({name: text for name, text in goals.items() if isinstance(text, str)})


@dataclass(frozen=True)
class _LaunchedJob:
    goals: Dict[str, str] = field(default_factory=dict, metadata={"read": _usable_goals})


@dataclass(frozen=True)
class _LaunchedHost:
    name: Optional[str] = None


@dataclass(frozen=True)
class _Launched:
    """What a report needs of run.json. The files of earlier versions have less in them than `RunRecord` requires."""

    job: _LaunchedJob = _LaunchedJob()
    host: _LaunchedHost = _LaunchedHost()
    code: CodeReport = CodeReport()
    created: Optional[float] = field(default=None, metadata={"read": _seconds})
    attach: str = ""


def report(run: RunPaths, state: Optional[RunState], supervised: Optional[bool]) -> RunReport:
    """Return the report about a run.

    Malformed values in its files count as missing. If run.json is not usable, the report has a `problem`, one sentence.

    Args:
        run: The run.
        state: The state of the run.
        supervised: Whether a supervisor runs for it; None if `run` is a copy. Ages are None then, too.
    """
    wrong: List[str] = []
    record = read_json(run.run)
    launched = from_json(_Launched, record or {}, wrong)
    heartbeat = read_record(Heartbeat, run.heartbeat, MAX_RECORD_BYTES)
    return RunReport(
        job=run.job,
        run_id=run.run_id,
        host=launched.host.name,
        created=launched.created,
        started=_first_start(run),
        now=time.time(),
        state=state,
        supervised=supervised,
        heartbeat=_shown(heartbeat),
        heartbeat_age=None if supervised is None or heartbeat is None else heartbeat.age,
        metrics=_metrics(read_json(run.latest_metrics, MAX_RECORD_BYTES)),
        forecast=read_forecast(read_json(run.forecast, MAX_RECORD_BYTES)),
        goals=launched.job.goals,
        log_bytes=log_size(run),
        disk_free=None if supervised is None else disk_space(run.root).free,
        code=launched.code,
        outputs=_outputs(read_json(run.outputs, MAX_RECORD_BYTES)) if isinstance(state, Ended) else None,
        attach=launched.attach,
        problem=_problem(run, record is not None, [name for name in ("job", "host", "code") if name in wrong]),
    )


def _problem(run: RunPaths, is_readable: bool, wrong: List[str]) -> str:
    """Return what is wrong with run.json; "" if it is usable."""
    if not is_readable:
        is_there = os.path.lexists(str(run.run))
        return "its run.json cannot be read" if is_there else "it has no run.json: its launch was interrupted"
    return f"its run.json is damaged: {', '.join(map(repr, wrong))} is not an object" if wrong else ""


def _first_start(run: RunPaths) -> Optional[float]:
    """Return when the first attempt left the queue; None while it waits there."""
    for event in read_jsonl(run.events, FIRST_EVENTS_BYTES):
        if event.get("state") == Starting.name and isinstance(event.get("since"), float):
            return float(event["since"])
    return None
