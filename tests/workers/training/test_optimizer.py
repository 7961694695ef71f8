from __future__ import annotations

import copy
import math

import pytest
import torch

from workers.training.optimizer import ALIGNED, WARM_UP, GuardedAdam, learning_rate


@pytest.fixture
def weights() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0, 2.0]))


def step(optimizer: GuardedAdam, weights: torch.nn.Parameter, number: int, gradient: float, loss: float = 1.0) -> None:
    optimizer.zero_grad()
    (weights * gradient).sum().backward()
    optimizer.guarded_step(torch.tensor(loss), number, 0.1)


def test_it_is_adam_with_gradients_shortened_to_length_one(weights: torch.nn.Parameter) -> None:
    plain = torch.nn.Parameter(weights.detach().clone())
    ours, theirs = GuardedAdam([weights], 0.1), torch.optim.Adam([plain], lr=0.1)
    for number, gradient in enumerate((0.1, -0.2, 0.3), start=1):
        step(ours, weights, number, gradient)
        plain.grad = torch.full_like(plain, gradient)
        theirs.step()
    torch.testing.assert_close(weights, plain)
    step(ours, weights, 4, 300.0)
    assert weights.grad is not None and float(weights.grad.norm()) == pytest.approx(1.0, rel=1e-4)


def test_all_parameters_are_one_tensor_and_stay_what_they_were() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = GuardedAdam(model.parameters(), 0.1)
    (whole,) = optimizer.param_groups[0]["params"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for value in model.parameters():
        assert value.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        assert value.storage_offset() % ALIGNED == 0
    model(torch.ones(2, 3)).sum().backward()
    assert float(optimizer.gradient.sum()) == pytest.approx(
        sum(float(value.grad.sum()) for value in model.parameters() if value.grad is not None)
    )
    optimizer.zero_grad()
    assert all(value.grad is not None and not value.grad.any() for value in model.parameters())


def test_many_parameters_take_the_steps_of_torchs_adam_on_each() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    plain = copy.deepcopy(model)
    ours, theirs = GuardedAdam(model.parameters(), 0.01), torch.optim.Adam(plain.parameters(), lr=0.01)
    for number, inputs in enumerate(torch.randn(20, 4, 3) * 10, start=1):
        loss = (model(inputs) ** 2).sum()
        ours.zero_grad()
        loss.backward()
        ours.guarded_step(loss.detach(), number, 0.01)
        theirs.zero_grad()
        (plain(inputs) ** 2).sum().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        theirs.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("gradient", "loss"), [(0.1, math.nan), (0.1, math.inf), (math.nan, 1.0), (-math.inf, 1.0)])
def test_neither_the_bad_step_nor_any_after_it_is_taken(
    weights: torch.nn.Parameter, gradient: float, loss: float
) -> None:
    optimizer = GuardedAdam([weights], 0.1)
    step(optimizer, weights, 1, 0.1)
    assert optimizer.is_sound()
    (whole,) = optimizer.param_groups[0]["params"]
    before, moments = weights.detach().clone(), optimizer.state[whole]["exp_avg"].clone()
    step(optimizer, weights, 2, gradient, loss)
    step(optimizer, weights, 3, 0.1)
    assert torch.equal(weights, before) and torch.equal(optimizer.state[whole]["exp_avg"], moments)
    assert optimizer.state[whole]["step"].item() == 1
    assert not optimizer.is_sound() and int(optimizer.bad_step) == 2
    assert str(float(optimizer.bad_loss)) == str(loss)


def test_a_step_asks_the_device_for_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device there is none to be had: `item` raises there."""
    weights = torch.nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = GuardedAdam([weights], 0.1)
    assert not optimizer.skips_by_itself
    optimizer.skips_by_itself = True  # as on CUDA, whose fused kernel this device lacks
    monkeypatch.setattr(optimizer, "step", lambda: None)
    optimizer.guarded_step(torch.zeros((), device="meta"), 1, 0.1)
    with pytest.raises(RuntimeError):
        optimizer.is_sound()


def test_the_cosine_rises_falls_and_ends_at_nothing() -> None:
    rates = [learning_rate(1.0, "cosine", step, step / 10_000) for step in range(1, 10_001)]
    assert rates[0] == pytest.approx(1 / WARM_UP, rel=1e-3) and rates[-1] == pytest.approx(0, abs=1e-9)
    assert max(rates) == pytest.approx(1.0, abs=0.01) and rates.index(max(rates)) + 1 == WARM_UP
    assert rates[5000] == pytest.approx(0.5, abs=1e-3)


def test_a_short_training_is_warm_after_a_twentieth_of_it() -> None:
    assert learning_rate(1.0, "cosine", 3, 0.025) == pytest.approx(0.5, abs=0.01)
    assert learning_rate(1.0, "cosine", 6, 0.05) > 0.99
    assert learning_rate(0.3, "constant", 1, 0.0) == 0.3
