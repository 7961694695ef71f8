from __future__ import annotations

import pytest
import torch

from workers.model.dropout import Dropout


def test_each_element_is_dropped_with_its_chance_whatever_its_place_and_its_neighbours() -> None:
    """Four elements come from one random number: neither their shares differ nor do they go together."""
    torch.manual_seed(0)
    kept = (Dropout(0.1)(torch.ones(400_000)) > 0).view(-1, 4).double()
    deviation = (0.1 * 0.9 / len(kept)) ** 0.5
    assert ((kept.mean(dim=0) - 0.9).abs() < 4 * deviation).all()
    together = torch.corrcoef(kept.T) - torch.eye(4, dtype=torch.float64)
    assert together.abs().max() < 4 / len(kept) ** 0.5


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_what_is_kept_is_larger_by_as_much_as_is_dropped(share: float) -> None:
    torch.manual_seed(0)
    states = torch.ones(100, 1001, requires_grad=True)
    out = Dropout(share)(states)
    scale = 65536 / (65536 - round(share * 65536))
    torch.testing.assert_close(out.unique(), torch.tensor([0, scale]))
    assert float(out.detach().mean()) == pytest.approx(1, abs=4 * (scale / out.numel()) ** 0.5)
    out.sum().backward()
    assert states.grad is not None and torch.equal(states.grad, out.detach())


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 5, 7), (16, 37, 64)])
def test_any_shape_and_the_seed_decides(shape: tuple[int, ...]) -> None:
    layer, states = Dropout(0.3), torch.randn(shape)
    torch.manual_seed(4)
    once, other = layer(states), layer(states)
    torch.manual_seed(4)
    assert torch.equal(layer(states), once) and once.shape == shape
    assert states.numel() < 100 or not torch.equal(once, other)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (1e-9, 1.0), (1.0, 0.0)])
def test_all_or_nothing(share: float, expected: float) -> None:
    assert torch.equal(Dropout(share)(torch.ones(100)), torch.full((100,), expected))


def test_it_rests_in_evaluation_and_draws_nothing() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    assert torch.equal(Dropout(0.5).eval()(torch.ones(100)), torch.ones(100))
    assert torch.equal(torch.get_rng_state(), before)
