"""The paper's figures beside ours: nothing is called reproduced that has not been run."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from eqr.stats import Difference
from eqr.studies import paper, results as studies
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
