"""Which files look like secrets. Keys and tokens are composed here, so that this file contains none."""

from __future__ import annotations

import base64
import json
import random
import string
import subprocess

import pytest

from orchestrator.code.secret_files import SCANNED_BYTES, by_content, by_name, is_public_pem
from tests.support import ROOT

BASE64 = string.ascii_letters + string.digits + "+/"
LETTERS, MIXED, HEX = string.ascii_letters, string.ascii_letters + string.digits, "0123456789abcdef"
UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
DASHES = "-" * 5


def some(characters: str, length: int, seed: int = 1) -> str:
    return "".join(random.Random(seed).choices(characters, k=length))


def pem(kind: str = "PRIVATE KEY", headers: str = "", end: str = "\n") -> str:
    body = end.join(some(BASE64, 64, seed) for seed in range(8))
    return f"{DASHES}BEGIN {kind}{DASHES}{end}{headers}{body}{end}{DASHES}END {kind}{DASHES}{end}"


# --- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("id_rsa", "keys/id_ed25519.bak", "deploy_rsa", "deploy-ed25519", "Server.PEM", "tls.key", "a.p12", "b.pfx"),
        *("AuthKey.p8", "x.jks", "debug.keystore", "pass.kdbx", "secring.gpg", "putty.ppk"),
        *(".env", ".env.local", "app/.env.production", "prod.env", ".envrc", "config/staging.env", ".env_prod"),
        *(".netrc", "_netrc", ".pgpass", ".pypirc", ".npmrc", ".git-credentials", ".htpasswd", ".s3cfg", ".boto"),
        *("credentials.json", "credentials", "client_secret_1.json", "service-account.json", "x_service_account.json"),
        *("application_default_credentials.json", "kaggle.json", "rclone.conf", ".vault-token", ".terraformrc"),
        *("terraform.tfstate", "terraform.tfstate.backup", "prod.tfvars", "x.auto.tfvars.json", "office.ovpn"),
        *("secrets.yaml", "secrets.toml", ".streamlit/secrets.toml", "kubeconfig", "dev.kubeconfig", ".modal.toml"),
        *(".aws/config", "home/.aws/credentials", ".kube/config", ".docker/config.json", ".dockercfg"),
        *(".huggingface/token", ".cache/huggingface/token", ".cache/huggingface/stored_tokens", "hf_token.txt"),
        *("wandb/settings", ".config/wandb/settings", "WANDB_KEY.txt", ".kaggle/access_token", ".config/gh/hosts.yml"),
        *(
            ".ssh/config",
            ".ssh/anything",
            ".gnupg/x",
            ".azure/msal_token_cache.json",
            ".config/gcloud/access_tokens.db",
        ),
        *(".bash_history", ".python_history", ".zsh_history", ".psql_history", ".node_repl_history", ".viminfo"),
        *("fish_history", ".Rhistory", "ConsoleHost_history.txt", ".dbshell", "my_api_key.txt"),
    ],
)
def test_name_of_a_secret_file_is_recognised(path: str) -> None:
    assert by_name(path)


@pytest.mark.parametrize(
    "path",
    [
        *(".env.example", ".env.sample", ".env.template", "example.env", "credentials.json.example", ".envrc.dist"),
        *("terraform.tfvars.example", "secrets.example.yaml", "id_rsa.pub", "keys/deploy_rsa.pub", ".ssh/id_rsa.pub"),
        *("environment.yml", "env/cartpole.py", "envs.py", "keyboard.py", "aws/credentials.md", "docs/pem.md"),
        *("credentials.py", "secrets.py", "history.py", "train_history.json", "history.csv", "token.py"),
        *("tokenizer.json", "special_tokens_map.json", "config.json", "docker/config.json", "kube/config.yaml"),
        *("poetry.lock", "package-lock.json", "uv.lock", "requirements.txt", "wandb/run-1/config.yaml", "rsa.py"),
        *(
            "hf_tokenizer.py",
            "hf_tokenizer.json",
            "wandb_keys.py",
            "chat_history",
            "src/keys.ts",
            "monkey.txt",
            "ca.crt",
            "known.cer",
            "settings.json",
            "terraform/main.tf",
        ),
    ],
)
def test_name_of_a_code_file_is_not_a_secret_file(path: str) -> None:
    assert by_name(path) is None


# --- contents -----------------------------------------------------------------------------------------

SECRET_TEXTS = {
    "PEM": pem(),
    "RSA": pem("RSA PRIVATE KEY"),
    "OpenSSH": pem("OPENSSH PRIVATE KEY"),
    "encrypted": pem("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00FF\n\n"),
    "PGP": pem("PGP PRIVATE KEY BLOCK", "Version: GnuPG v2\nComment: none\n\n"),
    "SSH2": pem().replace("-----BEGIN PRIVATE KEY-----", "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----"),
    "certificate and key": pem("CERTIFICATE") + pem("EC PRIVATE KEY"),
    "below other text": "notes of today\n" * 400 + pem(),
    "Windows line ends": pem(end="\r\n"),
    "indented": "key: |\n" + "\n".join("    " + line for line in pem().splitlines()),
    "commented out": "\n".join("# " + line for line in pem().splitlines()),
    "Python constant": f'KEY = """\\\n{pem()}"""\n',
    "Python lines": "KEY = (\n" + "\n".join(f'    "{line}\\n"' for line in pem().splitlines()) + "\n)\n",
    "JSON": json.dumps({"a": 1, "key": pem()}),
    "JSON in JSON": json.dumps(json.dumps({"key": pem()})),
    "base64": "client-key-data: " + base64.b64encode(pem().encode()).decode(),
    "UTF-8 mark": "\ufeff" + pem(),
    "short": f"{DASHES}BEGIN OPENSSH PRIVATE KEY{DASHES}\nc2VjcmV0\n{DASHES}END OPENSSH PRIVATE KEY{DASHES}\n",
    "PuTTY": f"PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\n{some(BASE64, 48)}\nPrivate-MAC: 00\n",
    "service account": json.dumps({"type": "service_account", "private_key_id": "1", "private_key": some(MIXED, 80)}),
    "Google user": json.dumps({"client_secret": some(MIXED, 24), "refresh_token": some(MIXED, 60)}),
    "JWK": json.dumps({"kty": "RSA", "n": "x", "d": some(MIXED, 86)}),
    "kubeconfig": f"apiVersion: v1\nkind: Config\nclusters: []\nusers:\n- user:\n    token: {some(MIXED, 40)}\n",
    "docker": json.dumps({"auths": {"r": {"auth": base64.b64encode(b"user:a long password").decode()}}}),
    "Terraform": json.dumps({"version": 4, "terraform_version": "1.9.0", "serial": int("3"), "lineage": some(HEX, 36)}),
    "npm": f"//registry.example.org/:_authToken={some(MIXED, 36)}\n",
    "AWS id": f"key = '{'AK' + 'IA'}{some(UPPER, 16)}'",
    "AWS secret": f'"aws_secret_access_key": "{some(BASE64, 40)}"',
    "GitHub": f"git clone https://{'gh' + 'p_'}{some(MIXED, 36)}@github.com/x/y",
    "GitHub in JSON": json.dumps("\n" + "gh" + "o_" + some(MIXED, 36)),
    "GitHub fine-grained": "github_" + "pat_" + some(MIXED + "_", 82),
    "GitLab": f"TOKEN={'glp' + 'at-'}{some(MIXED, 20)}",
    "Slack": f"{'xox' + 'b-'}{some('0123456789', 12)}-{some(MIXED, 24)}",
    "Slack webhook": f"https://hooks.slack.com/services/T{some(UPPER, 8)}/B{some(UPPER, 8)}/{some(MIXED, 24)}",
    "Hugging Face": f"login(token='{'hf' + '_'}{some(LETTERS, 34)}')",
    "W&B": f"os.environ['WANDB_API_KEY'] = '{some(HEX, 40)}'",
    "W&B login": f'wandb.login(key="{some(HEX, 40)}")',
    "W&B new": f"export WANDB_API_KEY={'wandb' + '_v1_'}{some(MIXED, 76)}",
    "OpenAI": f"OPENAI_API_KEY={'sk' + '-'}{some(MIXED, 20)}T3BlbkFJ{some(MIXED, 20)}",
    "OpenAI project": f"{'sk' + '-proj-'}{some(MIXED + '_-', 74)}T3BlbkFJ{some(MIXED, 74)}",
    "Anthropic": f"{'sk' + '-ant-'}api03-{some(MIXED, 93)}AA",
    "Google key": f"{'AI' + 'za'}{some(MIXED + '_-', 35)}",
    "Stripe": f"{'sk' + '_live_'}{some(MIXED, 24)}",
    "SendGrid": f"{'SG' + '.'}{some(MIXED, 22)}.{some(MIXED, 43)}",
    "npm token": f"{'npm' + '_'}{some(MIXED, 36)}",
    "PyPI": f"{'pypi-' + 'AgEIcHlwaS5vcmc'}{some(MIXED, 70)}",
    "Databricks": f"{'da' + 'pi'}{some(HEX, 32)}",
    "Azure": f"AccountName=x;AccountKey={some(BASE64, 86)}==;",
    "age": f"{'AGE-SECRET-' + 'KEY-1'}{some('QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L', 58)}",
}


@pytest.mark.parametrize("name", SECRET_TEXTS)
def test_text_with_a_secret_is_recognised(name: str) -> None:
    text = SECRET_TEXTS[name]
    assert by_content(text.encode())
    assert by_content(f"# a file\nx = 1\n{text}\n# more\n".encode()) or name in ("UTF-8 mark", "short", "Terraform")
    assert by_content(text.encode("utf-16"))


CODE_TEXTS = {
    "names a key": f'if line == "{DASHES}BEGIN PRIVATE KEY{DASHES}":\n    raise ValueError("a key")\n',
    "names both lines": f'A = "{DASHES}BEGIN RSA PRIVATE KEY{DASHES}"\nB = "{DASHES}END RSA PRIVATE KEY{DASHES}"\n',
    "documentation": f"{DASHES}BEGIN PRIVATE KEY{DASHES}\n...\n".join(["Paste it so:\n", ""]),
    "pattern": rf're.compile(r"{DASHES}BEGIN (\w+ )*PRIVATE KEY{DASHES}[\s\S]+")',
    "certificate": pem("CERTIFICATE"),
    "public key": pem("PUBLIC KEY"),
    "PGP message": pem("PGP PUBLIC KEY BLOCK"),
    "ssh public key": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA{some(BASE64, 43)} me@here",
    "lock file": f'hashes = ["sha256:{some(HEX, 64)}", "sha512-{some(BASE64, 86)}=="]\ncommit = "{some(HEX, 40)}"\n',
    "notebook image": json.dumps({"outputs": [{"data": {"image/png": some(BASE64, 200_000)}}]}),
    "Hugging Face code": "from huggingface_hub import hf_hub_download_with_a_long_name_of_a_function\n",
    "placeholder": f"{'hf' + '_'}{'x' * 34} {'gh' + 'p_'}{'0' * 36} {'AK' + 'IA'}IOSFODNN7EXAMPLE",
    "W&B without a key": f"wandb.init(project='x')  # commit {some(HEX, 40)}\nos.environ['WANDB_API_KEY']\n",
    "npm from a variable": "//registry.example.org/:_authToken=${NPM_TOKEN}\n",
    "kubernetes": f"apiVersion: v1\nkind: ConfigMap\ndata:\n  token: {some(MIXED, 40)}\n",
    "config of a model": json.dumps({"model_type": "bert", "auth": "none", "token": some(MIXED, 40)}),
    "OpenAI without key": "client = OpenAI(api_key=os.environ['OPENAI_API_KEY'])  # sk-...",
    "JWK public": json.dumps({"kty": "RSA", "n": some(MIXED, 86), "e": "AQAB"}),
}


@pytest.mark.parametrize("name", CODE_TEXTS)
def test_text_without_a_secret_passes(name: str) -> None:
    assert by_content(CODE_TEXTS[name].encode()) is None


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\xff\xfe", b"\xfe\xff\0", b"\xff\xfe\0", b"\x80" * 99, b"a" * 99, b"/" * 99]
)
def test_arbitrary_bytes_pass(data: bytes) -> None:
    assert by_content(data) is None


def test_binary_files_are_searched_only_for_keys() -> None:
    token = SECRET_TEXTS["GitHub"].encode()
    assert by_content(b"\0" + token) is None
    assert by_content(b"\0\x01" + pem().encode())
    assert by_content(b"\xfe\xed\xfe\xed\0\0\0\x02" + bytes(20)) == "is a Java keystore"


@pytest.mark.parametrize(
    "part",
    [
        *(b" ", b"/", b"-", b"a", b"A", b"0", b"\\n", b"hf_", b"sk-", b"xapp-0-", b'"d" ', b"<RSAKeyValue><D> "),
        *(b"-----BEGIN ", b"-----BEGIN A ", b"-----BEGIN PRIVATE KEY-----", b"-----BEGIN PRIVATE KEY-----\nA: "),
        *(
            b"wandb_key = ",
            b"aws_secret_key=",
            b"Private-Lines: 1 ",
            b"kind: Config clusters users ",
            b"LS0tLS1CRUdJTi",
        ),
    ],
)
def test_file_crafted_to_be_slow_is_read_completely(part: bytes) -> None:
    """The timeout of all tests limits it."""
    for data in (part * (SCANNED_BYTES // len(part)), part + b" " * SCANNED_BYTES, part + b"a" * SCANNED_BYTES):
        by_content(data[:SCANNED_BYTES])
        is_public_pem("a.pem", data[: SCANNED_BYTES - 1])


def test_reason_names_the_kind_of_secret() -> None:
    assert by_content(SECRET_TEXTS["Hugging Face"].encode()) == "contains a Hugging Face token"
    assert by_content(SECRET_TEXTS["OpenAI"].encode()) == "contains an OpenAI key"
    assert by_content(SECRET_TEXTS["PEM"].encode()) == "contains a private key"


def test_pem_with_only_certificates_is_public() -> None:
    assert is_public_pem("ca.pem", pem("CERTIFICATE").encode())
    assert is_public_pem("a/Public.PEM", pem("PUBLIC KEY").encode())
    assert not is_public_pem("both.pem", (pem("CERTIFICATE") + pem()).encode())
    assert not is_public_pem("empty.pem", b"")
    assert not is_public_pem("ca.key", pem("CERTIFICATE").encode())
    assert not is_public_pem("huge.pem", pem("CERTIFICATE").encode().ljust(SCANNED_BYTES, b"\n"))


def test_this_project_contains_no_secrets() -> None:
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=False).stdout.decode()
    names = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    found = {name: by_name(name) or by_content((ROOT / name).read_bytes()[:SCANNED_BYTES]) for name in names}
    assert {name: reason for name, reason in found.items() if reason} == {}
