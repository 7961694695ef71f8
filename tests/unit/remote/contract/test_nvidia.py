"""Parse the output of nvidia-smi.

The files in `recorded/` that stand for nvidia-smi follow its documented CSV format (`--format=csv,noheader,nounits`:
a line a card or process, values in the order of the query, `[N/A]` for what a card does not report).
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.contract.files import to_json
from remote.contract.nvidia import CARD_FIELDS, Gpu, GpuProcess, parse_cards, parse_processes, parse_utilization
from tests.support import RECORDED

H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "550.54.15", 81559, 1, 81078, 0, "Default", "GPU-1f2e3d4c", 31)
H100_LINE = "0, NVIDIA H100 80GB HBM3, 550.54.15, 81559, 1, 81078, 0, Default, GPU-1f2e3d4c, 31\n"


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (H100_LINE, [H100]),
        ("0, NVIDIA H100 80GB HBM3\n" + H100_LINE, [H100]),
        ("", []),
        (recorded("gpus-none"), []),
        (recorded("gpus-no-driver"), []),
        (recorded("gpus-mismatch"), []),
    ],
)
def test_cards_are_parsed(text: str, expected: list[Gpu]) -> None:
    assert parse_cards(text) == expected


def test_value_that_a_card_does_not_report_is_none() -> None:
    first, second = parse_cards(recorded("gpus-a100-two"))
    assert (first.total, first.used, first.free, first.utilization, first.temperature) == (
        40960,
        None,
        None,
        None,
        None,
    )
    assert (second.index, second.free, second.compute_mode, second.temperature) == (1, 40337, "Prohibited", 30)


def test_processes_that_hold_memory_are_parsed() -> None:
    uuid = "GPU-5d0ec4f2-7c0a-9f2e-2a4b-0d8f6c1b7e33"
    assert parse_processes(recorded("gpu-apps-t4-held")) == (GpuProcess(21784, uuid, 14306, "/opt/pytorch/bin/python"),)
    assert parse_processes("17, GPU-1, [N/A], a, b\nno process\n") == (GpuProcess(17, "GPU-1", None, "a, b"),)


def test_process_that_was_not_measured_is_left_out() -> None:
    assert parse_utilization(recorded("gpu-pmon")) == {4242: 71, 1987: 0}


@pytest.mark.parametrize("text", ["", "Not supported on the device(s)\n", "0 4242 C\n", "a b c d\n"])
def test_no_process_is_reported(text: str) -> None:
    assert parse_utilization(text) == {}


CELLS = st.lists(st.text(), min_size=len(CARD_FIELDS), max_size=len(CARD_FIELDS)).map(",".join)


@given(st.text() | CELLS | CELLS.map(lambda cells: "0," + cells.partition(",")[2]))
@settings(deadline=None)
def test_any_text_is_parsed(text: str) -> None:
    parse_processes(text)
    parse_utilization(text)
    for card in parse_cards(text):
        to_json(vars(card))
