"""`orch skill`, the page that teaches an agent: each command on it runs, as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from tests.integration.conftest import Orch
from tests.support import wait_until

MOST_BYTES = 4_000  # an agent reads it each time


def test_each_command_of_the_page_runs(local_orch: Orch) -> None:
    local_orch.table("train", command="python train.py", env={"LR": "1", "SEED": "0"}, goals={"loss": "<= 2"})
    (local_orch.project / "train.py").write_text(
        'import os\nprint("epoch=1/1 loss=" + str(float(os.environ["LR"]) + int(os.environ["SEED"])), flush=True)\n'
    )
    page = local_orch.run("skill").stdout
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(commands) >= 10

    for command in commands:
        if command.startswith("orch launch train --sweep"):
            wait_until(lambda: local_orch.states() == {"train": "succeeded"}, what="the first run to end")
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=local_orch.project,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"


def test_page_is_short_and_says_its_version(local_orch: Orch) -> None:
    page = local_orch.run("skill").stdout
    assert f"# orch {metadata.version('orch')}: " in page
    assert page.startswith("---\nname: orch\ndescription: ")
    assert len(page.encode()) < MOST_BYTES
