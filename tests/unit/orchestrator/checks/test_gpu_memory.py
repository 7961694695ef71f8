"""Whether jobs fit on a card together: figures of rehearsals against recorded cards."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.box.host_facts import BoxFacts
from orchestrator.box.probe import Gpus
from orchestrator.checks.gpu_memory import Need, check_forecast, place
from orchestrator.spec.models import Host
from remote.contract.answers import GpuOwner
from remote.contract.nvidia import Gpu, GpuProcess
from remote.contract.placement import SHARES, shares_of
from tests.unit.orchestrator.checks.test_preflight import BOX, HELD, gpus

GIB = 1 << 30
H100 = BoxFacts(gpus=gpus("gpus-h100"))
# The same T4, unused.
T4 = BoxFacts(gpus=Gpus((replace(gpus("gpus-t4-held").cards[0], used=0, free=14940),)))
LIVE = {21784: GpuOwner(pid=21784, owner="ubuntu", run="worker0 20260126T210312-7f3a", run_ended=False)}
TWO = replace(BOX, gpus=2)


def need(job: str, gib: float | None, share: float = 0.5) -> Need:
    return Need(job, share, None if gib is None else int(gib * GIB))


def judged(facts: BoxFacts, *needs: Need, host: Host = BOX) -> list[tuple[str, str]]:
    return [(check.status, check.detail) for check in check_forecast(facts, host, needs)]


def test_jobs_that_fit_together_on_a_card_pass() -> None:
    assert judged(H100, need("worker1", 30), need("worker2", 40)) == [
        (
            "ok",
            "GPU 0 (NVIDIA H100 80GB HBM3, 79.6 GiB): needs worker1 30.0 GiB + worker2 40.0 GiB = 70.0 GiB; "
            "79.2 GiB available",
        )
    ]


def test_jobs_that_fit_only_alone_fail() -> None:
    [(status, said)] = judged(T4, need("worker1", 8), need("worker2", 8))
    assert (status, said) == (
        "fail",
        "GPU 0 (Tesla T4, 15.0 GiB): needs worker1 8.0 GiB + worker2 8.0 GiB = 16.0 GiB; 14.6 GiB available",
    )
    for one in ("worker1", "worker2"):
        assert judged(T4, need(one, 8))[0][0] == "ok"


def test_memory_held_by_others_is_not_available() -> None:
    assert judged(HELD, need("worker1", 0.5, 1))[0][0] == "warn"  # CUDA itself may be too much
    [(status, said)] = judged(HELD, need("worker1", 2, 1))
    assert status == "fail"
    assert said.endswith("worker1 2.0 GiB; 628 MiB available")


def test_memory_of_a_running_run_counts_as_free_later() -> None:
    held = replace(HELD, gpu_owners=LIVE)
    [(status, said)] = judged(held, need("worker1", 2, 1))
    assert status == "warn"
    assert said.endswith("14.6 GiB available once the running jobs have ended, 628 MiB now")
    assert judged(held, need("worker1", 15, 1))[0][0] == "fail"


def test_unmeasured_need_is_reported() -> None:
    [(status, said)] = judged(T4, need("worker1", 8), need("mine", None))
    assert status == "warn"
    assert "worker1 8.0 GiB + mine ? = 8.0 GiB" in said
    assert said.endswith("the need of mine is unknown")
    assert judged(T4, need("worker1", 16), need("mine", None))[0][0] == "fail"  # too much without it


def test_card_without_free_memory_reported_uses_its_total() -> None:
    """Free memory is the total minus what is used; if use is unknown too, this is a warning."""
    first = gpus("gpus-a100-two").cards[0]
    assert first.free is None and first.total == 40960
    alone = BoxFacts(gpus=Gpus((first,)))
    assert judged(alone, need("worker1", 39, 1))[0][0] == "ok"
    assert judged(alone, need("worker1", 41, 1))[0][0] == "fail"
    nameless = replace(alone, gpu_processes=(GpuProcess(1, "GPU-0", None, "python"),))
    [(status, said)] = judged(nameless, need("worker1", 1, 1))
    assert (status, "does not report free memory" in said) == ("warn", True)


@pytest.mark.parametrize("problem", ["gpus-mismatch", "gpus-no-driver", "gpus-none"])
def test_broken_driver_is_left_to_another_check(problem: str) -> None:
    assert judged(BoxFacts(gpus=gpus(problem, 9)), need("worker1", 8)) == []


def test_cpu_hosts_and_cpu_jobs_are_not_checked() -> None:
    assert judged(H100, need("worker1", 800), host=replace(BOX, gpus=0)) == []
    assert judged(H100, need("worker1", 0, 0)) == []


# --- several cards --------------------------------------------------------------------------------------


def pair(first_free: int, second_free: int, **facts: object) -> BoxFacts:
    cards = tuple(
        Gpu(index, "Tesla T4", "535", 15360, 15360 - free, free, 0, "Default", f"GPU-{index}")
        for index, free in enumerate((first_free, second_free))
    )
    return replace(BoxFacts(gpus=Gpus(cards)), **facts)  # type: ignore[arg-type]


def test_half_shares_get_a_card_each_if_there_are_two() -> None:
    assert [status for status, _ in judged(pair(14940, 14940), need("a", 12), need("b", 12), host=TWO)] == ["ok", "ok"]
    three = judged(pair(14940, 14940), need("a", 8), need("b", 8), need("c", 8), host=TWO)
    assert [status for status, _ in three] == ["fail", "ok"]
    assert "a 8.0 GiB + c 8.0 GiB" in three[0][1]


def test_held_memory_counts_on_its_own_card() -> None:
    held_by = (GpuProcess(21784, "GPU-1", 14000, "python"),)
    held = pair(14940, 940, gpu_processes=held_by)
    assert [status for status, _ in judged(held, need("a", 12), host=TWO)] == ["ok"]
    assert [status for status, _ in judged(held, need("a", 12), need("b", 12), host=TWO)] == ["ok", "fail"]
    at_work = replace(held, gpu_owners=LIVE)
    assert [status for status, _ in judged(at_work, need("a", 12), need("b", 12), host=TWO)] == ["ok", "warn"]


def test_placement_among_running_runs_is_a_warning() -> None:
    held_by = (GpuProcess(21784, "GPU-1", 500, "python"),)
    at_work = pair(14940, 14440, gpu_processes=held_by, gpu_owners=LIVE)
    assert [status for status, _ in judged(at_work, *(need(name, 8) for name in "abc"), host=TWO)] == ["warn", "ok"]


def test_job_that_has_to_wait_is_checked_alone() -> None:
    two = judged(T4, need("a", 12, 1), need("b", 12, 1))
    assert [status for status, _ in two] == ["ok", "ok"]
    assert [status for status, _ in judged(T4, need("a", 12, 1), need("b", 16, 1))] == ["ok", "fail"]


shares = st.sampled_from([1 / 12, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 1.0, 2.0])


@given(st.lists(shares, max_size=12), st.integers(1, 4))
def test_no_card_is_allocated_twice_and_no_job_is_lost(gpus: list[float], cards: int) -> None:
    needs = [Need(f"job{number}", share, 1) for number, share in enumerate(gpus)]
    groups, waiting = place(needs, cards)
    assert len(groups) == cards
    for group in groups:
        assert sum(shares_of(one.gpus) for one in group) <= SHARES
    for one in needs:
        given_to = sum(one in group for group in groups)
        assert given_to == (0 if one in waiting else max(1, int(one.gpus)))
