"""Where the tracebacks in a worker's output begin."""

from __future__ import annotations

import subprocess
import sys

from remote.contract.tracebacks import FIRST_LINE, find_last

BETWEEN = "\n\nDuring handling of the above exception, another exception occurred:\n\n"


def traceback(error: str) -> str:
    return f"{FIRST_LINE}\n  File 'a.py'\n{error}"


def test_chain_of_tracebacks_begins_with_the_first() -> None:
    first, last = traceback("KeyError"), traceback("OSError: x")
    log = f"epoch 1\n{first}\nepoch 2\n{first}{BETWEEN}{last}"
    newest, older = find_last(log)
    assert log[newest:] == last
    assert log[older:] == f"{first}{BETWEEN}{last}"


def test_earlier_traceback_of_another_failure_is_left_out() -> None:
    log = f"{traceback('KeyError')}\nepoch 2\n{traceback('OSError')}"
    assert find_last(log) == [log.rindex(FIRST_LINE)]


def test_chain_without_its_beginning_is_found() -> None:
    log = BETWEEN + traceback("OSError")
    assert find_last(log) == [log.index(FIRST_LINE)]


def test_output_without_a_traceback_gives_none() -> None:
    assert find_last("step 4\nI give up\n") == find_last("") == []


def test_traceback_of_this_python_is_found() -> None:
    code = "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise OSError('x') from error"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    newest, older = find_last("step 4\n" + said)
    assert ("step 4\n" + said)[older:] == said
    assert ("step 4\n" + said)[newest:].rstrip().endswith("OSError: x")
