"""Properties of the Sudoku task: generator, solver, symmetries, checker, strings, drawing."""

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from eqr.settings import ProblemError
from eqr.task import task_from_dict, task_to_dict
from eqr.tasks.sudoku import Sudoku

SMALL = [
    Sudoku(2, 2, clues_min=4, clues_max=7),
    Sudoku(2, 3, clues_min=9, clues_max=12),
    Sudoku(3, 2, minimal=True),
]
TASKS = [*SMALL, Sudoku(clues_min=30, clues_max=36), Sudoku(4, 4, clues_min=140)]
UNIQUE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


def name(task: Sudoku) -> str:
    return f"{task.box_height}x{task.box_width}"


def brute_force(task: Sudoku, tokens: np.ndarray) -> list[list[int]]:
    """All solutions by plain backtracking in cell order: shares nothing with the solver tested."""
    side, solutions = task.height, []
    grid = tokens.tolist()

    def clash(a: int, b: int) -> bool:
        same_box = (
            a // side // task.box_height == b // side // task.box_height
            and a % side // task.box_width == b % side // task.box_width
        )
        return a // side == b // side or a % side == b % side or same_box

    peers = [[b for b in range(side**2) if b != a and clash(a, b)] for a in range(side**2)]

    def fill(cell: int) -> None:
        if cell == side**2:
            solutions.append(grid.copy())
        elif grid[cell] > 1:
            fill(cell + 1)
        else:
            for token in range(2, side + 2):
                if all(grid[peer] != token for peer in peers[cell]):
                    grid[cell] = token
                    fill(cell + 1)
            grid[cell] = 1

    fill(0)
    return solutions


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_generated_puzzles_have_one_solution_within_the_range_of_clues(task):
    problems = task.generate(8, seed=3)
    low, high = task.clue_range
    clues = (problems.inputs > 1).sum(1)
    assert problems.inputs.dtype == problems.labels.dtype == np.uint8
    assert problems.rating.dtype == np.int32
    assert ((low <= clues) & (clues <= high)).all()
    assert task.check(problems.inputs, problems.labels).all()
    for puzzle, label in zip(problems.inputs, problems.labels, strict=True):
        assert task.count_solutions(puzzle) == 1
        np.testing.assert_array_equal(task.solve(puzzle), label)
    np.testing.assert_array_equal(task.rating(problems.inputs), problems.rating)


@pytest.mark.parametrize("task", SMALL, ids=name)
def test_solver_agrees_with_brute_force(task):
    problems = task.generate(6, seed=5)
    rng = np.random.default_rng(0)
    for puzzle, label in zip(problems.inputs, problems.labels, strict=True):
        assert brute_force(task, puzzle) == [label.tolist()]
        fewer = puzzle.copy()  # drop two clues: several solutions, mostly
        fewer[rng.choice(np.flatnonzero(puzzle > 1), 2, replace=False)] = 1
        assert task.count_solutions(fewer, limit=10_000) == len(brute_force(task, fewer))
        other = puzzle.copy()  # change a clue: no solution, mostly
        at = rng.choice(np.flatnonzero(puzzle > 1))
        other[at] = 2 + (other[at] - 1) % task.height
        solutions = brute_force(task, other)
        assert task.count_solutions(other, limit=10_000) == len(solutions)
        assert (task.solve(other) is None) == (not solutions)


@pytest.mark.parametrize("task", [Sudoku(2, 3, minimal=True), Sudoku(minimal=True)], ids=name)
def test_no_clue_of_a_minimal_puzzle_can_be_spared(task):
    for puzzle in task.generate(5, seed=1).inputs:
        for cell in np.flatnonzero(puzzle > 1):
            without = puzzle.copy()
            without[cell] = 1
            assert task.count_solutions(without) == 2


def test_every_number_of_clues_in_the_range_is_drawn():
    task = Sudoku(2, 3, clues_min=9, clues_max=12)
    clues = (task.generate(80, seed=0).inputs > 1).sum(1)
    assert set(clues) == {9, 10, 11, 12}


def test_a_problem_depends_on_seed_and_index_only():
    task = Sudoku(2, 3, clues_min=9, clues_max=12)
    whole, head, tail = task.generate(9, 7), task.generate(4, 7), task.generate(5, 7, start=4)
    for field in ("inputs", "labels", "rating"):
        parts = np.concatenate([getattr(head, field), getattr(tail, field)])
        np.testing.assert_array_equal(getattr(whole, field), parts)
    assert not np.array_equal(whole.inputs, task.generate(9, 8).inputs)
    assert len(task.generate(0, 7)) == 0


def test_all_grids_of_4x4_are_reached():
    labels = Sudoku(2, 2, clues_min=10).generate(4000, seed=0).labels
    assert len({label.tobytes() for label in labels}) == 288


def test_rating_is_zero_for_singles_and_keeps_under_relabelling():
    task = Sudoku(minimal=True)
    problems = task.generate(20, seed=2)
    names = np.concatenate([[0, 1], 2 + np.random.default_rng(0).permutation(9)])
    np.testing.assert_array_equal(task.rating(names[problems.inputs]), problems.rating)
    assert problems.rating.max() > 0
    assert task.rating(task.parse(UNIQUE)[None]).tolist() == [0]


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_augmentation_keeps_problems_valid_and_their_keys(task):
    problems = task.generate(6, seed=11)
    copies = 20
    inputs = torch.from_numpy(problems.inputs).repeat_interleave(copies, 0)
    labels = torch.from_numpy(problems.labels).repeat_interleave(copies, 0).int()
    moved = task.augment(inputs, labels, torch.Generator().manual_seed(0))
    assert moved[0].dtype == torch.uint8 and moved[1].dtype == torch.int32
    new_inputs, new_labels = moved[0].numpy(), moved[1].numpy()
    assert task.check(new_inputs, new_labels).all()  # so the labels moved with their inputs
    assert ((new_inputs > 1).sum(1) == (inputs.numpy() > 1).sum(1)).all()
    assert (new_inputs != inputs.numpy()).any(1).mean() > 0.9
    assert task.count_solutions(new_inputs[0]) == 1
    for key in (task.symmetry_key, task.problem_key):
        expected = np.repeat(key(problems.inputs, problems.labels), copies)
        assert np.array_equal(key(new_inputs, new_labels), expected)
    again = task.augment(inputs, labels, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], moved[0]) and torch.equal(again[1], moved[1])


def test_augmentation_reaches_the_whole_group():
    """4×4: 2 classes of grids, so the images of a grid fill its class, and two classes make 288."""
    task = Sudoku(2, 2)
    problems = task.generate(50, seed=0)
    keys = task.symmetry_key(problems.inputs, problems.labels)
    images = set()
    for key in set(keys):
        tokens = torch.from_numpy(problems.labels[[keys.index(key)]]).expand(4000, -1)
        moved, _ = task.augment(tokens, tokens, torch.Generator().manual_seed(1))
        images |= {row.tobytes() for row in moved.numpy()}
    assert len(set(keys)) == 2 and len(images) == 288


def test_transposing_is_a_symmetry_of_square_boxes_only():
    for task, equal in ((Sudoku(), True), (Sudoku(2, 3), False)):
        labels = task.generate(10, seed=0).labels
        flipped = labels.reshape(-1, task.height, task.height).swapaxes(1, 2).reshape(10, -1)
        same = task.symmetry_key(labels, labels) == task.symmetry_key(flipped, flipped)
        assert same == equal


def test_keys_tell_random_grids_and_puzzles_apart():
    problems = Sudoku().generate(300, seed=4)
    assert len(set(Sudoku().symmetry_key(problems.inputs, problems.labels))) > 295
    task = Sudoku(2, 3)
    problems = task.generate(300, seed=4)
    assert len(set(task.symmetry_key(problems.inputs, problems.labels))) <= 49  # all there are
    assert len(set(task.problem_key(problems.inputs, problems.labels))) > 280
    with pytest.raises(ProblemError, match="full grids"):
        task.symmetry_key(problems.inputs, problems.inputs)


def test_check_wants_the_givens_and_every_unit():
    task = Sudoku(2, 3)
    problems = task.generate(3, seed=0)
    swapped = np.where(problems.labels == 2, 3, np.where(problems.labels == 3, 2, problems.labels))
    assert not task.check(problems.inputs, swapped).any()  # a valid grid for other givens
    assert task.check(np.ones_like(swapped), swapped).all()
    broken = problems.labels.copy()
    broken[:, :2] = broken[:, 1::-1]
    assert not task.check(np.ones_like(broken), broken).any()
    for bad in (0, 1, 8, 255):
        holed = problems.labels.copy()
        holed[:, 5] = bad
        assert not task.check(np.ones_like(holed), holed).any()
    with pytest.raises(ProblemError, match=r"answers has shape \(3, 35\); expected \(3, 36\)"):
        task.check(problems.inputs, problems.labels[:, :35])


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_strings_round_trip(task):
    for puzzle in task.generate(3, seed=6).inputs:
        text = task.format(puzzle)
        np.testing.assert_array_equal(task.parse(text), puzzle)
        np.testing.assert_array_equal(task.parse(text.replace(".", "_").lower()), puzzle)
        np.testing.assert_array_equal(task.parse(text.replace(".", "0") + "\n"), puzzle)
        board = task.render(puzzle)
        assert "".join(char for char in board if char not in " |-+\n") == text
        assert len({len(line) for line in board.splitlines()}) == 1


def test_render_draws_the_boxes():
    board = Sudoku(2, 2).render(np.array([2, 1, 1, 1] * 4, np.uint8)).splitlines()
    assert board == ["1 . | . .", "1 . | . .", "----+----", "1 . | . .", "1 . | . ."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (UNIQUE[:-1], r"80 characters; expected 81 \(9x9\)"),
        (UNIQUE[:4] + "x" + UNIQUE[5:], "character 5 is 'X'; a 9x9 Sudoku has 1 to 9"),
        ("55" + UNIQUE[2:], "row 1 holds 5 twice, at r1c1 and r1c2"),
        (UNIQUE[:27] + "5" + UNIQUE[28:], "column 1 holds 5 twice, at r1c1 and r4c1"),
        (UNIQUE[:11] + "3" + UNIQUE[12:], "box 1 holds 3 twice, at r1c2 and r2c3"),
        (UNIQUE[:2] + "1" + UNIQUE[3:], "no solution"),
        ("." + UNIQUE[1:27] + "." * 54, "several solutions"),
        ("", "0 characters"),
    ],
)
def test_parse_says_what_is_wrong(text, message):
    with pytest.raises(ProblemError, match=message) as caught:
        Sudoku().parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clues_min": 16}, "clues_min=16.*17 to 81"),
        ({"box_height": 2, "box_width": 2, "clues_max": 3}, "4 to 16"),
        ({"box_height": 3, "box_width": 2, "clues_min": 7}, "8 to 36"),
        ({"box_height": 4, "box_width": 4, "clues_min": 14}, "15 to 256"),
        ({"clues_max": 82}, "17 to 81"),
        ({"clues_min": 40, "clues_max": 30}, "clues_min=40 exceeds clues_max=30"),
        ({"box_height": 1}, "boxes of 1x3"),
        ({"box_width": 6}, "boxes of 3x6"),
        ({"clues_min": 30.0}, "task.clues_min = 30.0 must be"),
        ({"minimal": 1}, "task.minimal = 1 must be"),
    ],
)
def test_impossible_tasks_are_refused_at_once(options, message):
    with pytest.raises(ProblemError, match=message):
        Sudoku(**options)


def test_a_range_out_of_reach_ends_in_a_message():
    with pytest.raises(ProblemError, match=r"17 to 17 clues in 2,000 attempts .* widen"):
        Sudoku(clues_min=17, clues_max=17).generate(1, seed=0)


def test_undecided_boards_are_an_error(monkeypatch):
    monkeypatch.setattr("eqr.tasks.sudoku.SOLVE_BUDGET", 3)
    with pytest.raises(ProblemError, match="undecided after 3 guesses"):
        Sudoku().solve(np.ones(81, np.uint8))


def test_tasks_travel_through_dicts():
    for task in TASKS:
        assert task_from_dict(task_to_dict(task)) == task
    with pytest.raises(ValueError, match=r"task\.clue_min .*did you mean 'clues_"):
        task_from_dict({"kind": "sudoku", "clue_min": 20})
    with pytest.raises(ValueError, match=r"task\.kind = 'sudokku'.*did you mean 'sudoku'"):
        task_from_dict({"kind": "sudokku"})
    with pytest.raises(ValueError, match=r"task\.kind = None.*known: sudoku, maze"):
        task_from_dict({})


def test_drawing_marks_errors_by_more_than_colour():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    task = Sudoku(2, 3)
    problems = task.generate(1, seed=0)
    puzzle, label = problems.inputs[0], problems.labels[0]
    answer = label.copy()
    blank = int(np.flatnonzero(puzzle == 1)[0])
    answer[blank] = 2 + (label[blank] - 1) % 6
    axes = figure.subplots()
    task.draw(axes, puzzle, answer, label, settled=np.linspace(0, 1, 36))
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert len(crosses) == 1 and len(axes.texts) == 36
    bold = sum(text.get_fontweight() == "bold" for text in axes.texts)
    assert bold == (puzzle > 1).sum()
    tints = np.asarray(axes.images[0].get_array()).reshape(36, 3) @ [0.2126, 0.7152, 0.0722]
    assert all(a < b for a, b in pairwise(tints))  # lightness alone tells how settled a cell is
    axes = figure.subplots()
    task.draw(axes, puzzle)
    assert len(axes.texts) == (puzzle > 1).sum()


def test_solver_gives_the_published_answers():
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "sudoku" / "test.csv"
    if not path.exists():
        pytest.skip("no ../shared/data/sudoku/test.csv")
    task = Sudoku()
    with path.open(newline="") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(50), strict=False)]
    for row in rows:
        assert task.format(task.solve(task.parse(row["question"]))) == row["answer"]
