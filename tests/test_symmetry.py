"""Symmetries of the tasks as objects, and restarts that use them.

``python tests/test_symmetry.py --rewrite`` writes ``golden/augment.json`` anew: do so only where
what training draws is meant to change.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from eqr import experiments, select
from eqr.checkpoint import load_model
from eqr.config import EvalConfig, to_dict
from eqr.evaluate import Records, records
from eqr.experiments import Trained
from eqr.halting import Halting, halting_records
from eqr.model import State, Step
from eqr.rollout import rollout
from eqr.select import majority
from eqr.settings import ConfigError
from eqr.store import Run, Store
from eqr.streams import stream
from eqr.task import Task
from eqr.tasks.maze import Maze
from eqr.tasks.miniarc import MiniArc
from eqr.tasks.sudoku import Sudoku
from eqr.tasks.symmetry import Symmetry, restart_symmetries

GOLDEN = Path(__file__).parent / "golden" / "augment.json"
TASKS = {
    "sudoku4": Sudoku(2, 2),
    "sudoku6": Sudoku(2, 3),
    "sudoku6-tall": Sudoku(3, 2),
    "sudoku9": Sudoku(),
    "sudoku16": Sudoku(4, 4, clues_min=140),
    "maze9": Maze(9, 9),
    "maze10x14": Maze(10, 14),
    "maze-loops": Maze(12, 12, loops=6),
    "miniarc": MiniArc(demonstrations=2),
    "miniarc-embedding": MiniArc(mode="embedding"),
}
EACH = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
CONFIG = EvalConfig((1, 4), breadth=5, noise=0.02, problems=12, symmetry=True)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(task: Task, copies: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels (8 · copies, S)."""
    problems = task.generate(8, seed=0)
    return tuple(torch.from_numpy(a).repeat(copies, 1) for a in (problems.inputs, problems.labels))


# ----------------------------------------------------------------------------------- the symmetries


def golden_numbers(task: Task) -> dict:
    """What two augmentations make of 128 problems, and the draw that comes after them."""
    own = draw(123)
    once = task.augment(*rows_of(task), own)
    twice = task.augment(*once, own)
    content = b"".join(tokens.numpy().tobytes() for tokens in (*once, *twice))
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "next": torch.randint(2**31, (1,), generator=own).item(),
        "label": task.format(once[1][5].numpy()),
    }


@pytest.mark.parametrize("name", TASKS)
def test_augmentation_draws_what_it_drew_when_the_first_models_were_trained(name):
    assert golden_numbers(TASKS[name]) == json.loads(GOLDEN.read_text())[name]


@EACH
def test_undo_is_the_inverse_of_apply_for_any_tokens(task):
    symmetry = task.symmetries(64, draw())
    tokens = torch.randint(task.vocab_size, (64, task.seq_len), generator=draw(1))
    for some in (tokens, tokens.to(torch.uint8), tokens.int()):
        image = symmetry.apply(some)
        assert image.dtype == some.dtype and (image != some).any()
        assert torch.equal(symmetry.undo(image), some)
        assert torch.equal(symmetry.apply(symmetry.undo(some)), some)


@EACH
def test_symmetries_are_those_of_augment_and_keep_answers_right_and_wrong(task):
    inputs, labels = rows_of(task)
    symmetry = task.symmetries(len(inputs), draw(5))
    x, y = symmetry.apply(inputs), symmetry.apply(labels)
    wanted = task.augment(inputs, labels, draw(5))
    assert torch.equal(x, wanted[0]) and torch.equal(y, wanted[1])
    assert task.check(x.numpy(), y.numpy()).all()
    wrong = labels.roll(1, 0)  # the answer of another problem
    assert not task.check(x.numpy(), symmetry.apply(wrong).numpy()).any()
    solved = [task.solve(own) for own in x[:16].numpy()]
    if isinstance(task, MiniArc):
        assert solved == [None] * 16  # no rule to solve by
        return
    solved = torch.from_numpy(np.stack(solved))
    back = Symmetry(*(p if p is None else p[:16] for p in (symmetry.place, symmetry.names)))
    assert task.check(inputs[:16].numpy(), back.undo(solved).numpy()).all()


@EACH
def test_a_row_with_its_own_generator_is_drawn_alone(task):
    inputs, _ = rows_of(task, copies=1)
    whole = task.symmetries(8, [draw(k) for k in range(8)]).apply(inputs)
    for k in range(8):
        own = inputs[k : k + 1]
        assert torch.equal(task.symmetries(1, [draw(k)]).apply(own), whole[k : k + 1])
        assert torch.equal(task.symmetries(1, draw(k)).apply(own), whole[k : k + 1])
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        task.symmetries(3, [draw(), draw()])


@EACH
def test_only_some_rows_can_be_moved(task):
    inputs, _ = rows_of(task, copies=1)
    symmetry, some = task.symmetries(8, draw()), torch.arange(8) % 3 == 0
    image = symmetry.only(some).apply(inputs)
    assert torch.equal(image, torch.where(some[:, None], symmetry.apply(inputs), inputs))


# ------------------------------------------------------------------------------------- the restarts


class Fake:
    """An operator without dynamics: ``decode`` (R, S) → (R, S) is its answer at every depth."""

    device = torch.device("cpu")

    def __init__(self, task: Task, decode) -> None:
        self.task, self.decode = task, decode

    def initial_state(self, rows: int, generator) -> State:
        start = torch.stack([torch.rand(1, 2, generator=own) for own in generator])
        return State(start, start[:, :0])

    def read_logits(self, z_high):
        return torch.zeros(len(z_high), self.task.seq_len, self.task.vocab_size)

    def step(self, state, x, *, noise, generator=None, damping=None) -> Step:
        fresh = torch.stack([torch.rand(1, 2, generator=own) for own in generator])
        logits = one_hot(self.decode(x).long(), self.task.vocab_size).float()
        return Step(State(fresh, state.z_low), logits, fresh[:, 0, 0])


def solver(task: Task):
    """Equivariant and right: the answer is unique."""
    return lambda x: torch.from_numpy(np.stack([task.solve(own) for own in x.numpy()]))


UNIQUE = {k: TASKS[k] for k in ("sudoku4", "sudoku6", "sudoku9", "maze9", "maze10x14")}


@pytest.mark.parametrize("task", UNIQUE.values(), ids=UNIQUE)
def test_an_equivariant_operator_answers_alike_in_every_restart(task):
    problems = task.generate(4, seed=3)
    config = EvalConfig((2,), breadth=6, symmetry=True)
    for decode, right in ((solver(task), True), (lambda x: x, False)):
        model = Fake(task, decode)
        results = records(model, problems.inputs, problems.labels, config, task=task)
        assert (results.exact == right).all() and (results.answer == results.answer[..., :1]).all()
        assert len(np.unique(results.answer)) == 4


def test_majority_votes_over_undone_answers():
    """An operator that is right under about half of the symmetries, and else wrong in many ways:
    only where the answers are undone do its right ones agree."""
    task = Sudoku()
    problems, right = task.generate(6, seed=3), solver(task)

    def fickle(x: torch.Tensor) -> torch.Tensor:
        spoil = x[:, :9].long().sum(1) % 2 == 1  # not the same in all images of a problem
        wrong = (x.long() * 7 + torch.arange(81)) % 9 + 2
        return torch.where(spoil[:, None], wrong, right(x).long())

    config = EvalConfig((1,), breadth=16, symmetry=True)
    results = records(Fake(task, fickle), problems.inputs, problems.labels, config, task=task).at(1)
    share = results.exact.mean(1)
    assert (share > 0.1).all() and (share < 0.9).all()
    assert results.exact[np.arange(6), majority(results)].all()
    for answer, exact in zip(results.answer, results.exact, strict=True):
        assert len(set(answer[exact])) == 1 and len(set(answer[~exact])) == (~exact).sum()


@pytest.fixture(scope="module")
def results(model, problems) -> Records:
    test = problems.test
    return records(model, test.inputs, test.labels, CONFIG, task=problems.task)


def test_a_symmetry_restart_is_the_rollout_of_the_image(model, problems):
    inputs = torch.as_tensor(problems.test.inputs[:3])
    settings = {"depth": 3, "noise": 0.02, "seed": 4}
    *_, last = rollout(model, inputs, breadth=3, symmetries_of=problems.task, **settings)
    for k, (p, r) in enumerate(zip(last.problem.tolist(), last.restart.tolist(), strict=True)):
        one = restart_symmetries(problems.task, 4, np.array([p]), np.array([r]))
        own = stream(4, "evaluation", p, r)
        state, x = model.initial_state(1, [own]), one.apply(inputs[p : p + 1])
        assert torch.equal(x, inputs[p : p + 1]) == (r == 0)
        for _ in range(3):
            with torch.no_grad():
                step = model.step(state, x, noise=0.02, generator=[own])
            state = step.state
        torch.testing.assert_close(last.step.logits[k], step.logits[0], atol=2e-4, rtol=0)
        assert torch.equal(last.answer[k], one.undo(step.answer)[0])


@pytest.mark.parametrize("settings", [{"rows": 7}, {"breadth": 2}, {"problems": 5}])
def test_records_do_not_depend_on_rows_breadth_or_later_problems(
    results, model, problems, settings
):
    test, rows = problems.test, settings.get("rows", 256)
    config = replace(CONFIG, **{k: v for k, v in settings.items() if k != "rows"})
    other = records(model, test.inputs, test.labels, config, task=problems.task, rows=rows)
    same = np.s_[:, : config.problems, : config.breadth]
    np.testing.assert_allclose(other.residual, results.residual[same], atol=2e-4)
    assert (other.answer == results.answer[same]).mean() > 0.98, "rounding may flip a close token"
    assert (other.exact == results.exact[same]).mean() > 0.98


# ------------------------------------------------------------------------------ configuration, runs


def test_the_setting_is_part_of_a_run_only_where_it_is_used(learned, problems, tmp_path):
    plain = replace(CONFIG, symmetry=False)
    assert "symmetry" not in to_dict(plain, defaults=False)
    assert to_dict(CONFIG, defaults=False)["symmetry"] is True
    run, store = Run("train-0", learned.path.parent, {"files": {}}), Store(tmp_path)
    trained = Trained(run, learned.recipe, problems, load_model(learned.path))
    actual = [experiments.evaluate_or_load(trained, config, store) for config in (plain, CONFIG)]
    assert actual[0].run.id != actual[1].run.id
    assert "symmetry" not in actual[0].run.manifest["config"]["eval"]
    tables = [one.table([1, 5], ["majority"]) for one in actual]
    assert [set(table.symmetry) for table in tables] == [{False}, {True}]
    first = (table[table.breadth == 1].exact.tolist() for table in tables)
    assert next(first) == next(first)


def test_what_cannot_be_done_is_refused(model, problems):
    test = problems.test
    with pytest.raises(ConfigError, match=r"eval\.symmetry needs .* pass task="):
        records(model, test.inputs, test.labels, CONFIG)
    with pytest.raises(ConfigError, match=r"halting rules do not run with eval\.symmetry"):
        halting_records(model, test.inputs, test.labels, CONFIG, Halting("fixed"))


def test_eval_takes_the_flag(eqr, learned, model, problems):
    words = ("eval", "-c", learned.path, "--breadth", "1,5", "--depth", 4, "--problems", 12)
    rows = json.loads(eqr(*words, "--noise", 0.02, "--symmetry", "--json").out)
    test, rules = problems.test, ("average", "converged", "majority", "oracle")
    results = records(model, test.inputs, test.labels, CONFIG, task=problems.task)
    wanted = {
        (b, rule): select.selected(results.at(4).first(b), rule) for b in (1, 5) for rule in rules
    }
    for row in rows:
        assert row["symmetry"] is True
        exact = wanted[row["breadth"], row["select"]][0].mean()
        assert row["exact"] == pytest.approx(exact)
    assert len(rows) == 8


if __name__ == "__main__":
    if sys.argv[1:] != ["--rewrite"]:
        raise SystemExit(f"{__doc__}")
    numbers = {name: golden_numbers(task) for name, task in TASKS.items()}
    GOLDEN.write_text(json.dumps(numbers, indent=1) + "\n")
