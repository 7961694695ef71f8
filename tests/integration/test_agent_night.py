"""A night of an agent: a hundred short runs on one box, four at a time, with an outage, and a hundred right verdicts.

The agent uses `orch launch --sweep` and `orch wait --json` alone. All that it reads is counted: it pays for it.
"""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.integration.conftest import Orch
from tests.support import wait_until

RUNS, AT_ONCE = 100, 4
MOST_BYTES = 60_000
# One trial in ten fails by itself. Four gates hold the last trials back until the box was away and is back.
TRIAL = """\
import os, sys, time
seed = int(os.environ["SEED"])
print(f"loss={1.0 / (seed + 1)}", flush=True)
while seed >= 60 and not os.path.exists(os.environ["GATE"]):
    time.sleep(0.05)
sys.exit(f"seed {seed} does not converge" if seed % 10 == 3 else 0)
"""


@dataclass
class Agent:
    """What reads the output of commands, and nothing else."""

    orch: Orch
    bytes_read: int = 0
    verdicts: dict[str, str] = field(default_factory=dict)  # state by the id of the run, or JOB/ and the end of it

    def read(self, *arguments: str) -> tuple[int, Any]:
        done = subprocess.run(
            self.orch.command(*arguments), cwd=self.orch.project, capture_output=True, timeout=300, check=False
        )
        self.bytes_read += len(done.stdout) + len(done.stderr)
        return done.returncode, json.loads(done.stdout)

    def wait(self) -> bool:
        """Wait for the next ends; return whether runs are left."""
        code, said = self.read("wait", "--any", "--timeout", "2m", "--json")
        assert code in (0, 1, 3, 5), said
        for state, runs in said["runs"].items():
            self.verdicts |= dict.fromkeys(runs, state)
        return bool(said["going"])


@pytest.mark.timeout(900)
def test_hundred_runs_in_a_night_get_a_hundred_right_verdicts(ssh_orch: Orch) -> None:
    gate = ssh_orch.gates / "back"
    ssh_orch.table("trial", command=["python", "trial.py"], env={"SEED": "0", "GATE": str(gate)}, restarts=0)
    (ssh_orch.project / "trial.py").write_text(TRIAL)
    agent = Agent(ssh_orch)
    seeds = ",".join(map(str, range(RUNS)))
    sweep = ("--sweep", f"env.SEED={seeds}", "--at-once", str(AT_ONCE), "--name", "night")

    _, launched = agent.read("launch", "trial", *sweep, "--json", "run_id,state,values")
    seed_of = {run["run_id"]: int(run["values"]["env.SEED"]) for run in launched}
    assert sorted(seed_of.values()) == list(range(RUNS))
    # The first runs may have ended before the last ones were started.
    agent.verdicts = {run["run_id"]: run["state"] for run in launched if run["state"] in ("failed", "succeeded")}

    def outage() -> None:
        """Take the box away while four trials wait for the gate; give it back when they have ended without anybody."""
        assert ssh_orch.box
        wait_until(lambda: ended() >= 50, 600, "the first trials to end")
        ssh_orch.box.stop()
        gate.touch()
        before = ended()
        wait_until(lambda: ended() > before, 60, "trials to end on their own")
        ssh_orch.box.start()

    def ended() -> int:
        return len(list((ssh_orch.root / "test" / "runs" / "trial").glob("*/outputs.json")))

    away = threading.Thread(target=outage)
    away.start()
    while agent.wait():
        pass
    away.join(60)

    ids = {run_id: [name for name in agent.verdicts if run_id.endswith(name.rpartition("/")[2])] for run_id in seed_of}
    found = {seed_of[run_id]: [agent.verdicts[name] for name in names] for run_id, names in ids.items()}
    assert found == {seed: ["failed" if seed % 10 == 3 else "succeeded"] for seed in range(RUNS)}
    assert agent.bytes_read < MOST_BYTES
