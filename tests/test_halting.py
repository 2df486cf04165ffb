"""The queue runs the trajectories of a rollout, each cut where its rule says, and wastes no row."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch

from eqr import experiments
from eqr.checkpoint import load_model
from eqr.config import EvalConfig
from eqr.evaluate import records
from eqr.halting import Halting, adaptive, halting_records, parse_rule
from eqr.model import Step
from eqr.rollout import NEVER, rollout
from eqr.select import RULES as SELECT, Outcomes
from eqr.settings import ConfigError
from eqr.store import Store

DEPTH, BREADTH = 16, 3
NOISES = [0.0, 0.02]
HALTING = [
    "head:3.7,patience=2",
    "residual:0.1",
    "residual:0.05,patience=3",
    "residual:0.3,min_depth=3",
    "stable:4",
    "fixed",
]


@pytest.fixture(scope="module")
def inputs(problems) -> torch.Tensor:
    return torch.as_tensor(problems.test.inputs[:8])


@pytest.fixture(scope="module")
def traces(model, inputs) -> dict[float, list]:
    """Noise -> the iterations of a plain rollout, all rows in one chunk."""
    settings = {"depth": DEPTH, "breadth": BREADTH, "seed": 3}
    return {noise: list(rollout(model, inputs, noise=noise, **settings)) for noise in NOISES}


def collect(model, inputs, **settings) -> dict[tuple[int, int], dict]:
    """(problem, restart) -> what the queue reports about it."""
    settings = {"depth": DEPTH, "breadth": BREADTH, "seed": 3} | settings
    actual = {}
    for done in adaptive(model, inputs, **settings):
        for k, pair in enumerate(zip(done.problem.tolist(), done.restart.tolist(), strict=True)):
            assert pair not in actual, "a pair finished twice"
            actual[pair] = {
                "depth": int(done.depth[k]),
                "settled": bool(done.halted_at[k] == done.depth[k]),
                "answer": done.answer[k].tolist(),
                "numbers": [v[k].item() for v in (done.recent, done.step.margin, done.step.halt)],
                "latents": done.step.state.flat()[k].numpy(),
            }
    return actual


def agree(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for pair, seen in one.items():
        for name in ("depth", "settled", "answer"):
            assert seen[name] == other[pair][name], (pair, name)
        for name in ("numbers", "latents"):
            np.testing.assert_allclose(seen[name], other[pair][name], atol=1e-3, err_msg=str(pair))


def expected(trace: list, rule: Halting) -> dict[tuple[int, int], dict]:
    """The same from a plain rollout and the wording of the rules, row by row."""
    actual = {}
    for row, pair in enumerate(zip(trace[0].problem, trace[0].restart, strict=True)):
        answers = [it.step.answer[row].tolist() for it in trace]
        residuals = [it.residual[row].item() for it in trace]
        halts = [it.step.halt[row].item() for it in trace]
        good = {
            "head": [h > rule.threshold for h in halts],
            "residual": [r < rule.tolerance for r in residuals],
            "stable": [d > 0 and answers[d] == answers[d - 1] for d in range(DEPTH)],
            "fixed": [False] * DEPTH,
        }[rule.kind]
        ends = (
            d
            for d in range(max(rule.patience, rule.min_depth), DEPTH + 1)
            if all(good[d - rule.patience : d])
        )
        end = next(ends, None)
        depth = end or DEPTH
        step = trace[depth - 1].step
        best = step.logits[row].sort(-1, descending=True).values
        actual[tuple(map(int, pair))] = {
            "depth": depth,
            "settled": end is not None,
            "answer": answers[depth - 1],
            "numbers": [
                np.mean(residuals[max(0, depth - 3) : depth]),
                (best[:, 0] - best[:, 1]).min().item(),
                halts[depth - 1],
            ],
            "latents": step.state.flat()[row].numpy(),
        }
    return actual


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("text", HALTING)
def test_rows_are_those_of_a_rollout_cut_where_the_rule_says(model, inputs, traces, text, noise):
    rule = parse_rule(text)
    wanted = expected(traces[noise], rule)
    for rows in (1, 7, 1000):  # in flight
        agree(wanted, collect(model, inputs, halting=rule, noise=noise, rows=rows))
    depths = {seen["depth"] for seen in wanted.values()}
    assert (len(depths) > 1) == (text != "fixed"), "the case tests something"


class Counted:
    """A model that notes the rows of each step."""

    def __init__(self, model) -> None:
        self.model, self.rows = model, []
        self.device, self.initial_state = model.device, model.initial_state
        self.read_logits = model.read_logits

    def step(self, state, x, **settings) -> Step:
        self.rows.append(len(x))
        return self.model.step(state, x, **settings)


@pytest.mark.parametrize("first_settled", [None, 0.4])
def test_the_batch_is_full_until_pairs_run_out_and_no_step_is_wasted(model, inputs, first_settled):
    counted = Counted(model)
    settings = {"halting": parse_rule("residual:0.1"), "first_settled": first_settled}
    actual = collect(counted, inputs, rows=6, **settings)
    assert sum(counted.rows) == sum(seen["depth"] for seen in actual.values())
    assert max(counted.rows) == 6
    tail = [r for r in counted.rows if r < 6]
    assert counted.rows == [6] * (len(counted.rows) - len(tail)) + sorted(tail, reverse=True)
    assert counted.rows[-1] > 0


def test_no_row_passes_the_limit_and_no_problems_give_no_rows(model, inputs):
    for rule in map(parse_rule, HALTING):
        actual = collect(model, inputs, halting=rule, depth=3, rows=4)
        assert len(actual) == len(inputs) * BREADTH
        assert max(seen["depth"] for seen in actual.values()) <= 3
        assert all(seen["settled"] or seen["depth"] == 3 for seen in actual.values())
    assert list(adaptive(model, inputs[:0], depth=3, halting=rule)) == []
    with pytest.raises(ValueError, match="must be at least 1"):
        collect(model, inputs, halting=rule, rows=0)


@pytest.mark.parametrize("noise", NOISES)
def test_first_settled_runs_restarts_up_to_the_first_confident_one_and_no_more(
    model, inputs, noise
):
    settings = {"halting": parse_rule("residual:0.1"), "noise": noise, "breadth": 5}
    whole = collect(model, inputs, **settings)
    tolerance = float(np.median([seen["numbers"][0] for seen in whole.values()]))
    needed = {}
    for problem in range(len(inputs)):
        for restart in range(5):
            seen = needed[problem, restart] = whole[problem, restart]
            if seen["settled"] and seen["numbers"][0] < tolerance:
                break
    counts = Counter(problem for problem, _ in needed)
    assert len(set(counts.values())) > 1, "the case tests something"
    for rows in (1, 4, 1000):
        agree(needed, collect(model, inputs, rows=rows, first_settled=tolerance, **settings))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("head", Halting("head")),
        ("head:-1.5", Halting("head", threshold=-1.5)),
        ("residual:tolerance=0.5,patience=2,min_depth=4",
         Halting("residual", tolerance=0.5, patience=2, min_depth=4)),
        (" stable", Halting("stable", patience=8)),
        ("fixed", Halting("fixed")),
    ],
)  # fmt: skip
def test_a_rule_is_read_from_text_and_written_back(text, rule):
    assert parse_rule(text) == rule == parse_rule(str(rule))
    assert str(parse_rule(str(rule))) == str(rule)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("residul:1e-3", "halting rule 'residul' is not known; did you mean 'residual'"),
        ("", "halting rule '' is not known; known: head, residual, stable, fixed"),
        ("residual:1e-3,patient=2", "halting.patient is not a known setting; did you mean"),
        ("residual:small", "halting.tolerance = 'small' must be a valid number"),
        ("residual:nan", "tolerance = nan… holds nan where a number belongs"),
        ("residual:1e-3,2", "'2' must look like name=value"),
        ("residual:1e-3,tolerance=1e-4", "gives a setting twice"),
        ("residual:0", "halting.tolerance = 0 must be greater than 0"),
        ("stable:2.5", "halting.patience = 2.5 must be a valid integer"),
        ("head:0,min_depth=0", "halting.min_depth = 0 must be greater than or equal to 1"),
        ("fixed:8", "fixed has no settings"),
    ],
)
def test_a_bad_rule_is_refused_with_the_remedy(text, said):
    with pytest.raises(ConfigError) as error:
        parse_rule(text)
    assert said in str(error.value)


def test_a_rule_sees_three_numbers_of_a_row_and_no_label(model, problems):
    seen = list(inspect.signature(Halting.settles).parameters)
    assert seen == ["self", "halt", "residual", "unchanged"]
    config = EvalConfig((8,), problems=8)
    inputs, labels = problems.test.inputs, problems.test.labels
    runs = [
        halting_records(model, inputs, y, config, Halting("stable", patience=2))
        for y in (labels, np.roll(labels, 1, 0))
    ]
    np.testing.assert_array_equal(runs[0].depth, runs[1].depth)
    assert runs[0].exact.sum() > runs[1].exact.sum()


def test_the_fixed_rule_gives_the_records_of_a_rollout(model, problems):
    config = EvalConfig((2, 6), breadth=2, noise=0.02, problems=10)
    test = problems.test
    run = halting_records(model, test.inputs, test.labels, config, Halting("fixed"), rows=7)
    plain = records(model, test.inputs, test.labels, config).at(6)
    for f in fields(Outcomes):
        if f.name != "halted_at":
            one, other = getattr(run, f.name), getattr(plain, f.name)
            np.testing.assert_allclose(one, other, atol=1e-3, err_msg=f.name)
    assert (run.depth == 6).all() and (run.nfe == 12).all()
    assert (run.halted_at == NEVER).all() and min(run.seconds, run.cpu_seconds) > 0


def test_rules_save_compute_and_keep_the_accuracy(model, problems):
    test, config = problems.test, EvalConfig((64,))
    results = {
        text: halting_records(model, test.inputs, test.labels, config, parse_rule(text))
        for text in ("residual:0.001", "stable:6", "fixed")
    }
    table = experiments.halting_table(results, config, ["average"]).set_index("halting")
    fixed = table.loc["fixed"]
    assert fixed.nfe == 64 and fixed.saving == 1 and fixed.exact > 0.2 and fixed.n == len(test)
    assert (table.nfe <= 64).all() and (table.low <= table.exact).all()
    assert (table.exact <= table.high).all()
    assert table.loc["residual:0.001"].saving > 4
    assert table.loc["residual:0.001"].exact >= fixed.exact - 0.02


def test_restarts_that_never_started_are_never_chosen(model, problems):
    test, config = problems.test, EvalConfig((16,), breadth=6)
    rule = parse_rule("residual:0.1")
    run = halting_records(model, test.inputs, test.labels, config, rule, first_settled=0.4)
    ran = run.depth > 0
    assert (~ran).sum() > 0 and ran[:, 0].all()
    assert (np.diff(ran.astype(int), axis=1) <= 0).all(), "restarts start in order"
    row = np.arange(len(ran))
    for name, choose in SELECT.items():
        assert ran[row, choose(run)].all(), name
    table = experiments.halting_table({"r": run}, config, ["average", "oracle"])
    average, oracle = table.exact
    assert average == pytest.approx((run.exact.sum(1) / ran.sum(1)).mean())
    assert oracle == pytest.approx(run.exact.any(1).mean())
    with pytest.raises(ConfigError, match="did you mean 'majority'"):
        experiments.halting_table({"r": run}, config, ["majorty"])


def test_a_halting_run_is_stored_with_its_wall_times(learned, problems, tmp_path):
    model = experiments.Trained(None, learned.recipe, problems, load_model(learned.path))
    store, config = Store(tmp_path), EvalConfig((12,), problems=6)
    rules = ["residual:1e-1", "fixed"]
    made = experiments.halt_or_load(model, config, rules, store)
    again = experiments.halt_or_load(model, config, ["residual:0.1", "fixed"], store)
    assert again.run.id == made.run.id and list(again.rules) == ["residual:0.1", "fixed"]
    assert again.rules["fixed"].seconds == made.rules["fixed"].seconds > 0
    assert (
        experiments.halt_or_load(model, config, rules, store, first_settled=0.1).run.id
        != made.run.id
    )
    table = again.table(["average"])
    assert {"halting", "saving", "seconds", "cpu_seconds"} <= set(table.columns)
    assert table.nfe[0] < table.nfe[1] == 12


def test_the_command_compares_halting_rules(eqr, learned):
    words = ("-c", learned.path, "--depth", 12, "--problems", 8, "--select", "average")
    rows = json.loads(eqr("halt", "residual:0.1", "fixed", *words, "--json").out)
    assert [row["halting"] for row in rows] == ["residual:0.1", "fixed"]
    assert rows[0]["nfe"] < rows[1]["nfe"] == 12
    assert "did you mean 'residual'" in eqr("halt", "residul:1", *words).err
