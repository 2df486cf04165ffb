"""A rollout depends on (seed, problem, restart) alone, keeps one state, and measures its change."""

from __future__ import annotations

import math
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch

from eqr.model import Reasoner, State, Step, residual
from eqr.rollout import rollout
from eqr.streams import stream

NOISES = [0.0, 0.05]


@pytest.fixture(scope="module")
def model(make_recipe) -> Reasoner:
    recipe = make_recipe()
    return Reasoner.for_task(recipe.task, recipe.model, stream(0, "init"))


@pytest.fixture(scope="module")
def inputs(problems) -> torch.Tensor:
    return torch.as_tensor(problems.test.inputs[:5])


def collect(model, inputs, **settings) -> dict[tuple[int, int, int], tuple[np.ndarray, float]]:
    """(problem, restart, depth) -> logits and residual."""
    actual = {}
    for it in rollout(model, inputs, **settings):
        for k, (p, r) in enumerate(zip(it.problem.tolist(), it.restart.tolist(), strict=True)):
            assert (p, r, it.depth) not in actual, "an iteration came twice"
            actual[p, r, it.depth] = it.step.logits[k].numpy(), it.residual[k].item()
    return actual


def agree(one: dict, other: dict) -> None:
    """Every key of ``one`` is in ``other`` with the same numbers up to rounding."""
    for key, (logits, change) in one.items():
        np.testing.assert_allclose(logits, other[key][0], atol=2e-4, err_msg=str(key))
        assert change == pytest.approx(other[key][1], abs=2e-4), key


def test_the_change_of_the_logits_is_the_mean_over_tokens_and_the_last_three_iterations(
    model, inputs
):
    start = model.initial_state(5, [stream(0, "evaluation", p, 0) for p in range(5)])
    logits = [model.read_logits(start.z_high).detach().numpy()]
    for it in rollout(model, inputs, depth=5):
        logits.append(it.step.logits.numpy())
        latest = list(pairwise(logits))[-3:]
        wanted = np.mean(
            [np.sqrt(((b - a) ** 2).sum(-1)).mean(-1) for a, b in latest], axis=0
        )  # fmt: skip
        np.testing.assert_allclose(it.logit_change.numpy(), wanted, rtol=1e-4)


@pytest.mark.parametrize("noise", NOISES)
def test_rows_in_flight_restarts_and_depth_do_not_change_a_trajectory(model, inputs, noise):
    whole = collect(model, inputs, depth=4, breadth=3, noise=noise)
    assert sorted(whole) == [(p, r, d) for p in range(5) for r in range(3) for d in range(1, 5)]
    for rows in (1, 4):
        parts = collect(model, inputs, depth=4, breadth=3, noise=noise, rows=rows)
        assert parts.keys() == whole.keys()
        agree(parts, whole)
    agree(collect(model, inputs, depth=2, breadth=3, noise=noise), whole)
    agree(collect(model, inputs, depth=4, breadth=1, noise=noise), whole)
    agree(collect(model, inputs[:2], depth=4, breadth=3, noise=noise), whole)
    assert abs(whole[0, 0, 1][0] - whole[0, 1, 1][0]).max() > 0.01, "restarts differ"


def test_seed_noise_and_damping_reach_the_dynamics(model, inputs):
    base = collect(model, inputs, depth=2)
    for settings in ({"seed": 1}, {"noise": 0.05}, {"damping": 0.5}):
        other = collect(model, inputs, depth=2, **settings)
        assert abs(other[0, 0, 2][0] - base[0, 0, 2][0]).max() > 1e-3, settings
    agree(collect(model, inputs, depth=2, damping=model.config.damping), base)


def test_equal_problems_get_their_own_streams(model, inputs):
    """A stream belongs to the place in the inputs: twice the same puzzle, two trajectories."""
    actual = collect(model, inputs[:1].repeat(2, 1), depth=1)
    assert abs(actual[0, 0, 1][0] - actual[1, 0, 1][0]).max() > 0.01


def test_iterations_come_one_at_a_time_and_old_states_are_let_go(model, inputs):
    """Memory does not grow with the depth: of a long rollout only the latest states are alive."""
    alive, most = [], 0
    for it in rollout(model, inputs, depth=30):
        alive.append(weakref.ref(it.step.state.z_high))
        most = max(most, sum(ref() is not None for ref in alive))
        assert not it.step.logits.requires_grad and torch.is_grad_enabled()
    assert len(alive) == 30 and most <= 2
    endless = rollout(model, inputs, depth=10**9)
    assert [next(endless).depth for _ in range(3)] == [1, 2, 3]


def test_residual_is_the_root_mean_square_change_of_both_latents(model, inputs):
    before = State(torch.zeros(2, 3, 2), torch.ones(2, 3, 2))
    after = State(torch.zeros(2, 3, 2), torch.ones(2, 3, 2))
    after.z_high[0, 1, 0], after.z_low[0, 2, 1], after.z_low[1] = 3.0, 5.0, 2.0
    wanted = [math.sqrt((3**2 + 4**2) / 12), math.sqrt(6 / 12)]
    assert residual(before, after).tolist() == pytest.approx(wanted)
    state = model.initial_state(5, [stream(0, "evaluation", p, 0) for p in range(5)])
    (it,) = rollout(model, inputs, depth=1)
    change = (it.step.state.flat() - state.flat()).square().mean(1).sqrt()
    torch.testing.assert_close(it.residual, change)


class Contraction:
    """``z ← x + c (z − x)``: a linear map whose fixed point is the problem itself."""

    device = torch.device("cpu")

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def initial_state(self, rows: int, generator) -> State:
        draws = torch.stack([torch.randn(4, 1, generator=own) for own in generator])
        return State(draws, draws[:, :0])

    def read_logits(self, z_high: torch.Tensor) -> torch.Tensor:
        return z_high

    def step(self, state, x, *, noise, generator=None, damping=None) -> Step:
        goal = x[..., None].float()
        high = goal + self.factor * (state.z_high - goal)
        return Step(State(high, state.z_low), high, high[:, 0, 0])


def test_a_contraction_converges_at_its_own_rate():
    """‖z_{d+1} − z_d‖ = c ‖z_d − z_{d−1}‖, and the distance is at most residual · c / (1 − c)."""
    x = torch.tensor([[1, 2, 3, 4], [4, 0, 0, 1]])
    steps = list(rollout(Contraction(0.5), x, depth=12, breadth=3))
    residuals = torch.stack([it.residual for it in steps])
    torch.testing.assert_close(
        residuals[1:] / residuals[:-1], torch.full((11, 6), 0.5), rtol=1e-2, atol=0
    )
    last = steps[-1]
    distance = (last.step.state.z_high[..., 0] - x[last.problem]).square().mean(1).sqrt()
    torch.testing.assert_close(distance, last.residual, rtol=1e-2, atol=0)
    assert (distance < 0.01).all()
    growing = [it.residual.min() for it in rollout(Contraction(1.5), x, depth=5)]
    assert all(b > a for a, b in pairwise(growing))
