"""Properties of the maze task: generator, paths, symmetries, checker, strings, drawing."""

from collections import deque

import numpy as np
import pytest
import torch

from eqr import data
from eqr.settings import ProblemError
from eqr.task import task_from_dict, task_to_dict
from eqr.tasks.maze import GOAL, OPEN, PATH, START, WALL, Maze

TASKS = [
    Maze(9, 9, path_min=12),
    Maze(10, 14),
    Maze(30, 30, path_min=100, path_max=140),
    Maze(12, 12, loops=6),
]
# Two ways of 6 steps around a block, written with '/' between the rows.
RING = "#######/#S....#/#.###.#/#.###.#/#....G#/#######/#######"


def name(task: Maze) -> str:
    return f"{task.height}x{task.width}-{task.loops}"


def board(task: Maze, tokens: np.ndarray) -> np.ndarray:
    return tokens.reshape(task.height, task.width)


def walk(task: Maze, tokens: np.ndarray) -> tuple[int, int, int]:
    """(steps from S to G, shortest paths, cells reached): a plain search of its own."""
    grid = board(task, tokens)
    start = tuple(np.argwhere(grid == START)[0])
    goal = tuple(np.argwhere(grid == GOAL)[0])
    steps, paths, queue = {start: 0}, {start: 1}, deque([start])
    while queue:
        row, column = cell = queue.popleft()
        for other in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= other[0] < task.height and 0 <= other[1] < task.width
            if not inside or grid[other] == WALL:
                continue
            if other not in steps:
                steps[other], paths[other] = steps[cell] + 1, 0
                queue.append(other)
            if steps[other] == steps[cell] + 1:
                paths[other] += paths[cell]
    return steps.get(goal, 0), paths.get(goal, 0), len(steps)


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_generated_mazes_keep_their_promises(task):
    problems = task.generate(20, seed=1)
    low, high = task.path_range
    rows, columns = (task.height - 1) // 2, (task.width - 1) // 2
    assert problems.inputs.dtype == problems.labels.dtype == np.uint8
    assert problems.rating.dtype == np.int32
    assert ((low <= problems.rating) & (problems.rating <= high)).all()
    assert task.check(problems.inputs, problems.labels).all()
    for maze, label, rating in zip(problems.inputs, problems.labels, problems.rating, strict=True):
        length, paths, reached = walk(task, maze)
        assert length == rating == (label == PATH).sum() + 1
        assert task.count_shortest_paths(maze) == paths
        assert paths > 1 if task.loops else paths == 1
        # Connected, and one passage fewer than cells: a tree; each loop is one passage more.
        assert reached == (maze != WALL).sum() == 2 * rows * columns - 1 + task.loops
        grid = board(task, maze)
        assert (grid[1 : 2 * rows : 2, 1 : 2 * columns : 2] != WALL).all()
        assert (grid[0] == WALL).all() and (grid[:, 0] == WALL).all()
        assert (grid[2 * rows :] == WALL).all() and (grid[:, 2 * columns :] == WALL).all()
        assert (maze == START).sum() == (maze == GOAL).sum() == 1


def test_a_problem_depends_on_seed_and_index_only():
    task = Maze(11, 11)
    whole, head, tail = task.generate(9, 7), task.generate(4, 7), task.generate(5, 7, start=4)
    for field in ("inputs", "labels", "rating"):
        parts = np.concatenate([getattr(head, field), getattr(tail, field)])
        np.testing.assert_array_equal(getattr(whole, field), parts)
    assert not np.array_equal(whole.inputs, task.generate(9, 8).inputs)
    assert len({maze.tobytes() for maze in whole.inputs}) == 9
    assert len(task.generate(0, 7)) == 0


def test_the_official_builder_makes_valid_mazes_and_no_two_the_same():
    task = Maze(8, 9, path_min=8, path_max=12)
    made, fewer = task.generate_official(40, seed=3), task.generate_official(9, seed=3)
    assert task.check(made.inputs, made.labels).all()
    assert len(np.unique(made.inputs, axis=0)) == 40 and set(made.rating) == {*range(8, 13)}
    np.testing.assert_array_equal(made.labels[:9], fewer.labels)
    assert not np.array_equal(fewer.inputs, task.generate_official(9, seed=4).inputs)


def test_the_official_builder_makes_the_papers_own_mazes(eqr, shared, tmp_path):
    done = eqr("data", "build", tmp_path / "out", "--kind", "maze-unique")
    built = data.load(tmp_path / "out")
    paper = np.load(shared / "data/maze30/maze_unique_30x30.npz")
    for name, array in paper.items():
        split, field = name.split("_")
        np.testing.assert_array_equal(getattr(built.splits[split], field), array)
    assert done.code == 0 and built.task == Maze(30, 30, 100, 140)
    local = ("data", "import", shared / "data/maze30", tmp_path / "in", "--kind", "maze-unique")
    assert eqr(*local).code == 0 and data.load(tmp_path / "in").digest == built.digest


def test_labels_of_ambiguous_mazes_take_each_path_about_as_often():
    """5×5 with its one spare wall open is a ring of eight: two paths of four steps each."""
    problems = Maze(5, 5, loops=1).generate(400, seed=0)
    assert (problems.rating == 4).all()
    ring = problems.labels[:, [6, 7, 8, 13, 18, 17, 16, 11]]
    start = (ring == START).argmax(1)
    clockwise = ring[np.arange(400), (start + 1) % 8] == PATH
    assert 0.4 < clockwise.mean() < 0.6


def test_bounded_path_lengths_are_drawn_evenly():
    lengths = Maze(15, 15, path_min=9, path_max=28).generate(2000, seed=4).rating
    counts = np.bincount(lengths, minlength=29)[9:]
    assert counts.sum() == 2000 and (counts > 60).all() and (counts < 150).all()


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_solve_draws_a_shortest_path(task):
    problems = task.generate(5, seed=2)
    answers = np.stack([task.solve(maze) for maze in problems.inputs])
    assert task.check(problems.inputs, answers).all()
    if not task.loops:
        np.testing.assert_array_equal(answers, problems.labels)
    blocked = problems.inputs[0].copy()
    blocked[blocked == OPEN] = WALL
    assert task.solve(blocked) is None and task.count_shortest_paths(blocked) == 0


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_augmentation_keeps_problems_valid_and_their_keys(task):
    problems = task.generate(4, seed=3)
    inputs = torch.from_numpy(problems.inputs).repeat_interleave(40, 0)
    labels = torch.from_numpy(problems.labels).repeat_interleave(40, 0).int()
    moved = task.augment(inputs, labels, torch.Generator().manual_seed(0))
    assert moved[0].dtype == torch.uint8 and moved[1].dtype == torch.int32
    new_inputs, new_labels = moved[0].numpy(), moved[1].numpy()
    assert task.check(new_inputs, new_labels).all()  # so the labels moved with their inputs
    images = {row.tobytes() for row in new_inputs[:40]}
    assert len(images) == (8 if task.height == task.width else 4)
    keys = task.symmetry_key(problems.inputs, problems.labels)
    expected = [key for key in keys for _ in range(40)]
    assert task.symmetry_key(new_inputs, new_labels) == expected
    assert len(set(keys)) == 4
    assert task.problem_key(new_inputs, new_labels) == expected
    again = task.augment(inputs, labels, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], moved[0]) and torch.equal(again[1], moved[1])


def spoiled(task: Maze, maze: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """Wrong answers to a maze, by what is wrong with them."""
    path, off = np.flatnonzero(label == PATH), np.flatnonzero(label == OPEN)
    answers = {"nothing drawn": maze.copy(), "everything drawn": np.where(maze == OPEN, PATH, maze)}
    for what, cell, token in (
        ("gap", path[len(path) // 2], OPEN),
        ("stray cell", off[0], PATH),
        ("wall opened", np.flatnonzero(maze == WALL)[3], OPEN),
        ("through a wall", np.flatnonzero(maze == WALL)[3], PATH),
        ("start lost", np.flatnonzero(maze == START)[0], PATH),
        ("padding", off[0], 0),
        ("no token", off[0], 6),
    ):
        answers[what] = label.copy()
        answers[what][cell] = token
    answers["one cell moved"] = label.copy()
    answers["one cell moved"][path[0]] = OPEN
    answers["one cell moved"][off[0]] = PATH
    return answers


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_check_refuses_spoiled_answers_in_every_orientation(task):
    problems = task.generate(3, seed=4)
    for maze, label in zip(problems.inputs, problems.labels, strict=True):
        for what, answer in spoiled(task, maze, label).items():
            many = (np.repeat(maze[None], 24, 0), np.repeat(answer[None], 24, 0))
            moved = task.augment(*map(torch.from_numpy, many), torch.Generator().manual_seed(5))
            assert not task.check(*many).any(), what
            assert not task.check(moved[0].numpy(), moved[1].numpy()).any(), what


def test_check_accepts_any_shortest_path_and_no_detour():
    task = Maze(7, 7, loops=1)
    maze = task.parse(RING)
    one, other = board(task, maze.copy()), board(task, maze.copy())
    one[1, 2:6] = one[2:4, 5] = PATH
    other[2:5, 1] = other[4, 2:5] = PATH
    both = np.where(maze == OPEN, PATH, maze)
    answers = np.stack([one.ravel(), other.ravel(), both])
    assert task.check(np.stack([maze] * 3), answers).tolist() == [True, True, False]
    assert task.count_shortest_paths(maze) == 2
    long = board(task, maze.copy())  # S and G neighbours at the ring's end: the way round is long
    long[long == GOAL] = OPEN
    long[2, 1] = GOAL
    detour = np.where(long == OPEN, PATH, long)
    inputs, answers = (np.stack([long.ravel()] * 2), np.stack([detour.ravel(), long.ravel()]))
    assert task.check(inputs, answers).tolist() == [False, True]
    no_goal = np.where(maze == GOAL, OPEN, maze)
    assert not task.check(no_goal[None], no_goal[None]).any()
    with pytest.raises(ProblemError, match=r"inputs has shape \(1, 48\); expected \(1, 49\)"):
        task.check(maze[None, 1:], maze[None])


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_strings_round_trip(task):
    for maze in task.generate(3, seed=6).inputs:
        text = task.format(maze)
        assert len(text) == task.seq_len and " " not in text
        for same in (text, text.replace(".", " "), task.render(maze), task.render(maze) + "\r\n"):
            np.testing.assert_array_equal(task.parse(same), maze)
        np.testing.assert_array_equal(task.parse(task.render(maze).replace("\n", "/")), maze)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RING.replace("/", "")[:-1], r"48 characters; expected 49 \(7x7\)"),
        (RING[:-8], "6 rows; expected 7"),
        (RING.replace("#S....#", "#S...#"), "row 2 has 6 characters; expected 7"),
        (RING.replace("#S....#", "#S.x..#"), r"character 11 is 'x'; use # \. S G"),
        (RING.replace("#S....#", "#S.o..#"), "character 11 is 'o'; the path is for the answer"),
        (RING.replace("S", "."), "0 cells are S; a maze has one start"),
        (RING.replace("G", "."), "0 cells are G; a maze has one goal"),
        (RING.replace("#S.", "#SS"), "2 cells are S"),
        (RING.replace("#.###.#", "#######"), "no way leads from S to G"),
        (RING, "2 shortest paths"),
    ],
)
def test_parse_says_what_is_wrong(text, message):
    with pytest.raises(ProblemError, match=message) as caught:
        Maze(7, 7).parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 3, "width": 4}, "no two cells"),
        ({"path_min": 391}, "1 to 390"),
        ({"path_min": 140, "path_max": 100}, "no path of 140 to 100 steps"),
        ({"path_max": 1}, "no path of 2 to 1 steps"),
        ({"loops": 170}, "0 to 169 spare walls"),
        ({"loops": -1}, "0 to 169 spare walls"),
        ({"loops": True}, "task.loops = True must be"),
    ],
)
def test_impossible_tasks_are_refused_at_once(options, message):
    with pytest.raises(ProblemError, match=message):
        Maze(**options)


def test_a_range_out_of_reach_ends_in_a_message():
    with pytest.raises(ProblemError, match=r"390 to 390 steps in 2,000 attempts .* widen"):
        Maze(30, 30, path_min=390, path_max=390).generate(1, seed=0)


def test_tasks_travel_through_dicts():
    for task in TASKS:
        assert task_from_dict(task_to_dict(task)) == task
        assert (task.seq_len, task.vocab_size) == (task.height * task.width, 6)
    with pytest.raises(ValueError, match=r"task\.heigth .*did you mean 'height'"):
        task_from_dict({"kind": "maze", "heigth": 9})


def test_drawing_marks_errors_by_more_than_colour():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    task = Maze(9, 9)
    problems = task.generate(1, seed=0)
    maze, label = problems.inputs[0], problems.labels[0]
    axes = figure.subplots()
    answer = spoiled(task, maze, label)["one cell moved"]
    task.draw(axes, maze, answer, label, settled=np.full(81, 0.5))
    dots, crosses = axes.lines
    assert len(dots.get_xdata()) == (answer == PATH).sum()
    assert crosses.get_marker() == "x" and len(crosses.get_xdata()) == 2
    assert {text.get_text() for text in axes.texts} == {"S", "G"}
    axes = figure.subplots()
    task.draw(axes, maze)
    assert all(len(line.get_xdata()) == 0 for line in axes.lines)
