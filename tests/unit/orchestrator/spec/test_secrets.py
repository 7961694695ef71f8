"""Secrets are read from variables and from real commands, and no error contains a value."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.load import load
from orchestrator.spec.models import Job, Spec
from orchestrator.spec.secrets import MAX_BYTES, SecretValues, output_of
from tests.support import checked, descendants

VALUE = "hunter2-and-more"


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., Spec]:
    def write(**secrets: str) -> Spec:
        """Make a project with a job `train` whose table of secrets has these lines."""
        lines = "".join(f"{name} = {source}\n" for name, source in secrets.items())
        text = f'[project]\nname = "p"\n[jobs.train]\ncommand = "true"\n[jobs.train.secrets]\n{lines}'
        (tmp_path / "jobs.toml").write_text(text)
        return load(tmp_path / "jobs.toml")

    return write


def taken(spec: Spec) -> dict[str, str]:
    return SecretValues(spec).for_job(spec.job("train"))


def python(code: str) -> str:
    """Return a TOML table with a command."""
    return f"{{ command = [{sys.executable!r}, '-c', '''{code}'''] }}"


def refused(spec: Spec) -> SpecError:
    with pytest.raises(SpecError) as caught:
        taken(spec)
    assert caught.value.message.startswith("jobs.toml: [jobs.train] secrets.TOKEN: ")
    assert VALUE not in caught.value.message + caught.value.hint
    return caught.value


def test_value_can_come_from_a_variable_with_another_name(
    spec: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", VALUE)
    assert taken(spec(TOKEN='{ env = "MY_TOKEN" }')) == {"TOKEN": VALUE}


def test_value_can_be_the_output_of_a_command_in_the_project_directory(
    spec: Callable[..., Spec], tmp_path: Path
) -> None:
    (tmp_path / "value").write_text(f" {VALUE} \r\n\n")
    assert taken(spec(TOKEN='{ command = "cat value" }')) == {"TOKEN": f" {VALUE} "}
    assert taken(spec(TOKEN='{ command = ["cat", "value"] }')) == {"TOKEN": f" {VALUE} "}


def test_variables_in_a_secret_command_come_from_this_machine(
    spec: Callable[..., Spec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "value").write_text(VALUE)
    monkeypatch.setenv("WHERE", str(tmp_path))
    assert taken(spec(TOKEN='{ command = "cat ${WHERE}/value" }')) == {"TOKEN": VALUE}


def test_shared_secret_command_runs_once(spec: Callable[..., Spec], tmp_path: Path) -> None:
    count = python(f"open('asked', 'a').write('x'); print('{VALUE}')")
    project = spec(TOKEN=count, OTHER=count)
    second = replace(project.job("train"), name="second")
    values = SecretValues(project)

    assert values.for_job(project.job("train")) == {"TOKEN": VALUE, "OTHER": VALUE} == values.for_job(second)

    assert (tmp_path / "asked").read_text() == "x"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(value); raise SystemExit(3)", "ended with exit code 3"),
        ("print(value, flush=True); os.kill(os.getpid(), 9)", "ended with exit code -9"),
        ("", "the value is empty"),
        ("print()", "the value is empty"),
        ("print(value + chr(0))", "the value contains a NUL character"),
        ("os.write(1, value.encode() + bytes([255]))", "printed output that is not UTF-8"),
        ("print(value * 65536)", "the value is larger than 64 KiB"),
        ("while True: print(value)", "the value is larger than 64 KiB"),
    ],
)
def test_invalid_secret_is_refused_without_showing_its_value(
    spec: Callable[..., Spec], tmp_path: Path, capfd: pytest.CaptureFixture[str], code: str, said: str
) -> None:
    (tmp_path / "value").write_text(VALUE)
    error = refused(spec(TOKEN=python(f"import os; value = open('value').read()\n{code}")))
    assert said in error.message
    assert VALUE not in "".join(capfd.readouterr())


def test_value_of_the_maximum_size_is_complete(spec: Callable[..., Spec]) -> None:
    assert taken(spec(TOKEN=python(f"print('x' * {MAX_BYTES})"))) == {"TOKEN": "x" * MAX_BYTES}


def test_missing_secret_program_is_reported(spec: Callable[..., Spec]) -> None:
    error = refused(spec(TOKEN='{ command = "no-such-program --get" }'))
    assert "`no-such-program --get`: No such file or directory" in error.message
    assert "install the program here" in error.hint


@pytest.mark.parametrize("code", ["import time; time.sleep(600)", "import os, time; os.close(1); time.sleep(600)"])
def test_secret_command_that_hangs_is_killed(tmp_path: Path, code: str) -> None:
    before = descendants(os.getpid())
    with pytest.raises(SpecError, match=r"did not finish within 0\.3 s"):
        output_of([sys.executable, "-c", code], tmp_path, "here", limit_s=0.3)
    assert descendants(os.getpid()) == before


def test_stderr_of_a_secret_command_is_shown_and_it_shares_our_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import os, sys; print('passphrase?', file=sys.stderr); print(os.getsid(0), os.getpgrp())"
    assert output_of([sys.executable, "-c", code], tmp_path, "here") == f"{os.getsid(0)} {os.getpgrp()}"
    assert capfd.readouterr().err == "passphrase?\n"


@pytest.mark.parametrize(("value", "said"), [(None, "is not in the environment"), ("", "the value is empty")])
def test_unset_variable_is_reported(
    spec: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch, value: str | None, said: str
) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_TOKEN", value)
    assert said in refused(spec(TOKEN='{ env = "MY_TOKEN" }')).message


# --- masking --------------------------------------------------------------------------------------------


def test_output_without_secrets_is_not_masked(spec: Callable[..., Spec]) -> None:
    assert SecretValues(spec()).mask(b"loss 0.5 \xff") == b"loss 0.5 \xff"


def test_secret_in_the_environment_is_masked_before_it_is_read(
    spec: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", VALUE)
    assert SecretValues(spec(TOKEN='{ env = "MY_TOKEN" }')).mask(f"a {VALUE} b".encode()) == b"a ***TOKEN*** b"


def test_secret_from_a_command_is_masked_with_every_value_of_its_name(spec: Callable[..., Spec]) -> None:
    project = spec(TOKEN=python(f"print('{VALUE}')"))
    values = SecretValues(project)
    assert values.mask(VALUE.encode()) == VALUE.encode()  # not read yet, so not known
    values.for_job(project.job("train"))
    other = checked(Job, name="other", command="true", secrets={"TOKEN": {"command": "echo other-value"}})
    values.for_job(other)
    assert values.mask(f"{VALUE} other-value".encode()) == b"***TOKEN*** ***TOKEN of other***"
