"""What stored runs say about each way to spend compute, for :mod:`eqr.analysis.plan`.

One evaluation with B restarts answers for every smaller breadth b as well: the restarts are cut
into disjoint groups of b, the rule chooses in each, and a problem's value is the mean over its
groups (paper §4).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eqr.config import SEMANTICS, EvalConfig, to_dict
from eqr.data import Progress
from eqr.experiments import EvalResult, evaluate_or_load, load_trained, read_result
from eqr.halting import Halted
from eqr.recipes import load_recipe, recipe_names
from eqr.runs import models
from eqr.select import RULES, Outcomes, selected
from eqr.settings import ConfigError, nearest
from eqr.stats import Difference, paired_difference, share_interval
from eqr.store import Run, Store, inspect

UNITS = {"nfe": "NFE", "layers": "layers", "seconds": "s"}  # of cost, and in messages


class PlanError(ConfigError):
    """No plan can be given; the message says what the records lack and what to record."""


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """How a model is run. The oracle is no rule here: a plan must not look at labels."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """A setting with what it got and what it cost on each of P problems."""

    setting: Setting
    exact: np.ndarray  # (P,) in [0, 1]: mean over the groups of restarts
    nfe: np.ndarray  # (P,) outer iterations spent
    groups: int = 1  # of restarts, behind each value
    rate: float = 0.0  # seconds a row-iteration, with many rows in flight
    layers: int = 1  # layer evaluations of one outer iteration
    run: str = "–"  # id of the stored run it was read from

    @property
    def recorded(self) -> Difference:
        """Accuracy on all its problems: optimistic for a way that was chosen on them."""
        return share_interval(float(self.exact.mean()), self.exact, self.groups)

    def cost(self, unit: str = "nfe") -> float:
        """Mean cost of a problem, in NFE, layer evaluations or seconds."""
        price = {"nfe": 1, "layers": self.layers, "seconds": self.rate}
        return float(self.nfe.mean()) * price[unit]

    def minus(self, other: Way) -> Difference:
        """Paired difference of the accuracies."""
        return paired_difference(self.exact, other.exact)

    def on(self, problems: np.ndarray) -> Way:
        """The same on some of the problems only (an index or a mask of them)."""
        return replace(self, exact=self.exact[problems], nfe=self.nfe[problems])

    def to_dict(self, beside: Way | None = None) -> dict[str, Any]:
        """JSON-ready; ``gap`` is to another way."""
        values = {"setting": asdict(self.setting), "recorded": asdict(self.recorded)}
        values |= {unit: self.cost(unit) for unit in UNITS} | {"run": self.run}
        return values | {"gap": asdict(self.minus(beside)) if beside else None}

    def __str__(self) -> str:
        nfe, seconds, accuracy = self.cost(), self.cost("seconds"), self.recorded.text(".1%")
        return f"{self.setting}: {accuracy}, {nfe:.4g} NFE, {seconds:.3g} s"


def ways_in(
    outcomes: Outcomes, setting: Setting, rate: float = 0.0, layers: int = 1, run: str = "–"
) -> Iterator[Way]:
    """Every breadth and selection rule that recorded restarts can answer for.

    Args:
        outcomes: of P problems × B restarts at one depth, or what a halting rule did with them,
            which knows its own NFE and rate.
        setting: what the ways have in common. Where a later restart was run only if the earlier
            ones had not settled, there are no groups but the first.
    """
    nfe, rules = np.full(outcomes.exact.shape, float(setting.depth)), list(RULES)
    if isinstance(outcomes, Halted):
        nfe, rate = outcomes.depth, outcomes.seconds / max(1, int(outcomes.depth.sum()))
        if setting.halting == "fixed":
            rules.remove("first_to_halt")  # `halted_at` says when the rule fired: never
    most = nfe.shape[1]
    steps = {m * 2**k for k in range(most.bit_length()) for m in (1, 3)}  # 1, 2, 3, 4, 6, 8, 12, …
    for breadth in sorted({b for b in steps if b < most} | {most}):
        groups = 1 if setting.first_settled else most // breadth
        parts = [outcomes.first(breadth, k * breadth) for k in range(groups)]
        spent = nfe[:, : groups * breadth].sum(1) / groups
        settled = setting.first_settled if breadth > 1 else 0.0
        for rule in rules if breadth > 1 else ("average",):
            exact = np.mean([selected(part, rule)[0] for part in parts], axis=0, dtype=float)
            own = replace(setting, breadth=breadth, select=rule, first_settled=settled)
            yield Way(own, exact, spent, groups, rate, layers, run)


def align(ways: Sequence[Way], least: int | None = None) -> tuple[list[Way], list[str]]:
    """Ways cut to the problems that they share, one a setting; and notes on what was left out.

    Runs take the first so many problems of a test set, and accuracies on other problems cannot be
    compared.

    Args:
        least: ways recorded on fewer problems are left out; None: on fewer than half as many as
            the largest run.

    Raises:
        PlanError: no way was recorded on so many problems.
    """
    most = max((len(way.exact) for way in ways), default=0)
    least = least or (most + 1) // 2
    # Of two runs of one setting, the one with more problems counts, then more restarts.
    ranked = sorted(ways, key=lambda way: (len(way.exact), way.groups, way.run))
    best = {way.setting: way for way in ranked if len(way.exact) >= least}
    if not best:
        raise PlanError(f"no setting was recorded on {least} problems; the most is {most}")
    size, notes = min(len(way.exact) for way in best.values()), []
    if few := {way.setting for way in ways} - best.keys():
        notes.append(f"settings left out, recorded on fewer than {least} problems: {len(few)}")
    if size < most:
        notes.append(
            f"all are compared on the {size} problems they share; some have {most}, and "
            f"--problems {most} plans with those alone"
        )
    return [best[setting].on(np.arange(size)) for setting in sorted(best)], notes


def read_ways(
    runs: Sequence[Run],
    layers: int,
    *,
    rates: Mapping[bool, float] | None = None,
    least: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Way], list[str]]:
    """The ways of evaluations and halting runs of one model, as :func:`align` gives them.

    Args:
        layers: layer evaluations of one outer iteration.
        rates: of :func:`eqr.analysis.bench.row_seconds`; None takes the stored runs' own (of
            evaluations the median over those with, and those without, noise: a busy machine slows
            single runs).
        progress: called with (runs read, of).

    Raises:
        PlanError: they are of several models or data sets, or none is on ``least`` problems.
    """
    configs = [run.manifest["config"] for run in runs]
    if len({(config["weights"], config["data"]) for config in configs}) > 1:
        raise PlanError("the runs are of several models or data sets: plan with those of one")
    ways: list[Way] = []
    own: dict[bool, list[float]] = {True: [], False: []}  # rates of the evaluations, by noisy
    for done, run in enumerate(runs, 1):
        result = read_result(run)
        config = result.config
        setting = Setting(config.depths[-1], 1, "average", config.noise, window=config.window)
        if isinstance(result, EvalResult):
            records = result.records
            work = records.exact[0].size * config.depths[-1]
            own[config.noise > 0].append(run.manifest["provenance"]["seconds"] / work)
            parts = [(records.at(d), replace(setting, depth=d)) for d in records.depths.tolist()]
        else:
            setting = replace(setting, first_settled=run.manifest["config"]["first_settled"] or 0.0)
            parts = [(each, replace(setting, halting=rule)) for rule, each in result.rules.items()]
        for outcomes, each in parts:
            ways += ways_in(outcomes, each, layers=layers, run=run.id)
        if progress:
            progress(done, len(runs))
    laid, notes = align(ways, least)
    level = rates or {noisy: statistics.median(each) for noisy, each in own.items() if each}
    for at, way in enumerate(laid):
        if rates or way.run.startswith("eval-"):
            laid[at] = replace(way, rate=level[way.setting.noise > 0])
    clock = "measured now" if rates else "by the stored runs"
    return laid, [*notes, f"seconds {clock}, with many rows in flight"]


#: What tells ways apart, or does not change what they mean. A run with any other setting (restarts
#: under symmetries, shared prefixes, changed dynamics) is of something else.
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
        if not path.name.startswith(("eval-", "halting-")):
            continue
        manifest = inspect(path, contents=False).manifest
        if not manifest or manifest["semantics"] != SEMANTICS:
            continue
        config = manifest["config"]
        ordinary = "level" not in config and set(config.get("eval", ())) <= PLANNED
        if ordinary and config.get("weights") == weights:
            runs.append(store.get(path.name))
    if not runs:
        raise PlanError(
            f"no evaluation of these weights ({weights[:16]}) is stored in {store.root}; "
            "record one with --depth 4,8,16 --breadth 16"
        )
    return runs


def model_file(text: str, profile: str, seed: int, store: Store) -> Path:
    """The model file that ``text`` names: a path, or a recipe trained in this store.

    Raises:
        ConfigError: neither a file nor a recipe (with the near miss), or a recipe that has not
            been trained in this store.
    """
    if Path(text).is_file():
        return Path(text)
    names = recipe_names(profile)
    if text not in names:
        raise ConfigError(
            f"{text!r} is neither a model file nor a recipe of {profile}; {nearest(text, names)}"
        )
    wanted = to_dict(load_recipe(text, profile, seed=seed), defaults=False)
    for path in store.paths():
        looked = inspect(path, contents=False)
        if not looked.faults and looked.manifest["config"].get("recipe") == wanted:
            return store.get(path.name).file("model.safetensors")
    raise ConfigError(
        f"{text} (profile {profile}, seed {seed}) has not been trained in {store.root}; "
        f"run `eqr train {text} --profile {profile} --seed {seed}`"
    )


def record(
    path: Path, weights: str, config: EvalConfig, store: Store, progress: Progress | None = None
) -> None:
    """Evaluate a model of this store, of a file and its weights' sha256, and store the records.

    Raises:
        ConfigError: it is a model of another store.
    """
    home = models(store).get(weights)
    if home is None:
        raise ConfigError(f"{path}: only models trained in {store.root} can be recorded there")
    evaluate_or_load(load_trained(store.get(home.name), store), config, store, progress)
