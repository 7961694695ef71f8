"""Reports of runs that are not as the box says, or whose words mean harm."""

from __future__ import annotations

from typing import Any

from tests.hostile.agent import Frame, Talk, Way, frames, more_runs, report, reports
from tests.hostile.ways.replies import SOME
from tests.hostile.ways.text import CAME_THROUGH, HARMFUL, LONG, everywhere

LOOKING = ("status", "runs", "tail", "sync")
ASKING = (*LOOKING, "stop", "restart")
FAR = "20991231T235959-ffff"
RUNNING = {"state": "running", "since": 1.0, "attempt": 1, "pid": 4711, "identity": "1", "boot": ""}
BEAT = {"time": 1.0, "monotonic": 1.0, "pid": 1, "phase": "train"}
SUCCEEDED = r"honest +\d{8}T\d{6}-[0-9a-f]{4} +good +succeeded"


def running(**beat: Any) -> Any:
    """A run that says it is at work, with this heartbeat."""
    changes = {"state": RUNNING, "supervised": True, "heartbeat": {**BEAT, **beat}, "heartbeat_age": 1.0}
    return reports(lambda talk, said: {**said, **changes})


def failed(reason: str, detail: str) -> Any:
    return report(state={"state": "failed", "since": 1.0, "reason": reason, "detail": detail})


def harmful(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    model = {**said, "heartbeat": BEAT, "goals": {"loss": "< 1"}, "metrics": {"loss": 1, HARMFUL: HARMFUL}}
    changed: dict[str, Any] = everywhere(model, HARMFUL)
    return {**changed, "host": HARMFUL, "attach": HARMFUL}


def alternating(talk: Talk, stream: list[Frame]) -> list[Frame]:
    """Ended, running again, ended."""
    model = talk.facts["report"]
    at = stream[-2].head["offset"]
    again = [{**model, "state": RUNNING, "supervised": True}, model] * 20
    return [*stream[:-1], *(Frame({"offset": at, "report": said}) for said in again), stream[-1]]


def other(job: str, run_id: str, **changes: Any) -> Any:
    return more_runs(lambda talk, model: [{**model, "job": job, "run_id": run_id, **changes}])


def run_of_another_host(talk: Talk, model: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**model, "job": "honest", "run_id": talk.facts["honest"], "host": "good", "state": RUNNING}]


def crowd(talk: Talk, model: dict[str, Any]) -> list[dict[str, Any]]:
    small = {key: model[key] for key in ("state", "supervised", "now")}
    return [{**small, "job": "train", "run_id": f"2026{n // 65536:04d}T000000-{n % 65536:04x}"} for n in range(100_000)]


def many(count: int) -> dict[str, Any]:
    return {f"metric{number}": number for number in range(count)}


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


LETTERS = "x" * LONG
WAYS = (
    Way("escapes in every string", reports(harmful), (*ASKING, "launch"), never=CAME_THROUGH),
    Way("escapes on a wide terminal", reports(harmful), LOOKING, columns=200, never=CAME_THROUGH),
    Way("escapes in a narrow window", reports(harmful), LOOKING, columns=60, never=CAME_THROUGH),
    Way("another host's name", report(host="good"), LOOKING),
    Way("a detail of 7 MB", failed("exit", LETTERS), ASKING),
    Way("a reason of 7 MB", failed(LETTERS, ""), ASKING),
    Way("a detail of 4,000 characters", failed("exit", "y" * 4000), ASKING, most=6000),
    Way("waits for 7 MB", report(state={"state": "queued", "since": 1.0, "waiting_for": LETTERS}), LOOKING),
    Way("a phase of 4,000 characters", running(phase="y" * 4000), LOOKING),
    Way("a state that is none", report(state={"state": "winning", "since": "today"}), ASKING),
    Way("a state that is a list", report(state=[1, 2]), ASKING),
    Way("an ETA of 1e300 s", running(eta_s=1e300, epoch=1, epochs=2), LOOKING, says=SUCCEEDED),
    Way("epoch 10**18", running(epoch=10**18, epochs=10**18, step=2**62, steps=2**62), LOOKING, says=SUCCEEDED),
    Way(
        "a heartbeat 1e300 s old", report(state=RUNNING, supervised=True, heartbeat_age=1e300), LOOKING, says=SUCCEEDED
    ),
    Way("times that no calendar has", report(created=1e300, started=-1e300, now=1e300), LOOKING),
    Way("a run of another host", more_runs(run_of_another_host), ("status", "runs", "sync", "tail honest")),
    Way("a run of the year 2099", other("train", FAR), ASKING, never=rf"train +{FAR} +evil"),
    Way(
        "a run of 2099 of another host's job", other("honest", FAR), ("status", "sync", "restart honest", "stop honest")
    ),
    Way("a job that nobody has", other("invented", FAR), ("status", "runs", "sync")),
    Way("a job with a name of 64 letters", other("j" * 64, FAR), ("status", "runs", "sync")),
    Way("a name that leads elsewhere", other("../honest", FAR), ("status", "runs", "sync")),
    Way("the same run twice", more_runs(lambda talk, model: [model] * 50), ("status", "runs", "sync")),
    Way("100,000 runs", more_runs(crowd), ("status", "runs"), most=100_000),
    Way("ended, and running again", frames(alternating), ("tail",)),
    Way("100,000 metrics", report(metrics=many(100_000)), ASKING),
    Way("metrics that are nested", report(metrics={"loss": nested(20), "a": [[[]]]}), ASKING),
    Way("metrics that are nested too deeply", report(metrics={"loss": nested(200)}), SOME),
    Way("goals that are none", report(goals={"loss": HARMFUL, HARMFUL: "< 1", "": ""}), ASKING, never=CAME_THROUGH),
    Way("goals that are a list", report(goals=[1, 2]), ASKING),
    Way("100,000 goals", report(goals={f"g{n}": "< 1" for n in range(100_000)}), ("status", "stop"), most=20_000),
    Way("a log of 2**70 bytes", report(log_bytes=2**70, disk_free=-5), LOOKING),
    Way("a terminal with escapes", report(attach=HARMFUL, state=RUNNING), ("launch", "restart"), never=CAME_THROUGH),
)
