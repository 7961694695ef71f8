"""The error that ended a program, in what it printed.

The recorded outputs are of torch 2.14 (`torchrun` and `torch.multiprocessing.spawn` with gloo), accelerate 1.14,
rich 15, loguru 0.7, tqdm 4.70 and Python 3.11; only paths were changed.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.contract.tracebacks import FIRST_LINE, find_cause
from tests.support import RECORDED

BETWEEN = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 132.00 MiB."
HEADS = "ValueError: num_heads must divide hidden_size"


def traceback(error: str, prefix: str = "") -> str:
    return "\n".join(prefix + line for line in (FIRST_LINE, '  File "a.py", line 1, in f', "    f()", error))


def begins(log: str) -> list[int]:
    """Return where the traceback that counts begins, then the one that led to it, and so on."""
    return [each.begin for each in find_cause(log).chain]


def exceptions(log: str) -> list[str]:
    return [each.exception for each in find_cause(log).chain]


def test_a_chain_of_tracebacks_begins_with_the_first() -> None:
    first, last = traceback("KeyError"), traceback("OSError: x")
    log = f"epoch 1\n{first}\nepoch 2\n{first}{BETWEEN}{last}"
    newest, older = begins(log)
    assert log[newest:] == last
    assert log[older:] == f"{first}{BETWEEN}{last}"


def test_an_earlier_traceback_of_another_failure_is_left_out() -> None:
    log = f"{traceback('KeyError')}\nepoch 2\n{traceback('OSError')}"
    assert begins(log) == [log.rindex(FIRST_LINE)]


def test_a_chain_without_its_beginning() -> None:
    log = BETWEEN + traceback("OSError")
    assert begins(log) == [log.index(FIRST_LINE)]


def test_output_without_a_traceback_gives_none() -> None:
    assert begins("step 4\nI give up\n") == begins("") == []


def test_what_this_python_prints_is_found() -> None:
    code = "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise OSError('x') from error"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    newest, older = begins("step 4\n" + said)
    assert ("step 4\n" + said)[older:] == said
    assert ("step 4\n" + said)[newest:].rstrip().endswith("OSError: x")
    assert exceptions(said) == ["OSError: x", "ZeroDivisionError: division by zero"]


# --- as programs and launchers print them -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected", "exit_code", "rank"),
    [
        ("torchrun-oom", [OOM], 1, 1),  # and not that of rank 0, which lost its connection to rank 1
        ("torchrun-record", [OOM], None, None),  # in torchrun's report
        ("torchrun-exit", [], 1, 0),
        ("torchrun-arg", [], 2, 0),
        ("torchrun-kill", [], -9, 1),
        ("accelerate-oom", [OOM], 1, None),
        ("accelerate-exit", [], 1, None),
        ("accelerate-arg", [], 2, None),
        ("spawn", [HEADS], None, None),
        ("rich", [HEADS], None, None),
        ("rich-chain", ["RuntimeError: CUDA error: CUDA out of memory. Tried to", "KeyError: 'key'"], None, None),
        ("loguru", [HEADS], None, None),
        ("tqdm", ["ValueError: bad batch"], None, None),
        ("group", ["ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)"], None, None),
    ],
)
def test_cause_is_found_in_recorded_output(
    name: str, expected: list[str], exit_code: int | None, rank: int | None
) -> None:
    cause = find_cause((RECORDED / f"failed-{name}.txt").read_text())
    found = [each.exception for each in cause.chain]
    assert len(found) == len(expected) and all(map(str.startswith, found, expected)), found
    assert (cause.exit_code, cause.rank) == (exit_code, rank)


def test_wrapped_message_in_a_box_is_joined() -> None:
    found = exceptions((RECORDED / "failed-rich-chain.txt").read_text())[0]
    assert found.endswith("GPU 0 has a total capacity of 79.10 GiB of which 98.00 MiB is free, and more words.")


@pytest.mark.parametrize("prefix", ["[rank1]: ", "(RayTrainWorker pid=42) ", "[1,0]<stderr>:", "1: ", "    | "])
def test_traceback_with_a_prefix_is_found_among_other_lines(prefix: str) -> None:
    first, last = traceback("KeyError", prefix).splitlines(), traceback("OSError: x", prefix).splitlines()
    between = [prefix.rstrip(), *(prefix + line for line in BETWEEN.strip().splitlines()), prefix]
    lines = [line for each in [*first, *between, *last] for line in (each, "[rank7]: of another rank")]
    assert exceptions("\n".join(lines)) == ["OSError: x", "KeyError"]


def test_traceback_after_an_unfinished_bar_is_found() -> None:
    assert exceptions("  3%|=    | 3/100 [00:01<00:32]" + traceback("ValueError: x")) == ["ValueError: x"]


CALLED = "subprocess.CalledProcessError: Command '['python', 'a.py']' {how}."
EXITED = "torch.multiprocessing.spawn.ProcessExitedException: process 1 terminated with signal {name}"


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (CALLED.format(how="returned non-zero exit status 3"), 3),
        (CALLED.format(how="died with <Signals.SIGKILL: 9>"), -9),
        (EXITED.format(name="SIGSEGV"), -11),
        (EXITED.format(name="SIGXYZ"), None),
    ],
)
def test_exit_code_of_the_child_is_read(error: str, exit_code: int | None) -> None:
    cause = find_cause(f"{traceback('ValueError: x')}\n{traceback(error)}")
    assert (cause.exit_code, [each.exception for each in cause.chain]) == (exit_code, ["ValueError: x"])


def test_traceback_that_was_handled_long_before_is_not_the_cause() -> None:
    log = traceback("OSError: retrying") + "\nstep\n" * 1000 + traceback(CALLED.format(how="returned x"))
    assert begins(log) == []


BOX = "\u256d\u2500\u2500 Traceback (most recent call last) \u2500\u2500\u256e\n"
PARTS = [FIRST_LINE, "\n", "  File\n", "[rank1]: ", "x: y\n", BOX, "\u2502\n", "\u2570\n", "| ", "+ Exception Group "]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=40))
def test_any_text_is_searched(parts: list[str]) -> None:
    text = "".join(parts)
    for each in find_cause(text).chain:
        assert each.exception and 0 <= each.begin < len(text)


def test_long_text_is_searched_in_bounds() -> None:
    """Each header looks at the lines after it, so there is a limit to both."""
    text = "".join(f"[rank{number}]: {FIRST_LINE}\n[rank{number}]:   File\n" for number in range(5000))
    assert begins(text) == []
    assert begins(("x" * 100_000 + "\n") * 20 + traceback("ValueError: x"))


def test_output_that_came_into_a_traceback_is_not_its_exception() -> None:
    lines = [
        "Traceback (most recent call last):",
        "epoch 1 loss 0.5",
        '  File "a.py", line 1, in f',
        "    f()",
        "KeyError: 1",
    ]
    assert find_cause("\n".join(lines)).chain[0].exception == "KeyError: 1"
