from __future__ import annotations

import copy

import pytest
import torch

from workers.training.optimizer import OPTIMIZERS, WARM_UP_STEPS, constant, cosine, make_optimizer


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 1))


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizers_are_those_of_torch_by_name(model: torch.nn.Module, name: str, kind: type) -> None:
    assert type(make_optimizer(name, model, 0.1)) is kind
    assert set(OPTIMIZERS) == {"adam", "adamw"}


def test_only_matrices_decay(model: torch.nn.Module) -> None:
    matrices, others = make_optimizer("adamw", model, 0.1, weight_decay=0.2).param_groups
    assert {parameter.ndim for parameter in matrices["params"]} == {2} and matrices["weight_decay"] == 0.2
    assert {parameter.ndim for parameter in others["params"]} == {1} and others["weight_decay"] == 0.0
    assert len(matrices["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_the_fused_kernel_is_used_on_a_cpu_and_takes_the_steps_of_the_plain_one(model: torch.nn.Module) -> None:
    plain = copy.deepcopy(model)
    fused, simple = make_optimizer("adam", model, 0.01), torch.optim.Adam(plain.parameters(), lr=0.01, foreach=False)
    assert all(group["fused"] for group in fused.param_groups)
    for inputs in torch.randn(20, 4, 3):
        for network, optimizer in ((model, fused), (plain, simple)):
            optimizer.zero_grad()
            (network(inputs) ** 2).sum().backward()
            optimizer.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_cosine_rises_then_falls_to_zero() -> None:
    factors = [cosine(step, step / 10_000) for step in range(1, 10_001)]
    assert factors[0] == pytest.approx(1 / WARM_UP_STEPS, rel=1e-3) and factors[-1] == pytest.approx(0, abs=1e-9)
    assert max(factors) == pytest.approx(1.0, abs=0.01) and factors.index(max(factors)) + 1 == WARM_UP_STEPS
    assert factors[5000] == pytest.approx(0.5, abs=1e-3)


def test_a_short_training_warms_up_during_a_twentieth_of_it() -> None:
    assert cosine(3, 0.025) == pytest.approx(0.5, abs=0.01)
    assert cosine(6, 0.05) > 0.99


def test_constant_stays_at_one() -> None:
    assert {constant(step, done) for step, done in ((1, 0.0), (500, 0.5), (1000, 1.0))} == {1.0}
