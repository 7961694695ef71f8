"""Read the driver's answers from a real process: an `nvidia-smi` on the PATH that prints recorded output."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote.contract import nvidia
from remote.host import gpu_driver
from tests.support import RECORDED
from tests.unit.conftest import Driver

T4 = RECORDED / "gpus-t4-held.txt"
PMON = RECORDED / "gpu-pmon.txt"


def test_cards_are_asked_with_the_one_query(driver: Driver, tmp_path: Path) -> None:
    driver(f'echo "$@" > {tmp_path}/asked; cat {T4}')
    assert gpu_driver.cards() == nvidia.parse_cards(T4.read_text())
    assert (tmp_path / "asked").read_text().split() == list(nvidia.CARDS[1:])


@pytest.mark.parametrize(
    "text",
    [
        f"cat {T4}; exit 9",
        "exit 0",
        "echo 'No devices were found'; exit 6",
        "printf '\\377\\376'",
        "kill -9 $$",
    ],
)
def test_broken_driver_has_no_cards(driver: Driver, text: str) -> None:
    driver(text)
    assert gpu_driver.cards() == []


def test_box_without_driver_has_no_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_driver.cards() == []


def test_use_and_memory_of_processes(driver: Driver) -> None:
    driver(f"""
case "$*" in
"{" ".join(nvidia.UTILIZATION[1:])}") cat {PMON} ;;
"{" ".join(nvidia.PROCESSES[1:])}") printf '4242, GPU-1, 1342, python\\n17, GPU-1, [N/A], a, b\\n' ;;
*) exit 1 ;;
esac""")
    assert gpu_driver.utilization() == {4242: 71, 1987: 0}
    assert gpu_driver.memory() == {4242: 1342, 17: 0}


def test_memory_of_ended_processes_is_reported(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(f"[ -e {tmp_path}/freed ] || echo '4242, GPU-1, 1342, python'; touch {tmp_path}/freed")
    assert gpu_driver.memory_left({17}) == {}
    (tmp_path / "freed").unlink()
    assert gpu_driver.memory_left({4242}) == {}  # the driver has freed it by the second query
    monkeypatch.setattr(gpu_driver, "FREE_S", 0.0)
    driver("echo '4242, GPU-1, 1342, python'")
    assert gpu_driver.memory_left({4242}) == {"4242": 1342}
