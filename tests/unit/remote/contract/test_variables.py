"""Variables in commands and in the values of `env`."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.contract.variables import (
    MAX_LENGTH,
    Unresolved,
    expand,
    named_outside,
    resolve,
    script_words,
    variables_in,
)

ENV = {"SEED": "0", "CFG": '{"lr": 1}', "PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("command", "script"),
    [
        (["bash", "-c", "$X"], "$X"),
        (["/bin/sh", "-c", "$X", "name", "$SEED"], "$X"),
        (["bash", "-lc", "$X"], "$X"),
        (["bash", "-euo", "pipefail", "-c", "$X"], "$X"),
        (["bash", "-euxo", "pipefail", "-lc", "$X"], "$X"),
        (["bash", "-ceuo", "pipefail", "$X"], "$X"),
        (["bash", "+x", "--norc", "-c", "-e", "$X"], "$X"),
        (["bash", "-c", "--", "$X"], "$X"),
        (["bash", "--rcfile", "rc", "-ic", "$X"], "$X"),
        (["env", "A=1", "-u", "B", "sh", "-c", "$X"], "$X"),
        (["nice", "-n", "10", "timeout", "60", "bash", "-c", "$X"], "$X"),
        (["find", ".", "-exec", "sh", "-c", "$X", ";"], "$X"),
        (["flock", "lock", "-c", "$X"], "$X"),
        (["script", "-qec", "$X", "log"], "$X"),
        (["fish", "--command", "$X"], "$X"),
        (["bash", "run.sh", "-c", "$X"], None),  # an argument of the script run.sh
        (["bash", "$X"], None),
        (["python", "-c", "$X"], None),
        (["bash", "-c"], None),
        (["bash", "-o", "-c"], None),
    ],
)
def test_script_of_a_shell_is_found(command: list[str], script: str | None) -> None:
    assert [command[index] for index in script_words(command)] == ([] if script is None else [script])


def test_script_of_a_shell_is_left_as_it_is() -> None:
    loop = "for SEED in 1 2 3; do echo $SEED $$ '$HOME'; done"
    assert expand(["env", "bash", "-c", loop, "$SEED"], ENV) == ["env", "bash", "-c", loop, "0"]
    assert variables_in(["bash", "-c", "${SEED:-1} ${#CFG} $A", "$B"]) == {"SEED", "CFG", "A", "B"}
    assert named_outside(["bash", "-c", "$SEED", "$B"]) == {"B"}


@pytest.mark.parametrize(
    ("word", "expanded"),
    [("$$SEED", "$SEED"), ("$$$SEED", "$0"), ("$$", "$"), ("$1 $?", "$1 $?"), ("${now:%Y}", "${now:%Y}"), ("$X", "$X")],
)
def test_two_dollars_stand_for_one(word: str, expanded: str) -> None:
    assert expand(["python", word], ENV) == ["python", expanded]


@pytest.mark.parametrize(
    ("word", "expanded"),
    [
        ("$A", "1"),
        ("${A}", "1"),
        ("${A}b", "1b"),
        ("$Ab", "$Ab"),
        ("x=$A,$B;", "x=1,$A;"),
        ("${C}$C", "${C}$C"),
        ("$$A", "$A"),
        ("$", "$"),
        ("${A", "${A"),
        ("$(rm -r x)`A`", "$(rm -r x)`A`"),
    ],
)
def test_variables_are_replaced_once_and_nothing_else_is(word: str, expanded: str) -> None:
    assert expand([word], {"A": "1", "B": "$A"}) == [expanded]


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="$"))))
@settings(deadline=None)
def test_words_stay_words(words: list[str]) -> None:
    assert expand(words, {}) == words


# --- the values of env ----------------------------------------------------------------------------------


def test_env_may_refer_to_itself_and_to_the_box() -> None:
    own = {"PATH": "/opt/bin:$PATH", "OUT": "${DIR}/out", "DIR": "/data/$SEED", "PRICE": "$$5 or $5", "NOTE": "a$"}
    assert resolve(own, ENV) == {
        "PATH": "/opt/bin:/usr/bin:/bin",
        "OUT": "/data/0/out",
        "DIR": "/data/0",
        "PRICE": "$5 or $5",
        "NOTE": "a$",
    }


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"A": "$NO_SUCH/x"}, "env.A uses $NO_SUCH, which is not set; for the text itself write $$NO_SUCH"),
        ({"A": "$B", "B": "$A"}, "env.A refers to itself through A, B, A"),
        ({"A": "$A"}, "env.A uses $A, which is not set"),
        ({"A": "x" * 1000, "B": "$A" * 1000}, "env.B is longer than 128 KiB"),
        ({f"A{n}": f"$A{n + 1}" for n in range(2000)}, "refers to itself"),
        ({**{f"A{n}": f"$A{n + 1}$A{n + 1}" for n in range(40)}, "A40": "xy"}, "is longer than 128 KiB"),
    ],
)
def test_env_that_cannot_be_resolved_is_refused(own: dict[str, str], message: str) -> None:
    with pytest.raises(Unresolved) as raised:
        resolve(own, {})
    assert message in str(raised.value)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("ABCD"), st.text(alphabet="$ABCD{}x", max_size=12)))
def test_resolved_env_is_bounded_or_refused(own: dict[str, str]) -> None:
    try:
        found = resolve(own, {"D": "d"})
    except Unresolved:
        return
    assert found.keys() == own.keys()
    assert all(len(value) < MAX_LENGTH for value in found.values())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["$A", "${A}", "'$A'", '"$A"', "$$A", "x"]), max_size=5))
def test_shell_sees_its_script_unchanged(parts: list[str]) -> None:
    """What a shell prints is the same with and without us."""
    script = "printf '%s ' " + " ".join(part.replace("$$", "\\$") for part in parts)
    env = {"PATH": "/usr/bin:/bin", "A": "it's $B"}

    def said(command: list[str]) -> bytes:
        return subprocess.run(command, env=env, capture_output=True, check=True, timeout=60).stdout

    assert said(expand(["sh", "-c", script], env)) == said(["sh", "-c", script])
