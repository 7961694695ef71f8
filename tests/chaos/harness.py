"""A chaos run: a seeded schedule of faults against pairs of runs, several pairs at a time, and the results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos import box
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.invariants import COUNTS, Findings, examine, same_weights, shown_state
from tests.chaos.pair import BYTECODE, CLIENTS, JOBS, Pair

PER_PAIR = 4  # faults; a fifth would need a third restart of a run, which waits 20 s
AT_ONCE = 3  # pairs; they wait most of the time


@dataclass
class Plan:
    """The faults of one pair in order, each with its target job."""

    seed: int
    number: int
    faults: list[tuple[Fault, str]] = field(default_factory=list)
    client: str = CLIENTS[0]

    @property
    def random(self) -> Random:
        return Random(f"{self.seed}/{self.number}")

    def fits(self, fault: Fault) -> bool:
        mine = [fault, *(known for known, _ in self.faults)]
        stages = Counter(known.stage for known in mine)
        # The log of a flood is larger than a small disk.
        crowded = any(known.small_disk for known in mine) and any(known.name == "worker: flood" for known in mine)
        same = len({known.name for known in mine}) < len(mine)
        return len(mine) <= PER_PAIR and stages["launch"] <= 1 and stages["end"] <= 1 and not crowded and not same


def plans(seed: int, number: int, kinds: Sequence[Fault] = FAULTS, clients: Sequence[str] = CLIENTS) -> list[Plan]:
    """Plan `number` faults; every kind comes once before any comes twice. The pairs use the clients in turn."""
    random = Random(seed)
    deck: list[Fault] = []
    while len(deck) < number:
        deck += random.sample(list(kinds), len(kinds))
    made: list[Plan] = []
    for fault in deck[:number]:
        plan = next((plan for plan in made if plan.fits(fault)), None)
        if plan is None:
            plan = Plan(seed, len(made), client=clients[len(made) % len(clients)])
            made.append(plan)
        plan.faults.append((fault, JOBS[len(plan.faults) % 2]))
    for plan in made:
        plan.faults.sort(key=lambda pair: ("launch", "run", "end").index(pair[0].stage))
    return made


def left_out(kinds: Sequence[Fault]) -> dict[str, list[Fault]]:
    """Return the faults that this machine cannot inject, by reason."""
    if why := box.missing():
        return {why: list(kinds)}
    clocks = [fault for fault in kinds if fault.own_clock]
    return {why: clocks} if clocks and (why := box.missing_clock()) else {}


@dataclass
class Result:
    plan: Plan
    findings: Findings
    journals: list[list[dict[str, Any]]]
    seconds: float
    cuts: int = 0


class ChaosRun:
    """Run one pair of jobs and inject the faults of its plan."""

    def __init__(self, plan: Plan, folder: Path, light: bool = False) -> None:
        self.plan, self.random = plan, plan.random
        faults = [fault for fault, _ in plan.faults]
        needs = {
            need: any(getattr(fault, need) for fault in faults) for need in ("small_disk", "own_clock", "rehearse")
        }
        self.pair = Pair(folder, light=light, client=plan.client, **needs)
        self.expected = dict.fromkeys(JOBS, ("succeeded", ""))
        self.findings = Findings()
        self.damaged: set[str] = set()
        self.unseen: set[str] = set()
        self.judged = dict.fromkeys(JOBS, 0)

    def run(self) -> Findings:
        pair = self.pair
        stages = {stage: [f for f in self.plan.faults if f[0].stage == stage] for stage in ("launch", "run", "end")}
        for fault, job in stages["launch"]:
            fault.inject(pair, job, self.random)
        pair.launch()
        for job in JOBS:
            pair.wait_progress(job)
            ends = pair.ends(job)
            self.findings.add("wrong_verdicts", len(ends), f"{job}: attempts ended by {ends} before any fault")
        for fault, job in [*stages["run"], *stages["end"]]:
            self._inject(fault, job)
        pair.release()
        for job in JOBS:
            pair.wait_over(job)
        pair.sync()
        for job in JOBS:
            # If its shim was killed, nobody saw the worker's exit code: the worker may be started once more.
            unseen = [["lost"]] if job in self.unseen else []
            late = pair.ends(job)[self.judged[job] :]
            wrong = late not in [[], *unseen]
            self.findings.add("wrong_verdicts", int(wrong), f"{job}: attempts ended by {late} after the last fault")
            shown = shown_state(pair, job)
            wrong = shown != self.expected[job]
            self.findings.add("wrong_verdicts", int(wrong), f"{job}: {shown}, expected {self.expected[job]}")
        rest = examine(pair, self.damaged)
        rest.counts.update(self.findings.counts)
        rest.messages[:0] = self.findings.messages
        return rest

    def _inject(self, fault: Fault, job: str) -> None:
        """Inject `fault` and wait until both runs recovered; the fault must explain each attempt that ended."""
        pair = self.pair
        hit = JOBS if fault.hits_both else (job,)
        before = {name: pair.ends(name) for name in JOBS}
        if fault.name == "files: damaged":
            self.damaged.add(job)
        if fault.name == "supervisor: shim sigkill":
            self.unseen.add(job)
        fault.inject(pair, job, self.random)
        for name in hit:
            self.expected[name] = fault.final
            if fault.must_end:
                pair.wait_ends(name, len(before[name]) + 1)
            if fault.final[0] == "failed":
                pair.wait_over(name)
        for name in JOBS:
            if fault.stage != "end":
                pair.wait_progress(name)
        for name in JOBS:
            ends = pair.ends(name)
            self._judge(fault, name, name in hit, ends[len(before[name]) :])
            self.judged[name] = len(ends)
            if ends[len(before[name]) :]:
                self.unseen.discard(name)

    def _judge(self, fault: Fault, job: str, is_hit: bool, ends: list[str]) -> None:
        if not is_hit or not fault.ends:
            unseen = job in self.unseen and ends == ["lost"]  # it ended by itself and no shim saw how
            allowed = not ends or unseen or (is_hit and fault.stage == "end")
        else:
            allowed = len(ends) <= 1 and set(ends) <= {*fault.ends, *(["lost"] if job in self.unseen else [])}
            allowed = (allowed and (bool(ends) or not fault.must_end)) or fault.stage == "end"
        self.findings.add("wrong_verdicts", int(not allowed), f"{fault.name} on {job}: attempts ended by {ends}")


def run_pair(plan: Plan, keep: Path | None) -> Result:
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{plan.seed}-{plan.number}-"))
    chaos_run = ChaosRun(plan, folder)
    journals: list[list[dict[str, Any]]] = []
    try:
        findings = chaos_run.run()
    except Exception:  # noqa: BLE001 - an error in one pair is a finding and must not hide the others
        findings = chaos_run.findings
        findings.add("wrong_verdicts", 1, traceback.format_exc() + "\n".join(chaos_run.pair.refused[-5:]))
    finally:
        journals = [chaos_run.pair.done(job) for job in JOBS]
        chaos_run.pair.box.power_off()
        try:
            if findings.messages and keep:
                _keep(chaos_run.pair, keep / folder.name)
        finally:
            chaos_run.pair.close()
            shutil.rmtree(folder, ignore_errors=True)
    return Result(plan, findings, journals, time.monotonic() - began)


def _keep(pair: Pair, target: Path) -> None:
    """Keep what a person needs to find the cause."""
    ignore = shutil.ignore_patterns("filler*", "*.pt", "code", "pycache", "*.lock")
    for source in (pair.root / "chaos" / "runs", pair.folder / "journal"):
        if source.exists():
            shutil.copytree(source, target / source.name, ignore=ignore, dirs_exist_ok=True)
    for said in pair.folder.glob("said-*"):
        shutil.copy(said, target / said.name)


def warm() -> None:
    """Compile the imports of the workers once for all pairs."""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(BYTECODE), "OMP_NUM_THREADS": "1"}
    source = "import torch, workers.training.trainer; torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])"
    subprocess.run([sys.executable, "-c", source], env=env, check=True)


def run_chaos(
    seeds: Sequence[int],
    faults: int,
    at_once: int,
    keep: Path | None,
    say: Any,
    kinds: Sequence[Fault] = FAULTS,
    clients: Sequence[str] = CLIENTS,
) -> dict[str, Any]:
    """Inject `faults` faults in total, split evenly among the seeds."""
    shares = [faults // len(seeds) + (number < faults % len(seeds)) for number in range(len(seeds))]
    todo = [plan for seed, share in zip(seeds, shares, strict=True) for plan in plans(seed, share, kinds, clients)]
    warm()
    began = time.monotonic()
    results: list[Result] = []
    with ThreadPoolExecutor(at_once) as pool:
        for result in pool.map(lambda plan: run_pair(plan, keep), todo):
            results.append(result)
            say(result, len(results), len(todo))
    weights = Findings()
    same_weights(weights, [journal for result in results for journal in result.journals])
    counts: Counter[str] = Counter(weights.counts)
    for result in results:
        counts.update(result.findings.counts)
    injected = Counter(fault.name for result in results for fault, _ in result.plan.faults)
    return {
        "faults": sum(injected.values()),
        "seeds": list(seeds),
        **{name: counts[name] for name in COUNTS},
        "pairs": len(results),
        "faults_by_client": dict(Counter(result.plan.client for result in results for _ in result.plan.faults)),
        "seconds": round(time.monotonic() - began, 1),
        "injected": {fault.name: injected[fault.name] for fault in FAULTS if injected[fault.name]},
        "found": [
            {"seed": result.plan.seed, "pair": result.plan.number, "messages": result.findings.messages}
            for result in results
            if result.findings.messages
        ]
        + ([{"messages": weights.messages}] if weights.messages else []),
    }


def write(document: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
