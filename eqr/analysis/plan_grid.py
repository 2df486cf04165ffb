"""What stored runs say about each way to spend compute: the grid of :mod:`eqr.analysis.plan`.

A row of the grid is a :class:`Setting`, a column a test problem, a value the accuracy there. One
evaluation with B restarts gives every smaller breadth b as well: the restarts are cut into disjoint
groups of b, the rule chooses in each, and a problem's value is the mean over its groups (paper §4).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from eqr import checkpoint
from eqr.config import SEMANTICS
from eqr.evaluate import Records
from eqr.experiments import read_result
from eqr.halting import Halted
from eqr.select import RULES, Outcomes, selected
from eqr.settings import ConfigError, nearest
from eqr.store import Run, Store, inspect

UNITS = ("nfe", "layers", "seconds")


class PlanError(ConfigError):
    """No plan can be given; the message says what the records lack and what to record."""


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """One way to run a model. The oracle is none: a plan must not look at labels."""

    depth: int  # of a halting rule: the limit
    breadth: int
    select: str  # "average" with one restart, where there is nothing to select
    noise: float = 0.0
    halting: str = "fixed"
    first_settled: float = 0.0  # 0: every restart is run
    window: int = 3

    def __str__(self) -> str:
        text = f"D = {self.depth}, B = {self.breadth}, β = {self.noise:g}"
        text += f", halting {self.halting}"
        if self.first_settled:
            text += f", first settled below {self.first_settled:g}"
        return text + (f", select {self.select}" if self.breadth > 1 else ", one start")


@dataclass(frozen=True, slots=True)
class Grid:
    """S settings × P problems that all of them were run on."""

    settings: tuple[Setting, ...]
    exact: np.ndarray  # (S, P) in [0, 1]: mean over the groups of restarts
    nfe: np.ndarray  # (S, P) outer iterations spent
    groups: np.ndarray  # (S,) groups of restarts behind each value
    rate: np.ndarray  # (S,) seconds a row-iteration, measured with many rows in flight
    layers: int  # layer evaluations of one outer iteration
    runs: tuple[str, ...]  # (S,) ids of the stored runs
    notes: tuple[str, ...] = ()  # what was left out to have all settings on the same problems
    clock: str = "–"  # where the rates come from

    def problems(self, index: np.ndarray) -> Grid:
        """The same settings on some of the problems only (an index or a mask of them)."""
        return replace(self, exact=self.exact[:, index], nfe=self.nfe[:, index])

    def cost(self, unit: str = "nfe") -> np.ndarray:
        """Mean cost a problem of each setting, (S,), in NFE, layer evaluations or seconds.

        Raises:
            ConfigError: an unknown unit.
        """
        if unit not in UNITS:
            raise ConfigError(f"unit {unit!r} is not known; {nearest(unit, UNITS)}")
        factor = {"nfe": 1.0, "layers": float(self.layers), "seconds": self.rate}[unit]
        return self.nfe.mean(1) * factor


@dataclass(frozen=True, slots=True)
class Column:
    """A setting before it is laid out in a grid."""

    setting: Setting
    exact: np.ndarray  # (P,)
    nfe: np.ndarray  # (P,)
    groups: int
    rate: float
    run: str = "–"


def breadths_up_to(breadth: int) -> list[int]:
    """The breadths considered: 1, 2, 3, 4, 6, 8, 12, … and the recorded one.

    >>> breadths_up_to(10)
    [1, 2, 3, 4, 6, 8, 10]
    """
    steps = {m * 2**k for k in range(breadth.bit_length()) for m in (1, 3)}
    return sorted({b for b in steps if b <= breadth} | {breadth})


def columns(
    outcomes: Outcomes,
    nfe: np.ndarray,
    setting: Setting,
    *,
    rules: Iterable[str] = RULES,
    rate: float = 0.0,
    run: str = "–",
) -> Iterator[Column]:
    """Every breadth and rule that recorded restarts can answer for.

    Args:
        outcomes: of P problems × B restarts.
        nfe: (P, B) outer iterations of each restart.
        setting: what they have in common. Where a later restart was run only if the earlier ones
            had not settled, there are no groups but the first.
        rules: of selection, for more than one restart.
    """
    for breadth in breadths_up_to(nfe.shape[1]):
        groups = 1 if setting.first_settled else nfe.shape[1] // breadth
        used = nfe[:, : groups * breadth].sum(1) / groups
        settle = setting.first_settled if breadth > 1 else 0.0
        for rule in rules if breadth > 1 else ("average",):
            values = []
            for k in range(groups):
                part = slice(k * breadth, (k + 1) * breadth)
                group = (getattr(outcomes, f.name)[:, part] for f in fields(Outcomes))
                values.append(selected(Outcomes(*group), rule)[0])
            own = replace(setting, breadth=breadth, select=rule, first_settled=settle)
            yield Column(own, np.mean(values, axis=0, dtype=float), used, groups, rate, run)


def columns_of_records(
    records: Records, *, noise: float = 0.0, window: int = 3, rate: float = 0.0, run: str = "–"
) -> Iterator[Column]:
    """Every setting that the records of a fixed budget can answer for."""
    for depth in records.depths.tolist():
        outcomes = records.at(depth)
        setting = Setting(depth, 1, "average", noise, window=window)
        nfe = np.full(outcomes.exact.shape, float(depth))
        yield from columns(outcomes, nfe, setting, rate=rate, run=run)


def columns_of_halted(
    halted: Halted,
    rule: str,
    limit: int,
    *,
    first_settled: float | None = None,
    noise: float = 0.0,
    window: int = 3,
    run: str = "–",
) -> Iterator[Column]:
    """Every setting that the records of one halting rule can answer for, with its mean NFE."""
    setting = Setting(limit, 1, "average", noise, rule, first_settled or 0.0, window)
    # `halted_at` says when the rule fired, and the fixed budget never fires.
    rules = [name for name in RULES if (rule, name) != ("fixed", "first_to_halt")]
    rate = halted.seconds / max(1, int(halted.depth.sum()))
    yield from columns(halted, halted.depth, setting, rules=rules, rate=rate, run=run)


def grid(columns: Sequence[Column], layers: int = 1, least: int | None = None) -> Grid:
    """Lay columns out on the problems that they share.

    Runs take the first so many problems of a test set. Accuracies on other problems cannot be
    compared, so that all settings are cut to the fewest; a note says so.

    Args:
        least: settings recorded on fewer problems are left out; None: on fewer than half as many
            as the largest run.

    Raises:
        PlanError: no setting was recorded on so many problems.
    """
    most = max((len(column.exact) for column in columns), default=0)
    least = least or (most + 1) // 2
    few = {column.setting for column in columns if len(column.exact) < least}
    enough = [column for column in columns if len(column.exact) >= least]
    # Of two runs of one setting, the one with more problems counts, then more restarts.
    ranked = sorted(enough, key=lambda c: (len(c.exact), c.groups, c.run))
    best = {column.setting: column for column in ranked}
    chosen = [best[setting] for setting in sorted(best)]
    if not chosen:
        raise PlanError(f"no setting was recorded on {least} problems; the most is {most}")
    size, notes = min(len(column.exact) for column in chosen), []
    if few := few - best.keys():
        notes.append(f"settings left out, recorded on fewer than {least} problems: {len(few)}")
    if size < most:
        notes.append(
            f"all are compared on the {size} problems they share; some have {most}, and "
            f"--problems {most} plans with those alone"
        )
    return Grid(
        tuple(c.setting for c in chosen),
        np.array([c.exact[:size] for c in chosen], float),
        np.array([c.nfe[:size] for c in chosen], float),
        np.array([c.groups for c in chosen], int),
        np.array([c.rate for c in chosen], float),
        layers,
        tuple(c.run for c in chosen),
        tuple(notes),
    )


# ---------------------------------------------------------------------------------- from the store


def runs_grid(
    runs: Sequence[Run],
    layers: int,
    *,
    rates: Mapping[bool, float] | None = None,
    least: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Grid:
    """All that some evaluations and halting runs of one model say.

    Args:
        layers: layer evaluations of one outer iteration.
        rates: of :func:`eqr.analysis.bench.row_seconds`; None takes the stored runs' own (of
            evaluations the median over those with, and those without, noise: a busy machine slows
            single runs).
        least: as for :func:`grid`.
        progress: called with (runs read, of).

    Raises:
        PlanError: they are of several models or data sets, or none is on ``least`` problems.
    """
    laid_out: list[Column] = []
    stored: dict[bool, list[float]] = {True: [], False: []}
    for what in ("weights", "data"):
        if len(several := sorted({run.manifest["config"][what] for run in runs})) > 1:
            raise PlanError(
                f"the runs are of {len(several)} different {what} ({', '.join(several)}); plan in "
                "a store that has one"
            )
    for done, run in enumerate(runs, 1):
        result = read_result(run)
        config = result.config
        about = {"noise": config.noise, "window": config.window, "run": run.id}
        if run.manifest["kind"] == "eval":
            records = result.records
            work = records.exact[0].size * config.depths[-1]
            stored[config.noise > 0].append(run.manifest["provenance"]["seconds"] / work)
            laid_out += columns_of_records(records, **about)
        else:
            about |= {"first_settled": run.manifest["config"]["first_settled"]}
            for rule, halted in result.rules.items():
                laid_out += columns_of_halted(halted, rule, config.depths[-1], **about)
        if progress:
            progress(done, len(runs))
    whole = grid(laid_out, layers, least)
    rate = whole.rate.copy()
    for row, setting in enumerate(whole.settings):
        noisy = setting.noise > 0
        if rates is not None:
            rate[row] = rates[noisy]
        elif whole.runs[row].startswith("eval-"):
            rate[row] = statistics.median(stored[noisy])
    return replace(whole, rate=rate, clock="measured now" if rates else "by the stored runs")


#: What tells settings of the grid apart, or does not change what they mean. A run with any other
#: setting (restarts under symmetries, shared prefixes, changed dynamics) is of something else.
PLANNED = {"depths", "breadth", "noise", "window", "seed", "problems", "checked"}


def stored_runs(weights: str, store: Store) -> list[Run]:
    """The store's evaluations and halting runs of these weights on their own test problems, with
    ordinary restarts; those under shift are left out.

    Raises:
        PlanError: there are none.
        StoreError: one of them is damaged.
    """
    runs = []
    for path in store.paths():
        if path.name.partition("-")[0] not in ("eval", "halting"):
            continue
        manifest = inspect(path, contents=False).manifest
        if not manifest or manifest["semantics"] != SEMANTICS:
            continue
        config = manifest["config"]
        if "level" in config or not set(config.get("eval", ())) <= PLANNED:
            continue
        if config.get("weights") == weights:
            runs.append(store.get(path.name))
    if not runs:
        raise PlanError(
            f"no evaluation of these weights ({weights[:16]}) is stored in {store.root}; "
            "record one with --depth 4,8,16 --breadth 16"
        )
    return runs


def stored_grid(model: checkpoint.Checkpoint, store: Store, **settings) -> Grid:
    """:func:`runs_grid` of all that the store has of these weights, with the same settings."""
    runs = stored_runs(model.sha256, store)
    return runs_grid(runs, model.model.config.layers, **settings)
