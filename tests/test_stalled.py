"""The ratio tells a memoryless process from one that ages; a turned state reads the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eqr.analysis.stalled import follow, hidden_directions, memory_ratio, re_roll, turned
from eqr.config import ModelConfig
from eqr.model import Reasoner
from eqr.rollout import NEVER, rollout
from eqr.streams import stream


def simulated(ageing: float, puzzles: int = 4000, copies: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Copies of puzzles of very different difficulty; late chances are ``ageing`` times early."""
    rng = np.random.default_rng(0)
    chance = rng.beta(0.5, 2.0, puzzles)
    early = rng.binomial(copies, chance)
    return early, rng.binomial(copies - early, ageing * chance)


@pytest.mark.parametrize("ageing", [1.0, 0.5, 0.0])
def test_the_ratio_is_that_of_the_chances_whatever_the_puzzles_are(ageing):
    ratio = memory_ratio(*simulated(ageing, 40_000), copies=8)
    assert ratio.mean == pytest.approx(ageing, abs=0.03) and ratio.high - ratio.low < 0.05
    assert np.isnan(memory_ratio(np.zeros(5), np.zeros(5), 8).mean), "nobody succeeded: no ratio"


def test_the_interval_covers_the_truth():
    """Sixty puzzles, as few as a cell may have."""
    early, late = simulated(0.7)
    hits = 0
    for k in range(60):
        part = slice(60 * k, 60 * k + 60)
        ratio = memory_ratio(early[part], late[part], 8)
        hits += ratio.low <= 0.7 <= ratio.high
    assert hits >= 52


@pytest.fixture(scope="module")
def model() -> Reasoner:
    config = ModelConfig(hidden=16, blocks=1, high_cycles=1, low_cycles=1, width_multiple=8)
    return Reasoner(config, 2, 2, 5, stream(0, "init"))


def test_a_turned_state_reads_the_same_and_is_another(model):
    state = model.initial_state(6, [stream(1, "start", k) for k in range(6)])
    other = turned(state, hidden_directions(model), stream(2, "turn"))
    torch.testing.assert_close(
        model.read_logits(other.z_high), model.read_logits(state.z_high), atol=1e-5, rtol=1e-5
    )
    for one, two in ((state.z_high, other.z_high), (state.z_low, other.z_low)):
        torch.testing.assert_close(one.norm(dim=-1), two.norm(dim=-1), atol=1e-4, rtol=1e-4)
        assert 0.01 < ((one - two).norm() / one.norm()) < 0.1


def test_only_unsolved_puzzles_are_re_rolled(model):
    x = torch.ones(5, 4, dtype=torch.long)
    state = model.initial_state(5, [stream(0, "evaluation", p, 0) for p in range(5)])
    for _ in range(3):
        step = model.step(state, x, noise=0.0)
        state = step.state
    labels = step.answer.clone()
    labels[2:] = 0  # token 0 pads and is hardly ever the answer of all four cells
    rolls = re_roll(model, x, labels, depth=3, extra=4, copies=3)
    assert len(rolls.early) == 3 and (rolls.early + rolls.late <= 3).all()
    assert not rolls.stalled.any(), "three iterations are too few to be stalled"


def test_what_became_of_a_trajectory_is_what_its_iterations_show(model):
    """Three hundred problems, which a rollout takes in two chunks."""
    x = torch.randint(1, 4, (300, 4), generator=stream(0, "problems"))
    answers, residuals = torch.zeros(12, 300, 4, dtype=torch.long), torch.zeros(12, 300)
    for it in rollout(model, x, depth=12):
        answers[it.depth - 1, it.problem], residuals[it.depth - 1, it.problem] = (
            it.answer,
            it.recent,
        )
    labels = answers[3].clone()
    labels[::2] = 0
    seen = follow(model, x, labels, (4, 12))
    right = (answers == labels).all(-1).numpy()
    first = np.where(right.any(0), right.argmax(0) + 1, NEVER)
    assert (seen.first_solved == first).all() and (seen.first_solved[1::2] <= 4).all()
    changed = (answers[1:] != answers[:-1]).any(-1).numpy()
    last = np.where(changed.any(0), 12 - changed[::-1].argmax(0), 0)
    assert (seen.last_changed == last).all() and (seen.solved == right[-1]).all()
    assert seen.residual == pytest.approx(residuals[[3, 11]].numpy())


def test_resamples_without_an_early_success_have_no_ratio():
    early, late = np.zeros(80, int), np.zeros(80, int)
    early[:3], late[1:4] = 2, 1
    ratio = memory_ratio(early, late, 8)
    assert ratio.mean == pytest.approx(3 / (3 * 6 * 2 / 7)) and ratio.low < ratio.mean < ratio.high
    early[1:3] = late[1:3] = 0
    assert np.isfinite(memory_ratio(early, late, 8).low), "63 of 100 resamples have the one"
