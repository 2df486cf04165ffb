"""Selection rules, intervals and the table, against hand-made outcomes and other computations."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from eqr import evaluate, select
from eqr.config import EvalConfig
from eqr.evaluate import measures, records
from eqr.experiments import table
from eqr.model import State, Step
from eqr.rollout import NEVER, rollout
from eqr.select import RULES, SELECTIONS, Outcomes, selected
from eqr.settings import ConfigError
from eqr.stats import wilson

# Two problems, four restarts. Problem 0: restarts 1 and 3 agree and are wrong, 2 is right.
HAND = Outcomes(
    residual=np.array([[0.4, 0.3, 0.1, 0.2], [0.2, 0.1, 0.3, 0.4]]),
    logit_change=np.array([[4.0, 1.0, 2.0, 3.0], [3.0, 4.0, 2.0, 1.0]]),
    answer=np.array([[7, 8, 9, 8], [5, 6, 5, 6]]),
    margin=np.array([[4.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]]),
    halt=np.array([[0.0, 2.0, 1.0, -1.0], [-3.0, -1.0, -2.0, -4.0]]),
    halted_at=np.array([[NEVER, 3, 5, 3], [NEVER] * 4]),
    exact=np.array([[False, False, True, False], [True, False, True, False]]),
    token=np.array([[0.5, 0.75, 1.0, 0.75], [1.0, 0.25, 1.0, 0.25]]),
)
CHOICES = {
    "converged": [2, 1],
    "logits": [1, 3],
    "majority": [3, 1],  # of equal answers and equal counts: the smaller residual
    "margin": [0, 3],
    "halt": [1, 1],
    "first_to_halt": [3, 1],  # both at 3: the smaller residual; none: the smallest residual
}


def random_outcomes(seed: int, problems: int = 60, breadth: int = 7) -> Outcomes:
    draw = np.random.default_rng(seed)
    answer = draw.integers(0, 4, (problems, breadth))
    exact = answer == 0
    return Outcomes(
        residual=draw.random(answer.shape),
        logit_change=draw.random(answer.shape),
        answer=answer * 977 - 500,
        margin=draw.random(answer.shape),
        halt=draw.normal(size=answer.shape),
        halted_at=np.where(
            draw.random(answer.shape) < 0.3, NEVER, draw.integers(1, 5, answer.shape)
        ),
        exact=exact,
        token=np.where(exact, 1.0, draw.integers(0, 16, answer.shape) / 16),
    )


def reordered(outcomes: Outcomes, order: np.ndarray) -> Outcomes:
    return Outcomes(*(getattr(outcomes, f.name)[:, order] for f in fields(Outcomes)))


def test_every_rule_chooses_as_worked_out_by_hand():
    assert RULES.keys() == CHOICES.keys()
    for name, wanted in CHOICES.items():
        assert RULES[name](HAND).tolist() == wanted, name
        exact, token, residual = selected(HAND, name)
        rows = np.arange(2)
        assert exact.tolist() == HAND.exact[rows, wanted].tolist()
        assert token.tolist() == HAND.token[rows, wanted].tolist()
        assert residual.tolist() == HAND.residual[rows, wanted].tolist()
    assert selected(HAND, "oracle")[0].tolist() == [True, True]
    assert selected(HAND, "average")[0].tolist() == [0.25, 0.5]
    assert selected(HAND, "average")[1].tolist() == [0.75, 0.625]


@pytest.mark.parametrize("seed", range(3))
def test_no_rule_beats_the_oracle_and_none_looks_at_the_label(seed):
    outcomes = random_outcomes(seed)
    oracle = selected(outcomes, "oracle")[0]
    assert (oracle == outcomes.exact.any(1)).all()
    blind = replace(outcomes, exact=~outcomes.exact, token=1 - outcomes.token)
    for name in SELECTIONS:
        exact = selected(outcomes, name)[0]
        assert (oracle >= exact).all() and (exact >= 0).all()
        if name in RULES:
            assert (RULES[name](blind) == RULES[name](outcomes)).all()
        one = selected(outcomes.first(1), name)[0]
        assert (one == outcomes.exact[:, 0]).all(), "with one restart there is no choice"


@pytest.mark.parametrize("seed", range(3))
def test_choices_do_not_depend_on_the_order_of_restarts_or_the_names_of_answers(seed):
    outcomes = random_outcomes(seed)
    order = np.random.default_rng(seed).permutation(7)
    for name in ("average", "converged", "majority", "margin", "halt", "first_to_halt"):
        for one, other in zip(
            selected(outcomes, name), selected(reordered(outcomes, order), name), strict=True
        ):
            np.testing.assert_allclose(one, other)
    renamed = replace(outcomes, answer=outcomes.answer * -3 + 11)
    assert (select.majority(renamed) == select.majority(outcomes)).all()
    for row, chosen in enumerate(select.majority(outcomes)):
        answers, counts = np.unique(outcomes.answer[row], return_counts=True)
        assert counts[answers == outcomes.answer[row, chosen]] == counts.max()


CONFIG = EvalConfig(depths=(1, 2, 5), breadth=3, noise=0.02, window=2, seed=4, problems=10)


@pytest.fixture(scope="module")
def results(model, problems) -> evaluate.Records:
    return records(model, problems.test.inputs, problems.test.labels, CONFIG)


def test_records_are_what_the_rollouts_show(results, model, problems):
    """Recomputed from a rollout kept whole: window, first halt, margin, accuracy."""
    labels = problems.test.labels
    steps = list(rollout(model, problems.test.inputs[:10], depth=5, breadth=3, noise=0.02, seed=4))
    changes = np.stack([it.residual.numpy() for it in steps]).reshape(5, 10, 3)
    logits = np.stack([it.step.logits.numpy() for it in steps]).reshape(5, 10, 3, 16, 6)
    halts = np.stack([it.step.halt.numpy() for it in steps]).reshape(5, 10, 3)
    assert results.depths.tolist() == [1, 2, 5]
    for k, depth in enumerate(results.depths):
        window = changes[max(0, depth - 2) : depth].mean(0)
        np.testing.assert_allclose(results.residual[k], window, rtol=1e-5)
        answers = logits[depth - 1].argmax(-1)
        right = answers == labels[:10, None]
        assert (results.exact[k] == right.all(-1)).all()
        np.testing.assert_allclose(results.token[k], right.mean(-1))
        best = np.sort(logits[depth - 1], -1)
        np.testing.assert_allclose(
            results.margin[k], (best[..., -1] - best[..., -2]).min(-1), rtol=1e-5
        )
        np.testing.assert_allclose(results.halt[k], halts[depth - 1])
        fired = halts[:depth] > 0
        first = np.where(fired.any(0), fired.argmax(0) + 1, NEVER)
        assert (results.halted_at[k] == first).all()
        same = (answers[:, :, None] == answers[:, None]).all(-1)
        assert (same == (results.answer[k][:, :, None] == results.answer[k][:, None])).all()
    assert results.exact[1].any() and not results.exact[1].all(), (
        "the model is neither blind nor perfect"
    )
    assert len(np.unique(results.answer[0, :, 0])) > 5


def test_rows_in_flight_do_not_change_records_and_smaller_breadths_are_nested(
    results, model, problems
):
    test, calls = problems.test, []
    parts = records(
        model, test.inputs, test.labels, CONFIG, rows=7, progress=lambda *done: calls.append(done)
    )
    np.testing.assert_allclose(parts.residual, results.residual, atol=1e-4)
    assert (parts.answer == results.answer).mean() > 0.98, "rounding may flip a close token"
    assert calls[-1] == (150, 150) and [d for d, _ in calls] == sorted(d for d, _ in calls)
    narrow = records(model, test.inputs, test.labels, replace(CONFIG, breadth=1))
    np.testing.assert_allclose(narrow.residual[..., 0], results.residual[..., 0], atol=1e-4)
    assert (narrow.exact[..., 0] == results.exact[..., 0]).mean() > 0.9


@pytest.mark.parametrize("rows", [4, 7, 29, 30, 31, 256])
def test_padding_never_counts(rows, model, problems, monkeypatch):
    """With any rows in flight the P × B trajectories asked for are recorded once each and no others
    (the official code counts the rows that fill up its last batch, and as right)."""
    seen = np.zeros((10, 3), int)

    def counted(it, truth):
        if it.depth == 5:
            np.add.at(seen, (it.problem, it.restart), 1)
        values = measures(it, truth)
        # Right or wrong by the problem alone: rounding may flip a close token.
        values["exact"] = torch.from_numpy(it.problem % 3 == 0)
        assert {len(value) for value in values.values()} == {len(it.problem)}
        return values

    monkeypatch.setattr(evaluate, "measures", counted)
    made = records(model, problems.test.inputs, problems.test.labels, CONFIG, rows=rows)
    assert (seen == 1).all() and made.exact.shape == (3, 10, 3)
    actual = table(made, CONFIG, (1, 3), ("average", "logits", "majority", "oracle"), layers=6)
    assert set(actual.n) == {10} and actual.exact.tolist() == pytest.approx([0.4] * len(actual))


def test_table_has_its_columns_and_forms_every_number_from_the_records(results):
    select = ("average", "majority", "oracle")
    actual = table(results, replace(CONFIG, noise=0.02), (1, 3), select, layers=6)
    columns = "depth breadth select noise symmetry n exact low high token residual nfe layers"
    assert list(actual.columns) == columns.split()
    assert len(actual) == 3 * 2 * 3
    for row in actual.itertuples():
        exact, token, residual = selected(results.at(row.depth).first(row.breadth), row.select)
        assert (row.exact, row.token) == pytest.approx((exact.mean(), token.mean()))
        assert row.residual == pytest.approx(residual.mean()) and row.n == 10 and row.noise == 0.02
        assert (row.low, row.high) == pytest.approx(wilson(exact.sum(), 10))
        assert row.low <= row.exact <= row.high
        assert (row.nfe, row.layers) == (row.depth * row.breadth, 6 * row.depth * row.breadth)
    oracle = actual[actual["select"] == "oracle"].set_index(["depth", "breadth"]).exact
    assert all(oracle[d, 3] >= oracle[d, 1] for d in (1, 2, 5)), "pass@B grows with B"


def test_what_was_not_run_is_refused_with_what_was(results):
    ask = {"breadths": (1,), "select": ("average",), "layers": 6, "config": CONFIG}
    with pytest.raises(ConfigError, match=r"'majorty'.*did you mean 'majority'"):
        table(results, **ask | {"select": ("majorty",)})
    for breadth in (0, 4):
        with pytest.raises(ConfigError, match=f"breadth {breadth} was not run; at most 3"):
            table(results, **ask | {"breadths": (breadth,)})
    with pytest.raises(ConfigError, match=r"depth 3 was not recorded; recorded: \[1, 2, 5\]"):
        results.at(3)


def test_a_restart_that_is_not_a_number_is_never_taken(model, monkeypatch, problems):
    """All but its answer is NaN: a rule would take it for the smallest residual."""
    step = model.step

    def spoiled(state, x, **settings):
        made = step(state, x, **settings)
        high = made.state.z_high.clone()
        high[::2] = torch.nan  # every first of two restarts
        logits, halt = model.read_logits(high), model.halt_head(high[:, 0]).squeeze(-1)
        return Step(State(high, made.state.z_low), logits, halt)

    monkeypatch.setattr(model, "step", spoiled)
    test = problems.test
    both = evaluate.records(model, test.inputs, test.labels, EvalConfig((1,), breadth=2))
    for name in ("converged", "logits", "margin", "halt"):
        assert (RULES[name](both.at(1)) == 1).all(), name
