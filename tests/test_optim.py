"""AdamATan2 and Muon are their formulas, the schedule has its shape, the average decays."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from eqr.config import ModelConfig, TrainConfig
from eqr.model import Reasoner
from eqr.optim import build_optimizers, learning_rate, update_ema
from eqr.optimizers import AdamATan2, Muon, orthogonalized
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
    actual = [run(start, [g * scale for g in grads], **SETTINGS) for scale in (1e-12, 1.0, 1e12)]
    torch.testing.assert_close(actual[0], actual[1])
    torch.testing.assert_close(actual[2], actual[1])
    bound = sum(0.03 / (1 - 0.8**t) * math.pi / 2 for t in range(1, 5))
    assert actual[1].abs().max() < bound
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


LOW, HIGH = 0.68, 1.21  # where five steps of Newton-Schulz leave a singular value


def matrix(rows: int, columns: int, *name: int) -> torch.Tensor:
    """A matrix whose singular values lie within a factor of about ten."""
    return torch.randn(rows, columns, generator=stream(0, "matrix", *name)).double()


def muon(starts: list[torch.Tensor], grads: list[list[torch.Tensor]], maps=1, **settings) -> list:
    """The parameters after a step with each of ``grads``, which hold one for each parameter."""
    parameters = [nn.Parameter(start.clone()) for start in starts]
    optimizer = Muon([{"params": parameters, "maps": maps}], **settings)
    for step in grads:
        for p, grad in zip(parameters, step, strict=True):
            p.grad = grad.clone()
        optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("shape", [(3, 12, 20), (2, 20, 12), (1, 7, 7), (1, 30)], ids=str)
def test_orthogonalized_keeps_the_singular_vectors_and_levels_the_values(shape):
    matrices = torch.randn(shape, generator=stream(0, "stack")).double()
    actual = orthogonalized(matrices)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    inside = left.mT @ actual @ right.mT  # diagonal where the vectors are the same
    levels = inside.diagonal(dim1=-2, dim2=-1)
    assert levels.min() > LOW and levels.max() < HIGH
    assert values.max() / values.min() > 1.2 or 1 in shape[-2:], "they were not level before"
    torch.testing.assert_close(inside, torch.diag_embed(levels))
    for scale in (1e-12, 1e12):
        torch.testing.assert_close(orthogonalized(scale * matrices), actual)
    assert (orthogonalized(torch.zeros(2, 5, 3)) == 0).all()


def test_muon_is_its_formula():
    """Momentum, look-ahead, decay and the factor of the shape, written out for two steps."""
    start, grads = matrix(6, 10, 0), [matrix(6, 10, k) for k in (1, 2)]
    (actual,) = muon([start], [[g] for g in grads], lr=0.03, momentum=0.8, weight_decay=0.5)
    p, m = start, 0.0
    for g in grads:
        m = 0.8 * m + 0.2 * g
        update = orthogonalized(0.8 * m + 0.2 * g)
        p = (1 - 0.03 * 0.5) * p - 0.03 * 0.2 * 10**0.5 * update
    torch.testing.assert_close(actual, p)


def test_elements_of_muons_update_are_as_large_in_every_shape_and_at_every_scale():
    for rows, columns in ((8, 8), (8, 64), (64, 8), (30, 40)):
        zero, grad = torch.zeros(rows, columns).double(), matrix(rows, columns)
        moved = [muon([zero], [[s * grad]] * 3, lr=0.1)[0] for s in (1e-12, 1.0, 1e12)]
        torch.testing.assert_close(moved[0], moved[1])
        torch.testing.assert_close(moved[2], moved[1])
        rms = moved[1].square().mean().sqrt()
        assert 3 * 0.1 * 0.2 * LOW < rms < 3 * 0.1 * 0.2 * HIGH


def test_each_map_of_a_stack_is_updated_as_if_it_were_alone():
    """One with a thousand times the gradient of its neighbour takes nothing away from it."""
    parts = [matrix(5, 9, k) for k in range(3)]
    steps = [[s * matrix(5, 9, k, 1) for s, k in zip((1000.0, 1.0, 0.1), range(3), strict=True)]]
    steps.append([matrix(5, 9, k, 2) for k in range(3)])
    alone = muon(parts, steps, lr=0.1, weight_decay=0.2)
    stacked = [[torch.cat(step)] for step in steps]
    (whole,) = muon([torch.cat(parts)], stacked, maps=3, lr=0.1, weight_decay=0.2)
    torch.testing.assert_close(whole, torch.cat(alone))
    (fused,) = muon([torch.cat(parts)], stacked, lr=0.1, weight_decay=0.2)
    moved = (whole - torch.cat(parts)).norm()
    assert (fused - whole).norm() > 0.1 * moved, "as a single map it would differ"


def test_muon_leaves_alone_what_has_no_gradient_and_refuses_what_is_no_stack_of_maps():
    start = matrix(4, 6)
    assert torch.equal(muon([start], [[0 * start]] * 2, lr=0.1)[0], start)
    parameter = nn.Parameter(start.clone())
    optimizer = Muon([parameter], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(parameter.detach(), start) and not optimizer.state
    with pytest.raises(ValueError, match="maps"):
        Muon([{"params": [nn.Parameter(torch.zeros(3, 2))], "maps": 2}], lr=1)
    with pytest.raises(ValueError, match="shape"):
        Muon([nn.Parameter(torch.zeros(3))], lr=1)


def test_build_optimizers_takes_every_setting_of_the_configuration():
    config = TrainConfig(steps=1, lr=0.02, beta1=0.7, beta2=0.8, weight_decay=0.3)
    for kind, name in ((AdamATan2, "adam_atan2"), (torch.optim.AdamW, "adamw")):
        (built,) = build_optimizers(nn.Linear(2, 3), replace(config, optimizer=name))
        assert type(built) is kind
        (group,) = built.param_groups
        assert len(group["params"]) == 2
        assert (group["lr"], group["betas"], group["weight_decay"]) == (0.02, (0.7, 0.8), 0.3)
        assert group["initial_lr"] == 0.02


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_muon_gets_the_matrices_of_the_blocks_and_adamw_everything_else(mixer):
    settings = {"init": "learned", "learn_noise": True, "mixer": mixer, "width_multiple": 8}
    model = Reasoner(ModelConfig(hidden=16, blocks=2, **settings), 3, 3, 5)
    config = TrainConfig(steps=1, optimizer="muon", lr=0.02, muon_lr=0.1, weight_decay=0.3)
    first, second = build_optimizers(model, config)
    assert type(first) is Muon and type(second) is torch.optim.AdamW
    names = {p: name for name, p in model.named_parameters()}
    maps = {names[p]: group["maps"] for group in first.param_groups for p in group["params"]}
    rest = {names[p] for group in second.param_groups for p in group["params"]}
    assert sorted([*maps, *rest]) == sorted(names.values()), "each is in one of them"
    stacks = {"gate_up": 2, "qkv": 3}
    for name, count in maps.items():
        assert name.startswith("blocks.") and count == stacks.get(name.split(".")[-2], 1)
    assert all("blocks" not in name for name in rest) and "start_high" in rest
    assert {g["lr"] for g in first.param_groups} == {0.1}
    assert {g["lr"] for g in second.param_groups} == {0.02}
    assert {g["weight_decay"] for o in (first, second) for g in o.param_groups} == {0.3}
    first, _ = build_optimizers(model, replace(config, muon_lr=None))
    assert {g["initial_lr"] for g in first.param_groups} == {0.02}


def test_stacked_maps_are_those_that_the_layers_cut_apart():
    """A gate's, an up's, a query's rows lie together, in the order in which Muon splits them."""
    config = ModelConfig(hidden=8, blocks=1, mixer="attention", heads=2, width_multiple=8)
    block = Reasoner(config, 2, 2, 5, stream(0, "init")).blocks[0]
    h = torch.randn(1, 4, 8, generator=stream(0, "h"))
    gate, up = (h @ part.T for part in block.channel.gate_up.weight.chunk(2))
    wanted = block.channel.down(nn.functional.silu(gate) * up)
    torch.testing.assert_close(block.channel(h), wanted)
    attention = block.mixer
    q, k, v = (
        (h @ part.T).unflatten(-1, (2, 4)).transpose(1, 2) for part in attention.qkv.weight.chunk(3)
    )
    mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    wanted = h + attention.out(mixed)
    wanted = wanted / wanted.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(attention(h), wanted, rtol=1e-4, atol=1e-4)


def test_learning_rate_warms_up_linearly_and_then_holds_or_falls_as_a_cosine():
    config = TrainConfig(steps=110, lr=2.0, warmup=10, schedule="cosine", final_lr=0.1)
    rates = [learning_rate(step, config) for step in range(110)]
    torch.testing.assert_close(rates[:10], [0.2 * (k + 1) for k in range(10)])
    assert rates[9] == 2.0 and rates[59] == pytest.approx(1.1)
    assert rates[-1] == pytest.approx(0.2), "the last step has the final rate"
    assert all(a >= b for a, b in pairwise(rates[9:]))
    drop = [a - b for a, b in pairwise(rates[9:])]
    assert 50 in (drop.index(max(drop)), drop.index(max(drop)) + 1), "steepest half-way"
    flat = replace(config, schedule="constant")
    assert {learning_rate(step, flat) for step in range(9, 110)} == {2.0}
    assert learning_rate(0, replace(flat, warmup=0)) == 2.0
    assert learning_rate(0, replace(config, steps=5, warmup=5)) == pytest.approx(0.4)
    other = [learning_rate(step, config, peak=0.5) for step in range(110)]
    torch.testing.assert_close(other, [rate / 4 for rate in rates])
    for low, last in ((0, 0.0), (1, 2.0)):
        straight = replace(config, warmup=0, final_lr=low)
        rates = [learning_rate(step, straight) for step in (0, 109)]
        torch.testing.assert_close(rates, [2.0, last], rtol=1e-3, atol=1e-12)


def test_the_average_is_an_exponential_mean_of_all_past_weights():
    model = nn.Linear(2, 2).double()
    average, values = copy.deepcopy(model), [model.weight.detach().clone()]
    for value in gradients(6, 4):
        with torch.no_grad():
            model.weight.copy_(value.view(2, 2))
        values.append(model.weight.detach().clone())
        update_ema(average, model, 0.7)
    wanted = 0.7**6 * values[0]
    wanted = wanted + sum(0.3 * 0.7 ** (6 - k) * values[k] for k in range(1, 7))
    torch.testing.assert_close(average.weight.detach(), wanted)
    assert torch.equal(model.weight.detach(), values[-1])
    update_ema(average, model, 0.0)
    assert torch.equal(average.weight, model.weight)
