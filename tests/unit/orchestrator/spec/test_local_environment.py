from __future__ import annotations

import pytest

from orchestrator.spec.local_environment import inherited, left_out, looks_like_credential

CREDENTIALS = [
    "HF_TOKEN",
    "GITHUB_TOKEN",
    "GH_PAT",
    "WANDB_API_KEY",
    "OPENAI_APIKEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "PGPASSWORD",
    "MYSQL_PWD",
    "SSHPASS",
    "RESTIC_PASSWORD",
    "DB_PASS",
    "ANSIBLE_VAULT_PASSPHRASE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "SSH_AUTH_SOCK",
    "SENTRY_DSN",
    "KEY",
    "api_key",
    "NETRC_COOKIE",
    "MY_PRIVATE_THING",
]
OTHERS = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "TERM",
    "PWD",
    "OLDPWD",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "CUDA_HOME",
    "OMP_NUM_THREADS",
    "HF_HOME",
    "TOKENIZERS_PARALLELISM",
    "MAX_TOKENS",
    "KEYBOARD",
    "XAUTHORITY",
    "KUBECONFIG",
    "AWS_PROFILE",
    "AWS_REGION",
    "XDG_SESSION_ID",
    "DBUS_SESSION_BUS_ADDRESS",
    "HTTPS_PROXY",
    "no_proxy",
    "COMPASS",
    "PASSIVE",
    "AUTHOR",
]


@pytest.mark.parametrize("name", CREDENTIALS)
def test_credential_is_recognised_by_its_name(name: str) -> None:
    assert looks_like_credential(name, "x")
    assert not looks_like_credential(name, "")  # leaving it out protects nothing


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_variable_is_inherited(name: str) -> None:
    assert not looks_like_credential(name, "x")


def test_url_with_a_password_is_a_credential_unless_it_is_a_proxy() -> None:
    url = "https://me:pw@host/x"
    assert looks_like_credential("DATABASE_URL", url)
    assert not looks_like_credential("DATABASE_URL", "https://me@host/x:y@z")
    assert not looks_like_credential("https_proxy", url)


def test_variable_set_by_a_job_is_neither_inherited_nor_reported() -> None:
    environment = {"A": "1", "PLAIN": "2", "B_TOKEN": "3", "C_TOKEN": "4", "SSH_AUTH_SOCK": "5"}
    assert inherited(environment, {"PLAIN", "B_TOKEN"}) == {"A": "1"}
    assert left_out(environment, {"PLAIN", "B_TOKEN"}) == ["C_TOKEN"]
