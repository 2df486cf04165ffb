"""Ends of maps that rest, cycle and wander; modes and tables by hand; borders of known shape."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eqr.analysis import landscape
from eqr.analysis.dynamics import Dynamics, MapModel
from eqr.analysis.landscape import (
    MODES,
    UNSETTLED,
    Ends,
    attractors,
    cluster,
    ends,
    kinds,
    modes,
    settling_time,
    uncertainty_exponent,
)
from eqr.config import ModelConfig
from eqr.evaluate import answer_hash
from eqr.experiments import Trained, measure_or_load
from eqr.model import Reasoner, State
from eqr.rollout import rollout
from eqr.store import Store, StoreError
from eqr.streams import stream

NUMBERS = 12  # in a state: enough that chaos does not return by chance


class Started(MapModel):
    """A map with starts drawn from each row's own stream, uniform in (low, high)."""

    device = torch.device("cpu")

    def __init__(self, function, low=0.0, high=1.0, numbers=NUMBERS, decode=None) -> None:
        super().__init__(function, decode)
        self.low, self.high, self.numbers = low, high, numbers

    def initial_state(self, rows: int, generator) -> State:
        draws = [torch.rand(self.numbers, generator=own, dtype=torch.float64) for own in generator]
        return self.start(self.low + (self.high - self.low) * torch.stack(draws))


def logistic(r: float) -> Started:
    return Started(lambda z: r * z * (1 - z))


def wells(numbers: int = 2) -> Started:
    """tanh(2z) in each number: a well on either side of 0, and the basins are the orthants."""
    return Started(lambda z: torch.tanh(2 * z), -1.0, 1.0, numbers)


def run(model, problems: int = 3, tokens: int = NUMBERS, **settings) -> Ends:
    """Ends with the all-ones label."""
    return ends(model, np.zeros((problems, 1), int), np.ones((problems, tokens), int), **settings)


# -------------------------------------------------------------------------------- how they end


@pytest.mark.parametrize(("r", "kind"), [(2.8, "fixed point"), (3.2, "cycle"), (4.0, "wanders")])
def test_kinds_of_the_logistic_map(r, kind):
    """r = 2.8 rests, 3.2 cycles with period 2, 4 is chaotic."""
    found = run(logistic(r), depth=150, breadth=4)
    assert (kinds(found) == kind).all()
    assert kind != "cycle" or (found.period == 2).all()
    returns, rests = found.recurrence < 1e-4, found.residual[-1] < 1e-6
    assert (returns == (kind != "wanders")).all() and (rests == (kind == "fixed point")).all()


def shift(numbers: int) -> Started:
    """Turns the numbers around: every state has exactly this period."""
    return Started(lambda z: z.roll(1, 1), numbers=numbers)


def test_periods_and_the_window_they_are_seen_through():
    def ended(length: int, depth: int = 20, window: int = 16) -> Ends:
        return run(shift(length), tokens=length, depth=depth, breadth=2, window=window)

    for length in (2, 7):
        for found in (ended(length), ended(length, window=length)):
            assert (found.period == length).all() and (found.recurrence == 0).all()
            assert (kinds(found, 1e-6) == "cycle").all()
    blind = ended(7, window=6)
    assert (kinds(blind, 1e-6) == "wanders").all() and (blind.period < 7).all()
    early = ended(7, depth=7)
    assert (kinds(early, 1e-6) == "wanders").all(), "the first image has not come back yet"


@pytest.mark.parametrize("depth", [1, 2])
def test_too_early_to_say_is_not_a_cycle(depth):
    found = run(logistic(4.0), depth=depth, breadth=4)
    assert (found.recurrence == math.inf).all() and (kinds(found) == "wanders").all()


def test_recurrence_by_brute_force_and_independence_of_chunks():
    """The nearest of the states 2..W before the last, whatever the number of rows in flight."""
    model, settings = logistic(3.9), {"depth": 12, "breadth": 3, "seed": 5}
    inputs = torch.zeros(5, 1)
    found = run(model, problems=5, window=6, **settings)
    steps = [it.step.state.flat().reshape(5, 3, -1) for it in rollout(model, inputs, **settings)]
    back = [(steps[-1] - steps[-1 - k]).square().mean(-1).sqrt() for k in range(1, 7)]
    gaps = torch.stack(back[1:])
    np.testing.assert_allclose(found.recurrence, gaps.amin(0), rtol=1e-6)
    np.testing.assert_array_equal(found.period, gaps.argmin(0) + 2)
    np.testing.assert_allclose(found.residual[-1], back[0], rtol=1e-5)
    for window in (6, 16):  # 16: longer than the run
        whole = run(model, problems=5, window=window, **settings)
        for rows in (1, 6, 7):
            parts = run(model, problems=5, window=window, rows=rows, **settings)
            for name, values in vars(whole).items():
                np.testing.assert_array_equal(getattr(parts, name), values, err_msg=name)


# ----------------------------------------------------------------------------------- attractors


def test_wells_have_the_basins_that_their_starts_say():
    """Two numbers, four orthants: answers, attractors, masses and settling times are all known."""
    model = wells()
    found = run(model, problems=2, tokens=2, depth=40, breadth=200, seed=1)
    first = next(rollout(model, torch.zeros(2, 1), depth=1, breadth=200, rows=400, seed=1))
    signs = first.step.answer.numpy().reshape(2, 200, 2)  # tanh keeps the sign of the start
    right = signs.all(-1)
    np.testing.assert_array_equal(found.exact[-1], right)
    np.testing.assert_array_equal(
        found.answer, answer_hash(torch.from_numpy(signs.reshape(-1, 2))).reshape(2, 200)
    )
    for problem in range(2):
        names, counts = np.unique(signs[problem], axis=0, return_counts=True)
        order = np.argsort(-counts)
        assert len(names) == 4 and len(set(counts)) == 4, "a seed without ties"
        for rank, k in enumerate(order):
            mine = (signs[problem] == names[k]).all(1)
            np.testing.assert_array_equal(found.attractor[problem] == rank, mine)
        table = attractors(found).query(f"problem == {problem}")
        assert table.attractor.tolist() == [0, 1, 2, 3]
        assert table.restarts.tolist() == counts[order].tolist()
        np.testing.assert_allclose(table.mass, counts[order] / 200)
        assert table.right.tolist() == [bool(names[k].all()) for k in order]
        times = settling_time(found.residual)[problem]
        means = [times[found.attractor[problem] == rank].mean() for rank in range(4)]
        np.testing.assert_allclose(table.iterations, means)
        assert (table.residual < 1e-6).all()
    assert abs(right.mean() - 0.25) < 0.06, "each orthant has a quarter of the starts"


def test_trajectories_that_do_not_settle_belong_to_no_attractor():
    none = attractors(run(logistic(4.0), depth=30, breadth=4))
    assert len(none) == 0 and {"problem", "attractor", "mass", "right"} <= set(none.columns)
    found = run(wells(), problems=1, tokens=2, depth=40, breadth=50)
    found.residual[-1, 0, :20] = 1.0
    table = attractors(found)
    assert table.restarts.sum() == 30 and table.mass.sum() == pytest.approx(0.6)


def test_clusters_are_single_linkage_within_the_radius():
    """Against connected components of the graph of near pairs; numbered by size, then by place."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        states = draw.random((30, 3))
        near = np.sqrt(((states[:, None] - states[None]) ** 2).mean(-1)) <= 0.12
        reach = near.copy()
        for _ in range(30):
            reach = reach @ near
        parts = {tuple(row) for row in reach}
        ordered = sorted(parts, key=lambda part: (-sum(part), part.index(True)))
        wanted = np.full(30, -1)
        for label, part in enumerate(ordered):
            wanted[np.array(part)] = label
        np.testing.assert_array_equal(cluster(states, 0.12), wanted)
        assert 2 < len(parts) < 29
    assert cluster(np.zeros((1, 3)), 0.1).tolist() == [0]


# ------------------------------------------------------------------------------------------- modes


def test_modes_by_hand():
    cases = {  # 10 restarts: (right and settled, right and not, wrong and settled, wrong and not)
        (0, 0, 10, 0): "a", (0, 0, 0, 10): "a", (0, 0, 3, 7): "a",
        (5, 0, 5, 0): "b", (2, 0, 8, 0): "b", (8, 1, 1, 0): "b",
        (0, 3, 1, 6): "c", (0, 10, 0, 0): "c", (8, 2, 0, 0): "c",
        (9, 0, 1, 0): "d", (9, 1, 0, 0): "d", (10, 0, 0, 0): "d",
    }  # fmt: skip
    kinds_of = np.array([[True, True], [True, False], [False, True], [False, False]])
    grid = np.array([np.repeat(kinds_of, counts, axis=0) for counts in cases])
    exact, settled = grid[..., 0], grid[..., 1]
    assert modes(exact, settled).tolist() == list(cases.values())
    assert set(cases.values()) == set(MODES)
    order = np.random.default_rng(0).permutation(10)
    assert modes(exact[:, order], settled[:, order]).tolist() == list(cases.values())
    strict = modes(exact, settled, broad=1.0)
    assert strict.tolist() == [*list(cases.values())[:9], "b", "c", "d"]


# ------------------------------------------------------------------------------------------- slices


def on(function, size: int, decode=None) -> Dynamics:
    """The map ``function`` of ``size`` numbers, for one row."""
    model = MapModel(function, decode)
    return Dynamics(model, torch.zeros(1, 1), model.start(torch.zeros(1, size).double()))


def states(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def newton(z: torch.Tensor) -> torch.Tensor:
    """Newton's method for z³ = 1 on the plane."""
    c = torch.view_as_complex(z.contiguous())
    return torch.view_as_real((2 * c**3 + 1) / (3 * c**2))


def nearest_root(z: torch.Tensor) -> torch.Tensor:
    """One token: which of the three roots is closest, (B, 1, 3)."""
    roots = torch.exp(2j * math.pi * torch.arange(3) / 3)
    return -(torch.view_as_complex(z.contiguous())[:, None] - roots).abs()[:, None]


def latent_slice(*given, **settings) -> SimpleNamespace:
    return SimpleNamespace(**landscape.latent_slice(*given, **settings))


PLANE = states([0, 0], [1, 0], [0, 1])  # u and v are the coordinates themselves


@pytest.fixture(scope="module")
def fractal():
    """Newton's basins on a square that does not touch the origin, where the map is singular."""
    return latent_slice(
        on(newton, 2, nearest_root), PLANE, depth=40, size=128, span=(-1.01, 1), rows=4096
    )


def test_a_slice_knows_its_axes_answers_and_labels():
    """tanh(2z) sends each coordinate to the well of its sign, ±0.9575."""
    wells, corners = on(lambda z: torch.tanh(2 * z), 3), states([1, 0, -1], [1, 2, -1], [3, 0, -1])
    found = latent_slice(wells, corners, np.array([1, 1, 0]), depth=30, size=41, span=(-1.02, 1))
    v, u = np.meshgrid(found.v, found.u, indexing="ij")
    first, second = 1 + 2 * v > 0, 2 * u > 0  # the third coordinate stays negative
    np.testing.assert_array_equal(found.exact, first & second)
    basins = first * 2 + second
    names, counts = np.unique(basins, return_counts=True)
    for rank, basin in enumerate(names[np.argsort(-counts)]):
        np.testing.assert_array_equal(found.answer == rank, basins == basin)
    assert (found.residual < 1e-6).all() and (found.settled_at > 0).all()
    middle = found.settled_at[0, np.argmin(abs(found.u))], found.settled_at[0, -1]
    assert middle[0] > middle[1], "near the border it takes longer"
    plain = latent_slice(wells, corners, depth=30, size=41, span=(-1.02, 1), rows=100)
    np.testing.assert_array_equal(plain.answer, found.answer)
    np.testing.assert_array_equal(plain.settled_at, found.settled_at)
    assert not plain.exact.any()
    tall = latent_slice(wells, corners, depth=5, size=8, span=(-0.9, 0), span_v=(1, 3))
    assert tall.u[[0, -1]].tolist() == [-0.9, 0] and tall.v[[0, -1]].tolist() == [1, 3]
    assert (tall.answer == 0).all(), "u < 0 < v: one basin"


def test_half_planes_settle_when_they_should():
    """z ← z/2 along the border, and across it 1 + (z − 1)/2 or its mirror image: exact times."""

    def halves(z: torch.Tensor) -> torch.Tensor:
        across = z[:, 0] - z[:, 1]
        return torch.stack((across.sign() + (across - across.sign()) / 2, across * 0), 1)

    found = latent_slice(on(halves, 2), PLANE, depth=12, size=16, span=(-2, 2.5), tolerance=0.01)
    v, u = np.meshgrid(found.v, found.u, indexing="ij")
    off = abs(u - v) > 1e-9
    np.testing.assert_array_equal((found.answer == found.answer[0, -1])[off], (u > v)[off])
    gap = abs(abs(u - v) - 1)  # to ±1; halved by every iteration, RMS over two numbers
    later = gap[..., None] / 2.0 ** np.arange(2, 13) / math.sqrt(2)
    first = np.hypot(np.sign(u - v) * (1 + (abs(u - v) - 1) / 2) - u, v) / math.sqrt(2)
    moves = np.concatenate([first[..., None], later], -1)
    np.testing.assert_allclose(found.residual[off], moves[..., -1][off], rtol=1e-4, atol=1e-9)
    wanted = settling_time(np.moveaxis(moves, -1, 0), 0.01)
    np.testing.assert_array_equal(found.settled_at[off], wanted[off])
    assert len(np.unique(wanted[off])) > 4


def test_the_corners_of_a_slice_are_the_trajectories_of_a_rollout():
    config = ModelConfig(hidden=8, blocks=1, high_cycles=1, low_cycles=2, width_multiple=8)
    model = Reasoner(config, 2, 3, 4, stream(1, "init"))
    x = torch.tensor([[0, 1, 2, 3, 1, 2]])
    own = Dynamics.of(model, x, dtype=torch.float32)
    corners = torch.cat([own.starts(5, restart) for restart in range(3)])
    *_, last = rollout(model, x, depth=6, breadth=3, seed=5)
    found = latent_slice(own, corners, last.step.answer[1].numpy(), depth=6, size=2, span=(0, 1))
    at = ([0, 0, 1], [0, 1, 0])  # (0, 0), u = 1 and v = 1
    np.testing.assert_allclose(found.residual[at], last.residual, rtol=1e-4)
    assert found.exact[0, 1]
    same = (last.step.answer == last.step.answer[1]).all(1)
    np.testing.assert_array_equal(found.exact[at], same)


def test_settling_time_by_brute_force():
    draw = np.random.default_rng(0)
    trace = draw.choice([0.01, 0.02, 0.03], p=[0.8, 0.1, 0.1], size=(6, 8, 50))
    trace[:, 0, 0], trace[:, 0, 1] = 0.01, 0.03
    found = settling_time(trace, 0.02)
    for row in np.ndindex(8, 50):
        below = [r < 0.02 for r in trace[(slice(None), *row)]]
        wanted = next((t for t in range(1, 7) if all(below[t - 1 :])), UNSETTLED)
        assert found[row] == wanted
    assert found[0, 0] == 1 and found[0, 1] == UNSETTLED
    nan = np.array([[0.01, math.nan], [math.nan, 0.01]])
    assert settling_time(nan, 0.02).tolist() == [UNSETTLED, 2], "what diverged has not settled"


# ----------------------------------------------------------------------------------- basin entropy


def cantor(levels: int) -> np.ndarray:
    """Points of [0, 1) in 3^levels steps, each gap of the Cantor set a basin of its own."""
    x, first = np.arange(3**levels), np.full(3**levels, levels)
    for level in reversed(range(levels)):
        first = np.where(x // 3 ** (levels - 1 - level) % 3 == 1, level, first)
    return first * 3**levels + x // 3 ** (levels - first)  # the digits before the first 1


def test_uncertainty_exponent_of_smooth_borders_is_one():
    for size in (32, 200):
        line = np.tile(np.arange(size) >= size // 2, (size, 1))
        found = uncertainty_exponent(line)
        assert found.alpha == pytest.approx(1), "a straight border, at any size of the slice"
        np.testing.assert_allclose(found.uncertain, 2 * found.radii / (size - 16))
        assert uncertainty_exponent(line.T).alpha == pytest.approx(1)
    v, u = np.indices((128, 128)) - 63.3
    circle = uncertainty_exponent(u**2 + v**2 < 32**2)
    assert circle.alpha == pytest.approx(1, abs=0.02)
    assert circle.low < circle.alpha < circle.high < 1.1


def test_uncertainty_exponent_of_a_cantor_set_is_its_codimension():
    """Stripes over a border of dimension ln 2 / ln 3: α = 1 − ln 2 / ln 3 = 0.369."""
    stripes = np.tile(cantor(7), (55, 1))
    found = uncertainty_exponent(stripes, (1, 3, 9, 27))
    assert found.alpha == pytest.approx(1 - math.log(2) / math.log(3), abs=0.01)
    assert found.high < 0.4


def test_uncertainty_exponent_of_newton_s_map_is_fractal(fractal):
    """On 2,048² points and radii up to 64 it is 0.557 (measured once); here on 128²."""
    found = uncertainty_exponent(fractal.answer)
    assert found.alpha == pytest.approx(0.557, abs=0.03) and found.high < 0.65


def test_uncertainty_exponent_where_nothing_can_be_fitted():
    flat = uncertainty_exponent(np.zeros((20, 20)))
    assert math.isnan(flat.alpha) and math.isnan(flat.low) and (flat.uncertain == 0).all()
    board = uncertainty_exponent(
        np.indices((30, 30)).sum(0) % 2, (1, 2, 3)
    )  # certain at distance 2
    assert board.alpha == 0 and board.uncertain.tolist() == [1, 0, 1]
    assert math.isnan(board.low) and math.isnan(board.high), "two points give a line, no interval"
    with pytest.raises(ValueError, match="radius 8 does not fit"):
        uncertainty_exponent(np.zeros((16, 40)))


# ----------------------------------------------------------------------------------- the store


def test_a_measurement_is_made_once_and_an_altered_one_is_refused(tmp_path):
    stored, problems = SimpleNamespace(sha256="aa"), SimpleNamespace(digest="bb")
    model = Trained(None, None, problems, stored)
    store, calls = Store(tmp_path), []

    def measure() -> dict[str, np.ndarray]:
        calls.append(1)
        return vars(run(wells(), problems=2, tokens=2, depth=5, breadth=3))

    settings = {"depth": 5, "breadth": 3}
    first = measure_or_load("ends", model, settings, measure, store)
    again = measure_or_load("ends", model, dict(reversed(settings.items())), measure, store)
    assert len(calls) == 1 and again.run == first.run
    direct = run(wells(), problems=2, tokens=2, depth=5, breadth=3)
    for name, values in vars(direct).items():
        np.testing.assert_array_equal(again[name], values)
        assert again[name].dtype == values.dtype

    other = Trained(None, None, problems, SimpleNamespace(sha256="cc"))
    for call in (("ends", other, settings), ("ends", model, {"depth": 6}), ("e", model, settings)):
        assert measure_or_load(*call, measure, store).run.id != first.run.id
    assert len(calls) == 4

    file = first.run.file("arrays.npz")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match=r"arrays\.npz: altered"):
        measure_or_load("ends", model, settings, measure, store)
    assert len(calls) == 4
