"""Errors as programs see them: the documented list, what is transient, and which runs they are about."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

import pytest

import orchestrator
from orchestrator.box.transport import refusal_of
from orchestrator.errors import Interrupted, LaptopError, OrchError, Refused
from orchestrator.ui.serialize import error_to_json
from remote.contract.protocol import ErrorRecord
from tests.support import ROOT

ROW = re.compile(r"\| `([a-z_]+)` \| (\d+) \| (yes|no|sometimes) \|")


def kinds(of: type[OrchError]) -> Iterator[type[OrchError]]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_documented_codes_are_those_of_the_errors() -> None:
    for module in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
        importlib.import_module(module.name)  # an error may be defined anywhere
    found: dict[str, set[tuple[int, bool]]] = {}
    for kind in kinds(OrchError):
        found.setdefault(kind.code, set()).add((kind.exit_code, kind.transient))
    page = (ROOT / "docs" / "automation.md").read_text(encoding="utf-8")
    documented = {code: (int(exit_code), transient) for code, exit_code, transient in ROW.findall(page)}
    words = {frozenset([True]): "yes", frozenset([False]): "no", frozenset([True, False]): "sometimes"}
    expected = {
        code: (min(exits for exits, _ in ways), words[frozenset(transient for _, transient in ways)])
        for code, ways in found.items()
    }
    assert documented == expected
    assert all(len({exits for exits, _ in ways}) == 1 for ways in found.values())  # one exit code for each code


def test_error_has_all_keys() -> None:
    error = Interrupted("stopped", "orch status").concerning(["b", None, "a", "b"])
    assert error_to_json(error) == {
        "code": "interrupted",
        "message": "stopped",
        "hint": "orch status",
        "exit_code": 130,
        "transient": False,
        "run_ids": ["b", "a"],
    }
    assert error_to_json(LaptopError("full"))["run_ids"] == []


@pytest.mark.parametrize(
    ("code", "transient"), [("busy", True), ("too_slow", True), ("rehearsing", True), ("no_gpu", False)]
)
def test_refusal_of_a_busy_box_is_transient(code: str, transient: bool) -> None:
    refusal = refusal_of("gpu1", ErrorRecord(code, "not now"))
    assert isinstance(refusal, Refused)
    assert refusal.transient is transient
