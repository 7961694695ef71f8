from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from workers import feed
from workers.feed import Feed
from workers.tokens import Packed, Sample

CPU = torch.device("cpu")
PARTS = [(torch.tensor(indices), weight) for indices, weight in (([0, 3], 1.0), ([5], 0.0), ([2, 1, 4], 1.0))]


@pytest.fixture
def samples_of(samples: dict[str, list[Sample]]) -> Packed:
    return Packed.of(samples["train"][:6])


def test_what_does_not_fit_is_streamed_and_is_the_same(samples_of: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = Feed(samples_of, CPU)
    assert resident.resident
    monkeypatch.setattr(feed, "free_bytes", lambda device: samples_of.nbytes * 1.9)
    streaming = Feed(samples_of, CPU)
    assert not streaming.resident and len(streaming) == 6
    pairs = list(zip(resident.batches(PARTS), streaming.batches(PARTS), strict=True))
    assert [weight for (_, weight), _ in pairs] == [weight for _, (_, weight) in pairs] == [1.0, 0.0, 1.0]
    for (one, _), (other, _) in pairs:
        assert all(torch.equal(getattr(one, item.name), getattr(other, item.name)) for item in fields(one))


def test_streaming_gathers_one_batch_ahead(samples_of: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []
    gather: Callable[..., object] = Packed.gather

    def watched(packed: Packed, indices: torch.Tensor) -> object:
        gathered.append(len(indices))
        return gather(packed, indices)

    monkeypatch.setattr(Packed, "gather", watched)
    monkeypatch.setattr(feed, "free_bytes", lambda device: 0)
    batches = Feed(samples_of, CPU).batches(PARTS)
    next(batches)
    assert gathered == [2, 1]
    assert len(list(batches)) == 2 and gathered == [2, 1, 3]


def test_nothing_is_no_batch(samples_of: Packed) -> None:
    assert list(Feed(samples_of, CPU).batches([])) == []
