"""The second registration: decisions on simulated studies, and the file that it names."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eqr.studies import shift_again
from eqr.studies.campaign import CAMPAIGN
from eqr.studies.cells import StudyError
from eqr.studies.results import Results, shipped
from eqr.studies.shift_again import FAMILIES, HOME, ROW, SEEDS, SHIFT_AGAIN, VALIDATION

PAGE = Path(__file__).parents[1] / "book" / "preregistration.md"


def test_the_registration_names_the_file_that_decides():
    content = Path(shift_again.__file__).read_bytes()
    assert re.findall(r"\b[0-9a-f]{64}\b", PAGE.read_text()) == [
        hashlib.sha256(content).hexdigest()
    ]


@pytest.mark.parametrize(
    ("depth", "breadth", "right"),
    [
        (1.0, 1.0, "contradicted"),  # neither loses
        (1.0, 0.5, "supported"),  # breadth loses half
        (0.5, 1.0, "contradicted"),  # depth does
        (0.5, 0.5, "contradicted"),  # both
    ],
)
def test_simulated_studies_are_decided_rightly(depth, breadth, right):
    """Twice the variances of the first study; the page gives the rates of more studies."""
    spread = shift_again.spread(shipped("shift")).times(2)
    rates = shift_again.rates(spread, (depth, breadth), 25)
    for which in ("H1, all", "H2, all"):
        assert rates.loc[which].get(right, 0) >= 0.8
        assert rates.loc[which].drop([right, "undecided"], errors="ignore").sum() <= 0.05


@pytest.mark.parametrize("kept", [(1.0, 1.0), (1.0, 0.75)])
def test_at_the_bounds_few_decisions_are_false(kept):
    rates = shift_again.rates(shift_again.spread(shipped("shift")).times(4), kept, 60)
    false = "supported" if kept == (1.0, 1.0) else "contradicted"
    assert rates.loc["H1, all"].get(false, 0) <= 0.05
    assert rates.loc["H1, a family"].get(false, 0) <= 0.05


def test_families_that_differ_decide_less_at_large():
    """Families are the sample there: their spread counts."""
    spread = shift_again.spread(shipped("shift"))
    levels = shift_again.simulated(spread, (1.0, 0.7), np.random.default_rng(0), apart=0.5)
    answer = shift_again.answers(levels, FAMILIES, shift_again.PROBLEMS)["H1"]
    widths = [answer[k].gap.high - answer[k].gap.low for k in ("all", "at large")]
    assert widths[1] > 1.5 * widths[0] and answer["all"].gap.mean == answer["at large"].gap.mean


# ------------------------------------------------------------------------------------- from records


def made(accuracy: dict[str, tuple], seeds=range(SEEDS)) -> Results:
    """Records with accuracies of base, deep, wide and (4, 16) at each level; others as HOME's."""
    bits, shapes, rows = {}, {}, []

    def put(key: str, value: np.ndarray) -> None:
        shapes[key], bits[key] = list(value.shape), np.packbits(value)

    for one in SHIFT_AGAIN.rows[0].evaluate[::2]:
        n = 512 if one.name == VALIDATION else shift_again.PROBLEMS
        base, deep, wide, equal = accuracy.get(one.name, accuracy[HOME])
        for seed in seeds:
            rng = np.random.default_rng(seed)
            right = rng.permutation(n)[None] < n * np.array([base, deep, equal, wide])[:, None]
            key = f"{ROW}/{seed}/{one.name}"
            put(key, right[:2, :, None])
            put(f"{key}.wide", np.repeat(right[None, 0, :, None], 64, 2))
            put(f"{key}.wide/margin", right[None, [0, 2, 3]])
            rows += [{"row": ROW, "seed": seed, "evaluation": one.name}]
    kinds = {
        e.name: {"depths": list(e.config.depths), "breadths": list(e.breadths), "select": e.select}
        for e in SHIFT_AGAIN.rows[0].evaluate
    }
    meta = {"evaluations": kinds, "shapes": shapes, "missing": []}
    return Results(SHIFT_AGAIN, pd.DataFrame(rows), pd.DataFrame(), bits, meta)


TRAINED = (0.2, 0.5, 0.7, 0.45)


def test_what_is_left_of_a_gain_is_its_share_of_logits():
    logit = [np.log(p / (1 - p)) for p in TRAINED]
    half = [logit[0] + k * (x - logit[0]) for k, x in zip((1, 1, 0.5, 0.5), logit, strict=True)]
    far = tuple(float(1 / (1 + np.exp(-x))) for x in half)
    names = [name for levels in FAMILIES.values() for name in levels]
    lost = made({HOME: TRAINED} | dict.fromkeys(names, far))
    table = shift_again.gains_table(lost)[1:]
    assert table["r depth"].to_numpy() == pytest.approx(1, abs=0.01)
    assert table["r breadth"].to_numpy() == pytest.approx(0.5, abs=0.01)
    answers = shift_again.verdicts(lost)
    assert {one.verdict for one in answers["H1"].values()} == {"supported"}
    assert shift_again.verdicts(made({HOME: TRAINED}))["H2"]["all"].verdict == "contradicted"


def test_what_cannot_be_asked_is_not_decided():
    flat = (0.2, 0.22, 0.7, 0.45)
    assert "an axis gains less" in shift_again.verdicts(made({HOME: TRAINED, VALIDATION: flat}))
    lost = {"symmetric": (0.005, 0.5, 0.7, 0.45), "rating-5": (0.97, 0.98, 0.99, 0.98)}
    _, families = shift_again.analysed(made({HOME: TRAINED} | lost))
    assert set(FAMILIES) - set(families) == {"symmetric"} and families["harder"] == ["rating-3"]
    with pytest.raises(StudyError, match=r"seeds \[10, 11\] of ri-ni are missing"):
        shift_again.verdicts(made({HOME: TRAINED}, range(10)))


def test_the_models_are_those_of_the_campaign():
    for seed in (0, SEEDS - 1):
        own = SHIFT_AGAIN.row(ROW).build("laptop", seed)
        assert own == CAMPAIGN.row(ROW).build("laptop", seed)
