from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from workers.common.parallel import torch_threads
from workers.perception.tokens import Packed
from workers.training import loader
from workers.training.loader import Feed

CPU = torch.device("cpu")
PARTS = [(torch.tensor(indices), weight) for indices, weight in (([0, 3], 1.0), ([5], 0.0), ([2, 1, 4], 1.0))]


@pytest.fixture
def samples_of(samples: dict[str, Packed]) -> Packed:
    return Packed.of(samples["train"][:6])


def test_what_does_not_fit_is_streamed_and_is_the_same(samples_of: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = Feed(samples_of, CPU)
    assert resident.resident
    monkeypatch.setattr(loader, "free_bytes", lambda device: samples_of.nbytes * 1.9)
    streaming = Feed(samples_of, CPU)
    assert not streaming.resident and len(streaming) == 6
    pairs = list(zip(resident.batches(PARTS), streaming.batches(PARTS), strict=True))
    assert [weight for (_, weight), _ in pairs] == [weight for _, (_, weight) in pairs] == [1.0, 0.0, 1.0]
    for (one, _), (other, _) in pairs:
        assert all(torch.equal(getattr(one, item.name), getattr(other, item.name)) for item in fields(one))


@pytest.mark.parametrize("free", [0, float("inf")], ids=["streamed", "resident"])
def test_one_batch_is_made_ahead_by_a_thread_that_has_one_of_torchs(
    samples_of: Packed, monkeypatch: pytest.MonkeyPatch, free: float
) -> None:
    gathered: list[int] = []
    second, threads, torchs = threading.Event(), set[int](), set[int]()
    gather: Callable[..., object] = Packed.gather

    def watched(packed: Packed, indices: torch.Tensor) -> object:
        gathered.append(len(indices))
        threads.add(threading.get_ident())
        torchs.add(torch.get_num_threads())
        if len(gathered) == 2:
            second.set()
        return gather(packed, indices)

    monkeypatch.setattr(Packed, "gather", watched)
    monkeypatch.setattr(loader, "free_bytes", lambda device: free)
    with torch_threads(2):
        batches = Feed(samples_of, CPU).batches(PARTS)
        next(batches)
        assert second.wait(60) and gathered == [2, 1]
        assert len(list(batches)) == 2 and gathered == [2, 1, 3]
        assert torch.get_num_threads() == 2
    assert len(threads) == 1 and threading.get_ident() not in threads and torchs == {1}


def test_who_needs_no_more_leaves_no_thread(samples_of: Packed) -> None:
    before = threading.active_count()
    batches = Feed(samples_of, CPU).batches(PARTS)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_what_goes_wrong_in_the_thread_is_heard(samples_of: Packed) -> None:
    with pytest.raises(IndexError):
        list(Feed(samples_of, CPU).batches([(torch.tensor([99]), 1.0)]))


def test_nothing_is_no_batch(samples_of: Packed) -> None:
    assert list(Feed(samples_of, CPU).batches([])) == []
