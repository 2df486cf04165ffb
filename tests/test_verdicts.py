"""The rules of the preregistration, on records made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from eqr.studies import verdicts
from eqr.studies.results import Results
from eqr.studies.rows import STUDIES
from eqr.studies.rows_shift import FAMILIES

PROBLEMS, SEEDS = 200, range(4)
FAMILY = next(f for f in FAMILIES if f.name == "difficulty, hard → easy")
ROW = "minimal-eqr"


def made(levels: dict[str, dict], seeds=SEEDS, row=ROW) -> Results:
    """Records in which each level has the accuracies asked for: base, deep, wide, cover."""
    bits, shapes, rows = {}, {}, []

    def put(key, value):
        shapes[key], bits[key] = list(value.shape), np.packbits(value)

    for name, want in levels.items():
        for seed in seeds:
            rng = np.random.default_rng((seed, len(name)))
            wobble = 0.005 * (seed - 1.5)

            def right(share, wobble=wobble):
                return np.arange(PROBLEMS) < round((share + wobble) * PROBLEMS)

            key = f"{row}/{seed}/{name}"
            deep = np.stack([right(want[k]) for k in ("base", "base", "deep", "deep")])
            put(f"{key}.deep", deep[:, :, None])
            covered = right(want["cover"])
            wide = np.repeat(right(want["base"])[None, :, None], 2, 0).repeat(8, 2)
            wide[:, :, 3] = covered
            put(f"{key}.wide", wide)
            put(
                f"{key}.wide/converged",
                np.repeat(right(want["wide"])[None, None], 2, 0).repeat(2, 1),
            )
            noise = rng.random((PROBLEMS, 8)) * 0.1
            residual = np.where(wide[-1], 0.1, want.get("wrong", 0.3)) + noise
            bits[f"{key}.wide/residual"] = residual.astype(np.float16)
            settled = np.where(deep[-1], 0.1, want.get("failed", 0.3)) + noise[:, 0]
            bits[f"{key}.deep/residual"] = settled[:, None].astype(np.float16)
            rows += [
                {"row": row, "seed": seed, "evaluation": f"{name}.{k}"} for k in ("deep", "wide")
            ]
    kind = {"depths": [8, 16, 64, 128], "breadths": [1], "select": ["average"]}
    wide = {"depths": [8, 16], "breadths": [1, 8],
            "select": ["average", "converged", "majority", "oracle"]}  # fmt: skip
    evaluations = {f"{n}.{k}": v for n in levels for k, v in (("deep", kind), ("wide", wide))}
    meta = {"evaluations": evaluations, "shapes": shapes, "missing": []}
    return Results(STUDIES["shift"], pd.DataFrame(rows), pd.DataFrame(), bits, meta)


HOME = {"base": 0.6, "deep": 0.7, "wide": 0.8, "cover": 0.9}


def test_gains_and_rates_of_repair_are_those_of_the_registration():
    found = verdicts.asked(made({"minimal": HOME}), ROW, 1, "minimal")
    assert found.room == pytest.approx(0.4, abs=0.01)
    assert found.gain("depth") == pytest.approx(0.1) and found.gain("breadth") == pytest.approx(0.2)
    assert found.repair("breadth") == pytest.approx(0.5, abs=0.02)
    assert found.coverage == pytest.approx(0.9, abs=0.01) and found.signal == 1.0


@pytest.mark.parametrize(
    ("far", "depth", "breadth", "word"),
    [
        ({"base": 0.4, "deep": 0.6, "wide": 0.42, "cover": 0.5}, "holds", "collapses", "supported"),
        ({"base": 0.4, "deep": 0.6, "wide": 0.7, "cover": 0.8}, "holds", "holds", "contradicted"),
        ({"base": 0.4, "deep": 0.41, "wide": 0.42, "cover": 0.5}, "collapses", "collapses",
         "contradicted"),
        ({"base": 0.97, "deep": 0.98, "wide": 0.98, "cover": 0.98}, "no room", "no room",
         "not testable"),
    ],
)  # fmt: skip
def test_verdicts_follow_the_rules(far, depth, breadth, word):
    results = made({"minimal": HOME, "easier": far})
    assert verdicts.axis_verdict(results, ROW, "easier", "depth") == depth
    assert verdicts.axis_verdict(results, ROW, "easier", "breadth") == breadth
    assert verdicts.first_hypothesis(results, ROW, FAMILY) == word
    table = verdicts.verdict_table(results, ROW)
    assert table.family.tolist() == [FAMILY.name] and table.H1.item() == word


def test_without_a_gain_at_home_nothing_is_tested():
    results = made({"minimal": HOME | {"wide": 0.6}, "easier": HOME})
    assert verdicts.axis_verdict(results, ROW, "easier", "breadth") == "no gain"
    assert verdicts.first_hypothesis(results, ROW, FAMILY) == "not testable"


def test_two_thirds_of_the_testable_families_decide():
    assert verdicts.overall(["supported"] * 2 + ["contradicted"]) == "supported"
    assert verdicts.overall(["supported", "contradicted"]) == "neither"
    assert verdicts.overall(["contradicted"] * 4 + ["undecided"] * 2) == "contradicted"
    assert verdicts.overall(["not testable"] * 3) == "not testable"


def test_grace_is_the_largest_step():
    assert verdicts.grace(made({"minimal": HOME, "easier": HOME | {"deep": 0.5}}), ROW, FAMILY)[
        1
    ] == ("graceful")
    loss, word = verdicts.grace(
        made({"minimal": HOME, "easier": HOME | {"deep": 0.1}}), ROW, FAMILY
    )
    assert word == "catastrophic" and loss.mean == pytest.approx(6 / 7, abs=0.02)


def test_a_fall_is_laid_to_coverage_or_to_selection():
    def part(**far):
        results = made({"minimal": HOME, "easier": HOME | far})
        share, word = verdicts.loss_of_breadth(results, ROW, "easier")
        return share.mean, word

    share, word = part(cover=0.45, wide=0.4, base=0.4)
    assert word == "coverage" and share == pytest.approx(1.0, abs=0.02)
    share, word = part(cover=0.88, wide=0.4, base=0.4)
    assert word == "selection" and 0 < share < 0.5
    assert part(cover=-0.1, wide=-0.1, base=-0.1)[1] == "all lost"
    assert part()[1] == "–", "breadth holds: nothing to explain"


def test_one_seed_decides_nothing():
    results = made({"minimal": HOME, "easier": HOME}, seeds=range(1))
    assert verdicts.axis_verdict(results, ROW, "easier", "breadth") == "too few seeds"
    assert verdicts.first_hypothesis(results, ROW, FAMILY) == "too few seeds"
    assert verdicts.overall(["too few seeds"]) == "not testable"


def test_answers_to_a_puzzle_without_a_solution_are_wrong():
    results = made({"minimal": HOME, "unsolvable": HOME})
    wrong, given, _ = verdicts.abstention(results, ROW, "unsolvable")
    assert wrong.mean == 1.0 and given.mean > 0.5


def test_where_several_answers_are_valid_the_rules_judge():
    results = made({"minimal": HOME, "several-1": HOME | {"wide": -0.1}})
    assert verdicts.abstention(results, ROW, "several-1")[0].mean == 1.0
    for seed in SEEDS:
        key = f"{ROW}/{seed}/several-1.wide/checked"
        results.bits[key] = np.packbits(np.ones((2, PROBLEMS, 8), bool))
        results.meta["shapes"][key] = [2, PROBLEMS, 8]
    assert verdicts.abstention(results, ROW, "several-1")[0].mean == 0.0


def test_signal_settling_and_retention_have_their_words():
    far = HOME | {"wrong": 0.1, "failed": 0.05}
    results = made({"minimal": HOME, "easier": far})
    assert verdicts.signal_verdict(results, ROW, "minimal")[1] == "stays"
    assert verdicts.signal_verdict(results, ROW, "easier")[1] == "is lost"
    assert verdicts.settling(results, ROW, "minimal")[1] == "wander"
    assert verdicts.settling(results, ROW, "easier")[1] == "settle"


def test_retention_compares_what_two_models_keep():
    ours = made({"minimal": HOME, "easier": HOME | {"deep": 0.6}})
    other = made({"minimal": HOME, "easier": HOME | {"deep": 0.2}}, row="minimal-trm")
    both = Results(
        ours.study,
        pd.concat([ours.rows, other.rows]),
        ours.curves,
        ours.bits | other.bits,
        ours.meta | {"shapes": ours.meta["shapes"] | other.meta["shapes"]},
    )
    found, word = verdicts.retention(both, ROW, "minimal-trm", "easier")
    assert word == "above" and found.mean == pytest.approx(4 / 7, abs=0.02)
    assert verdicts.retention(both, "minimal-trm", ROW, "easier")[1] == "below"


def test_the_threshold_is_fixed_at_home_and_judged_elsewhere():
    results = made({"minimal": HOME, "easier": HOME | {"wide": 0.1, "cover": 0.1, "base": 0.1}})
    home = verdicts.asked(results, ROW, 0, "minimal")
    half = PROBLEMS // 2
    answered = home.answer_residual[:half] <= verdicts.threshold(home)
    assert (~home.chosen[:half][answered]).mean() <= verdicts.ERRORS and answered.mean() > 0.5
    wrong, given, word = verdicts.abstention(results, ROW, "easier")
    assert given.mean < 0.2 and word == "few" and wrong.mean < 0.1


def test_a_curve_begins_with_the_training_problems():
    found = verdicts.curve(made({"minimal": HOME, "easier": HOME}), ROW, FAMILY)
    assert found.level.tolist() == ["minimal", "easier"] and found.title[0] == "trained"
    assert found.deep[0] == pytest.approx(0.7, abs=0.01) and (found.deep_low < found.deep).all()
