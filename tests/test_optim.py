"""AdamATan2 is its formula, the schedule has its shape, the average is an exponential one."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from eqr.config import TrainConfig
from eqr.optim import AdamATan2, build_optimizer, learning_rate, update_average
from eqr.streams import stream

SETTINGS = {"lr": 0.03, "betas": (0.8, 0.95), "weight_decay": 0.5}


def gradients(steps: int, size: int, name: str = "gradients") -> list[torch.Tensor]:
    return list(torch.randn(steps, size, generator=stream(0, name)).double())


def run(start: torch.Tensor, grads: list[torch.Tensor], **settings) -> torch.Tensor:
    parameter = nn.Parameter(start.clone())
    optimizer = AdamATan2([parameter], **settings)
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach()


def test_adam_atan2_is_its_formula_number_by_number():
    """Five steps against a loop over plain Python floats."""
    start, grads = torch.tensor([0.5, -2.0, 0.0], dtype=torch.float64), gradients(5, 3)
    grads[2][1] = 0.0
    wanted = []
    for k, p in enumerate(start.tolist()):
        m = v = 0.0
        for t, grad in enumerate(grads, 1):
            g = grad[k].item()
            m = 0.8 * m + 0.2 * g
            v = 0.95 * v + 0.05 * g * g
            p *= 1 - 0.03 * 0.5
            p -= 0.03 / (1 - 0.8**t) * math.atan2(m, math.sqrt(v / (1 - 0.95**t)))
        wanted.append(p)
    torch.testing.assert_close(run(start, grads, **SETTINGS).tolist(), wanted, rtol=1e-12, atol=0)


def test_the_update_does_not_depend_on_the_scale_of_the_gradient_and_is_bounded():
    start, grads = torch.zeros(50, dtype=torch.float64), gradients(4, 50)
    found = [run(start, [g * scale for g in grads], **SETTINGS) for scale in (1e-12, 1.0, 1e12)]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], found[1])
    bound = sum(0.03 / (1 - 0.8**t) * math.pi / 2 for t in range(1, 5))
    assert found[1].abs().max() < bound
    still = run(start, [torch.zeros(50, dtype=torch.float64)] * 3, **SETTINGS)
    assert torch.equal(still, start), "no gradient, no ε: nothing moves and nothing is NaN"


def test_a_parameter_without_a_gradient_stays_and_a_late_one_counts_from_its_own_first_step():
    start, (first, second) = torch.ones(3, dtype=torch.float64), gradients(2, 3)
    early, late = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = AdamATan2([early, late], **SETTINGS)
    early.grad = first
    optimizer.step()
    assert torch.equal(late.detach(), start)
    early.grad, late.grad = second, first
    optimizer.step()
    assert torch.equal(late.detach(), run(start, [first], **SETTINGS))
    assert torch.equal(early.detach(), run(start, [first, second], **SETTINGS))


@pytest.mark.parametrize(
    "settings", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}], ids=str
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        AdamATan2([nn.Parameter(torch.zeros(1))], **settings)


def test_build_optimizer_takes_every_setting_of_the_configuration():
    config = TrainConfig(steps=1, lr=0.02, beta1=0.7, beta2=0.8, weight_decay=0.3)
    for kind, name in ((AdamATan2, "adam_atan2"), (torch.optim.AdamW, "adamw")):
        built = build_optimizer(nn.Linear(2, 3), replace(config, optimizer=name))
        assert type(built) is kind
        (group,) = built.param_groups
        assert len(group["params"]) == 2
        assert (group["lr"], group["betas"], group["weight_decay"]) == (0.02, (0.7, 0.8), 0.3)


def test_learning_rate_warms_up_linearly_and_then_holds_or_falls_as_a_cosine():
    config = TrainConfig(steps=110, lr=2.0, warmup=10, schedule="cosine", final_lr=0.1)
    rates = [learning_rate(step, config) for step in range(111)]
    torch.testing.assert_close(rates[:10], [0.2 * (k + 1) for k in range(10)])
    assert rates[10] == 2.0 and rates[60] == pytest.approx(1.1) and rates[110] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(rates[9:]))
    drop = [a - b for a, b in pairwise(rates[10:])]
    assert 50 in (drop.index(max(drop)), drop.index(max(drop)) + 1), "steepest half-way"
    flat = replace(config, schedule="constant")
    assert {learning_rate(step, flat) for step in range(9, 111)} == {2.0}
    assert learning_rate(0, replace(flat, warmup=0)) == 2.0
    assert learning_rate(0, replace(config, steps=5, warmup=5)) == pytest.approx(0.4)


def test_the_average_is_an_exponential_mean_of_all_past_weights():
    model = nn.Linear(2, 2).double()
    average, values = copy.deepcopy(model), [model.weight.detach().clone()]
    for value in gradients(6, 4):
        with torch.no_grad():
            model.weight.copy_(value.view(2, 2))
        values.append(model.weight.detach().clone())
        update_average(average, model, 0.7)
    wanted = 0.7**6 * values[0]
    wanted = wanted + sum(0.3 * 0.7 ** (6 - k) * values[k] for k in range(1, 7))
    torch.testing.assert_close(average.weight.detach(), wanted)
    assert torch.equal(model.weight.detach(), values[-1])
    update_average(average, model, 0.0)
    assert torch.equal(average.weight, model.weight)
