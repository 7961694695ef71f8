from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from remote.contract.locks import is_held
from remote.contract.paths import ProjectPaths
from remote.contract.protocol import ENV_PREPARED_DIR, AgentError
from remote.contract.run_record import PrepareRecord
from remote.supervisor.prepare import Prepared
from tests.support import ROOT

TREE, OTHER_TREE = "0" * 64, "1" * 64
COMMAND = ("python", "make.py", "--samples", "$SAMPLES", "--out", "${ORCH_PREPARED_DIR}")

Make = Callable[..., Prepared]


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    paths = ProjectPaths(tmp_path / "box", "persistence")
    for tree in (TREE, OTHER_TREE):
        code = paths.tree(tree)
        (code / "data").mkdir(parents=True)
        (code / "make.py").write_text("pass\n")
        (code / "data" / "a.txt").write_text("a")
    return paths


@pytest.fixture
def make(paths: ProjectPaths) -> Make:
    def prepared(
        command: tuple[str, ...] = COMMAND,
        inputs: Sequence[str] = (),
        env: dict[str, str] | None = None,
        tree: str = TREE,
    ) -> Prepared:
        env = {"SAMPLES": "300"} if env is None else env
        return Prepared(paths, paths.tree(tree), PrepareRecord(command, tuple(inputs)), env)

    return prepared


# --- the key ------------------------------------------------------------------------------------------


def test_same_input_has_the_same_key(make: Make) -> None:
    assert make().key == make().key
    assert make(inputs=["make.py"]).key == make(inputs=["make.py"], tree=OTHER_TREE).key


def test_different_command_or_tree_has_a_different_key(make: Make) -> None:
    keys = [
        make(),
        make(command=COMMAND[:-1]),
        make(command=(*COMMAND[:2], " ".join(COMMAND[2:]))),
        make(tree=OTHER_TREE),
        make(inputs=["make.py"]),
        make(inputs=["make.py", "data/*"]),
    ]
    assert len({prepared.key for prepared in keys}) == len(keys)


@pytest.mark.parametrize("inputs", [["make.py"], ["*.py"], ["**/*.py"], ["data/*", "make.py"]])
def test_key_depends_on_content_and_name_of_an_input(make: Make, paths: ProjectPaths, inputs: list[str]) -> None:
    before = make(inputs=inputs).key
    source = paths.tree(TREE) / "make.py"
    source.write_text("pass \n")
    changed = make(inputs=inputs).key
    assert changed != before
    source.write_text("pass\n")
    assert make(inputs=inputs).key == before
    (paths.tree(TREE) / "unnamed.txt").touch()
    assert make(inputs=inputs).key == before


def test_new_file_that_matches_a_pattern_changes_the_key(make: Make, paths: ProjectPaths) -> None:
    before = make(inputs=["data/*.txt"]).key
    (paths.tree(TREE) / "data" / "b.txt").touch()
    assert make(inputs=["data/*.txt"]).key != before


def test_key_depends_only_on_variables_of_the_command(make: Make) -> None:
    key = make(env={"SAMPLES": "300"}).key
    assert make(env={"SAMPLES": "300", "SEED": "1"}).key == key
    assert make(env={"SAMPLES": "300", "SAMPLE": "1", "AMPLES": "1"}).key == key
    assert make(env={"SAMPLES": "301"}).key != key
    assert make(env={}).key != key
    assert make(env={"SAMPLES": "300", "SEED": "1"}).env == {"SAMPLES": "300"}


@pytest.mark.parametrize("what", ["env", "inputs"])
def test_key_does_not_depend_on_the_order_of_variables_or_inputs(make: Make, what: str) -> None:
    if what == "env":
        command = ("make", "$A", "$B")
        keys = {make(command=command, env=env).key for env in ({"A": "1", "B": "2"}, {"B": "2", "A": "1"})}
    else:
        keys = {make(inputs=inputs).key for inputs in (["make.py", "data/*"], ["data/*", "make.py"])}
    assert len(keys) == 1


@pytest.mark.parametrize("inputs", [["nothing.py"], ["data"], ["make.py", "*.csv"]])
def test_input_that_matches_no_file_is_refused(make: Make, inputs: list[str]) -> None:
    with pytest.raises(AgentError, match=f"{inputs[-1]!r}".replace("*", r"\*")) as refusal:
        make(inputs=inputs)
    assert refusal.value.code == "prepare_failed"


# --- the command --------------------------------------------------------------------------------------


def test_command_gets_its_variables_and_the_output_directory(make: Make) -> None:
    prepared = make()
    assert prepared.argv(prepared.env) == ["python", "make.py", "--samples", "300", "--out", str(prepared.directory)]
    assert not prepared.directory.exists()


def test_variables_that_a_variable_refers_to_belong_to_the_key(make: Make) -> None:
    """The value that the command gets depends on them."""
    one, other = (
        make(command=["make", "$OUT"], env={"OUT": "/data/$SEED", "SEED": seed, "UNUSED": seed}) for seed in "12"
    )
    assert one.env == {"OUT": "/data/$SEED", "SEED": "1"}
    assert one.key != other.key


# --- made only once -----------------------------------------------------------------------------------


def test_output_is_complete_with_its_marker_and_directory(make: Make) -> None:
    prepared = make()
    assert not prepared.is_done()
    assert prepared.try_begin()
    assert os.listdir(prepared.directory) == []
    (prepared.directory / "data.pt").touch()
    assert not make().is_done()
    prepared.finish()
    prepared.release()
    assert make().is_done()
    assert not make(env={"SAMPLES": "1"}).is_done()
    prepared.directory.rename(prepared.directory.with_name("moved"))
    assert not make().is_done()


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_incomplete_marker_is_ignored(make: Make, text: str) -> None:
    prepared = make()
    assert prepared.try_begin()
    prepared.marker.write_text(text)
    assert not prepared.is_done()
    prepared.release()


def test_interrupted_output_starts_again_from_an_empty_directory(make: Make) -> None:
    interrupted = make()
    assert interrupted.try_begin()
    (interrupted.directory / "half" / "deep").mkdir(parents=True)
    (interrupted.directory / "half" / "data.pt").touch()
    interrupted.release()
    again = make()
    assert again.try_begin()
    assert os.listdir(again.directory) == []
    again.release()


def test_complete_output_is_kept_by_later_runs(make: Make) -> None:
    first = make()
    assert first.try_begin()
    (first.directory / "data.pt").write_text("precious")
    first.finish()
    first.release()
    later = make()
    assert later.try_begin()
    assert later.is_done()
    assert (later.directory / "data.pt").read_text() == "precious"
    later.release()


BEGIN = """
import sys
from pathlib import Path
from remote.contract.paths import ProjectPaths
from remote.contract.run_record import PrepareRecord
from remote.supervisor.prepare import Prepared
paths = ProjectPaths(Path(sys.argv[1]), "persistence")
prepared = Prepared(paths, paths.tree(sys.argv[2]), PrepareRecord(("make", "$SAMPLES")), {"SAMPLES": "1"})
assert prepared.try_begin()
(prepared.directory / "half").touch()
print(prepared.key, flush=True)
sys.stdin.readline()
"""


def test_next_process_makes_the_output_if_the_first_dies(make: Make, paths: ProjectPaths) -> None:
    argv = [sys.executable, "-S", "-c", BEGIN, str(paths.box), TREE]
    prepared = make(command=("make", "$SAMPLES"), env={"SAMPLES": "1"})
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as maker:
        try:
            assert maker.stdout
            assert maker.stdout.readline().strip() == prepared.key
            assert not prepared.try_begin()
            assert os.listdir(prepared.directory) == ["half"]  # the refused process has changed nothing
            prepared.release()  # and holds no lock
            assert is_held(paths.prepared / f"{prepared.key}.lock")
        finally:
            maker.kill()
    assert prepared.try_begin()
    assert os.listdir(prepared.directory) == []
    prepared.release()
    prepared.release()


def test_different_inputs_are_made_at_the_same_time(make: Make) -> None:
    one, other = make(env={"SAMPLES": "1"}), make(env={"SAMPLES": "2"})
    assert one.try_begin()
    assert other.try_begin()
    assert one.argv({})[-1] != other.argv({})[-1]
    one.release()
    other.release()


def test_command_finds_the_output_directory_by_one_variable() -> None:
    assert ENV_PREPARED_DIR == "ORCH_PREPARED_DIR"
