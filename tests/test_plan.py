"""The planner finds what is best, promises no more than it gets, and says what it cannot know."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from eqr import experiments
from eqr.analysis.plan import at_budget, frontier, plan, validate
from eqr.analysis.ways import PlanError, Setting, Way, align, read_ways, stored_runs, ways_in
from eqr.config import EvalConfig, to_dict
from eqr.evaluate import Records
from eqr.experiments import table
from eqr.halting import Halted
from eqr.rollout import NEVER
from eqr.select import RULES, Outcomes
from eqr.settings import ConfigError
from eqr.store import Store


def synthetic(rng, depths=(1, 4, 16), problems=400, breadth=8, right=(0.1, 0.5, 0.7)) -> Records:
    """Restarts that are right independently; only the margin tells right from wrong."""
    shape = (len(depths), problems, breadth)
    exact = rng.random(shape) < np.reshape(right, (-1, 1, 1))
    return Records(
        depths=np.array(depths),
        residual=rng.random(shape).astype(np.float32),
        logit_change=rng.random(shape).astype(np.float32),
        answer=np.where(exact, 0, 1 + np.arange(breadth)),
        margin=(exact + 0.1 * rng.random(shape)).astype(np.float32),
        halt=rng.random(shape).astype(np.float32),
        halted_at=np.full(shape, NEVER, np.int32),
        exact=exact,
        token=exact.astype(np.float32),
    )


def coins(*means, cost=None, problems=200, rng=None) -> list[Way]:
    """One-start settings of given true accuracies; by default at rising cost."""
    rng = rng or np.random.default_rng(0)
    found = []
    for i, mean in enumerate(means):
        nfe = np.full(problems, float(i + 1 if cost is None else cost))
        exact = (rng.random(problems) < mean).astype(float)
        found.append(Way(Setting(i + 1, 1, "average"), exact, nfe, 1, 1e-3))
    return found


def by_setting(ways) -> dict[Setting, Way]:
    return {way.setting: way for way in ways}


def ways_of(records: Records, **about) -> list[Way]:
    """The ways that records of a fixed budget can answer for."""
    ways = []
    for depth in records.depths.tolist():
        ways += ways_in(records.at(depth), Setting(depth, 1, "average"), **about)
    return align(ways)[0]


@pytest.fixture
def known():
    return ways_of(synthetic(np.random.default_rng(1)), rate=1e-3, layers=6)


def test_finds_the_best_setting(known):
    found = plan(known, budget=1e6)
    assert found.best.setting == Setting(16, 8, "margin") or found.status == "tie"
    assert found.best.setting.select == "margin" and found.best.setting.depth >= 4
    assert found.expected.low <= 1 - 0.3**8 <= found.expected.high + 1e-3
    # At 16 NFE the margin among four restarts of D = 4 is right in 1 − 0.5⁴ = 94 %.
    cheap = plan(known, budget=16)
    assert cheap.best.setting == Setting(4, 4, "margin")
    costs = [cheap.best.cost(unit) for unit in ("nfe", "layers", "seconds")]
    assert costs == [16, 96, pytest.approx(0.016)]
    assert cheap.expected.low <= 0.9375 <= cheap.expected.high


def test_a_target_is_reached_at_the_least_cost(known):
    found = plan(known, target=0.85)
    assert found.best.setting == Setting(4, 3, "margin")  # 1 − 0.5³ = 0.875
    assert found.expected.mean >= 0.85
    costs = [plan(known, target=t).best.cost() for t in np.linspace(0.1, 0.97, 30)]
    assert costs == sorted(costs)


@pytest.mark.parametrize("unit", ["nfe", "layers", "seconds"])
def test_more_budget_never_promises_less_and_is_never_exceeded(known, unit):
    cost = np.array([way.cost(unit) for way in known])
    last = 0.0
    for budget in np.geomspace(cost.min(), 2 * cost.max(), 60):
        found = plan(known, budget=budget, unit=unit)
        assert found.best.cost(unit) <= budget
        assert all(other.cost(unit) <= budget for other in found.others)
        assert found.expected.mean >= last - 1e-12
        last = found.expected.mean


def test_the_frontier_rises_where_nothing_is_to_be_had():
    noise = coins(*[0.5] * 40, rng=np.random.default_rng(2))
    means = [point.expected.mean for point in frontier(noise)]
    assert np.all(np.diff(means) >= -1e-12)


@pytest.mark.parametrize("cost", [1, None], ids=["equal cost", "rising cost"])
def test_the_best_of_noise_is_not_believed(cost):
    rng, naive, fair = np.random.default_rng(3), [], []
    for _ in range(60):
        noise = coins(*[0.5] * 30, cost=cost, rng=rng)
        point = at_budget(frontier(noise), 1e9)
        fair.append(point.expected.mean)
        naive.append(point.best.recorded.mean)
    error = np.std(fair) / np.sqrt(len(fair))
    assert np.mean(naive) > 0.55
    # With rising cost the isotonic regression leaves a little at the dear end.
    assert abs(np.mean(fair) - 0.5) < 3 * error + (0 if cost else 0.015)


def test_intervals_cover_what_other_problems_give():
    rng, inside = np.random.default_rng(4), []
    for _ in range(40):
        records = synthetic(rng, depths=(2, 4), problems=160, breadth=4, right=(0.3, 0.5))
        found = validate(ways_of(records), [4, 8, 16], splits=1)
        inside += found.covered.tolist()
    assert np.mean(inside) > 0.88


def test_validation_reports_the_optimism():
    noise = coins(*[0.5] * 40, cost=1, problems=400, rng=np.random.default_rng(5))
    found = validate(noise, [0.5, 1], splits=20)
    assert (found.budget == 1).all() and len(found) == 20
    optimism = (found.recorded - found.obtained).mean()
    assert optimism > 0.05
    assert abs((found.predicted - found.obtained).mean()) < optimism / 2


def test_a_setting_at_its_full_breadth_is_what_the_table_says(known):
    records = synthetic(np.random.default_rng(1))
    for row in table(records, EvalConfig((64,), 8), [8], list(RULES), layers=6).itertuples():
        mine = by_setting(known)[Setting(row.depth, 8, row.select)]
        numbers = (mine.recorded.mean, mine.recorded.low, mine.recorded.high, mine.cost())
        assert numbers == pytest.approx((row.exact, row.low, row.high, row.nfe))
        assert mine.cost("layers") == row.layers


def test_groups_of_restarts_shrink_the_interval(known):
    way = by_setting(known)[Setting(4, 2, "margin")]
    assert way.groups == 4
    alone = replace(way, groups=1, exact=np.round(way.exact))
    grouped, single = way.recorded, alone.recorded
    assert grouped.high - grouped.low < 0.8 * (single.high - single.low)


def test_no_plan_looks_at_labels(known):
    settings = by_setting(known)
    assert {s.select for s in settings} == {"average", *RULES}
    assert all(s.select == "average" for s in settings if s.breadth == 1)


def test_a_tie_goes_to_the_cheaper():
    same = (np.random.default_rng(6).random(100) < 0.6).astype(float)
    cheap = Way(Setting(4, 1, "average"), same, np.full(100, 4.0), 1, 1e-3)
    other = np.where(np.arange(100) == np.flatnonzero(same == 0)[0], 1.0, same)  # one more right
    dear = Way(Setting(8, 1, "average"), other, np.full(100, 8.0), 1, 1e-3)
    found = plan([cheap, dear], budget=10)
    assert (found.status, found.best, found.others) == ("tie", cheap, (dear,))
    assert plan([cheap, dear], budget=5).status == "supported"


def test_others_are_what_cannot_be_told_apart_the_cheapest_first():
    found = plan(coins(0.1, *[0.5] * 8, 0.9), budget=9)
    assert [other.cost() for other in found.others] == sorted(o.cost() for o in found.others)
    assert all(o.minus(found.best).low <= 0 <= o.minus(found.best).high for o in found.others)
    assert "n = 200 problems cannot tell" in found.notes[-1]


def test_what_the_records_cannot_support(known):
    with pytest.raises(PlanError, match="below the cheapest"):
        plan(known, budget=0.5)
    low = coins(0.3, 0.4)
    with pytest.raises(PlanError, match="out of reach"):
        plan(low, target=0.9)
    reach = max(way.recorded.mean for way in low) + 0.03
    assert plan(low, target=reach).status == "uncertain"
    with pytest.raises(PlanError, match="at least one setting"):
        frontier(coins(0.5, problems=1))
    with pytest.raises(PlanError, match="recorded on 500"):
        align(coins(0.5), least=500)
    beyond = " ".join(plan(known, budget=1e6).notes)
    assert "B > 8 was not recorded" in beyond and "D > 16 was not recorded" in beyond
    assert "not recorded" not in " ".join(plan(known, budget=16).notes)
    for wrong in ({"budget": 1, "target": 0.5}, {}, {"budget": -1}, {"target": 1.5}):
        with pytest.raises(PlanError, match=r"exactly one|must"):
            plan(known, **wrong)
    with pytest.raises(ConfigError, match="did you mean 'seconds'"):
        plan(known, budget=1, unit="second")


def test_settings_are_compared_on_the_same_problems():
    short, long = coins(0.5, problems=60), coins(0.5, 0.6, problems=100)[1:]
    both, notes = align(short + long)
    assert [len(way.exact) for way in both] == [60, 60] and "60 problems they share" in notes[0]
    only, notes = align(short + long, least=100)
    assert [len(way.exact) for way in only] == [100] and "left out" in notes[0]


def halted(rng, problems=50, breadth=4) -> Halted:
    depth = rng.integers(2, 9, (problems, breadth)).astype(np.int32)
    values = {f.name: rng.random((problems, breadth)) for f in fields(Outcomes)}
    values |= {"exact": values["exact"] < 0.5, "answer": depth.astype(np.int64)}
    return Halted(**values | {"halted_at": depth}, depth=depth, seconds=2.0, cpu_seconds=2.0)


def test_halting_costs_what_it_ran():
    run = halted(np.random.default_rng(7))
    stable = Setting(64, 1, "average", halting="stable:4")
    laid = by_setting(ways_in(run, stable))
    assert laid[stable].cost() == pytest.approx(run.depth.mean())
    whole = laid[replace(stable, breadth=4, select="margin")]
    assert whole.cost() == pytest.approx(run.nfe.mean())
    assert whole.cost("seconds") == pytest.approx(2.0 / 50)  # all of the queue, by problem
    chain = by_setting(ways_in(run, replace(stable, first_settled=0.1)))
    two = chain[replace(stable, breadth=2, select="margin", first_settled=0.1)]
    assert two.groups == 1 and np.array_equal(two.nfe, run.depth[:, :2].sum(1))
    never = by_setting(ways_in(run, replace(stable, halting="fixed")))
    assert "first_to_halt" not in {s.select for s in never}


@pytest.mark.parametrize("breadth, considered", [(1, [1]), (10, [1, 2, 3, 4, 6, 8, 10])])
def test_breadths_considered(breadth, considered):
    records = synthetic(np.random.default_rng(8), problems=2, breadth=breadth)
    assert sorted({s.breadth for s in by_setting(ways_of(records))}) == considered


@pytest.fixture(scope="module")
def stored(learned, problems, tmp_path_factory):
    """A store with a training, two evaluations and a halting run of the tiny model."""
    store = Store(tmp_path_factory.mktemp("plan-store"))
    run = store.obtain(
        "train",
        {"recipe": to_dict(learned.recipe, defaults=False), "data": problems.digest},
        lambda folder: (
            (folder / "model.safetensors").write_bytes(learned.path.read_bytes()) and None
        ),
    )
    model = experiments.load_trained(run, store)
    wide = experiments.evaluate_or_load(model, EvalConfig((1, 4), 4), store)
    experiments.evaluate_or_load(model, EvalConfig((4,), 2, noise=0.02), store)
    experiments.halt_or_load(model, EvalConfig((16,), 2), ["stable:2", "fixed"], store)
    return store, model, wide


def test_reads_all_stored_records_of_the_weights(stored):
    store, model, wide = stored
    found = by_setting(read_ways(stored_runs(model.checkpoint.sha256, store), 6)[0])
    recorded_with = {(s.noise, s.halting) for s in found}
    assert recorded_with == {(0.0, "fixed"), (0.02, "fixed"), (0.0, "stable:2")}
    way = found[Setting(4, 4, "converged")]
    row = wide.table([4], ["converged"]).set_index("depth").loc[4]
    assert way.exact.mean() == row.exact and way.run == wide.run.id
    assert all(each.cost("seconds") > 0 for each in found.values())
    assert way.cost("layers") == 6 * way.cost() == 6 * row.nfe


def test_command(stored, eqr):
    store, model, _ = stored
    path = model.run.file("model.safetensors")
    words = ["plan", "-c", path, "--store", store.root]
    done = eqr(*words, "--budget-nfe", 8, "--json", "--validate")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["best"]["nfe"] <= 8 and found["validation"]["splits"] == 20
    assert eqr(*words, "--budget-seconds", 1).code == 0
    assert "measured now" in eqr(*words, "--budget-nfe", 8, "--measure").out
    text = eqr(*words, "--budget-nfe", 1000, "--depth", "2,4", "--breadth", 3).out
    ways, _ = read_ways(stored_runs(model.checkpoint.sha256, store), 1)
    assert f"expected  {plan(ways, budget=1000).expected.mean:.1%} [" in text
    for rest, said in [
        (["--budget-nfe", 0.5], "below the cheapest"),
        (["--budget-nfe", 8, "--target-accuracy", 0.5], "give one of"),
        ([], "give one of"),
        (["--budget-nfe", -3], "must be a positive number"),
        (["--target-accuracy", 98], "must lie in (0, 1]"),
        (["--budget-nfe", 8, "--breadth", 4], "name its --depth"),
        (["--budget-nfe", 8, "--depth", "a"], "whole numbers"),
        (["--budget-nfe", 8, "--problems", 10_000], "the most is"),
    ]:
        done = eqr(*words, *rest)
        assert done.code == 1 and said in done.err and done.err.count("\n") == 1, (rest, done)


def test_command_where_there_is_nothing(eqr, learned, tmp_path):
    words = ["plan", "--store", tmp_path, "--budget-nfe", 8, "-c"]
    assert "no evaluation of these weights" in eqr(*words, learned.path).err
    assert "did you mean 'headroom'" in eqr(*words, "headrom").err
    assert "run `eqr train headroom" in eqr(*words, "headroom").err
