from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from workers.perception.batching import Packed
from workers.training import loader
from workers.training.loader import BatchLoader

CPU = torch.device("cpu")
PARTS = [(torch.tensor(indices), weight) for indices, weight in (([0, 3], 1.0), ([5], 0.0), ([2, 1, 4], 1.0))]


@pytest.fixture
def six_samples(samples: dict[str, Packed]) -> Packed:
    return Packed.of(samples["train"][:6])


def test_streamed_batches_equal_resident_ones(six_samples: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = BatchLoader(six_samples, CPU)
    assert resident.resident
    monkeypatch.setattr(loader, "free_bytes", lambda device: six_samples.nbytes * 1.9)
    streaming = BatchLoader(six_samples, CPU)
    assert not streaming.resident and len(streaming) == 6
    pairs = list(zip(resident.batches(PARTS), streaming.batches(PARTS), strict=True))
    assert [weight for (_, weight), _ in pairs] == [weight for _, (_, weight) in pairs] == [1.0, 0.0, 1.0]
    for (one, _), (other, _) in pairs:
        assert all(torch.equal(getattr(one, item.name), getattr(other, item.name)) for item in fields(one))


def test_an_index_out_of_range_is_an_error(six_samples: Packed) -> None:
    with pytest.raises(IndexError):
        list(BatchLoader(six_samples, CPU).batches([(torch.tensor([99]), 1.0)]))


def test_no_parts_give_no_batches(six_samples: Packed) -> None:
    assert list(BatchLoader(six_samples, CPU).batches([])) == []
