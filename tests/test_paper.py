"""The paper's figures beside ours: nothing is called reproduced that has not been run; and the
registry of published numbers."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest

from eqr.stats import Difference
from eqr.studies import paper, registry, results as studies
from eqr.studies.results import Comparison, Pick, StudyError
from eqr.studies.rows import MAZE, STUDIES


@dataclass
class Fake:
    """A study in which each row has one accuracy, the same in each of its seeds but for jitter."""

    level: dict[str, float]
    count: dict[str, int] = field(default_factory=dict)
    id = "fake"

    def seeds(self, row, evaluation=None):
        return list(range(self.count.get(row, 3) if row in self.level else 0))

    def accuracy(self, pick):
        level = self.level[pick.row]
        return Difference(level, level - 0.01, level + 0.01, len(self.seeds(pick.row)))

    def problems(self, evaluation):
        return 40

    def compare(self, ours, other):
        gap = self.level[ours.row] - self.level[other.row]
        found = Difference(gap, gap - 0.02, gap + 0.02, 3)
        return Comparison(found, found)


def table_of(monkeypatch, **studies):
    monkeypatch.setattr(paper, "available", lambda profile: studies)
    return paper.beside("laptop")


def test_without_records_every_row_says_not_run(monkeypatch):
    found = table_of(monkeypatch)
    assert set(found.verdict) == {"not run"} and set(found.ours) == {"not run"}
    assert set(found["our step"]) == {"–"} and len(found) == len(paper.entries())


@pytest.mark.parametrize(
    ("gap", "verdict"), [(0.1, "reproduced"), (-0.1, "not reproduced"), (0.01, "undecided")]
)
def test_the_verdict_is_the_sign_of_the_step(monkeypatch, gap, verdict):
    found = table_of(monkeypatch, shaping=Fake({"trm": 0.6, "ri": 0.6 + gap}))
    found = found[(found.table == "Table 3") & (found.task == paper.SUDOKU)].set_index("what")
    assert found.loc["Random start (RI)", "verdict"] == verdict
    assert found.loc["Random start (RI)", "paper's step"] == "+1.2"
    assert (found.verdict == "baseline").sum() == 1


def test_one_seed_decides_nothing_and_falling_steps_are_understood(monkeypatch):
    one = table_of(monkeypatch, shaping=Fake({"trm": 0.6, "ri": 0.9}, {"ri": 1}))
    assert "reproduced" not in set(one.verdict)
    rows = {"segmented": 0.7, "segmented-cut": 0.5}
    found = table_of(monkeypatch, construction=Fake(rows))
    cut = found[(found.table == "Table 8") & (found.paper == "67.2")]
    assert cut.verdict.item() == "reproduced"  # the paper's step goes down, and so does ours


def test_every_pick_is_one_that_its_study_can_have():
    for entry in paper.entries():
        if entry.study:
            row = paper.STUDIES[entry.study].row(entry.pick.row)
            assert any(entry.pick.depth in e.config.depths for e in row.evaluate)
    for (_, name), pick in paper.BASE.items():
        assert isinstance(pick, Pick) and paper.STUDIES[name].row(pick.row)


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
    found = table_of(monkeypatch, **{"paper-scale": Fake(level)})
    maze = found[found.task == MAZE].set_index("what")
    assert maze.loc["Maze: EqR, fast recipe", "verdict"] == "reproduced"
    assert maze.loc["Maze: TRM-style, fast recipe", "verdict"] == "baseline"
    assert maze.loc["Maze: EqR, fast recipe", "paper's step"] == "+37.3"
    assert maze.loc["Maze: EqR, fast recipe", "profile"] == "paper"
    alone = found[found.what == "Sudoku-Extreme: EqR, fast recipe"].iloc[0]
    assert alone.verdict == "not run" and alone.ours.startswith("70.0")


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
