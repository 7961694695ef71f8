from __future__ import annotations

import torch

from workers.order import Curriculum, Shuffled

LABELS = torch.tensor([0, 1] * 50)
RICHNESS = torch.arange(100) / 100 + LABELS  # class 1 is richer without exception


def draw(order: Shuffled | Curriculum, epoch: int, seed: int = 0) -> list[int]:
    return order(epoch, LABELS, RICHNESS, torch.Generator().manual_seed(seed)).tolist()


def test_a_curriculum_begins_with_the_richest_of_each_class() -> None:
    first = draw(Curriculum(first=0.3, epochs=8), epoch=1)
    assert sorted(first) == list(range(70, 100))
    assert first != sorted(first)
    assert sum(LABELS[first].tolist()) == 15


def test_it_grows_to_all_samples_and_stays_there() -> None:
    curriculum = Curriculum(first=0.3, epochs=7)
    sizes = [len(draw(curriculum, epoch)) for epoch in range(1, 11)]
    assert sizes == [30, 40, 50, 60, 70, 80, 90, 100, 100, 100]
    for epoch in range(1, 10):
        assert set(draw(curriculum, epoch)) <= set(draw(curriculum, epoch + 1))


def test_the_same_state_draws_the_same_order_and_another_another() -> None:
    for order in (Shuffled(), Curriculum()):
        assert draw(order, 3) == draw(order, 3) != draw(order, 3, seed=1)
        assert len(set(draw(order, 30))) == 100
    assert draw(Curriculum(), 30) == draw(Shuffled(), 30)  # once all are taken there is no difference left
