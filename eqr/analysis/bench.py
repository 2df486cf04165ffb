"""How fast training and evaluation are, beside what the machine's matrix products can do, and how
the cost grows (chapter *What it costs*).

Rates are to be read as ratios within one run: absolute times depend on the machine and its load.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqr import data
from eqr.config import Recipe, to_dict
from eqr.cost import forward_flops, step_flops
from eqr.files import file_sha256, read_json, to_json, write_file
from eqr.layers import parameter_count
from eqr.model import Reasoner
from eqr.rollout import rollout
from eqr.settings import digest
from eqr.stats import power_law
from eqr.store import Run, Store, processor, provenance
from eqr.streams import stream
from eqr.task import Task, task_from_dict
from eqr.train import Trainer

PACKAGE = Path(__file__).parents[1]  # its sources: other code, another bench


def rate(work: Callable[[], object], seconds: float, device: str) -> float:
    """Calls a second, over at least ``seconds``, after two calls that are not counted."""

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    work(), work()
    finish()
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        work()
        calls += 1
    finish()
    return calls / (time.perf_counter() - began)


def matmul_flops(device: str, seconds: float, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a large square matrix product."""
    size = 8192 if device == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    return rate(lambda: left @ right, seconds, device) * 2 * size**3


def run_through(model: Reasoner, inputs: Tensor, depth: int, rows: int, breadth: int = 1) -> None:
    """A noise-free rollout whose results are dropped."""
    for _ in rollout(model, inputs, depth=depth, breadth=breadth, rows=rows):
        pass


def row_seconds(model: Reasoner, seconds: float = 1.0, rows: int = 256) -> dict[bool, float]:
    """Seconds a row-iteration here and now, without noise (False) and with it (True).

    Measured for ``seconds`` each with ``rows`` trajectories in flight, as in an evaluation: one
    problem alone takes longer for an iteration than a row among many.
    """
    inputs, rates = torch.zeros(rows, model.tokens, dtype=torch.long), {}
    for noisy in (False, True):
        # The first iteration draws the starts; :func:`rate` does not count it.
        iterations = rollout(model, inputs, depth=2**31, noise=0.1 * noisy, rows=rows)
        rates[noisy] = 1 / (rate(lambda: next(iterations), seconds, "cpu") * rows)  # noqa: B023
    return rates


def bench(
    recipe: Recipe, device: str = "cpu", seconds: float = 5.0, fused: Sequence[bool] = (False, True)
) -> list[dict[str, Any]]:
    """Measure one recipe at its full operator, op by op (eager) and with that operator compiled.

    The matrix-product rate is taken before and after each, and the mean is used, so that a machine
    that slows down in between does not flatter the shares; evaluations run in float32 and are
    compared with its rate, whatever the training's type. A training step costs one forward pass
    plus twice the share of it that carries a gradient. A machine that cannot compile gives the
    eager row only.

    Returns:
        A row for each way; ``train_gain`` and ``eval_gain`` are rates over those of the first row.
    """
    small = replace(
        recipe,
        data=replace(recipe.data, source="generate", train=64, test=64),
        train=replace(recipe.train, short_until=0.0),
    )
    problems, train = data.build(small.task, small.data), recipe.train
    dtype = torch.bfloat16 if train.dtype == "bfloat16" else torch.float32
    inputs = torch.as_tensor(problems.test.inputs)
    rows: list[dict[str, Any]] = []
    for on in fused:
        trainer = Trainer(small, problems, device, fused=on)
        if trainer.fused != on:
            continue
        model = trainer.model
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        peaks = [matmul_flops(device, seconds / 4, kind) for kind in (dtype, torch.float32)]
        steps = rate(trainer.advance, seconds, device)
        passes = rate(lambda: run_through(trainer.ema, inputs, 4, 64), seconds, device)  # noqa: B023
        after = [matmul_flops(device, seconds / 4, kind) for kind in (dtype, torch.float32)]
        peak, peak_eval = ((a + b) / 2 for a, b in zip(peaks, after, strict=True))
        if device == "cuda":
            memory = torch.cuda.max_memory_allocated() / 2**20
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        iterations = passes * len(inputs) * 4
        puzzles = iterations / 16
        first = rows[0] if rows else {}
        rows.append(
            {
                "recipe": recipe.name,
                "operator": "compiled" if on else "eager",
                "device": device,
                "hardware": torch.cuda.get_device_name() if device == "cuda" else processor(),
                "threads": torch.get_num_threads(),
                "batch": train.batch,
                "parameters": parameter_count(model),
                "dtype": train.dtype,
                "matmul_gflops": peak / 1e9,
                "forward_gflop_per_iteration": forward_flops(model) / 1e9,
                "train_steps_per_s": steps,
                "train_ms_per_puzzle_iteration": 1e3 / (steps * train.batch * train.unroll),
                "train_share_of_matmul": steps * step_flops(recipe, model) / peak,
                "train_gain": steps / first.get("train_steps_per_s", steps),
                "eval_puzzles_per_s_at_depth_16": puzzles,
                "eval_ms_per_puzzle_iteration": 1e3 / iterations,
                "eval_share_of_matmul": iterations * forward_flops(model) / peak_eval,
                "eval_gain": puzzles / first.get("eval_puzzles_per_s_at_depth_16", puzzles),
                "peak_memory_mib": memory,  # of the process so far, on the CPU
            }
        )
    return rows


@dataclass(frozen=True, slots=True)
class Growth:
    """How the time of an evaluation grows with one quantity, as ``time ∝ value ** exponent``."""

    quantity: str
    values: tuple[int, ...]
    milliseconds: tuple[float, ...]
    exponent: float
    low: float  # 95 % t interval of the fitted line's slope
    high: float
    theory: float  # the same fit to the number of operations


#: Boxes of the Sudoku boards that stand for the size of a board: 16 to 256 cells.
BOXES = ((2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4))


def scaling(recipe: Recipe, device: str = "cpu", seconds: float = 0.5) -> list[Growth]:
    """Time an untrained model of the recipe against depth, breadth, batch and board size.

    Boards are blank; the number of iterations does not depend on what stands on them. Sizes are
    those of Sudoku boards with the recipe's operator, for any task of the recipe.

    Args:
        seconds: for each of the points, at least.
    """

    def untrained(task: Task) -> Reasoner:
        model = Reasoner.for_task(task, recipe.model, stream(0, "init")).to(device)
        return model.eval().requires_grad_(False)

    def milliseconds(model: Reasoner, problems: int, depth: int, breadth: int, rows: int) -> float:
        blank = torch.ones((problems, model.tokens), dtype=torch.uint8, device=device)
        return 1e3 / rate(lambda: run_through(model, blank, depth, rows, breadth), seconds, device)

    def growth(quantity: str, points: dict[int, tuple[float, float]]) -> Growth:
        """Of (milliseconds, operations) by value."""
        values, (times, operations) = tuple(points), zip(*points.values(), strict=True)
        theory, _, _ = power_law(values, operations)
        return Growth(quantity, values, times, *power_law(values, times), theory)

    model, doubling, boards = untrained(recipe.task), (1, 2, 4, 8, 16, 32), {}
    each, batches = forward_flops(model), tuple(4 * b for b in doubling)
    for height, width in BOXES:
        task = task_from_dict({"kind": "sudoku", "box_height": height, "box_width": width})
        board = untrained(task)
        boards[board.tokens] = (milliseconds(board, 8, 4, 1, 8), forward_flops(board))
    return [
        growth("depth", {d: (milliseconds(model, 8, d, 1, 8), d * each) for d in doubling}),
        growth("breadth", {b: (milliseconds(model, 8, 4, b, 64), b * each) for b in doubling}),
        growth("batch", {b: (milliseconds(model, b, 4, 1, b), b * each) for b in batches}),
        growth("cells of the board", boards),
    ]


@dataclass(frozen=True, slots=True)
class Bench:
    """Measurements of one machine, and the run that stores them."""

    run: Run
    rows: list[dict[str, Any]]  # of :func:`bench`
    growth: list[Growth]


def bench_or_load(recipes: Sequence[Recipe], store: Store, seconds: float, compiled: bool) -> Bench:
    """Measure recipes, and the growth of the first one, or read what this machine has measured.

    Args:
        recipes: what to measure.
        seconds: for each rate; a tenth of it for each point of the growth.
        compiled: measure the compiled operator too.
    """
    config = {
        "recipes": [to_dict(recipe, defaults=False) for recipe in recipes],
        "seconds": seconds,
        "compiled": compiled,
        "machine": {k: v for k, v in provenance().items() if k != "commit"},
        "package": digest([file_sha256(path) for path in sorted(PACKAGE.rglob("*.py"))]),
    }

    def make(directory: Path) -> None:
        ways = (False, True) if compiled else (False,)
        rows = [row for one in recipes for row in bench(one, "cpu", seconds, ways)]
        growth = [asdict(g) for g in scaling(recipes[0], "cpu", seconds / 10)]
        text = to_json({"rows": rows, "growth": growth}, indent=1)
        write_file(directory / "bench.json", f"{text}\n".encode())

    run = store.obtain("bench", config, make)
    stored = read_json(run.file("bench.json"))
    return Bench(run, stored["rows"], [Growth(**g) for g in stored["growth"]])
