"""The paper's claims beside ours: nothing is called reproduced that has not been run; and the
registry of published numbers."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from eqr.studies import paper, registry, results as studies
from eqr.studies.results import Pick, StudyError
from eqr.studies.rows import STUDIES


@dataclass
class Fake:
    """A study in which each row has one accuracy, the same in each of its seeds but for jitter."""

    level: dict[str, float]
    count: int = 6
    id = "fake"

    def seeds(self, row, evaluation=None):
        return list(range(self.count if row in self.level else 0))

    def outcomes(self, pick, seed):
        jitter = 0.01 * np.sin(7 * seed + len(pick.row))
        return np.full(10, self.level[pick.row] + jitter)

    @property
    def meta(self):
        return {"evaluations": {kind: {"noise": 0.1} for kind in ("depth", "grid")}}

    def problems(self, evaluation):
        return 40


def table_of(monkeypatch, **studies):
    monkeypatch.setattr(paper, "available", lambda profile: studies)
    return paper.beside("laptop")[0].set_index(["table", "step"])


def test_without_records_every_row_says_not_run(monkeypatch):
    lines = table_of(monkeypatch)
    assert set(lines.verdict) == {"not run"} and lines.value.isna().all()
    assert lines.index.is_unique and len(lines) > 30 and lines.needed.isna().all()


@pytest.mark.parametrize(
    ("gap", "verdict"), [(0.1, "reproduced"), (-0.1, "not reproduced"), (0.001, "undecided")]
)
def test_the_verdict_is_the_sign_of_the_step(monkeypatch, gap, verdict):
    level = {"learned-start": 0.5, "ri": 0.5 + gap}
    one = table_of(monkeypatch, shaping=Fake(level)).loc[
        "Tables 10–12", "random above learned start"
    ]
    assert one.verdict == verdict and one.paper == pytest.approx(86.03 - 83.99)
    assert (one.needed > 6) == (verdict == "undecided") and one.low < one.value < one.high
    assert one.rows == "ri, D = 16 − learned-start, D = 16"


def test_two_seeds_decide_nothing_and_falling_steps_are_understood(monkeypatch):
    rows = {"segmented": 0.7, "segmented-cut": 0.5}
    step = "Table 8", "short gradient, one latent"
    two = table_of(monkeypatch, construction=Fake(rows, 2)).loc[step]
    assert two.verdict == "not run" and two.seeds == 2 and np.isnan(two.low)
    six = table_of(monkeypatch, construction=Fake(rows)).loc[step]
    assert six.verdict == "reproduced" and six.paper < 0  # the paper's goes down, and so does ours


def test_every_pick_is_one_that_its_study_can_have():
    for part in paper.PARTS:
        for step in part.steps.values():
            if isinstance(step, float):
                continue
            for pick in (step.ours, step.other):
                row = paper.STUDIES[part.study].row(pick.row)
                kind = next(e for e in row.evaluate if e.name == pick.evaluation)
                assert pick.depth in kind.config.depths and pick.breadth in kind.breadths
                assert pick.select in kind.select and step.side * step.paper >= 0


def test_the_steps_of_other_chapters_are_not_claimed_twice(monkeypatch):
    monkeypatch.setattr(paper, "available", lambda profile: {})
    ids = [one.id for one in paper.beside("laptop")[1]]
    assert len(set(ids)) == len(ids) and all(one.startswith("paper-") for one in ids)
    assert not [one for one in ids if "table-2" in one or "figure-8" in one]


def test_absent_records_are_left_out_and_altered_ones_are_not(monkeypatch, tmp_path):
    folders = {}
    monkeypatch.setattr(studies, "results_folder", lambda profile: tmp_path / profile)
    monkeypatch.setattr(paper, "shipped", lambda *a: folders.setdefault(a, studies.shipped(*a)))
    assert paper.available("laptop") == {}
    assert folders.keys() == {(name, one.profiles[-1]) for name, one in STUDIES.items()}
    (tmp_path / "paper" / "paper-scale").mkdir(parents=True)
    (tmp_path / "paper" / "paper-scale" / "maze30-0.npz").write_text("{}")
    folders.clear()
    with pytest.raises(StudyError, match=r"paper-scale/maze30-0\.npz: damaged"):
        paper.available("laptop")


def test_rows_of_the_papers_scale_are_compared_with_their_own_baseline(monkeypatch):
    level = {"maze30-fast": 0.8, "maze30-fast-trm": 0.5, "sudoku9-fast": 0.7}
    lines = table_of(monkeypatch, **{"paper-scale": Fake(level)})
    maze = lines.loc["Table 4, Maze-Unique", "EqR above TRM-style"]
    assert maze.verdict == "reproduced" and maze.paper == pytest.approx(37.3)
    assert lines.loc["Table 4, Sudoku-Extreme", "EqR above TRM-style"].verdict == "not run"


def test_the_registry_file_is_as_its_readme_says(monkeypatch, tmp_path):
    about = registry.PUBLISHED.with_name("README.md").read_text(encoding="utf-8")
    lines = "".join(re.findall(r"^- .*$", about, re.MULTILINE))
    assert all(f"`{name}`" in lines for name in registry.COLUMNS)
    rows = registry.published()
    assert rows.id.is_unique and rows.exact.between(0, 100).all() and len(rows) >= 60
    assert rows[["id", "source", "reference", "year", "model", "task"]].notna().all(axis=None)
    for name in ("weights", "evidence"):
        assert all(f"`{value}`" in lines or value == "unknown" for value in rows[name])
    other = tmp_path / "results.csv"
    monkeypatch.setattr(registry, "PUBLISHED", other)
    monkeypatch.setattr(registry, "shipped_file", lambda path: path)
    text = rows.assign(n="many").to_csv(index=False)
    for content, message in (
        (text, r"csv: could not convert.*'many'"),
        ("id\n", "columns must be"),
    ):
        other.write_text(content)
        with pytest.raises(StudyError, match=message):
            registry.published()


def test_contradictions_are_found_by_the_rule():
    pairs = registry.contradictions(registry.published()).set_index("id")
    assert pairs.loc["frm-trm-m", "other exact"] == 44.9 and pairs.loc["frm-trm-m", "exact"] == 77.9
    assert pairs.loc["jax-maze-16-128-maj", "other exact"] == 94.9
    assert "majority" in pairs.loc["jax-maze-16-128-maj", "differ in"]
    assert "β 0.01 / 0.5" in pairs.loc["dl-maze-16-noisy", "differ in"]
    agreeing = {"fprs-eqr-16", "dl-maze-16", "dl-maze-64-128", "eqr-readme-full-any", "frm-eqr"}
    assert not agreeing & {*pairs.index, *pairs.other}


def test_our_numbers_stand_in_the_registry_with_seeds_interval_and_run():
    rows = registry.registry("laptop")
    own = rows[rows.source == "this book"]
    assert rows.id.is_unique
    assert own[["n", "seeds", "beta"]].notna().all(axis=None) and len(own) > 30
    assert (own.low_or_sd.notna() == (own.seeds >= 3)).all()
    found = studies.load("shaping", "laptop")
    one = own.set_index("id").loc["shaping/trm/depth/16x1/average"]
    mean = found.accuracy(Pick("trm"))
    assert (one.exact, one.low_or_sd) == pytest.approx((100 * mean.mean, 100 * mean.low))
    assert one.reference == found.id and one.contradicts != one.contradicts


def test_the_page_of_the_registry_saves_what_it_shows():
    rows = registry.registry("laptop")
    page = registry.as_html(rows.assign(remark="<b>"), "A caption")
    assert page.count("<tr") == 1 + len(rows) and "&lt;b&gt;" in page and "<b>" not in page
    link = re.search(r"base64,([^\"]+)\"", page)[1]
    saved = pd.read_csv(io.BytesIO(base64.b64decode(link)))
    assert saved.id.tolist() == rows.id.tolist() and np.allclose(saved.exact, rows.exact)
    linked = set(re.findall(r'href="#([^"]+)"', page))
    assert "eqr-t1-trm-m" in linked <= set(re.findall(r' id="([^"]+)"', page))


@pytest.mark.parametrize("batch", [1, 16, 30, 64])
def test_padding_is_counted_as_the_official_code_counts_it(batch):
    ignored, draw = -100, np.random.default_rng(batch)
    labels = draw.integers(0, 3, (50, 2))
    filled = np.pad(labels, ((0, -50 % batch), (0, 0)), constant_values=ignored)
    answers = draw.integers(0, 3, filled.shape)
    right = ((answers == filled) | (filled == ignored)).all(1)
    true = 100 * (answers[:50] == labels).all(1).mean()
    reported = registry.as_official(true, 50, batch)
    assert reported == pytest.approx(100 * right.mean()) and reported >= true
    assert any(np.isclose(registry.without_padding(round(reported, 2), 50, batch, 2), true))


def test_what_padding_did_to_published_numbers():
    exact = registry.published().set_index("id").exact
    assert registry.without_padding(exact["dl-maze-64-128-noisy"], 1000, 16, 1) == [0.0]
    assert registry.without_padding(exact["eqr-t1-64-128-m"], 1000, 16, 1) == [92.9]
    assert registry.without_padding(exact["eqr-t1-64-128-m"], 1000, 768, 1) == [89.2, 89.3]
    assert registry.without_padding(exact["jax-maze-64-128-any"], 1000, 1, 2) == []
    assert 422_786 + -422_786 % 768 == 423_168, "the rows that the official README counts"
