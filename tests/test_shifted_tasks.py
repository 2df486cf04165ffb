"""Tasks away from training: carvings, unique paths among loops, flips, layouts, ratings, spoils."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eqr import PROJECT
from eqr.config import DataConfig
from eqr.data import build, load
from eqr.settings import ProblemError
from eqr.task import task_from_dict, task_to_dict
from eqr.tasks import shift
from eqr.tasks.maze import GOAL, START, WALL, Maze
from eqr.tasks.maze_carving import CARVINGS
from eqr.tasks.sudoku import Sudoku


def connected(open_cells: np.ndarray) -> bool:
    """Whether the open cells (H, W) bool hang together."""
    reached = np.zeros_like(open_cells)
    reached.flat[np.flatnonzero(open_cells)[0]] = True
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= open_cells
        if (grown == reached).all():
            return bool((reached == open_cells).all())
        reached = grown


def dead_ends(task: Maze, count: int = 60) -> float:
    """Mean number of maze cells with one way out."""
    found = []
    for tokens in task.generate(count, 0).inputs:
        free = (tokens != WALL).reshape(task.height, task.width)
        ways = free[:-2, 1:-1].astype(int) + free[2:, 1:-1] + free[1:-1, :-2] + free[1:-1, 2:]
        found.append(((ways == 1) & free[1:-1, 1:-1]).sum())
    return float(np.mean(found))


@pytest.mark.parametrize("carving", CARVINGS)
@pytest.mark.parametrize("size", [(9, 9), (7, 12)])
def test_every_carving_makes_perfect_mazes(carving, size):
    height, width = size
    task = Maze(height, width, 2, carving=carving)
    problems = task.generate(20, 3)
    rows, columns = (height - 1) // 2, (width - 1) // 2
    for tokens in problems.inputs:
        free = (tokens != WALL).reshape(size)
        assert connected(free) and free[1 : 2 * rows : 2, 1 : 2 * columns : 2].all()
        assert free.sum() == 2 * rows * columns - 1, "a tree has one way less than cells"
        assert not free[0].any() and not free[:, 0].any() and not free[-1].any()
    assert task.check(problems.inputs, problems.labels).all()
    assert len(np.unique(problems.inputs, axis=0)) == 20


def test_wilson_draws_every_maze_equally_often():
    """Two by two cells have four spanning trees."""
    layouts = (Maze(5, 5, 1, carving="wilson").generate(800, 0).inputs == WALL).astype(np.uint8)
    _, counts = np.unique(layouts, axis=0, return_counts=True)
    assert len(counts) == 4 and ((counts - 200) ** 2 / 200).sum() < 16.3  # chi-square, 0.1 %


def test_carvings_differ_in_texture():
    long = dead_ends(Maze(15, 15, 2))
    assert long < 0.7 * dead_ends(Maze(15, 15, 2, carving="prim"))
    assert long < dead_ends(Maze(15, 15, 2, carving="wilson"))


@pytest.mark.parametrize(
    "task", [Maze(9, 9, 6, 14, loops=4, unique=True), Maze(9, 9, 6, 14, flips=4), Maze(9, 9, 6, 14)]
)
def test_one_shortest_path_where_promised(task):
    problems = task.generate(40, 1)
    assert {task.count_shortest_paths(tokens) for tokens in problems.inputs} == {1}
    assert problems.rating.min() >= 6 and problems.rating.max() <= 14
    assert task.check(problems.inputs, problems.labels).all()
    assert np.array_equal(task.generate(5, 1, start=7).inputs, problems.inputs[7:12])


def test_loops_and_flips_change_the_walls():
    perfect = (Maze(9, 9, 6, 14).generate(40, 1).inputs == WALL).sum(1)
    loops = (Maze(9, 9, 6, 14, loops=4, unique=True).generate(40, 1).inputs == WALL).sum(1)
    assert set(perfect) == {81 - 31} and set(loops) == {81 - 35}
    flipped = Maze(9, 9, 6, 14, flips=2).generate(40, 1).inputs.reshape(-1, 9, 9)
    broken = (flipped[:, 1::2, 1::2] == WALL).any((1, 2)) | (
        flipped[:, 2:-1:2, 2:-1:2] != WALL
    ).any((1, 2))
    assert broken.mean() > 0.5, "flips do not keep to the lattice"
    assert (flipped == START).sum() == (flipped == GOAL).sum() == 40


def test_several_paths_are_refused_where_one_is_promised():
    text = "#######/#S....#/#.###.#/#.###.#/#....G#/#######"
    assert Maze(6, 7, 1, loops=1).parse(text).max() == GOAL
    with pytest.raises(ProblemError, match=r"2 shortest paths: .*unique=false"):
        Maze(6, 7, 1, loops=1, unique=True).parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"carving": "wilsen"}, "did you mean 'wilson'?"),
        ({"carving": 3}, "task.carving = 3 must be one of"),
        ({"flips": -1}, "flips=-1: 30x30 has 0 to"),
        ({"flips": 2, "loops": 1}, "set unique=true"),
    ],
)
def test_impossible_mazes_are_refused(options, message):
    with pytest.raises(ProblemError) as error:
        Maze(**options)
    assert message in str(error.value)


# ------------------------------------------------------------------------------------------- Sudoku


def spread(problems, side: int) -> float:
    """Mean distance between two givens."""
    found = []
    for puzzle in problems.inputs:
        at = np.stack(np.divmod(np.flatnonzero(puzzle > 1), side), 1)
        found.append(np.linalg.norm(at[:, None] - at[None], axis=-1).mean())
    return float(np.mean(found))


@pytest.mark.parametrize("shape", [(2, 3), (3, 3)])
def test_symmetric_givens_are_their_own_image(shape):
    task = Sudoku(*shape, layout="symmetric", clues_min=12 if shape == (2, 3) else 32)
    problems = task.generate(12, 0)
    given = problems.inputs > 1
    assert (given == given[:, ::-1]).all()
    assert all(task.count_solutions(puzzle) == 1 for puzzle in problems.inputs)
    assert set(given.sum(1)) == {task.clue_range[0]}


def test_clustered_givens_lie_closer_together():
    task = Sudoku(2, 3, 12, 12, layout="clustered")
    problems = task.generate(40, 0)
    assert all(task.count_solutions(puzzle) == 1 for puzzle in problems.inputs)
    assert set((problems.inputs > 1).sum(1)) == {12}
    assert spread(problems, 6) < 0.95 * spread(Sudoku(2, 3, 12, 12).generate(40, 0), 6)


def test_ratings_stay_in_their_range():
    task = Sudoku(2, 3, minimal=True, rating_min=1)
    problems = task.generate(12, 4)
    assert problems.rating.min() >= 1 and np.array_equal(
        problems.rating, task.rating(problems.inputs)
    )
    assert np.array_equal(task.generate(3, 4, start=5).inputs, problems.inputs[5:8])
    easy = replace(task, rating_min=None, rating_max=0).generate(12, 4)
    assert easy.rating.max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "clustred"}, "did you mean 'clustered'?"),
        ({"layout": "symmetric", "minimal": True}, "give clues_min and clues_max instead"),
        ({"rating_min": 3, "rating_max": 2}, "rating_min=3 exceeds rating_max=2"),
        ({"rating_min": -1}, "rating_min = -1 must be greater"),
    ],
)
def test_impossible_sudoku_are_refused(options, message):
    with pytest.raises(ProblemError, match=message):
        Sudoku(**options)


def test_a_rating_out_of_reach_ends_in_a_message(monkeypatch):
    monkeypatch.setattr("eqr.tasks.sudoku.ATTEMPTS", 5)
    with pytest.raises(ProblemError, match=r"no puzzle with a rating of 9000 .* widen rating_min"):
        Sudoku(2, 3, minimal=True, rating_min=9000).generate(1, 0)


def test_spoiled_puzzles_fail_in_the_way_asked_for():
    task = Sudoku(2, 3, minimal=True)
    whole = task.generate(10, 2)
    for taken in (1, 3):
        found = shift.several(task, whole, taken, seed=5)
        assert ((whole.inputs > 1).sum(1) - (found.inputs > 1).sum(1) == taken).all()
        assert all(task.count_solutions(puzzle) == 2 for puzzle in found.inputs)
        assert task.check(found.inputs, found.labels).all(), "the old solution is one of several"
    none = shift.unsolvable(task, whole, 6, seed=5)
    nearest = (none.inputs[:, None] != whole.inputs[None]).sum(2).min(1)
    assert len(none) == 6 and (nearest == 1).all(), "one given of a puzzle was changed"
    assert all(task.count_solutions(puzzle) == 0 for puzzle in none.inputs)
    again = shift.unsolvable(task, whole, 6, seed=5)
    assert np.array_equal(none.inputs, again.inputs)
    with pytest.raises(ProblemError, match="taken=0 must be at least 1"):
        shift.several(task, whole, 0, seed=5)


def test_puzzles_that_cannot_be_spoiled_say_so(monkeypatch):
    monkeypatch.setattr(shift, "TRIES", 5)
    full = Sudoku(2, 3, 36, 36)
    with pytest.raises(ProblemError, match="puzzle 0 keeps one solution without 1 of"):
        shift.several(full, full.generate(1, 0), 1, seed=0)
    with pytest.raises(ProblemError, match="of 10 puzzles can be spoiled, wanted 11"):
        minimal = Sudoku(2, 3, minimal=True)
        shift.unsolvable(minimal, minimal.generate(10, 0), 11, seed=0)


# ------------------------------------------------------------------------------------ compatibility


@pytest.mark.parametrize("name", ["headroom", "maze9"])
def test_older_data_sets_are_generated_as_before(name):
    """Fields that came later change no problem and no hash at their default."""
    stored = load(PROJECT / "data" / name)
    sizes = {k: stored.origin[k] for k in ("seed", "train", "test")}
    assert build(stored.task, DataConfig(**sizes)).digest == stored.digest
    assert not {"layout", "carving", "flips", "rating_min"} & set(task_to_dict(stored.task))


def test_new_fields_travel_through_dicts():
    for task in (Maze(9, 9, carving="prim", flips=1), Sudoku(2, 3, 12, 12, layout="clustered")):
        assert task_from_dict(task_to_dict(task)) == task
    fields = ("kind", "height", "width", "path_min", "path_max", "loops")
    assert tuple(task_to_dict(Maze())) == fields
