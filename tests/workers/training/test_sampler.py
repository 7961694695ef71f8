from __future__ import annotations

import torch

from workers.training.sampler import POOL, Curriculum, Shuffled, batches_of_similar_length

LABELS = torch.tensor([0, 1] * 50)
RICHNESS = torch.arange(100) / 100 + LABELS  # each sample of class 1 is richer than each of class 0


def draw(order: Shuffled | Curriculum, epoch: int, seed: int = 0) -> list[int]:
    return order(epoch, LABELS, RICHNESS, torch.Generator().manual_seed(seed)).tolist()


def test_a_curriculum_starts_with_the_richest_samples_of_each_class() -> None:
    first = draw(Curriculum(first=0.3, epochs=8), epoch=1)
    assert sorted(first) == list(range(70, 100))
    assert first != sorted(first)
    assert sum(LABELS[first].tolist()) == 15


def test_a_curriculum_grows_to_all_samples() -> None:
    curriculum = Curriculum(first=0.3, epochs=7)
    sizes = [len(draw(curriculum, epoch)) for epoch in range(1, 11)]
    assert sizes == [30, 40, 50, 60, 70, 80, 90, 100, 100, 100]
    for epoch in range(1, 10):
        assert set(draw(curriculum, epoch)) <= set(draw(curriculum, epoch + 1))


def test_the_order_depends_only_on_the_state_of_the_generator() -> None:
    for order in (Shuffled(), Curriculum()):
        assert draw(order, 3) == draw(order, 3) != draw(order, 3, seed=1)
        assert len(set(draw(order, 30))) == 100
    assert draw(Curriculum(), 30) == draw(Shuffled(), 30)  # no difference once all samples are used


def test_batches_hold_each_sample_once_with_little_padding() -> None:
    lengths = torch.randint(1, 100, (500,), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    batches = batches_of_similar_length(order, lengths, 16, torch.Generator().manual_seed(2))

    assert sorted(torch.cat(batches).tolist()) == list(range(500))
    assert sorted(map(len, batches)) == [4, *[16] * 31]

    def padded(parts: list[torch.Tensor]) -> int:
        return sum(len(part) * int(lengths[part].max()) for part in parts)

    tokens = int(lengths.sum())
    assert padded(batches) - tokens < (padded(list(order.split(16))) - tokens) / 4
    again = batches_of_similar_length(order, lengths, 16, torch.Generator().manual_seed(2))
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))


def test_batches_are_random() -> None:
    """Short ones do not come first, and a sample has other neighbours in each epoch."""
    lengths = torch.arange(16 * POOL * 4)
    generator = torch.Generator().manual_seed(0)
    first, second = (
        batches_of_similar_length(torch.randperm(len(lengths), generator=generator), lengths, 16, generator)
        for _ in "ab"
    )
    longest = torch.tensor([int(batch.max()) for batch in first])
    assert not torch.equal(longest, longest.sort().values)
    assert {frozenset(batch.tolist()) for batch in first}.isdisjoint(frozenset(batch.tolist()) for batch in second)
