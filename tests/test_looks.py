"""Looks at shipped models, and what breadth a planner proposes to whom."""

from __future__ import annotations

import numpy as np
import pytest

from eqr.analysis.plan import proposed
from eqr.store import Store
from eqr.studies import looks, run as study_run
from eqr.studies.cells import Cell, CellFile, StudyError
from eqr.studies.results import Pick, shipped


def test_a_look_is_made_from_the_weights_once_and_is_sealed(tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "DEPTH", 12)
    monkeypatch.setattr(looks, "FOLLOWED", 4)
    monkeypatch.setattr(looks, "EXPONENTS", 2)
    monkeypatch.setattr(looks, "compiled_copy", lambda model: model)
    store = Store(tmp_path / "store")
    for row in ("act", "feedforward"):
        cell = Cell("construction", "smoke", row, 0)
        study_run.work(cell, store.root, tmp_path, weights=True)
    (cell,) = looks.missing("construction", tmp_path, "smoke")
    assert cell.row == "act", "a single iteration shows nothing"
    with pytest.raises(StudyError, match="no looks; run `eqr study look construction`"):
        looks.seen("construction", tmp_path)
    made = looks.look(cell, tmp_path, store)
    assert not list(looks.missing("construction", tmp_path, "smoke"))
    (file,) = looks.seen("construction", tmp_path)
    assert file.sha256 == made.sha256
    value = file.table.set_index(["measure", "noise"]).value
    unsolved = CellFile.read(cell.path(tmp_path)).table.query("evaluation == 'depth'")
    last = unsolved[unsolved.depth == 64].exact.item()
    assert value["unsolved", 0.0] == pytest.approx(1 - last, abs=0.04)
    assert 0 <= value["flips, bfloat16, D = 16", 0.0] <= 1 and "EMA, D = 16" in value
    table = looks.looks_table([file])
    assert set(table.row) == {"act"} and set(table.measure) >= {"R", "failures that settle"}


def test_the_planner_stops_where_more_restarts_cost_accuracy():
    rng = np.random.default_rng(0)
    rising, falling = (0.3, 0.5, 0.6, 0.65), (0.5, 0.3, 0.2, 0.1)
    peak, vote = (0.3, 0.6, 0.4, 0.3), (0.5, 0.4, 0.6, 0.7)
    for shares, wanted in ((rising, 3), (falling, 0), (peak, 1), (vote, 3)):
        exact = rng.random((4, 2000)) < np.array(shares)[:, None]
        assert proposed(exact) == wanted


def test_the_campaign_shows_where_a_rule_falls_while_coverage_rises():
    results = shipped("campaign")
    law = looks.selector_law(results)
    assert (law["pass@B"] >= law["top-1"] - 1e-9).all() and law["top-1 with B"].isin(
        ["falls", "rises", "undecided"]
    ).all()
    one = law.iloc[0]
    seeds = results.seeds(one.row, one.evaluation)
    pick = Pick(one.row, one.depth, 32, one["rule"], one.evaluation)
    mean = np.mean([results.outcomes(pick, seed).mean() for seed in seeds])
    assert one["top-1"] == pytest.approx(mean)
    plans = looks.planned_breadths(results)
    assert (plans.regret >= 0).all() and not plans[plans.proposed == 1].negative.any()
