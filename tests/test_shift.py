"""Shifted problems, changed dynamics, and trajectories that share a prefix."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from eqr import data, evaluate, experiments
from eqr.config import ConfigError, DataConfig, EvalConfig, ModelConfig
from eqr.maze import Maze
from eqr.model import Reasoner
from eqr.perturb import on_board, perturbed
from eqr.rollout import rollout
from eqr.shift import Level, level_problems
from eqr.store import Store
from eqr.streams import stream
from eqr.study_rows import STUDIES
from eqr.study_shift import DYNAMICS, FAMILIES, GROUPS, INVALID, LEVELS, levels_of
from eqr.sudoku import Sudoku

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
    table = evaluate.table(kept, breadths=[4], select=["average"], layers=2, noise=0.1,
                           nfe=config.nfe)  # fmt: skip
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


def test_answers_are_checked_by_the_rules_where_asked(model, minimal):
    task = TASK
    posed = task.generate(4, 0)
    config = EvalConfig((1,), checked=True)
    kept = evaluate.records(model, posed.inputs, posed.labels, config, task=task)
    assert kept.checked.shape == kept.exact.shape and not (kept.exact & ~kept.checked).any()
    with pytest.raises(ConfigError, match="checked needs to know the rules"):
        evaluate.records(model, posed.inputs, posed.labels, config)


def test_a_level_is_evaluated_once_and_under_its_own_name(tmp_path):
    store = Store(tmp_path)
    model = experiments.trained("maze7-attention", "smoke", store=store)
    config, level = EvalConfig((1, 2), problems=4), LEVELS["size-9"]
    one = experiments.evaluated(model, config, store, level=level)
    again = experiments.evaluated(model, config, store, level=level)
    plain = experiments.evaluated(model, config, store)
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
    assert len(FAMILIES) == 14 and set(INVALID) <= set(levels_of("minimal"))


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
