"""Shifted problems, changed dynamics, and trajectories that share a prefix."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from eqr import data, evaluate, experiments, runs as results
from eqr.analysis.ways import PlanError, stored_runs
from eqr.config import DataConfig, EvalConfig, ModelConfig
from eqr.data import DataError
from eqr.model import Reasoner, State, Step
from eqr.rollout import rollout
from eqr.settings import ConfigError
from eqr.store import Store
from eqr.streams import stream
from eqr.studies import results as studies, run as study_run
from eqr.studies.cells import Cell
from eqr.studies.rows import STUDIES
from eqr.studies.rows_shift import DYNAMICS, FAMILIES, GROUPS, INVALID, LEVELS, levels_of
from eqr.tasks import shift as shifts
from eqr.tasks.maze import Maze
from eqr.tasks.shift import Level, level_problems, on_board, perturbed, problems_digest
from eqr.tasks.sudoku import Sudoku

SMALL = ModelConfig(
    hidden=8, blocks=1, high_cycles=2, low_cycles=1, width_multiple=8, noise=0.1, heads=2
)
TASK = Sudoku(2, 2, 6, 8)


@pytest.fixture(scope="module")
def model() -> Reasoner:
    return Reasoner.for_task(TASK, SMALL, stream(0, "init")).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def problems():
    return TASK.generate(3, 5)


def trajectories(model, inputs, **settings):
    """(problem, restart, depth) -> latents of that iteration."""
    found = {}
    for it in rollout(model, torch.as_tensor(inputs), noise=0.1, **settings):
        for row, pair in enumerate(zip(it.problem, it.restart, strict=True)):
            found[(*map(int, pair), it.depth)] = it.step.state.flat()[row]
    return found


# ----------------------------------------------------------------------------------------- branches


def test_paths_share_their_prefix_and_part_after_it(model, problems):
    found = trajectories(model, problems.inputs, depth=4, breadth=6, branches=3, branch_at=2)
    plain = trajectories(model, problems.inputs, depth=2, breadth=2)
    for p in range(3):
        for start in range(2):
            for depth in (1, 2):
                assert (p, 3 * start + 1, depth) not in found, "a prefix is computed once"
                torch.testing.assert_close(found[p, 3 * start, depth], plain[p, start, depth])
            ends = [found[p, 3 * start + path, 3] for path in range(3)]
            assert min((a - b).abs().max() for a, b in pairwise(ends)) > 1e-3


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_paths_do_not_depend_on_the_chunks(model, problems, rows):
    settings = {"depth": 3, "breadth": 4, "branches": 2, "branch_at": 1}
    one = trajectories(model, problems.inputs, rows=256, **settings)
    other = trajectories(model, problems.inputs, rows=rows, **settings)
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key])


def test_records_of_paths_average_over_the_prefix_too(model, problems):
    config = EvalConfig((2, 4), breadth=4, noise=0.1, branches=2, branch_at=1, window=3)
    seen, work = [], []
    kept = evaluate.records(
        model, problems.inputs, problems.labels, config,
        progress=lambda done, of: (seen.append(done), work.append(of)),
    )  # fmt: skip
    assert seen[-1] == work[-1] == 3 * config.nfe(4, 4) == 3 * (2 * 1 + 4 * 3)
    changes = {}
    for it in rollout(
        model, torch.as_tensor(problems.inputs), depth=4, breadth=4, noise=0.1, branches=2,
        branch_at=1,
    ):  # fmt: skip
        for p, r, change in zip(it.problem, it.restart, it.residual.tolist(), strict=True):
            changes[int(p), int(r), it.depth] = change
    wanted = np.mean([changes[1, 2, 1], changes[1, 3, 2]])
    assert kept.residual[0, 1, 3] == pytest.approx(wanted, rel=1e-4)
    table = experiments.table(kept, config, [4], ["average"], layers=2)
    assert table.nfe.tolist() == [2 * 1 + 4 * 1, 14] and table.layers.tolist() == [12, 28]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"branches": 3, "noise": 0.1}, "eval.branches must divide eval.breadth = 4"),
        ({"branches": 2}, "eval.noise > 0"),
        ({"branches": 2, "noise": 0.1, "branch_at": 4}, "must lie below the smallest"),
        ({"branch_at": 1, "noise": 0.1}, "needs eval.branches above 1"),
        ({"weight_noise": -1.0}, "eval.weight_noise"),
    ],
)
def test_impossible_paths_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        EvalConfig((4,), breadth=4, **settings)


# ----------------------------------------------------------------------------------------- dynamics


def test_weights_get_noise_of_the_size_asked_for(model):
    changed = perturbed(model, EvalConfig(weight_noise=0.1, seed=3))
    again = perturbed(model, EvalConfig(weight_noise=0.1, seed=3))
    other = perturbed(model, EvalConfig(weight_noise=0.1, seed=4))
    before, after = model.lm_head.weight, changed.lm_head.weight
    ratio = (after - before).square().mean().sqrt() / before.square().mean().sqrt()
    assert 0.07 < ratio < 0.13
    assert torch.equal(after, again.lm_head.weight) and not torch.equal(after, other.lm_head.weight)
    assert perturbed(model, EvalConfig()) is model


def test_half_precision_changes_little_and_is_recorded_in_full(model, problems):
    config = EvalConfig((1, 2), noise=0.1)
    exact = evaluate.records(model, problems.inputs, problems.labels, config)
    half = replace(config, dtype="bfloat16")
    kept = evaluate.records(perturbed(model, half), problems.inputs, problems.labels, half)
    assert kept.residual.dtype == np.float32
    gap = abs(kept.residual / exact.residual - 1)
    assert 1e-6 < gap.max() < 0.2


def test_attention_moves_to_another_board_and_the_mixer_does_not(model):
    attention = replace(SMALL, mixer="attention", rope="2d")
    small, large = Maze(7, 7), Maze(9, 9)
    moved = on_board(Reasoner.for_task(small, attention, stream(0, "init")), large)
    assert moved.tokens == 81 and on_board(moved, large) is moved
    half = on_board(Reasoner.for_task(small, attention).bfloat16(), large)
    assert half.lm_head.weight.dtype == torch.bfloat16
    assert next(rollout(moved, torch.ones(1, 81), depth=1)).answer.shape == (1, 81)
    with pytest.raises(ConfigError, match=r"only model\.mixer"):
        on_board(Reasoner.for_task(small, SMALL, stream(0, "init")), large)


# ------------------------------------------------------------------------------------------- levels


@pytest.fixture(scope="module")
def minimal():
    return data.build(Sudoku(2, 3, minimal=True), DataConfig(train=24, test=12))


@pytest.mark.parametrize("name", ["clues-10", "rating-1", "symmetric", "fewer-8"])
def test_problems_of_a_level_are_valid_new_and_repeatable(name, minimal):
    level = LEVELS[name]
    one, other = (level_problems(level, minimal, 8) for _ in range(2))
    task = level.task_from(minimal.task)
    assert np.array_equal(one.inputs, other.inputs) and len(one) == 8
    assert task.check(one.inputs, one.labels).all()
    assert all(task.count_solutions(puzzle) == 1 for puzzle in one.inputs)
    train = set(task.symmetry_key(minimal.train.inputs, minimal.train.labels))
    assert not train & set(task.symmetry_key(one.inputs, one.labels))


def test_spoiled_puzzles_have_several_solutions_or_none(minimal):
    task = minimal.task
    for name, counts in (("several-1", {2}), ("several-4", {2}), ("unsolvable", {0})):
        found = level_problems(LEVELS[name], minimal, 6)
        assert {task.count_solutions(puzzle) for puzzle in found.inputs} == counts


class Answers:
    """A model whose answers are given: logits that point at them, whatever the latents."""

    device = torch.device("cpu")

    def __init__(self, inputs, answers):
        self.inputs, self.answers = torch.as_tensor(inputs), torch.as_tensor(answers).long()

    def initial_state(self, rows, generator):
        return State(torch.zeros(rows, 1, 1), torch.zeros(rows, 0, 1))

    def read_logits(self, z_high):
        return torch.zeros(len(z_high), self.inputs.shape[1], 8)

    def step(self, state, x, **_):
        which = [int((self.inputs == puzzle).all(1).nonzero()[0]) for puzzle in x]
        logits = torch.nn.functional.one_hot(self.answers[which], 8).float()
        return Step(state, logits, torch.zeros(len(x)))


def test_answers_are_checked_by_the_rules_where_asked():
    """A puzzle with two solutions, of which one is the label: both are accepted, nothing else."""
    whole = Sudoku(2, 3, minimal=True).generate(4, 0)
    task = Sudoku(2, 3, minimal=True)
    posed = shifts.several(task, whole, 1, seed=0)
    solved = np.stack([task.solve(puzzle) for puzzle in posed.inputs])
    broken = solved.copy()
    broken[0, 0] = 2 + (broken[0, 0] - 1) % 6
    config = EvalConfig((1,), checked=True)
    for answers, accepted in ((posed.labels, [1] * 4), (solved, [1] * 4), (broken, [0, 1, 1, 1])):
        model = Answers(posed.inputs, answers)
        kept = evaluate.records(model, posed.inputs, posed.labels, config, task=task)
        assert kept.checked[0, :, 0].tolist() == list(map(bool, accepted))
        assert kept.exact[0, :, 0].tolist() == (answers == posed.labels).all(1).tolist()
    with pytest.raises(ConfigError, match="checked needs to know the rules"):
        evaluate.records(model, posed.inputs, posed.labels, config)


def test_a_source_is_read_only_with_the_problems_it_was_pinned_to(tmp_path, minimal):
    folder = data.save(minimal, tmp_path / "source")
    pin = problems_digest(minimal.test)
    level = Level("own", source=str(folder), pin=pin)
    assert np.array_equal(level_problems(level, minimal, 5).inputs, minimal.test.inputs[:5])
    assert len(level_problems(level, minimal, 99)) == 12 and level.named()["pin"] == pin
    with pytest.raises(DataError, match="test problems are not those of level own"):
        level_problems(Level("own", source=str(folder), pin="0" * 16), minimal, 5)
    with pytest.raises(DataError, match="holds problems of another board"):
        level_problems(level, data.build(TASK, DataConfig(train=4, test=2)), 5)
    with pytest.raises(ValueError, match="needs its pin"):
        Level("own", source=str(folder))


def test_a_level_is_evaluated_once_and_under_its_own_name(tmp_path):
    store = Store(tmp_path)
    model = experiments.train_or_load("maze7-attention", "smoke", store=store)
    config, level = EvalConfig((1, 2), problems=4), LEVELS["size-9"]
    one = experiments.evaluate_or_load(model, config, store, level=level)
    again = experiments.evaluate_or_load(model, config, store, level=level)
    plain = experiments.evaluate_or_load(model, config, store)
    assert one.run.id == again.run.id != plain.run.id and one.records.exact.shape == (2, 4, 1)
    assert one.run.manifest["config"]["level"] == level.named()


# ------------------------------------------------------------------------------------- registration


def test_every_family_of_the_registration_is_asked():
    rows = STUDIES["shift"].rows
    asked = {e.name for row in rows for e in row.evaluate}
    for family in FAMILIES:
        assert family.far in family.levels and family.trained in GROUPS
        for name in (family.trained, *family.levels):
            assert {f"{name}.deep", f"{name}.wide"} <= asked
            assert name in LEVELS or name in DYNAMICS or name in GROUPS
    registered = ("clues-18", "fewer-8", "harder-3", "easier", "rating-3", "clustered", "path-24",
                  "division", "loops-4", "flips-4", "size-11", "beta-0.4", "weights-10",
                  "bfloat16")  # fmt: skip
    assert tuple(family.far for family in FAMILIES) == registered, "the far levels of the page"
    assert set(INVALID) <= set(levels_of("minimal"))


def test_both_axes_of_a_level_cost_the_same():
    for row in STUDIES["shift"].rows:
        kinds = {e.name: e.config for e in row.evaluate}
        for name, deep in kinds.items():
            if name.endswith(".deep"):
                wide = kinds[name.replace(".deep", ".wide")]
                assert wide.noise == deep.noise and wide.problems == deep.problems
                for base in wide.depths:
                    assert wide.nfe(base, wide.breadth) == deep.nfe(8 * base, 1)
                    assert 8 * base in deep.depths


def test_a_level_names_what_its_problems_depend_on():
    one = Level("a", {"flips": 1}, title="x")
    assert one.named() == Level("b", {"flips": 1}).named() != Level("a", {"flips": 2}).named()


# ------------------------------------------------------------------------------------------ records


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Smoke records of the study on ambiguity, one seed of one row: (store, folder)."""
    store, out = Store(tmp_path_factory.mktemp("store")), tmp_path_factory.mktemp("out")
    study_run.work(Cell("ambiguity", "smoke", "ambiguous", 0), store.root, out)
    return store, out


def test_what_an_evaluation_keeps_is_read_back(written):
    store, out = written
    found = studies.load("ambiguity", "smoke", out)
    wide = found.recorded("checked", "ambiguous", 0, "wide")
    problems = found.problems("wide")
    assert wide.shape == (3, problems, 8) and wide.dtype == bool
    residual = found.recorded("residual", "ambiguous", 0, "wide")
    (run,) = set(found.rows[found.rows.evaluation == "wide"].eval_run)
    exact = experiments.read_result(store.get(run)).records.residual[-1]
    assert residual.shape == (problems, 8) and abs(residual / exact - 1).max() < 2**-10
    answer = found.recorded("answer", "ambiguous", 0, "wide")
    assert (answer[:, 0] == 0).all() and (answer <= np.arange(8)).all()
    with pytest.raises(studies.StudyError, match="run it with keep"):
        found.recorded("residual", "ambiguous", 0, "depth")


def test_an_evaluation_under_shift_is_repeated_with_its_problems(written):
    store, _ = written
    model = experiments.train_or_load("headroom", "smoke", store=store)
    config = EvalConfig((2,), problems=6, checked=True)
    run = experiments.evaluate_or_load(model, config, store, level=LEVELS["several-1"]).run
    assert results.repeat(store, run).verdict == "equal"
    with pytest.raises(PlanError, match="no evaluation of these weights"):
        stored_runs(model.checkpoint.sha256, store)
