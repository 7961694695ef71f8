from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec.command_words import parse_command
from orchestrator.spec.job_environment import JobEnvironment
from orchestrator.spec.load import find, load
from orchestrator.spec.models import (
    Data,
    Ec2,
    Host,
    Job,
    Metrics,
    Prepare,
    ProjectSettings,
    Secret,
    Spec,
)
from orchestrator.spec.overrides import with_overrides
from orchestrator.spec.tables import Invalid
from orchestrator.spec.values import SECRET_HINT, parse_duration, parse_share
from remote.contract.run_record import EnvironmentRecord, MetricsRecord
from tests.support import ROOT

SHIPPED = ROOT / "jobs.toml"
PROJECT = '[project]\nname = "p"\n'
JOB = PROJECT + '[jobs.w]\ncommand = "python w.py"\n'


def load_text(directory: Path, text: str) -> Spec:
    path = directory / "jobs.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def refused(directory: Path, text: str) -> tuple[str, str]:
    with pytest.raises(SpecError) as caught:
        load_text(directory, text)
    assert caught.value.exit_code == 2
    return caught.value.message, caught.value.hint


# --- valid files -------------------------------------------------------------------------------------


def test_shipped_jobs_toml_loads() -> None:
    spec = load(SHIPPED)
    assert spec.project.name == "persistence"
    assert spec.directory == SHIPPED.parent
    assert list(spec.hosts) == ["local", "box"]
    assert spec.host("local").gpus == 0
    assert spec.host("box").python == "/opt/pytorch/bin/python"
    ec2 = spec.host("box").ec2
    assert ec2 is not None and ec2.price_per_hour == 1.006
    for name in ("worker1", "worker2"):
        job = spec.job(name)
        assert job.command[:3] == ("python", "-m", f"workers.{name}")
        assert job.gpus == 0.5 and job.deadline == 8 * 3600 and job.restarts == 2
        assert job.env == {"SAMPLES": "10000", "PRESET": "default", "EPOCHS": "30", "SEED": "0"}
        assert job.prepare is not None
        assert job.prepare.inputs == (
            "workers/dataset/scenes.py",
            "workers/dataset/video_sample.py",
            "workers/dataset/generate.py",
            "workers/dataset/videos.py",
        )
        assert job.data is not None and job.data.path is None and job.data.at_least == 10000
    day = {"val_accuracy": ">= 75 %", "attention_ratio": ">= 1.5", "consistency": ">= 70 %"}
    assert spec.job("worker2").goals == spec.job("multitask").goals == day
    claimed = {"val_accuracy": ">= 99 %", "attention_ratio_all_layers": ">= 1.5", "consistency": ">= 90 %"}
    assert spec.job("worker1").goals == day | claimed


def test_job_has_the_documented_defaults(tmp_path: Path) -> None:
    job = load_text(tmp_path, JOB).job("w")
    assert job.host == "local"
    assert (job.restarts, job.stall_after, job.stop_grace, job.deadline, job.gpus) == (0, 1800, 60, None, None)
    assert (job.prepare, job.rehearse, job.data) == (None, True, None)
    assert (job.env, job.goals, job.secrets, job.expects, job.needs) == ({}, {}, {}, (), ())


def test_host_local_exists_undeclared_and_is_this_machine(tmp_path: Path) -> None:
    host = load_text(tmp_path, JOB).host("local")
    assert (host.ssh, host.gpus, host.launcher) == (None, None, "nohup")
    assert host.python == sys.executable
    assert host.root == str(tmp_path / ".orch")


def test_jobs_are_grouped_by_host_in_the_order_asked_for(tmp_path: Path) -> None:
    on_hosts = {"a": "p", "b": "q", "c": "p"}
    jobs = "".join(f'[jobs.{name}]\nhost = "{host}"\ncommand = "true"\n' for name, host in on_hosts.items())
    text = f'[project]\nname = "test"\n[hosts.p]\nssh = "p"\n[hosts.q]\nssh = "q"\n{jobs}'
    spec = load_text(tmp_path, text)
    grouped = {host: [job.name for job in found] for host, found in spec.jobs_by_host(["c", "b", "a"]).items()}
    assert list(grouped.items()) == [("p", ["c", "a"]), ("q", ["b"])]
    assert list(spec.jobs_by_host(["c", "b"], on="local")) == ["local"]
    with pytest.raises(SpecError, match="no job 'd'"):
        spec.jobs_by_host(["d"])
    with pytest.raises(SpecError, match="no host 'r'"):
        spec.jobs_by_host(["a"], on="r")


def test_local_paths_are_relative_to_the_project_directory(tmp_path: Path) -> None:
    spec = load_text(
        tmp_path,
        JOB
        + '[hosts.local]\nroot = "state/../runs"\npython = ".venv/bin/python"\n'
        + '[hosts.box]\nssh = "box"\nidentity = "keys/box.pem"\nroot = "orch"\n',
    )
    assert spec.host("local").root == str(tmp_path / "runs")
    assert spec.host("local").python == str(tmp_path / ".venv/bin/python")
    assert spec.host("box").identity == tmp_path / "keys/box.pem"
    assert spec.host("box").root == "orch"


def test_ssh_host_has_its_own_defaults(tmp_path: Path) -> None:
    host = load_text(tmp_path, JOB + '[hosts.box]\nssh = "box"\n').host("box")
    assert (host.root, host.python, host.launcher, host.gpus) == ("~/orch", "python3", "nohup", None)


@pytest.mark.parametrize("ssh", ["box", "ubuntu@box", "me@10.0.0.7:2222", "box:22", "me@[2001:db8::1]:22", "a_b.c-d"])
def test_ssh_destination_is_accepted(tmp_path: Path, ssh: str) -> None:
    assert load_text(tmp_path, JOB + f'[hosts.box]\nssh = "{ssh}"\n').host("box").ssh == ssh


@pytest.mark.parametrize(("gpus", "held"), [("0", 0), ("4", 4), ("[0]", (0,)), ("[3, 1]", (3, 1))])
def test_gpus_of_a_host_are_read(tmp_path: Path, gpus: str, held: object) -> None:
    assert load_text(tmp_path, JOB + f"[hosts.local]\ngpus = {gpus}\n").host("local").gpus == held


def test_defaults_merge_env_and_goals_and_other_keys_replace_them(tmp_path: Path) -> None:
    job = load_text(
        tmp_path,
        """
        [project]
        name = "p"
        [defaults]
        env = { A = "1", B = "2" }
        expects = ["x"]
        data = { path = "/data", at_least = 5 }
        goals = { acc = ">= 0.5", loss = "< 1" }
        [jobs.w]
        command = "python w.py"
        env = { B = 3 }
        expects = ["y"]
        data = { pattern = "*.pt" }
        goals = { acc = ">= 0.9" }
        """,
    ).job("w")
    assert job.env == {"A": "1", "B": "3"}
    assert job.goals == {"acc": ">= 0.9", "loss": "< 1"}
    assert job.expects == ("y",)
    assert job.data is not None and (job.data.path, job.data.pattern, job.data.at_least) == (None, "*.pt", 1)


def test_false_removes_a_default(tmp_path: Path) -> None:
    defaults = '[defaults]\ndeadline = "8h"\nprepare = "make"\nrehearse = "try"\ndata = { path = "/d" }\n'
    off = "deadline = false\nprepare = false\nrehearse = false\ndata = false\n"
    job = load_text(tmp_path, PROJECT + defaults + '[jobs.w]\ncommand = "w"\n' + off).job("w")
    assert (job.deadline, job.prepare, job.rehearse, job.data) == (None, None, False, None)


def test_pty_is_off_unless_asked_for(tmp_path: Path) -> None:
    assert load_text(tmp_path, JOB).job("w").record().pty is False
    assert load_text(tmp_path, JOB + "pty = true\n").job("w").record().pty is True


RESUME = 'resume = "--resume $ORCH_RESUME"\n'


def test_job_says_how_it_resumes(tmp_path: Path) -> None:
    job = load_text(tmp_path, JOB + RESUME + 'checkpoints = "out/checkpoint-*"\n').job("w").record()
    assert (job.resume, job.checkpoints) == (("--resume", "$ORCH_RESUME"), ("out/checkpoint-*",))
    plain = load_text(tmp_path, JOB + "resume = ['--init_from=resume']\n").job("w").record()
    assert (plain.resume, plain.checkpoints) == (("--init_from=resume",), ())
    off = PROJECT + f'[defaults]\n{RESUME}checkpoints = "*.pt"\n[jobs.w]\ncommand = "w"\nresume = false\n'
    assert load_text(tmp_path, off).job("w").record().resume == ()
    script = PROJECT + "[jobs.w]\ncommand = ['bash', '-c', 'python w.py \"$@\"', 'w']\ncheckpoints = 'a'\n" + RESUME
    assert load_text(tmp_path, script).job("w").record().resume


def test_metrics_have_a_short_form_and_can_be_switched_off(tmp_path: Path) -> None:
    table = "metrics = { log = 'loss (?P<loss>\\S+)', file = ['a.csv', '**/*tfevents*'], epochs = 3 }\n"
    job = load_text(tmp_path, JOB + table).job("w")
    assert job.record().metrics == MetricsRecord((r"loss (?P<loss>\S+)",), ("a.csv", "**/*tfevents*"), 3, None)
    assert load_text(tmp_path, JOB).job("w").record().metrics == MetricsRecord()
    assert load_text(tmp_path, JOB + "metrics = false\n").job("w").record().metrics is None
    changed = with_overrides(load_text(tmp_path, JOB), "w", ["metrics.steps=5"])
    assert changed.job("w").record().metrics == MetricsRecord(steps=5)


def test_environment_has_a_short_form_and_can_be_switched_off(tmp_path: Path) -> None:
    text = PROJECT + '[defaults]\nenvironment = "requirements.txt"\n[jobs.w]\ncommand = "w"\n'
    spec = load_text(tmp_path, text)
    assert spec.job("w").record().environment == EnvironmentRecord("requirements.txt")
    assert load_text(tmp_path, text + "environment = false\n").job("w").record().environment is None
    assert load_text(tmp_path, JOB).job("w").record().environment is None
    table = '{ file = "a/r.txt", python = "python3.9", system_site_packages = true, tool = "pip" }'
    record = load_text(tmp_path, f"{text}environment = {table}\n").job("w").record().environment
    assert record == EnvironmentRecord("a/r.txt", "python3.9", True, (), "pip")
    changed = with_overrides(spec, "w", ["environment.tool=uv"]).job("w").record().environment
    assert changed == EnvironmentRecord("requirements.txt", tool="uv")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"poetry.lock"', "'poetry.lock' is not a file that an environment can be made from"),
        ('"/etc/r.txt"', "'/etc/r.txt' is not a relative path"),
        ('{ python = "python3" }', "environment.file"),
        ('{ file = "r.txt", tool = "conda" }', "environment.tool"),
        ('{ file = "r.txt", extras = ["gpu"] }', "'extras' cannot be used with 'r.txt'"),
        ('{ file = "uv.lock", tool = "pip" }', "'tool' cannot be used with 'uv.lock': only uv reads this file"),
        ('{ file = "uv.lock", system_site_packages = true }', "'system_site_packages' cannot be used with 'uv.lock'"),
        ('{ file = "environment.yml", python = "python3" }', "the file names its own Python"),
        ('{ file = "r.txt", pyton = "python3" }', "unknown key 'environment.pyton'"),
        ("true", "environment: expected a table, got true"),
    ],
)
def test_error_in_environment_is_reported(tmp_path: Path, value: str, message: str) -> None:
    assert message in " ".join(refused(tmp_path, f"{JOB}environment = {value}\n"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{ log = '(' }", "metrics.log[0]: '(' is not a regular expression: missing ), unterminated subpattern"),
        ("{ log = 'loss' }", "metrics.log[0]: 'loss' has no named group, so there is nothing to read with it"),
        ("{ log = '(?P<a>x)++' }", "uses syntax that hosts with a Python older than 3.11 do not have"),
        ("{ log = '(?P<a>" + "x" * 1000 + ")' }", "has more than 1000 characters"),
        ("{ log = [" + "'(?P<a>x)', " * 21 + "] }", "metrics.log: 21 items are too many"),
        ("{ file = 'log.txt' }", "metrics.file[0]: 'log.txt' is not a file of metrics that can be read"),
        ("{ file = '../a.csv' }", "metrics.file[0]: '../a.csv' is not a relative path"),
        ("{ file = 'a**/b.csv' }", "metrics.file[0]: 'a**/b.csv' is not a pattern"),
        ("{ epochs = 0 }", "metrics.epochs: must be at least 1, got 0"),
        ("{ lgo = 'x' }", "unknown key 'metrics.lgo'"),
        ("true", "metrics: expected a table, got true"),
    ],
)
def test_error_in_metrics_is_reported(tmp_path: Path, value: str, message: str) -> None:
    assert message in " ".join(refused(tmp_path, f"{JOB}metrics = {value}\n"))


def test_prepare_has_a_short_form(tmp_path: Path) -> None:
    for value in ('"python make.py"', '["python", "make.py"]', '{ command = "python make.py" }'):
        prepare = load_text(tmp_path, JOB + f"prepare = {value}\n").job("w").prepare
        assert prepare is not None
        assert (prepare.command, prepare.inputs) == (("python", "make.py"), ())


def test_numbers_in_env_become_text(tmp_path: Path) -> None:
    job = load_text(tmp_path, JOB + 'env = { A = 30, B = 0.5, C = "007", D = "" }\n').job("w")
    assert job.env == {"A": "30", "B": "0.5", "C": "007", "D": ""}


@pytest.mark.parametrize("key", ["restarts", "keep_checkpoints"])
@pytest.mark.parametrize("digits", [30, 400, 4000])
def test_huge_number_is_too_large(tmp_path: Path, key: str, digits: int) -> None:
    message, _ = refused(tmp_path, JOB + f"{key} = {'9' * digits}\n")
    assert f"{key}: must be at most" in message


@pytest.mark.parametrize(
    ("line", "said", "hinted"),
    [
        (
            'links = { a = "/mnt", "a/b" = "/tmp" }',
            "links: 'a/b' is below 'a', which is a link",
            "leave out one",
        ),
        ('links = { "a/b/c" = "/mnt", "a/b" = "/tmp" }', "'a/b/c' is below 'a/b'", "leave out one"),
        ('resume = ""', "resume: must not be empty", "write arguments"),
        ("resume = []", "resume: must not be empty", "write arguments"),
        (f"cwd = 0x1{'0' * 5000}", "cwd: expected 'work' or 'code', got a number too long to show", ""),
        (f"stop_signal = [0x1{'0' * 5000}]", "stop_signal: expected", ""),
        (f"metrics.epochs = {2**63}", "metrics.epochs: must be at most", ""),
    ],
)
def test_odd_value_is_one_clear_error(tmp_path: Path, line: str, said: str, hinted: str) -> None:
    message, hint = refused(tmp_path, JOB + line + "\n")
    assert said in message and hinted in hint


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ('"\\u0000"', "NUL"),
        ('""', "must not be empty"),
        (f'"{"x" * 5000}"', "longer than 255"),
        ("7", "in quotes"),
    ],
)
def test_identity_is_a_path(tmp_path: Path, identity: str, said: str) -> None:
    message, _ = refused(tmp_path, JOB + f'[hosts.b]\nssh = "b"\nidentity = {identity}\n')
    assert message.startswith("jobs.toml: [hosts.b] identity: ") and said in message


@pytest.mark.parametrize("digits", [400, 4000])
def test_huge_price_is_too_large(tmp_path: Path, digits: int) -> None:
    ec2 = '[hosts.b]\nssh = "b"\n[hosts.b.ec2]\ninstance_id = "i-0123456789abcdef0"\nregion = "us-east-1"\n'
    message, _ = refused(tmp_path, JOB + ec2 + f"price_per_hour = {'9' * digits}\n")
    assert "price_per_hour: " in message and "is too large" in message


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    assert load_text(tmp_path, "\ufeff" + JOB).project.name == "p"


@pytest.mark.parametrize("field", ["host", "gpus"])
def test_models_are_frozen(tmp_path: Path, field: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(load_text(tmp_path, JOB).job("w"), field, "box")


def test_secrets_are_a_list_of_variables_or_a_table(tmp_path: Path) -> None:
    short = load_text(tmp_path, JOB + 'secrets = ["A", "B"]\n').job("w")
    assert short.secrets == {"A": Secret(env="A"), "B": Secret(env="B")}
    table = '[jobs.w.secrets]\nA = { env = "MY_A" }\nB = { command = "pass show b" }\n'
    assert load_text(tmp_path, JOB + table).job("w").secrets == {
        "A": Secret(env="MY_A"),
        "B": Secret(command=("pass", "show", "b")),
    }


# --- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90 s", 90),
        ("90s", 90),
        ("20m", 1200),
        ("20 min", 1200),
        ("8h", 28800),
        ("8H", 28800),
        ("1h30m", 5400),
        ("1h 30 min", 5400),
        ("2 days", 172800),
        ("1 day 2 hours", 93600),
        ("0.5h", 1800),
        (90, 90),
        (0.25, 0.25),
    ],
)
def test_duration_is_parsed(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "8",
        "h",
        "8 parsecs",
        "-1h",
        "1e3 s",
        "ms",
        "1h30",
        "8 \u017f",
        "0s",
        0,
        -1,
        True,
        None,
        [1],
        float("inf"),
        float("nan"),
        "9" * 400 + "h",
        10**400,
        "4000d",
    ],
)
def test_invalid_duration_is_refused(wrong: object) -> None:
    with pytest.raises(Invalid):
        parse_duration(wrong)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.integers(1, 100), st.sampled_from(["", " "]))
def test_parts_of_a_duration_add_up(days: int, hours: int, minutes: int, seconds: int, gap: str) -> None:
    text = gap.join(f"{days}d {hours}h {minutes}min {seconds}s".split())
    assert parse_duration(text) == days * 86400 + hours * 3600 + minutes * 60 + seconds


@given(st.floats(min_value=0.001, max_value=3650 * 86400))
def test_number_of_seconds_is_unchanged(seconds: float) -> None:
    assert parse_duration(seconds) == seconds
    assert parse_duration(json.loads(json.dumps(seconds))) == seconds


@given(st.text() | st.integers() | st.floats() | st.none() | st.booleans() | st.lists(st.integers()))
def test_any_duration_is_positive_or_refused(value: object) -> None:
    try:
        assert parse_duration(value) > 0
    except Invalid as error:
        assert "\n" not in error.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("python -m w --data $ORCH_DATA_DIR", ("python", "-m", "w", "--data", "$ORCH_DATA_DIR")),
        ("python w.py ${NAME}/x", ("python", "w.py", "${NAME}/x")),
        ("python -c 'print(1); x = 2 > 1'", ("python", "-c", "print(1); x = 2 > 1")),
        ('python -c "a && b | c"', ("python", "-c", "a && b | c")),
        (r"find . -name x \;", ("find", ".", "-name", "x", ";")),
        ("python w.py # 3", ("python", "w.py", "#", "3")),
        (["bash", "-c", "a && b"], ("bash", "-c", "a && b")),
        (["w", ""], ("w", "")),
    ],
)
def test_command_is_split(text: object, words: tuple[str, ...]) -> None:
    assert parse_command(text) == words


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("a && b", "&&"),
        ("a&&b", "&&"),
        ("a || b", "||"),
        ("a | b", "|"),
        ("a;b", ";"),
        ("a > log", ">"),
        ("a 2>&1", ">"),
        ("a >> log", ">>"),
        ("a < in", "<"),
        ("a &", "&"),
        ("a `date`", "`"),
        ("a $(date)", "$("),
        ('a "$(date)"', "$("),
        ('a "x `date`"', "`"),
    ],
)
def test_shell_operators_are_refused(text: str, operator: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_command(text)
    assert caught.value.message == f"{operator!r} needs a shell, but the command runs without one"
    assert caught.value.hint == 'write ["bash", "-c", "..."]'


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
def test_list_of_words_is_unchanged(words: list[str]) -> None:
    if words[0].strip():
        assert parse_command(words) == tuple(words)


@given(st.text())
def test_any_text_is_a_command_or_refused(text: str) -> None:
    try:
        assert parse_command(text)
    except Invalid as error:
        assert "\n" not in error.message


@pytest.mark.parametrize(
    ("value", "share"),
    [
        (0, 0),
        (1, 1),
        (4, 4),
        (2.0, 2),
        (0.5, 1 / 2),
        (0.33, 1 / 3),
        (1 / 3, 1 / 3),
        (0.25, 1 / 4),
        (0.17, 1 / 6),
        (0.08, 1 / 12),
        (0.0833, 1 / 12),
        ("1/3", 1 / 3),
        ("1 / 12", 1 / 12),
        ("1/1", 1),
    ],
)
def test_gpu_share_is_parsed(value: object, share: float) -> None:
    assert parse_share(value) == share


@pytest.mark.parametrize("wrong", [-1, 0.4, 0.9, 1.5, 0.01, True, "0.5", "1/0", "1/5", None, float("nan"), 10**400])
def test_invalid_gpu_share_is_refused(wrong: object) -> None:
    with pytest.raises(Invalid):
        parse_share(wrong)


# --- errors: the exact line and hint -------------------------------------------------------------------

SYNTAX = [
    (
        "[project]\nname = \n",
        "jobs.toml: line 2, column 8: invalid value",
        'quote text, as in deadline = "8h"',
    ),
    (
        JOB + "deadline = 8h\n",
        "jobs.toml: line 5, column 13: expected newline or end of document after a statement",
        'quote text, as in deadline = "8h"',
    ),
    (
        JOB + 'command = "x"\n',
        "jobs.toml: line 5, column 14: cannot overwrite a value",
        "each key and each [table] may appear only once",
    ),
    (
        JOB + "[jobs.w]\n",
        "jobs.toml: line 5, column 8: cannot declare ('jobs', 'w') twice",
        "each key and each [table] may appear only once",
    ),
    (
        "[project",
        "jobs.toml: line 1, column 9: expected ']' at the end of a table declaration",
        'quote text, as in deadline = "8h"',
    ),
]

TABLES = [
    ("", "jobs.toml: missing table 'project'", 'write [project] and name = "..." below it'),
    ("[project]\n", "jobs.toml: [project] missing key 'name'", ""),
    (
        '[project]\nname = "a b"\n',
        "jobs.toml: [project] name: 'a b' is not a valid name",
        "use at most 64 letters, digits, '-' and '_'; start with a letter or digit",
    ),
    (JOB + "[job.x]\n", "jobs.toml: unknown table 'job'", "did you mean 'jobs'?"),
    ('deadline = "8h"\n' + JOB, "jobs.toml: unknown key 'deadline'", "the tables are: project, hosts, defaults, jobs"),
    ("defaults = 5\n" + JOB, "jobs.toml: defaults: expected a table, got 5", "write [defaults] and its keys below it"),
    (
        JOB + '[hosts]\nssh = "box"\n',
        "jobs.toml: [hosts] ssh: expected a table, got 'box'",
        "write [hosts.NAME] and its keys below it",
    ),
    (
        PROJECT + '[jobs."a b"]\ncommand = "x"\n',
        "jobs.toml: [jobs.\"a b\"] name: 'a b' is not a valid name",
        "use at most 64 letters, digits, '-' and '_'; start with a letter or digit",
    ),
    (JOB + 'name = "w"\n', "jobs.toml: [jobs.w] unknown key 'name'", "the name is the one in [jobs.w]"),
    (
        PROJECT + "[defaults]\nneeds = []\n",
        "jobs.toml: [defaults] 'needs' cannot be a default",
        "set it in each job",
    ),
    (
        PROJECT + '[defaults]\nname = "x"\n',
        "jobs.toml: [defaults] 'name' cannot be a default",
        "set it in each job",
    ),
]

HOSTS = [
    ('sh = "box"', "unknown key 'sh'", "did you mean 'ssh'?"),
    (
        'ssh = "-oProxyCommand=x"',
        "ssh: '-oProxyCommand=x' is not a valid SSH destination",
        "write user@host, user@host:port or an alias of ~/.ssh/config",
    ),
    (
        'ssh = "box:70000"',
        "ssh: 'box:70000' is not a valid SSH destination",
        "write user@host, user@host:port or an alias of ~/.ssh/config",
    ),
    ('ssh = "b"\nlauncher = "tmx"', "launcher: expected 'nohup' or 'tmux', got 'tmx'", "did you mean 'tmux'?"),
    ('ssh = "b"\npython = "python; x"', "python: 'python; x' must be a path of letters, digits and _ . / + ~ -", ""),
    ('ssh = "b"\nroot = "-rf"', "root: '-rf' must be a path of letters, digits and _ . / + ~ -", ""),
    ('ssh = "b"\nroot = ""', "root: must not be empty", ""),
    ('identity = "k"', "'identity' needs 'ssh'; without 'ssh' the host is this machine", ""),
    (
        "gpus = true",
        "gpus: expected a count or a list of GPU indices, got true",
        "write gpus = 1 or gpus = [0, 2]",
    ),
    (
        "gpus = 9223372036854775808",
        f"gpus: expected a count or a list of GPU indices, got {2**63}",
        "write gpus = 1 or gpus = [0, 2]",
    ),
    (
        "gpus = [0, 0]",
        "gpus: expected a count or a list of GPU indices, got [0, 0]",
        "write gpus = 1 or gpus = [0, 2]",
    ),
    ("ssh = 5", "ssh: expected text in quotes, got 5", ""),
    ('ssh = "b"\nec2 = { region = "us-east-1" }', "missing key 'ec2.instance_id'", ""),
    (
        'ssh = "b"\nec2 = { instance_id = "i-1", region = "us-east-1" }',
        "ec2.instance_id: 'i-1' is not a valid instance id",
        "it looks like i-0123456789abcdef0",
    ),
    (
        'ssh = "b"\nec2 = { instance_id = "i-01234567", region = "virginia" }',
        "ec2.region: 'virginia' is not a valid region",
        "it looks like us-east-1",
    ),
    (
        'ssh = "b"\nec2 = { instance_id = "i-01234567", region = "us-east-1", instance = "x" }',
        "unknown key 'ec2.instance'",
        "did you mean 'instance_id'?",
    ),
    (
        'ssh = "b"\nec2 = { instance_id = "i-01234567", region = "us-east-1", price_per_hour = "1 USD" }',
        "ec2.price_per_hour: expected a number, got '1 USD'",
        "",
    ),
    (
        'ssh = "b"\nec2 = { instance_id = "i-01234567", region = "us-east-1", price_per_hour = inf }',
        "ec2.price_per_hour: expected a finite number, got inf",
        "",
    ),
    ('ssh = "b"\nec2 = "i-01234567"', "ec2: expected a table, got 'i-01234567'", ""),
]

GOAL_FORM = "write a comparison and a number, such as '>= 0.75' or '>= 75 %'"
DURATION_HINT = "write seconds or text such as '90 s', '20m', '8h', '1h30m' or '2 days'"
SHARE_HINT = "write a whole number, or 1/2, 1/3, 1/4, 1/6 or 1/12 as 0.5 or '1/2'"

JOBS = [
    ('dedline = "8h"', "unknown key 'dedline'", "did you mean 'deadline'?"),
    ("command = []", "command: must not be empty", 'write a program and its arguments, such as "python -m train"'),
    ("command = 5", "command: expected text or a list of texts, got 5", ""),
    (
        'command = "cd x && python w.py"',
        "command: '&&' needs a shell, but the command runs without one",
        'write ["bash", "-c", "..."]',
    ),
    (
        'command = "EPOCHS=5 python w.py"',
        "command: 'EPOCHS=5' needs a shell, but the command runs without one",
        "put it into `env` of the job",
    ),
    ('command = "python \'w"', 'command: "python \'w" cannot be split into words: no closing quotation', ""),
    ('command = "a\\u0000"', "command: must not contain a NUL character", ""),
    (
        'rehearse = "a | b"',
        "rehearse: '|' needs a shell, but the command runs without one",
        'write ["bash", "-c", "..."]',
    ),
    (
        'prepare = "a > b"',
        "prepare.command: '>' needs a shell, but the command runs without one",
        'write ["bash", "-c", "..."]',
    ),
    ('prepare = { inputs = ["a"] }', "missing key 'prepare.command'", ""),
    (
        'prepare = { command = "a", inputs = ["../a"] }',
        "prepare.inputs[0]: '../a' is not a relative path with '/' and without '..'",
        "",
    ),
    ('data = "/data"', "data: expected a table, got '/data'", "write { path = '/data' }"),
    ("data = 5", "data: expected a table, got 5", ""),
    ("prepare = 5", "prepare: expected a table, got 5", ""),
    (
        "env = { A = true }",
        "env.A: expected text or a number, got true",
        'write what the program expects in quotes, such as "1" or "true"',
    ),
    (
        'env = { A-B = "1" }',
        "env.A-B: 'A-B' is not a valid variable name",
        "use letters, digits and '_'; do not start with a digit",
    ),
    (
        'env = { CUDA_VISIBLE_DEVICES = "1" }',
        "env.CUDA_VISIBLE_DEVICES: 'CUDA_VISIBLE_DEVICES' is set by orch itself, to the GPUs that the job was given",
        "write `gpus = 1` in the job; `gpus = [1]` in [hosts.NAME] says which GPUs its jobs may use",
    ),
    (
        'env = { CUDA_DEVICE_ORDER = "FASTEST_FIRST" }',
        "env: CUDA_DEVICE_ORDER: 'FASTEST_FIRST' would give the job other GPUs than those that orch reserved for it",
        "leave it out: orch sets PCI_BUS_ID, the order of nvidia-smi",
    ),
    ('env = { ORCH_RUN_DIR = "/" }', "env.ORCH_RUN_DIR: 'ORCH_RUN_DIR' is set by orch itself", ""),
    ('env = "A=1"', "env: expected a table, got 'A=1'", ""),
    (
        'secrets = ["A", "B C"]',
        "secrets: 'B C' is not a valid variable name",
        "use letters, digits and '_'; do not start with a digit",
    ),
    (
        'secrets = "hunter2"',
        "secrets: expected a list of variables or a table",
        'write secrets = ["HF_TOKEN"], or a table below the job',
    ),
    ('secrets = { A = "hunter2" }', "secrets.A: expected a table", SECRET_HINT),
    ("secrets = { A = {} }", "secrets.A: needs either 'env' or 'command'", SECRET_HINT),
    (
        'secrets = { A = { env = "B", command = "pass" } }',
        "secrets.A: needs either 'env' or 'command'",
        SECRET_HINT,
    ),
    ('secrets = { A = { comand = "pass" } }', "unknown key 'secrets.A.comand'", "did you mean 'command'?"),
    ('secrets = { A = { value = "hunter2" } }', "unknown key 'secrets.A.value'", "the keys are: env, command"),
    (
        'secrets = { A = { command = "pass | head" } }',
        "secrets.A.command: '|' needs a shell, but the command runs without one",
        'write ["bash", "-c", "..."]',
    ),
    ("gpus = 0.4", "gpus: 0.4 is not a valid GPU count", SHARE_HINT),
    ("gpus = -1", "gpus: -1 is not a valid GPU count", SHARE_HINT),
    ("data = { at_least = 0 }", "data.at_least: must be at least 1, got 0", ""),
    ("data = { at_lest = 5 }", "unknown key 'data.at_lest'", "did you mean 'at_least'?"),
    (
        'data = { pattern = "/x/*" }',
        "data.pattern: '/x/*' is not a relative path with '/' and without '..'",
        "",
    ),
    ('expects = ["a/../b"]', "expects[0]: 'a/../b' is not a relative path with '/' and without '..'", ""),
    ('expects = ["/a"]', "expects[0]: '/a' is not a relative path with '/' and without '..'", ""),
    ('expects = ["~/a"]', "expects[0]: '~/a' is not a relative path with '/' and without '..'", ""),
    ('expects = [""]', "expects[0]: must not be empty", ""),
    ("restarts = -1", "restarts: must be at least 0, got -1", ""),
    ("restarts = 9223372036854775808", f"restarts: must be at most {2**63 - 1}, got {2**63}", ""),
    ("keep_checkpoints = 9223372036854775808", f"keep_checkpoints: must be at most {2**63 - 1}, got {2**63}", ""),
    ("restarts = true", "restarts: expected a whole number, got true", ""),
    ("restarts = 1.5", "restarts: expected a whole number, got 1.5", ""),
    ('stall_after = "soon"', "stall_after: 'soon' is not a valid duration", DURATION_HINT),
    ("deadline = 0", "deadline: 0 must be more than 0 and at most 3650 days", DURATION_HINT),
    ("deadline = true", "deadline: true is not a valid duration", DURATION_HINT),
    (
        RESUME,
        "'resume' uses $ORCH_RESUME, but 'checkpoints' does not say where checkpoints are",
        'write for example checkpoints = "out/checkpoint-*"',
    ),
    ('resume = "--resume $ORCH_RESUM"', "'resume' uses $ORCH_RESUM, which orch does not set", "write $ORCH_RESUME"),
    ('checkpoints = "../x"', "checkpoints[0]: '../x' is not a relative path with '/' and without '..'", ""),
    ("stop_grace = [60]", "stop_grace: [60] is not a valid duration", DURATION_HINT),
    (
        'goals = { acc = "75" }',
        f"goals.acc: '75' is not a valid goal; {GOAL_FORM}",
        "",
    ),
    ("goals = { acc = 0.75 }", "goals.acc: expected text in quotes, got 0.75", ""),
    ('host = "lokal"', "host: no host 'lokal'", "did you mean 'local'?"),
    ('host = "xyz"', "host: no host 'xyz'", "the hosts are: local, box"),
    (f'host = "{"x" * 9999}"', f"host: no host '{'x' * 76}...", "the hosts are: local, box"),
    (
        f'goals = {{ a = "{"x" * 9999}" }}',
        f"goals.a: '{'x' * 80}...' is not a valid goal; {GOAL_FORM}",
        "",
    ),
    ('needs = ["v"]', "needs: no job 'v'", "the jobs are: w, other"),
    ('needs = ["othr"]', "needs: no job 'othr'", "did you mean 'other'?"),
    (
        'needs = ["other"]',
        "needs: 'other' runs on 'box', this job on 'local'",
        "a job must run on the host of the jobs it needs",
    ),
    ('needs = ["w"]', "needs: jobs need each other in a circle: w, w", ""),
]


@pytest.mark.parametrize(("text", "message", "hint"), SYNTAX + TABLES)
def test_error_in_the_file_is_reported(tmp_path: Path, text: str, message: str, hint: str) -> None:
    assert refused(tmp_path, text) == (message, hint)


@pytest.mark.parametrize(("lines", "message", "hint"), HOSTS)
def test_error_in_a_host_is_reported(tmp_path: Path, lines: str, message: str, hint: str) -> None:
    assert refused(tmp_path, JOB + f"[hosts.box]\n{lines}\n") == (f"jobs.toml: [hosts.box] {message}", hint)


def test_host_local_refuses_ssh(tmp_path: Path) -> None:
    assert refused(tmp_path, JOB + '[hosts.local]\nssh = "box"\n') == (
        "jobs.toml: [hosts.local] 'ssh': this host is always this machine",
        "give the other machine another name",
    )


@pytest.mark.parametrize(("lines", "message", "hint"), JOBS)
def test_error_in_a_job_is_reported(tmp_path: Path, lines: str, message: str, hint: str) -> None:
    command = "" if lines.startswith("command") else 'command = "python w.py"\n'
    rest = '[jobs.other]\ncommand = "x"\nhost = "box"\n[hosts.box]\nssh = "box"\n'
    text = PROJECT + f"[jobs.w]\n{command}{lines}\n" + rest
    assert refused(tmp_path, text) == (f"jobs.toml: [jobs.w] {message}", hint)


def test_misspelt_key_is_not_also_reported_as_missing(tmp_path: Path) -> None:
    text = PROJECT + '[jobs.worker1]\ncomand = "x"\n'
    assert refused(tmp_path, text) == ("jobs.toml: [jobs.worker1] unknown key 'comand'", "did you mean 'command'?")


def test_circular_needs_are_reported_in_order(tmp_path: Path) -> None:
    text = PROJECT + "".join(
        f'[jobs.{name}]\ncommand = "x"\nneeds = ["{need}"]\n' for name, need in (("a", "b"), ("b", "c"), ("c", "a"))
    )
    message, _ = refused(tmp_path, text)
    assert message in {
        f"jobs.toml: [jobs.{start[0]}] needs: jobs need each other in a circle: {start}"
        for start in ("a, b, c, a", "b, c, a, b", "c, a, b, c")
    }


def test_error_in_the_defaults_is_reported_once_and_attributed_to_them(tmp_path: Path) -> None:
    jobs = "".join(f'[jobs.{name}]\ncommand = "x"\nenv = {{ B = "1" }}\n' for name in "abc")
    text = PROJECT + '[defaults]\nhost = "bx"\nenv = { A = true }\n' + jobs + '[hosts.box]\nssh = "box"\n'
    message, hint = refused(tmp_path, text.replace('host = "bx"\n', ""))
    assert message == "jobs.toml: [defaults] env.A: expected text or a number, got true"
    message, hint = refused(tmp_path, text.replace("A = true", 'A = "1"'))
    assert (message, hint) == ("jobs.toml: [defaults] host: no host 'bx'", "did you mean 'box'?")


def test_defaults_are_checked_without_any_job(tmp_path: Path) -> None:
    message, _ = refused(tmp_path, PROJECT + "[defaults]\nrestarts = -1\n")
    assert message == "jobs.toml: [defaults] restarts: must be at least 0, got -1"


def test_all_errors_are_reported_together(tmp_path: Path) -> None:
    text = """
        [project]
        nam = "p"
        [hosts.box]
        ssh = "-x"
        [defaults]
        restarts = "two"
        [jobs.a]
        comand = "x"
        deadline = "8 parsecs"
        [jobs.b]
        command = "x"
        needs = ["c"]
        [job.c]
        """
    message, hint = refused(tmp_path, text)
    assert hint == ""
    assert message.splitlines() == [
        "jobs.toml: unknown table 'job'; did you mean 'jobs'?",
        "jobs.toml: [project] unknown key 'nam'; did you mean 'name'?",
        "jobs.toml: [hosts.box] ssh: '-x' is not a valid SSH destination; "
        "write user@host, user@host:port or an alias of ~/.ssh/config",
        "jobs.toml: [defaults] restarts: expected a whole number, got 'two'",
        f"jobs.toml: [jobs.a] deadline: '8 parsecs' is not a valid duration; {DURATION_HINT}",
        "jobs.toml: [jobs.a] unknown key 'comand'; did you mean 'command'?",
    ]


def test_need_of_an_invalid_job_is_not_a_second_error(tmp_path: Path) -> None:
    text = JOB + 'needs = ["v"]\n[jobs.v]\ncommand = "x"\nrestarts = -1\n'
    assert refused(tmp_path, text)[0] == "jobs.toml: [jobs.v] restarts: must be at least 0, got -1"


def test_value_in_an_error_is_one_short_line(tmp_path: Path) -> None:
    message, _ = refused(tmp_path, JOB + 'deadline = "\\u001b[2J\\n' + "x" * 500 + '"\n[jobs."\\n"]\ncommand = "x"\n')
    assert "\x1b" not in message
    assert len(message.splitlines()) == 2
    assert max(map(len, message.splitlines())) < 250


def test_unreadable_file_is_a_spec_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path / "jobs.toml")
    assert caught.value.message == "jobs.toml: cannot be read: No such file or directory"
    assert caught.value.hint == "to write a jobs.toml: orch init"
    (tmp_path / "jobs.toml").write_bytes(b'a = "\xff"')
    with pytest.raises(SpecError) as caught:
        load(tmp_path / "jobs.toml")
    assert caught.value.message == "jobs.toml: is not UTF-8 text (byte 5)"
    with pytest.raises(SpecError, match="nested too deeply"):
        load_text(tmp_path, "a = " + "[" * 100_000)
    with pytest.raises(SpecError):
        load_text(tmp_path, "a = " + "1" * 10_000)
    message, _ = refused(tmp_path, JOB + "host = 0x" + "f" * 10_000 + "\n")
    assert message == "jobs.toml: [jobs.w] host: expected text in quotes, got a number too long to show"


@settings(deadline=None)  # reads a file
@given(st.text())
def test_any_text_loads_or_is_a_spec_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    directory = tmp_path_factory.mktemp("any")
    (directory / "jobs.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(SpecError):
        load(directory / "jobs.toml")


# --- finding runs --------------------------------------------------------------------------------------


def test_find_walks_up(tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text(JOB, encoding="utf-8")
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find(deep) == find(tmp_path) == tmp_path / "jobs.toml"


def test_find_skips_files_of_runs(tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text(JOB, encoding="utf-8")
    for folder in ("results/a/1", ".orch/x/runs/a/1/work", "results/a/1/results/b"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "jobs.toml").write_text(JOB, encoding="utf-8")
        assert find(tmp_path / folder) == tmp_path / "jobs.toml"
        assert find(tmp_path / folder / "jobs.toml") == tmp_path / folder / "jobs.toml"  # -f names it


def test_find_accepts_a_project_in_a_folder_named_like_results(tmp_path: Path) -> None:
    project = tmp_path / "results" / "project"
    (project / "sub").mkdir(parents=True)
    for folder in (project, project / "sub"):
        (folder / "jobs.toml").write_text(JOB, encoding="utf-8")
        assert find(folder) == folder / "jobs.toml"


@pytest.mark.parametrize(("name", "is_used"), [("cache", True), (".hosts", False), (".adopted", False)])
def test_find_knows_a_results_folder_by_what_orch_wrote(tmp_path: Path, name: str, is_used: bool) -> None:
    project = tmp_path / "work" / "project"
    project.mkdir(parents=True)
    (project / "jobs.toml").write_text(JOB, encoding="utf-8")
    (tmp_path / ".mirror" / name).mkdir(parents=True)  # `work` is next to it, like the jobs in results/
    if is_used:
        assert find(project) == project / "jobs.toml"
    else:
        with pytest.raises(SpecError, match="inside a results folder"):
            find(project)


def test_missing_named_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text(JOB, encoding="utf-8")
    with pytest.raises(SpecError, match=r"other\.toml: cannot be read: No such file"):
        load(find(tmp_path / "other.toml"))


@pytest.mark.parametrize("kind", ["fifo", "folder", "large"])
def test_jobs_toml_that_is_not_a_small_file_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "jobs.toml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(SpecError, match=r"jobs\.toml: is (not a regular file|larger than 1 MiB)"):
        load(path)


@pytest.mark.parametrize("key", ["include", "exclude"])
@pytest.mark.parametrize("glob", ["!", "[z-a]"])
def test_glob_that_git_cannot_read_is_reported(tmp_path: Path, key: str, glob: str) -> None:
    (tmp_path / "jobs.toml").write_text(f'[project]\nname = "p"\n{key} = ["*.py", "{glob}"]\n')
    with pytest.raises(SpecError, match=f"'{re.escape(glob)}' is not a pattern"):
        load(tmp_path / "jobs.toml")


@pytest.mark.parametrize(("value", "size"), [('"5 GB"', 5 * 10**9), ('"1kB"', 1000), ("7", 7)])
def test_size_is_parsed(tmp_path: Path, value: str, size: int) -> None:
    (tmp_path / "jobs.toml").write_text(f'[project]\nname = "x"\nmax_size = {value}\n', encoding="utf-8")
    assert load(tmp_path / "jobs.toml").project.max_size == size


@pytest.mark.parametrize("value", ['"5 apples"', '""', "0", "-1", "true", "1.5"])
def test_invalid_size_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "jobs.toml").write_text(f'[project]\nname = "x"\nmax_size = {value}\n', encoding="utf-8")
    with pytest.raises(SpecError, match=r"max_size: .* is not a valid size"):
        load(tmp_path / "jobs.toml")


def test_find_reports_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        find(tmp_path)
    assert caught.value.message == f"no jobs.toml in {tmp_path} or its parent directories"
    assert caught.value.hint == "to write one: orch init"


def test_unknown_name_suggests_the_nearest() -> None:
    spec = load(SHIPPED)
    with pytest.raises(SpecError) as caught:
        spec.job("workr2")
    assert (caught.value.message, caught.value.hint) == (
        "jobs.toml: no job 'workr2'",
        "did you mean 'worker2'?",
    )
    with pytest.raises(SpecError) as caught:
        spec.job("zzz")
    assert caught.value.hint == "the jobs are: worker1, worker2, tracked, multitask, curriculum, linear, sparse"
    with pytest.raises(SpecError) as caught:
        spec.host("bocks")
    assert caught.value.message == "jobs.toml: no host 'bocks'"
    assert caught.value.exit_code == 2


# --- overrides -----------------------------------------------------------------------------------------


def test_overrides_apply_to_each_named_job() -> None:
    spec = load(SHIPPED)
    changed = with_overrides(
        spec,
        ["worker1", "worker2"],
        [
            "env.EPOCHS=5",
            "deadline=2h",
            'goals.val_accuracy=">= 0.9"',
            "goals.val.f1=>= 0.5",
            "gpus=1",
            "host=box",
            "data.at_least=20",
            "expects=['a', 'b']",
            "command=python -m other",
            "rehearse=false",
        ],
    )
    for name in ("worker1", "worker2"):
        job = changed.job(name)
        assert job.env == {"SAMPLES": "10000", "PRESET": "default", "EPOCHS": "5", "SEED": "0"}
        assert job.deadline == 7200 and job.gpus == 1 and job.host == "box" and job.rehearse is False
        assert job.goals["val_accuracy"] == ">= 0.9" and job.goals["val.f1"] == ">= 0.5"
        assert job.data is not None and (job.data.pattern, job.data.at_least) == ("output/augmented_traj_*.pt", 20)
        assert job.expects == ("a", "b")
        assert job.command == ("python", "-m", "other")
    assert spec.job("worker1").env["EPOCHS"] == "30"
    assert with_overrides(spec, ["worker1"], ["gpus=1"]).job("worker2").gpus == 0.5


def test_override_can_set_the_source_of_a_secret() -> None:
    wanted = ["secrets.A.command=pass show a", 'secrets.B.env="MY_B"']
    job = with_overrides(load(SHIPPED), ["worker1"], wanted).job("worker1")
    assert job.secrets == {"A": Secret(command=("pass", "show", "a")), "B": Secret(env="MY_B")}


def test_empty_overrides_change_nothing() -> None:
    spec = load(SHIPPED)
    assert with_overrides(spec, spec.jobs, []) == spec


@pytest.mark.parametrize("value", ["5", "true", "1e-4", "007", "2024-01-01", "", "a=b", "[1]", "x y", "5 # five"])
def test_env_overrides_are_the_text_as_typed(value: str) -> None:
    assert with_overrides(load(SHIPPED), ["worker1"], [f"env.NEW={value}"]).job("worker1").env["NEW"] == value


def test_quoted_env_override_loses_its_quotes() -> None:
    assert with_overrides(load(SHIPPED), ["worker1"], ['env.NEW="5"']).job("worker1").env["NEW"] == "5"


def test_override_can_open_a_table_that_the_job_lacks(tmp_path: Path) -> None:
    job = with_overrides(load_text(tmp_path, JOB), ["w"], ["data.path=/data", "prepare.command=make x"]).job("w")
    assert job.data is not None and job.data.path == "/data"
    assert job.prepare is not None and job.prepare.command == ("make", "x")


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("dedline=2h", "--set: [jobs.worker1] unknown key 'dedline'", "did you mean 'deadline'?"),
        ("deadline=soon", "--set: [jobs.worker1] deadline: 'soon' is not a valid duration", DURATION_HINT),
        ("data.at_lest=2", "--set: [jobs.worker1] unknown key 'data.at_lest'", "did you mean 'at_least'?"),
        ("name=x", "--set: [jobs.worker1] unknown key 'name'", "the name is the one in [jobs.worker1]"),
        ("host=bx", "--set: [jobs.worker1] host: no host 'bx'", "did you mean 'box'?"),
        ("host.x=1", "--set: [jobs.worker1] host: expected text in quotes, got {'x': 1}", ""),
        ('needs=["worker1"]', "--set: [jobs.worker1] needs: jobs need each other in a circle: worker1, worker1", ""),
        ("deadline", "--set: 'deadline' is not KEY=VALUE", "write for example --set env.EPOCHS=5"),
        ("=5", "--set: '=5' is not KEY=VALUE", "write for example --set env.EPOCHS=5"),
        (
            "env.A-B=1",
            "--set: [jobs.worker1] env.A-B: 'A-B' is not a valid variable name",
            "use letters, digits and '_'; do not start with a digit",
        ),
    ],
)
def test_invalid_override_is_refused(override: str, message: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        with_overrides(load(SHIPPED), ["worker1"], [override])
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == (message, hint, 2)


def test_override_of_an_unknown_job_is_refused() -> None:
    with pytest.raises(SpecError, match="no job 'worker3'"):
        with_overrides(load(SHIPPED), ["worker3"], ["gpus=1"])


@settings(deadline=None)  # reads a file
@given(st.text(), st.text())
def test_any_override_is_valid_or_a_spec_error(key: str, value: str) -> None:
    try:
        with_overrides(load(SHIPPED), ["worker1"], [f"{key}={value}"])
    except SpecError as error:
        assert error.message.startswith("--set: ")


# --- the reference --------------------------------------------------------------------------------------


def test_reference_documents_every_key() -> None:
    reference = (SHIPPED.parent / "docs" / "jobs-toml.md").read_text(encoding="utf-8")
    keys = [*ProjectSettings.toml_keys(), *Host.toml_keys(), *Ec2.toml_keys(), *Job.toml_keys()]
    for name, table in (("data", Data), ("prepare", Prepare), ("metrics", Metrics), ("environment", JobEnvironment)):
        keys += [f"{name}.{key}" for key in table.toml_keys()]
    tables = {"ec2", "data", "env", "goals"}
    assert [key for key in keys if key not in tables and f"`{key}`" not in reference] == []


def test_data_from_this_machine_and_a_path_on_the_box_exclude_each_other(tmp_path: Path) -> None:
    head = '[project]\nname = "p"\n[jobs.a]\ncommand = "true"\n'
    (tmp_path / "jobs.toml").write_text(head + 'data = { from = "data", path = "/mnt" }\n')
    with pytest.raises(SpecError, match="has both 'path' and 'from'"):
        load(tmp_path / "jobs.toml")
    (tmp_path / "jobs.toml").write_text(head + 'data = { source = "data" }\n')
    with pytest.raises(SpecError, match="unknown key 'data.source'"):
        load(tmp_path / "jobs.toml")
