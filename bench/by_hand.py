"""What a competent person would write instead of each command of orch: ssh, rsync and nohup."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from bench.setting import BY_HAND_MASTER, PYTHON, Laptop

# Ship the tree, then start each job under nohup, detached from the connection.
LAUNCH = """\
set -e
rsync -a -e {ssh} {project}/ box:{tree}/
{plain_ssh} box 'cd {tree} && for job in worker1 worker2; do \
  nohup setsid {python} job.py {marks} "$job" hold > "$job.log" 2>&1 < /dev/null & done'
"""


@dataclass(frozen=True)
class ByHand:
    """The commands for one laptop. A warm one uses a connection that stays open, a cold one logs in every time."""

    here: Laptop
    warm: bool = False

    def ssh(self, *command: str) -> list[str]:
        """Return the words that run `command` on the box."""
        master = f"{self.here.project.parent}/{BY_HAND_MASTER}"
        reuse = ["-o", "ControlMaster=auto", "-o", f"ControlPath={master}", "-o", "ControlPersist=600"]
        return ["ssh", "-F", str(self.here.config), *(reuse if self.warm else []), *command]

    def launch(self) -> list[str]:
        """Return a script that ships the tree and starts two jobs, as a command."""
        tree, ssh = self.here.box.home / "by-hand", shlex.join(self.ssh())
        values = {"project": self.here.project, "tree": tree, "python": PYTHON, "marks": self.here.marks}
        return ["bash", "-c", LAUNCH.format(ssh=shlex.quote(ssh), plain_ssh=ssh, **values)]

    def start(self, name: str, *action: object) -> list[str]:
        """Return the command that starts one job; it prints the pid. `launch` must have been there before."""
        words = shlex.join([PYTHON, "job.py", str(self.here.marks), name, *map(str, action)])
        tree = self.here.box.home / "by-hand"
        script = f"cd {tree} && {{ nohup setsid {words} > {name}.log 2>&1 < /dev/null & echo $!; }}"
        return self.ssh("box", script)

    def tail(self, name: str, pid: int) -> list[str]:
        """Return the command that follows the log of a job until the process `pid` has ended."""
        log = self.here.box.home / "by-hand" / f"{name}.log"
        return self.ssh("box", f"tail -n +1 -s 0.1 --pid={pid} -f {log}")

    def status(self) -> list[str]:
        """Return the command that shows the states of all runs."""
        return self.ssh("box", f"cat {self.here.runs}/*/*/state.json")

    def sync(self, target: Path) -> list[str]:
        """Return the command that copies all run directories to `target`."""
        return ["rsync", "-a", "-e", shlex.join(self.ssh()), f"box:{self.here.runs}/", f"{target}/"]
