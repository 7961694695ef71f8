"""python -m tests.chaos --faults N --seeds S: faults against real runs; see docs/reliability.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tests.chaos import harness
from tests.chaos.faults import FAULTS
from tests.chaos.invariants import COUNTS
from tests.chaos.pair import CLIENTS
from tests.support import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Inject random faults into real runs.")
    parser.add_argument("--faults", type=int, default=20, help="faults in total (default: 20)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, counted from --first (default: 1)")
    parser.add_argument("--first", type=int, default=1, help="the first seed (default: 1)")
    parser.add_argument("--at-once", type=int, default=harness.AT_ONCE, help="pairs of runs at a time")
    parser.add_argument("--only", help="only faults whose name contains this")
    parser.add_argument("--client", choices=CLIENTS, help="only this SSH client of orch (default: both, in turn)")
    parser.add_argument("--allow-missing", action="store_true", help="skip faults that this machine cannot inject")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "chaos.json")
    options = parser.parse_args()
    kinds = [fault for fault in FAULTS if not options.only or options.only in fault.name]
    if not kinds or options.faults < 1 or options.seeds < 1:
        parser.error("no faults selected: see --faults, --seeds and --only")
    left_out = harness.left_out(kinds)
    for why, faults in left_out.items():
        print(f"cannot inject {len(faults)} of {len(kinds)} faults: {why}: {', '.join(fault.name for fault in faults)}")
    if left_out and not options.allow_missing:
        print("hint: .ci/packages.sh installs what is missing; --allow-missing skips these faults")
        return 1
    kinds = [fault for fault in kinds if not any(fault in faults for faults in left_out.values())]
    if not kinds:
        return 0
    seeds = range(options.first, options.first + options.seeds)
    clients = [options.client] if options.client else CLIENTS
    kept = options.out.parent / "chaos"
    document = harness.run_chaos(seeds, options.faults, options.at_once, kept, show, kinds, clients)
    harness.write(document, options.out)
    print(table(document))
    return int(any(document[name] for name in COUNTS))


def show(result: Any, number: int, of: int) -> None:
    names = "; ".join(f"{fault.name} ({job})" for fault, job in result.plan.faults)
    how = "passed" if not result.findings.messages else "FAILED"
    which = f"seed {result.plan.seed}, pair {result.plan.number}, {result.plan.client}"
    print(f"[{number}/{of}] {which}, {result.seconds:.0f} s: {how}: {names}")
    for text in result.findings.messages:
        print(f"    {text}")
    sys.stdout.flush()


def table(document: dict[str, Any]) -> str:
    """Return the results as Markdown, ready for docs/reliability.md."""
    lines = ["", "| fault | injected |", "|---|---|"]
    lines += [f"| {name} | {times} |" for name, times in document["injected"].items()]
    lines += ["", f"| {document['pairs']} pairs of runs, {document['seconds'] / 60:.0f} min | |", "|---|---|"]
    lines += [f"| {name}, faults | {count} |" for name, count in document["faults_by_client"].items()]
    lines += [f"| faults | {document['faults']} |", f"| seeds | {len(document['seeds'])} |"]
    lines += [f"| {name.replace('_', ' ')} | {document[name]} |" for name in COUNTS]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
