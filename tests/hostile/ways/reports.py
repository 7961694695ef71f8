"""False reports of runs, and reports with hostile text."""

from __future__ import annotations

from typing import Any

from tests.hostile.agent import Frame, Talk, Way, frames, more_runs, report, reports
from tests.hostile.ways.text import CAME_THROUGH, HARMFUL, LONG, everywhere

SHOWN = {"status": 0, "tail": 1}  # the run itself has failed
LEFT_OUT = {"status": 0, "runs": 0, "sync": 0}  # a note says so
FAR = "20991231T235959-ffff"
RUNNING = {"state": "running", "since": 1.0, "attempt": 1, "pid": 4711, "identity": "1", "boot": ""}
BEAT = {"time": 1.0, "monotonic": 1.0, "pid": 1, "phase": "train"}
HONEST_RUN = r"honest \d{8}T\d{6}-[0-9a-f]{4}"


def running(**beat: Any) -> Any:
    """Report a running run with this heartbeat."""
    changes = {"state": RUNNING, "supervised": True, "heartbeat": {**BEAT, **beat}, "heartbeat_age": 1.0}
    return reports(lambda talk, said: {**said, **changes})


def failed(reason: str, detail: str) -> Any:
    return report(state={"state": "failed", "since": 1.0, "reason": reason, "detail": detail})


def harmful(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    model = {**said, "heartbeat": BEAT, "goals": {"loss": "< 1"}, "metrics": {"loss": 1, HARMFUL: HARMFUL}}
    changed: dict[str, Any] = everywhere(model, HARMFUL)
    return {**changed, "host": HARMFUL, "attach": HARMFUL}


def alternating(talk: Talk, stream: list[Frame]) -> list[Frame]:
    """Report a run as ended, running, and ended again."""
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


def goals(count: int) -> dict[str, str]:
    return {f"g{number}": "< 1" for number in range(count)}


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


LETTERS = "x" * LONG
WAYS = (
    Way(
        "escapes in every string",
        reports(harmful),
        SHOWN | {"runs": 0, "sync": 0, "stop": 0, "restart": 0, "launch": 0},
        never=CAME_THROUGH,
    ),
    Way("escapes on a wide terminal", reports(harmful), SHOWN, columns=200, never=CAME_THROUGH),
    Way("escapes in a narrow window", reports(harmful), SHOWN, columns=60, never=CAME_THROUGH),
    Way("another host's name", report(host="good"), {"status": 0}, r"train +\S+ +evil"),
    Way("a detail of 7 MB", failed("exit", LETTERS), {"status": 0, "tail": 3}),
    Way("a reason of 7 MB", failed(LETTERS, ""), {"status": 0, "stop": 0}),
    Way("a detail of 4,000 characters", failed("exit", "y" * 4000), SHOWN, most=6000),
    Way("waits for 7 MB", report(state={"state": "queued", "since": 1.0, "waiting_for": LETTERS}), {"status": 0}),
    Way("a phase of 4,000 characters", running(phase="y" * 4000), SHOWN),
    Way("an unknown state", report(state={"state": "winning", "since": "today"}), SHOWN | {"restart": 0}),
    Way("a state that is a list", report(state=[1, 2]), SHOWN | {"stop": 0}),
    Way("an ETA of 1e300 s", running(eta_s=1e300, epoch=1, epochs=2), {"status": 0}),
    Way("epoch 10**18", running(epoch=10**18, epochs=10**18, step=2**62, steps=2**62), SHOWN),
    Way("a heartbeat 1e300 s old", report(state=RUNNING, supervised=True, heartbeat_age=1e300), {"status": 0}),
    Way("times that no calendar has", report(created=1e300, started=-1e300, now=1e300), SHOWN),
    Way("a run of another host", more_runs(run_of_another_host), LEFT_OUT, "launched on good: ignored"),
    Way("a run of another host is followed", more_runs(run_of_another_host), {"tail honest": 0}),
    Way("a run of the year 2099", other("train", FAR), LEFT_OUT, "dated in the future", rf"train +{FAR} +evil"),
    Way("the newest run is of 2099", other("train", FAR), {"tail": 1, "stop": 0}),
    Way("a run of 2099 of another host's job", other("honest", FAR), LEFT_OUT, "dated in the future"),
    Way("another host's job is of 2099", other("honest", FAR), {"restart honest": 4, "stop honest": 0}, HONEST_RUN),
    Way("a job that nobody has", other("invented", FAR), LEFT_OUT, "no job 'invented'"),
    Way("a job with a name of 64 letters", other("j" * 64, FAR), {"status": 0}, "no job 'j"),
    Way("a name that leads elsewhere", other("../honest", FAR), {"status": 3, "runs": 3, "sync": 3}, "evil"),
    Way("the same run twice", more_runs(lambda talk, model: [model] * 50), {"status": 0, "sync": 0}),
    Way("100,000 runs", more_runs(crowd), {"status": 3}, "only the first 10000 are read"),
    Way("ended, and running again", frames(alternating), {"tail": 1}),
    Way("100,000 metrics", reports(lambda talk, said: {**said, "metrics": many(100_000)}), {"status": 0, "stop": 0}),
    Way("metrics that are nested", report(metrics={"loss": nested(20), "a": [[[]]]}), SHOWN),
    Way("metrics that are nested too deeply", report(metrics={"loss": nested(200)}), {"status": 3, "sync": 3}),
    Way("malformed goals", report(goals={"loss": HARMFUL, HARMFUL: "< 1", "": ""}), SHOWN, never=CAME_THROUGH),
    Way("goals that are a list", report(goals=[1, 2]), SHOWN),
    Way("100,000 goals", reports(lambda talk, said: {**said, "goals": goals(100_000)}), {"stop": 0}, most=20_000),
    Way("a log of 2**70 bytes", report(log_bytes=2**70, disk_free=-5), SHOWN),
    Way("a terminal with escapes", report(attach=HARMFUL, state=RUNNING), {"launch": 0}, never=CAME_THROUGH),
)
