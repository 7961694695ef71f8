from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

KILLS = 20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_killed_at_any_step_resumes_bit_for_bit(data: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_and_resume.py")
    argv = [sys.executable, str(script), str(data), str(tmp_path), str(KILLS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout.splitlines()[-1])
    assert len({kill["at"] for kill in said["kills"]}) == KILLS and said["steps"] > KILLS
    assert [kill for kill in said["kills"] if kill["differs"]] == []
    assert "resuming from epoch-0002.pt" in ended.stdout and "resuming from epoch-0004.pt" in ended.stdout
