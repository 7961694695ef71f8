"""`--json FIELDS` and `--query`: which words are fields, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from orchestrator.command_line.json_fields import taken
from orchestrator.errors import SpecError
from orchestrator.ui.document_query import DocumentQuery
from orchestrator.ui.documents import Documents
from remote.contract.files import write_json
from remote.contract.protocol import Failed, Succeeded
from remote.contract.schema import to_json

IDS = ("20260126T210312-7f3a", "20260126T210312-7f3b")
HOST = "nowhere"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a project that knows two runs of a host that is not asked: their copies are complete."""
    (tmp_path / "jobs.toml").write_text(
        f'[project]\nname = "p"\n[hosts.{HOST}]\nssh = "127.0.0.1:1"\nroot = "~/orch"\n'
        f'[jobs.train]\ncommand = "true"\nhost = "{HOST}"\n'
    )
    records, address = tmp_path / "results/.mirror", {"ssh": "127.0.0.1:1", "root": "~/orch", "project": "p"}
    (records / ".hosts").mkdir(parents=True)
    write_json(records / ".hosts" / f"{HOST}.json", address)
    for run_id, state in zip(IDS, (Succeeded(2.0), Failed(2.0, "exit", "exit code 3", 3)), strict=True):
        run = tmp_path / "results/train" / run_id
        run.mkdir(parents=True)
        (records / "train").mkdir(exist_ok=True)
        head = {"schema": 1, "job": "train", "run_id": run_id, "host": HOST, **address, "complete": True}
        write_json(records / "train" / f"{run_id}.json", {**head, "state": to_json(state)})
        write_json(run / "run.json", {"job": {"goals": {}}, "host": {"name": HOST}, "code": {}})
        write_json(run / "state.json", to_json(state))
        write_json(run / "latest_metrics.json", {"val.acc": 0.5, "loss": 2})
    monkeypatch.chdir(tmp_path)


def said(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result


def printed(*words: str) -> Any:
    return json.loads(said(*words).stdout)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["runs", "--json", "job,run_id"], [{"job": "train", "run_id": run_id} for run_id in IDS]),
        (["runs", "--json=state"], [{"state": "succeeded"}, {"state": "failed"}]),
        (["runs", "--json", "state", "train"], [{"state": "succeeded"}, {"state": "failed"}]),
        (["runs", "train", "--json", "metrics.val.acc"], [{"metrics.val.acc": 0.5}] * 2),
        (["runs", "--json", "metrics.acc,detail.reason"][:3], [{"metrics.acc": None, "detail.reason": None}]),
        (["runs", "--query", "length(runs)"], 2),
        (["runs", "--json", "state", "--query", "[?state=='failed']"], [{"state": "failed"}]),
        (["--query", "runs[].detail.exit_code", "runs"], [3]),
    ],
)
def test_only_the_selected_part_is_printed(words: list[str], expected: Any) -> None:
    found = printed(*words)
    assert found[:1] == expected if "metrics.acc" in str(expected) else found == expected


def test_list_of_fields_is_compact() -> None:
    assert said("runs", "--json", "job,state", "--on", HOST, code=3).stdout.startswith('[{"job":"train","state":')


@pytest.mark.parametrize("words", [["--json"], ["--json", "train"], ["train", "--json"], ["--json", "--on", HOST]])
def test_plain_json_is_the_complete_document(words: list[str]) -> None:
    document = json.loads(said("runs", *words, code=3 if HOST in words else 0).stdout)
    assert (document["schema"], document["kind"], len(document["runs"])) == (1, "status", 2)
    assert "disk_free" in document["runs"][0]


def test_text_is_printed_without_quotes_and_made_safe() -> None:
    assert said("runs", "--query", "runs[1].detail.detail").stdout == "exit code 3\n"
    line = DocumentQuery("", "text").line({"text": "a\x1b[2Jb\nc"})
    assert line == "a\\x1b[2Jb c"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs", "--json", "job,stat"], "no field 'stat'"),
        (["runs", "--json=nothing"], "no field 'nothing'"),
        (["runs", "--query", "runs[?"], "Invalid jmespath"),
        (["runs", "--query", "length(schema)"], "invalid type"),
    ],
)
def test_wrong_field_or_expression_is_a_usage_error(words: list[str], message: str) -> None:
    error = json.loads(said(*words, code=2).stdout)["error"]
    assert message in error["message"]
    assert "json" not in words[1] or error["hint"].count("run_id") == 1  # all fields are listed, once


def test_command_without_json_has_no_query() -> None:
    assert "No such option" in said("trust", HOST, "--query", "x", code=2).output


def test_error_is_complete_whatever_is_selected() -> None:
    assert json.loads(said("runs", "nothing", "--json", "job,state", code=2).stdout)["error"]["code"] == "spec"


@pytest.mark.parametrize(
    ("words", "takes_single", "left", "fields"),
    [
        (["--json", "train"], True, ["--json", "train"], ""),
        (["--json", "state"], True, ["--json"], "state"),
        (["--json", "state"], False, ["--json", "state"], ""),  # `orch launch --json state`: a job
        (["--json", "state,job", "a"], False, ["--json", "a"], "state,job"),
        (["--json=state", "a"], False, ["--json", "a"], "state"),
        (["--json", "--any"], True, ["--json", "--any"], ""),
        (["--", "--json", "a,b"], True, ["--", "--json", "a,b"], ""),
        (["--json"], True, ["--json"], ""),
    ],
)
def test_fields_are_told_from_arguments(words: list[str], takes_single: bool, left: list[str], fields: str) -> None:
    assert taken(words, takes_single) == (left, fields)


def test_document_without_runs_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    documents = Documents()
    documents.query = DocumentQuery("job", "")
    documents._document("log", text="a")
    assert json.loads(capsys.readouterr().out)["kind"] == "log"


def test_fields_of_copies_are_known_to_sync_only() -> None:
    said("sync", "--json", "job,directory")
    with pytest.raises(SpecError):
        DocumentQuery("directory", "")
