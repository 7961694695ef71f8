from __future__ import annotations

from pathlib import Path

import pytest

from remote.contract.protocol import AgentError
from remote.supervisor.environment_files import EnvironmentFiles, kind_of, read_files


def read(code: Path, file: str = "requirements.txt", **texts: str) -> EnvironmentFiles:
    """Read `file` of a snapshot with `texts`, whose names have `__` for `/` and end in .txt without a suffix."""
    for name, text in texts.items():
        path = code / name.replace("__", "/")
        path = path if "." in path.name else path.with_suffix(".txt")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return read_files(code, file)


def test_files_have_kinds() -> None:
    names = ["r.txt", "a/dev.in", "uv.lock", "a/pyproject.toml", "environment.yml", "conda.yaml"]
    assert [kind_of(name) for name in names] == ["requirements", "requirements", "lock", "project", "conda", "conda"]


# --- files that a file includes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "-r base.txt",
        "-rbase.txt",
        "--requirement base.txt",
        "--requirement=base.txt",
        "-c base.txt # pins",
        "-r 'base.txt'",
    ],
)
def test_included_files_count(tmp_path: Path, line: str) -> None:
    found = read(tmp_path, requirements=f"numpy\n{line}\n", base="-r deep.txt\n", deep="torch\n")
    assert list(found.contents) == ["requirements.txt", "base.txt", "deep.txt"]
    assert not found.uses_code


def test_included_files_are_relative_to_the_one_that_includes_them(tmp_path: Path) -> None:
    found = read(tmp_path, "a/r.txt", a__r="-r b.txt\n-r ../c.txt\n", a__b="", c="")
    assert set(found.contents) == {"a/r.txt", "a/b.txt", "c.txt"}


def test_files_that_include_each_other_are_read_once(tmp_path: Path) -> None:
    assert len(read(tmp_path, requirements="-r other.txt\n", other="-r requirements.txt\n").contents) == 2


def test_files_elsewhere_are_left_to_pip(tmp_path: Path) -> None:
    found = read(tmp_path, requirements="-r https://example.org/r.txt\n-c /etc/pip/pins.txt\n# -r gone.txt\n")
    assert list(found.contents) == ["requirements.txt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-r gone.txt", "requirements.txt includes gone.txt, which is not in the code that was sent"),
        ("-r ../../up.txt", "requirements.txt includes ../../up.txt, which is not in the code"),
        ("-r .", "requirements.txt includes ., which cannot be read"),
    ],
)
def test_missing_included_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AgentError) as caught:
        read(tmp_path, requirements=text)
    assert caught.value.code == "environment_failed" and caught.value.message.startswith(message)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"^uv.lock is not in the code that was sent$"):
        read(tmp_path, "uv.lock")
    with pytest.raises(AgentError, match=r"^uv.lock includes pyproject.toml, which is not in the code"):
        read(tmp_path, "uv.lock", **{"uv.lock": "version = 1\n"})


def test_endless_includes_are_refused(tmp_path: Path) -> None:
    texts = {f"n{number}": f"-r n{number + 1}.txt\n" for number in range(102)}
    with pytest.raises(AgentError, match="more than 100 files"):
        read(tmp_path, "n0.txt", **texts)


# --- what is installed from the code itself ---------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["-e .", "--editable=./lib", ".", ".[gpu]", "./lib", "lib/", "wheels/a-1.0-py3-none-any.whl", "a-1.0.tar.gz",
     "-f wheels", "--find-links=wheels", "name @ file:lib", "a \\\n  ; python_version > '3'\n-e ."],
)  # fmt: skip
def test_requirement_from_the_code_is_recognised(tmp_path: Path, line: str) -> None:
    assert read(tmp_path, requirements=f"numpy\n{line}\n").uses_code


@pytest.mark.parametrize(
    "line",
    ["torch==2.9.0", "torch>=2 ; python_version < '4'", "name[extra]~=1.0", "-e git+https://example.org/x.git#egg=x",
     "git+ssh://git@example.org/x.git", "name @ https://example.org/a.whl", "https://example.org/a-1.0.tar.gz",
     "name @ file:///opt/x", "/opt/wheels/a-1.0-py3-none-any.whl", "-f /opt/wheels", "-f https://example.org/whl",
     "--index-url https://example.org/simple", "--pre", "name @ git+https://example.org/a/b@v1", "# -e ."],
)  # fmt: skip
def test_other_requirements_do_not_depend_on_the_code(tmp_path: Path, line: str) -> None:
    assert not read(tmp_path, requirements=f"{line}\n").uses_code


PROJECT = '[project]\nname = "p"\nversion = "1"\ndependencies = ["numpy"]\n'


@pytest.mark.parametrize(
    ("text", "uses_code"),
    [
        (PROJECT, False),
        (PROJECT + '[tool.uv.sources]\nlib = { path = "lib" }\n', True),
        (PROJECT + "[tool.uv.sources]\nlib = { workspace = true }\n", True),
        (PROJECT + '[tool.uv.sources]\ntorch = { index = "cu128" }\n', False),
        ('[project]\nname = "p"\ndynamic = ["version", "dependencies"]\n', True),
        ('[project]\nname = "p"\ndynamic = ["version"]\n', False),
        ('[tool.poetry.dependencies]\nnumpy = "*"\n', True),
    ],
)
def test_project_with_parts_in_the_code_is_recognised(tmp_path: Path, text: str, uses_code: bool) -> None:
    assert read(tmp_path, "pyproject.toml", **{"pyproject.toml": text}).uses_code is uses_code


@pytest.mark.parametrize(
    ("source", "uses_code"),
    [('registry = "https://pypi.org/simple"', False), ('editable = "."', False), ('virtual = "."', False),
     ('editable = "packages/a"', True), ('directory = "libs/b"', True), ('path = "wheels/c.whl"', True)],
)  # fmt: skip
def test_lock_file_with_parts_in_the_code_is_recognised(tmp_path: Path, source: str, uses_code: bool) -> None:
    lock = f'version = 1\n[[package]]\nname = "a"\nsource = {{ {source} }}\n'
    found = read(tmp_path, "uv.lock", **{"uv.lock": lock, "pyproject.toml": PROJECT})
    assert found.uses_code is uses_code
    assert set(found.contents) == {"uv.lock", "pyproject.toml"}


def test_settings_of_uv_count(tmp_path: Path) -> None:
    texts = {"uv.toml": "offline = true\n", "a__uv.toml": "", "a__r": "numpy\n", "e.yml": "dependencies: []\n"}
    assert set(read(tmp_path, "a/r.txt", **texts).contents) == {"a/r.txt", "uv.toml", "a/uv.toml"}
    assert set(read(tmp_path, "e.yml").contents) == {"e.yml"}


def test_environment_yml_includes_requirements(tmp_path: Path) -> None:
    text = "channels:\n  - conda-forge\ndependencies:\n  - python=3.11\n  - conda-forge/label/x::y\n  - pip:\n{pip}"
    found = read(tmp_path, "environment.yml", **{"environment.yml": text.format(pip="    - -r pip.txt\n"), "pip": "x"})
    assert set(found.contents) == {"environment.yml", "pip.txt"} and not found.uses_code
    assert read(tmp_path, "environment.yml", **{"environment.yml": text.format(pip="    - -e .\n")}).uses_code


def test_variables_in_the_files_are_found(tmp_path: Path) -> None:
    found = read(tmp_path, requirements="--index-url https://${USER_NAME}:${TOKEN}@example.org/simple\na==$NOT\n")
    assert found.variables == {"USER_NAME", "TOKEN"}
