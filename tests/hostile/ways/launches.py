"""Hostile answers to a launch, to an upload of code and to questions about the box."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from remote.contract.paths import ProjectPaths
from tests.hostile.agent import Answer, Talk, Way, report, result
from tests.hostile.ways.reports import FAR, RUNNING
from tests.hostile.ways.text import CAME_THROUGH, ESCAPES, HARMFUL, LONG, everywhere

LAUNCHED = {"launch": 1}  # as with an honest box: the run has failed
UNUSABLE = {"launch": 3}
REFUSED = {"launch": 4}
UNFIT = {"doctor": 4, "launch": 4}
YEARS = 10 * 365 * 86400.0


def other_runs(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    return {**said, "runs": [{**said["runs"][0], "run_id": FAR}]} if said.get("runs") else said


def facts(**changes: Any) -> Answer:
    """Replace answers of the box to questions about itself."""
    return result(lambda talk, said: {**said, "answers": {**said.get("answers", {}), **changes}}, "facts")


def all_malformed(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    wrong: list[Any] = [
        7,
        None,
        [],
        "text",
        {"out": 7, "err": [], "code": "0", "value": {"free": True}},
        {"value": [[1]]},
    ]
    names = sorted(said["answers"])
    return {**said, "answers": {name: wrong[at % len(wrong)] for at, name in enumerate(names)}, "jobs": {"train": 7}}


def future_run(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    """Date the newest run of the box in the year 2099."""
    jobs = {name: {**job, "newest_run": FAR} if isinstance(job, dict) else job for name, job in said["jobs"].items()}
    return {**said, "jobs": jobs, "newest_run": FAR, "newest": FAR}


def wrong_clock(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    return {**said, "now": time.time() + YEARS}


def has_no_code(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    """Claim to have no code, however often it is uploaded."""
    jobs = said.get("jobs", {})
    never = {name: {**job, "value": {**(job.get("value") or {}), "has_code": False}} for name, job in jobs.items()}
    return {**said, "jobs": never}


def cards(row: str) -> dict[str, Any]:
    return {"out": row, "err": "", "code": 0}


def elsewhere(**changes: str) -> Answer:
    """Ask for the code at another path."""

    def change(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
        given = {key: value.replace("ELSEWHERE", f"{talk.args['root']}/elsewhere") for key, value in changes.items()}
        place = ProjectPaths(Path(talk.args["root"]), talk.args["project"]).incoming
        place.mkdir(parents=True, exist_ok=True)
        incoming = tempfile.mkdtemp(prefix=f"{talk.args['tree']}-", dir=place)
        return {"have": False, "incoming": incoming, "link_to": None, **given}

    def answer(talk: Talk) -> None:
        if talk.op == "facts":
            talk.reply(has_no_code(talk, talk.result()))
        else:
            result(change, "code_begin")(talk)

    return answer


def never_rehearsed(talk: Talk, said: dict[str, Any]) -> dict[str, Any]:
    """Report the rehearsal as running forever."""
    runs = [{**run, "state": RUNNING, "supervised": True} for run in said.get("runs", [])]
    return {**said, "runs": runs} if talk.args.get("rehearsal") is True and talk.op != "stop" else said


HUGE = {
    "seconds_total": 1e300,
    "epochs": 2**62,
    "peak_host_bytes": 2**62,
    "checkpoint_bytes": 2**62,
    "checkpoints": 2**62,
}
TOO_MUCH = {**HUGE, "peak_host_bytes": 0, "peak_gpu_bytes": 2**62}
BACKWARDS = {"seconds_total": -1.0, "peak_host_bytes": -1, "checkpoint_bytes": -1, "checkpoints": 10**400}

WAYS = (
    Way("other runs than were launched", result(other_runs, "launch"), UNUSABLE, never=FAR),
    Way("no runs at all", result(lambda talk, said: {**said, "runs": []}, "launch"), UNUSABLE),
    Way("other jobs to be rehearsed", result(lambda t, s: {**s, "unrehearsed": ["honest"]}, "launch"), UNUSABLE),
    Way(
        "jobs to be rehearsed, with escapes",
        result(lambda t, s: {"have_code": True, "unrehearsed": [HARMFUL]}, "launch"),
        UNUSABLE,
        never=CAME_THROUGH,
    ),
    Way("the code is never there", result(has_no_code, "facts"), LAUNCHED),
    Way("the launch never has the code", result(lambda t, s: {"have_code": False}, "launch"), UNUSABLE),
    Way("code to another place", elsewhere(incoming="ELSEWHERE"), REFUSED),
    Way("code to a place with escapes", elsewhere(incoming="/x" + ESCAPES), UNUSABLE, never=CAME_THROUGH),
    Way("code linked to elsewhere", elsewhere(link_to="ELSEWHERE"), LAUNCHED),
    Way("malformed facts", result(all_malformed, "facts"), UNFIT),
    Way("facts that are a number", result(lambda talk, said: {"answers": 7, "jobs": 7, "now": "x"}, "facts"), UNFIT),
    Way("facts with escapes", result(lambda talk, said: everywhere(said, HARMFUL), "facts"), UNFIT, never=CAME_THROUGH),
    Way(
        "facts of 7 MB",
        result(lambda talk, said: everywhere(said, "x" * (LONG // 100)), "facts"),
        {"doctor": 4},
        most=20_000,
    ),
    Way("a clock ten years ahead", result(wrong_clock, "facts"), {"doctor": 0}),
    Way("a newest run of the year 2099", result(future_run, "facts"), LAUNCHED),
    Way("cards with negative numbers", facts(gpus=cards("-1, x, 1, -5, -5, -5, -1, Default\n")), {"doctor": 0}),
    Way(
        "cards with escapes",
        facts(gpus=cards(f"0, {HARMFUL}, {HARMFUL}, 1, 1, 1, 1, {HARMFUL}\n")),
        {"doctor": 0},
        never=CAME_THROUGH,
    ),
    Way("100,000 cards", facts(gpus=cards("0, x, 1, 5, 5, 5, 1, Default\n" * 100_000)), {"doctor": 0}, most=20_000),
    Way("a rehearsal that never ends", result(never_rehearsed, "launch", "status"), {"check": 130}, "rehearsing"),
    Way("a forecast of 1e300 s", report(forecast=HUGE), {"check": 4}),
    Way("a forecast of 2**62 bytes of a card", report(forecast=TOO_MUCH), {"check": 4}),
    Way("a forecast of less than nothing", report(forecast=BACKWARDS), {"check": 0}),
)
OVER_SSH = (
    Way("code to another place, over ssh", elsewhere(incoming="ELSEWHERE"), REFUSED, over="ssh"),
    Way("code to another machine", elsewhere(incoming="good:ELSEWHERE"), UNUSABLE, over="ssh"),
    Way(
        "code to a place with escapes, over ssh",
        elsewhere(incoming="/x" + ESCAPES),
        UNUSABLE,
        never=CAME_THROUGH,
        over="ssh",
    ),
    Way("code to a place like an option", elsewhere(incoming="--rsh=touch canary"), UNUSABLE, over="ssh"),
    Way("code linked to elsewhere, over ssh", elsewhere(link_to="ELSEWHERE"), LAUNCHED, over="ssh"),
)
