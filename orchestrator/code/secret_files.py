"""Recognise files with secrets by their name and their content.

The names come from the documentation of each tool and from the signatures of gitrob (github.com/michenriksen/gitrob,
signatures.json). The token formats come from gitleaks' rules (github.com/gitleaks/gitleaks, config/gitleaks.toml, July
2026) and from the vendors' documentation. Only known formats count: other text that looks random is usually code, a
hash or data, and is shipped.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from fnmatch import translate
from typing import NamedTuple

SCANNED_BYTES = 1 << 20  # at the start of each file; the rest is not scanned

# --- names --------------------------------------------------------------------------------------------

_KEYS = """
    id_rsa* id_dsa* id_ecdsa* id_ed25519* *_rsa *-rsa *_dsa *-dsa *_ecdsa *-ecdsa *_ed25519 *-ed25519 secring.*
    *.pem *.key *.p8 *.p12 *.pfx *.pkcs12 *.ppk *.pvk *.jks *.jceks *.bks *.keystore *.kdb *.kdbx
"""
_ENVIRONMENTS = ".env .env.* .env-* .env_* *.env .envrc .envrc.*"
_CREDENTIALS = """
    .netrc _netrc .pgpass pgpass.conf .my.cnf .mylogin.cnf .pypirc .npmrc .git-credentials .dockercfg .htpasswd
    .s3cfg .boto .terraformrc terraform.rc .vault-token .databrickscfg .modal.toml clearml.conf kaggle.json rclone.conf
    .msmtprc .fetchmailrc .ftpconfig sftp-config.json .remote-sync.json wallet.dat *accesskeys.csv .rediscli_auth
    credentials credentials.json credentials.y*ml credentials.toml credentials.ini *.credentials .credentials
    client_secret*.json service-account*.json service_account*.json *-service-account.json *_service_account.json
    application_default_credentials.json kubeconfig *.kubeconfig kubeconfig.y*ml *.ovpn
    *.tfstate *.tfstate.* *.tfvars *.tfvars.json
    secret.y*ml secrets.y*ml secret.json secrets.json secret.toml secrets.toml secrets.ini .secret .secrets
    *api_key *api_key.txt *apikey.txt *api-key.txt hf_token hf_token.* .hf_token* wandb_key wandb_key.txt
"""
_HISTORIES = """
    .*_history .*history .octave_hist .lesshst .viminfo .dbshell .rhistory fish_history mongosh_repl_history
    consolehost_history.txt history.sqlite
"""
_PLACES = """
    .aws/config .aws/credentials .kube/config .docker/config.json containers/auth.json .composer/auth.json
    .huggingface/token huggingface/token huggingface/stored_tokens wandb/settings .kaggle/access_token .ngc/config
    gh/hosts.yml glab-cli/config.yml .oci/config .snowflake/config.toml snowflake/connections.toml
    .cargo/credentials.toml .m2/settings.xml .m2/settings-security.xml .dvc/config.local .runpod/config.toml
    doctl/config.yaml hcloud/cli.toml
"""
_FOLDERS = (".ssh", ".gnupg", ".azure", ".config/gcloud", ".gcloud", ".secrets")
# Parts of the names of files without real values.
_TEMPLATES = frozenset(("example", "sample", "template", "tmpl", "dist"))


def _any_of(globs: str) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob) for glob in globs.split()))


_BY_NAME = (
    (_any_of(_KEYS), "looks like a private key"),
    (_any_of(_ENVIRONMENTS), "looks like a file of secrets"),
    (_any_of(_CREDENTIALS), "looks like a file of credentials"),
    (_any_of(_HISTORIES), "looks like a shell history"),
)
_ENDINGS = tuple("/" + place for place in _PLACES.split())
_INSIDE = tuple(f"/{folder}/" for folder in _FOLDERS)


def by_name(path: str) -> str | None:
    """Return why the name of the file at `path` (relative, with `/`) suggests a secret; None if it does not."""
    path = "/" + path.lower()
    base = path.rpartition("/")[2]
    if base.endswith(".pub"):
        return None
    for pattern, reason in _BY_NAME:
        if pattern.match(base):
            return None if _TEMPLATES.intersection(re.split(r"[._-]", base)) else reason
    if path.endswith(_ENDINGS) or any(folder in path for folder in _INSIDE):
        return "is in a place for credentials"
    return None


def is_public_pem(path: str, head: bytes) -> bool:
    """Return whether a .pem file that begins with `head` holds certificates or public keys, and no private key."""
    if not path.lower().endswith(".pem") or b"PRIVATE KEY" in head or len(head) >= SCANNED_BYTES:
        return False
    return re.search(rb"-----BEGIN (?:[A-Z0-9]+ )*(?:CERTIFICATE|CRL|PUBLIC KEY|PARAMETERS)-----", head) is not None


# --- contents -----------------------------------------------------------------------------------------

# A key has a body after its first line; code that only mentions the first line does not. Quotes, line ends (also as
# `\n` in JSON), comment signs and headers such as `Proc-Type: 4,ENCRYPTED` may come between the two.
_KEY_BLOCK = re.compile(
    rb"-----? ?BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)? ?-----?"
    rb"(?:\\{1,4}[nrt]?|[\s\"'+,(#*>-]|[A-Za-z][A-Za-z-]{2,30}: [^\n\\]{0,300})*+[A-Za-z0-9+/]{32,}"
)
_ENCODED_KEY = re.compile(rb"LS0tLS1CRUdJTi[A-Za-z0-9+/]{40,}")  # base64 of `-----BEGIN `


# A token is a word of these characters and of at least this length. `.`, `+`, `-` or `/` may precede it, as in a URL.
_WORD_LENGTH = 20
_WORDS = bytes(
    ord("w") if chr(code).isascii() and (chr(code).isalnum() or chr(code) in "+/_.-") else 32 for code in range(256)
)
_TOKENS = (
    ("AWS access key", "A(?:KIA|SIA|BIA|CCA)[A-Z2-7]{16}"),
    ("Amazon Bedrock key", "ABSK[A-Za-z0-9+/]{109,269}={0,2}"),
    ("GitHub token", r"gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{82}"),
    ("GitLab token", r"gl(?:pat|dt|rt|ptt|cbt|soat)-[\w.-]{20,}"),
    ("Slack token", "xox[abeoprs]-[A-Za-z0-9-]{20,}|xapp-[0-9]-[A-Z0-9]+-[0-9]+-[a-z0-9]+"),
    ("Slack webhook", r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9+/]{40,60}"),
    ("Discord webhook", r"discord(?:app)?\.com/api/webhooks/[0-9]{17,20}/[\w-]{60,}"),
    ("Hugging Face token", "(?:hf_|api_org_)[A-Za-z]{34}"),
    ("Weights & Biases key", r"wandb_v1_\w{60,}"),
    ("Kaggle token", "KGAT_[0-9a-f]{32}"),
    ("OpenAI key", r"sk-(?:(?:proj|svcacct|admin)-)?[\w-]{20,100}T3BlbkFJ[\w-]{20,100}"),
    ("Anthropic key", r"sk-ant-(?:api|admin)[0-9]{2}-[\w-]{80,}"),
    ("Replicate token", "r8_[A-Za-z0-9]{37}"),
    ("Groq key", "gsk_[A-Za-z0-9]{52}"),
    ("Perplexity key", "pplx-[A-Za-z0-9]{48}"),
    ("Google API key", r"AIza[\w-]{35}"),
    ("Google OAuth secret", r"GOCSPX-[\w-]{28}"),
    ("Stripe key", "[sr]k_(?:live|test|prod)_[A-Za-z0-9]{16,99}"),
    ("SendGrid key", r"SG\.[\w-]{22}\.[\w-]{43}"),
    ("npm token", "npm_[A-Za-z0-9]{36}"),
    ("PyPI token", r"pypi-AgEIcHlwaS5vcmc[\w-]{50,}"),
    ("Docker token", r"dckr_pat_[\w-]{27}"),
    ("DigitalOcean token", "do[opr]_v1_[a-f0-9]{64}"),
    ("Databricks token", "dapi[a-f0-9]{32}(?:-[0-9])?"),
    ("Vault token", r"hvs\.[\w-]{90,}"),
    ("Tailscale key", r"tskey-[a-z]+-[\w-]{20,}"),
    ("age key", "AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}"),
)
_ANY_TOKEN = re.compile(rf"[/.+-]*+(?:{'|'.join(f'({form})' for _, form in _TOKENS)})(?![A-Za-z0-9_])".encode())
_PLACEHOLDER = re.compile(rb"(?i)example|x{6}|\.\.\.|placeholder|your[_-]")
_FEW = 10  # different characters; a token with fewer is a placeholder such as 0000


class _Document(NamedTuple):
    """A kind of file, recognised if it contains all `words` and all `parts` match. `words` are a fast first test."""

    name: str
    words: tuple[bytes, ...]
    parts: tuple[re.Pattern[bytes], ...]


def _document(name: str, words: str, *parts: str) -> _Document:
    return _Document(name, tuple(words.encode().split()), tuple(re.compile(p.encode(), re.MULTILINE) for p in parts))


_DOCUMENTS = (
    _document("a PuTTY private key", "Private-Lines:", r"Private-Lines: *[0-9]+(?:\\[rn]|\s)+[A-Za-z0-9+/]{20,}"),
    _document("a service account's key", '"service_account" "private_key"', r'"private_key"\s*:\s*"[^"]{32,}"'),
    _document("Google credentials", '"refresh_token" "client_secret"', r'"refresh_token"\s*:\s*"[^"]{20,}"'),
    _document("a private JSON Web Key", '"kty" "d"', r'"kty"\s*:', r'"d"\s*:\s*"[\w-]{32,}"'),
    _document("an RSA private key", "<RSAKeyValue> <D>", r"<D>[A-Za-z0-9+/=\s]{64,}+</D>"),
    _document(
        "a Terraform state", '"terraform_version" "lineage"', r'\A\s*\{\s*"version"\s*:\s*[0-9]+,\s*"terraform_v'
    ),
    _document(
        "a kubeconfig with credentials",
        "clusters users Config",
        r"""["']?kind["']?\s*:\s*["']?Config\b""",
        r"""["']?(?:client-key-data|token|password)["']?\s*:\s*["']?[\w+/=.-]{20,}""",
    ),
    _document("registry credentials", '"auths" "auth"', r'"auth"\s*:\s*"[A-Za-z0-9+/]{20,}={0,2}"'),
    _document("an Azure storage key", "AccountKey=", "AccountKey=[A-Za-z0-9+/]{86}=="),
    _document("an npm token", ":_authToken", r":_authToken\s*=\s*[\"']?[\w-]{20,}"),
    _document(
        "an AWS secret key",
        "ecret",
        r"""(?i:aws[_.-]?secret[_.-]?(?:access[_.-]?)?key)["'\]]{0,3}\s*[:=]\s*["']?(?![A-Za-z0-9/+]{0,40}EXAMPLE)"""
        r"""[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])""",
    ),
    *(
        _document(
            "a Weights & Biases key",
            word,
            r"""(?i:wandb)[\w."'\[\](-]{0,24}(?i:key|login)[\w"'\]]{0,3}\s*[:=(,]\s*(?:key\s*=\s*)?["']?"""
            r"""[0-9a-f]{40}(?![0-9a-f])""",
        )
        for word in ("wandb", "WANDB")
    ),
)
_KEYSTORES = (b"\xfe\xed\xfe\xed\0\0\0", b"\xce\xce\xce\xce\0\0\0")  # Java's JKS and JCEKS


def by_content(head: bytes) -> str | None:
    """Return why a file that begins with `head` (up to `SCANNED_BYTES`) holds a secret; None if none was found."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.decode("utf-16", "replace").encode("utf-8", "replace")
    if b"PRIVATE KEY" in head and (_first_line_is_a_key(head) or _KEY_BLOCK.search(head)):
        return "contains a private key"
    if head.startswith(_KEYSTORES):
        return "is a Java keystore"
    if b"\0" in head[:8192]:
        return None  # binary: what looks like a token there is chance
    if b"LS0tLS1CRUdJTi" in head and any(map(_decodes_to_a_key, _ENCODED_KEY.findall(head))):
        return "contains a private key in base64"
    words = list(_long_words(head))
    for at in words:
        if name := _token_at(head, at):
            return f"contains {'an' if name[0] in 'AO' else 'a'} {name}"
    for document in _DOCUMENTS if words else ():
        if all(word in head for word in document.words) and all(part.search(head) for part in document.parts):
            return f"contains {document.name}"
    return None


def _first_line_is_a_key(head: bytes) -> bool:
    first_line = head.lstrip(b"\xef\xbb\xbf\r\n\t ").partition(b"\n")[0].strip()
    return first_line.startswith(b"-----BEGIN ") and b"PRIVATE KEY" in first_line


def _decodes_to_a_key(text: bytes) -> bool:
    try:
        return b"PRIVATE KEY" in base64.b64decode(text[:52], validate=True)
    except binascii.Error:
        return False


def _long_words(text: bytes) -> Iterator[int]:
    """Yield the positions in `text` of words that are long enough for a token."""
    shape, wanted = text.translate(_WORDS), b"w" * _WORD_LENGTH
    at = shape.find(wanted)
    while at >= 0:
        yield at
        end = shape.find(b" ", at)
        at = shape.find(wanted, end) if end >= 0 else -1


def _token_at(text: bytes, at: int) -> str | None:
    if text[at - 1 : at] == b"\\" and text[at] in b"nrt":
        at += 1  # skip the letter of an escaped line end in JSON
    match = _ANY_TOKEN.match(text, at)
    if not match or len(set(match[0])) < _FEW or _PLACEHOLDER.search(match[0]):
        return None
    return _TOKENS[(match.lastindex or 1) - 1][0]
