from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tail", "train", "--lines", "abc"], "Invalid value for '--lines' / '-n': 'abc' is not a whole number"),
        (["tail", "train", "--lines", "1.5"], "'1.5' is not a whole number"),
        (["tail", "train", "--lines", "-3"], "-3 is less than 0"),
        (["tail", "train", "--from", ""], "Invalid value for '--from': '' is not a whole number"),
        (["tail", "train", "--lines", "9" * 20], "is too large"),
        (["tail", "train", "--from", "9" * 20], "is too large"),
        (["launch", "train", "--on", ""], "Invalid value for '--on': it must not be empty"),
        (["disconnect", ""], "it must not be empty"),
        (["status", "train", ""], "it must not be empty"),
        (["-f", "", "status"], "it must not be empty"),
        (["launch"], "Missing argument 'JOB...'"),
        (["stop"], "Missing argument"),
        (["trust"], "Missing argument 'HOST'"),
    ],
)
def test_wrong_value_is_named(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_path_of_the_file_is_taken_from_before_the_command(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text('[project]\nname = "p"\n[jobs.train]\ncommand = "true"\n')
    result = CliRunner().invoke(app, ["-f", str(file), "status", "train"])
    assert result.exit_code == 0
    assert "no runs on local yet" in result.output
