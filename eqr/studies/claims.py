"""Claims and their verdicts: what each chapter ends with, and the source of every number in prose.

A claim compares a measured value and its 95 % interval with a bound that was chosen beforehand. The
verdict follows from the interval alone: *reproduced* if all of it satisfies the bound, *not
reproduced* if none of it does, *undecided* if the bound lies inside; claims of our own *hold* or
*fail*. With two bounds a claim says that the value lies between them, as that a prediction is met
to within a tolerance.

:func:`conclude` ends a chapter with the table of its claims, which carries them as JSON too. The
book's build collects those, and the pages quote them: ``{claim}`id``` is the value with its
interval, ``{answer}`id``` the sentence that goes with the verdict.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqr.settings import ConfigError
from eqr.stats import (
    Difference,
    bootstrap,
    holm,
    mean_interval,
    paired_difference,
    seeds_for_difference,
    seeds_for_equivalence,
    wilson,
)
from eqr.studies.results import Pick, Results


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of a claims table, with ``at_least``, ``at_most``, or both.

    ``value``, ``low`` and ``high`` are None where the claim was not run.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int  # problems (or cases) behind the value
    at_least: float | None = None
    at_most: float | None = None
    paper: str = "–"  # the paper's own figure, at its own scale
    seeds: int = 1
    noise: float = 0.0  # β of the rollouts
    run: str = "–"  # id of the stored run
    id: str = ""  # by which pages quote it
    kind: str = "paper"  # whose claim: paper, registered (before it was measured) or ours
    unit: str = ""  # of the value: points (of a share), share, or none
    answers: Mapping[str, str] = field(default_factory=dict)  # sentence by verdict, without numbers
    judged: Decision | None = None  # with the other steps of its table, which the verdict heeds

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"claim {self.name!r}: set at_least, at_most or both")
        if unknown := set(self.answers) - {*self.words, "undecided", "not run"}:
            raise ValueError(f"claim {self.name!r}: no verdict {', '.join(sorted(unknown))}")

    @property
    def words(self) -> tuple[str, str]:
        """The two verdicts of a claim that is decided."""
        return ("reproduced", "not reproduced") if self.kind == "paper" else ("holds", "fails")

    @classmethod
    def of_share(cls, name: str, hits: np.ndarray, **rest) -> Claim:
        """A claim about the share of ``hits`` (any shape), with its Wilson interval."""
        hits = np.asarray(hits, float).ravel()
        low, high = wilson(float(hits.sum()), len(hits))
        return cls(name, float(hits.mean()) if len(hits) else None, low, high, len(hits), **rest)

    @classmethod
    def of_difference(cls, name: str, ours: np.ndarray, other: np.ndarray, **rest) -> Claim:
        """A claim about the mean of ``ours − other`` over the same problems (n,), paired."""
        gap = paired_difference(ours, other)
        return cls(name, gap.mean, gap.low, gap.high, gap.n, **rest)

    @classmethod
    def of_mean(cls, name: str, values: np.ndarray, **rest) -> Claim:
        """A claim about the mean of ``values`` (n,), with its t interval; n < 2: not run."""
        values = np.asarray(values, float).ravel()
        if len(values) < 2:
            return cls(name, None, None, None, len(values), **rest)
        interval = mean_interval(values)
        return cls(name, interval.mean, interval.low, interval.high, interval.n, **rest)

    @classmethod
    def of_seeds(cls, name: str, interval: Difference, n: int, **rest) -> Claim:
        """A claim about a mean over seeds, each on n problems; fewer than three: not run."""
        if rest.get("unit") == "share":  # a t interval knows no bounds
            interval = interval.as_share()
        bounds = (
            (interval.mean, interval.low, interval.high) if interval.n > 2 else (None, None, None)
        )
        return cls(name, *bounds, n, seeds=interval.n, **rest)

    @classmethod
    def of_ratio(cls, name: str, ours: np.ndarray, other: np.ndarray, **rest) -> Claim:
        """A claim about ``mean(ours) / mean(other)`` over the same problems (n,).

        The interval comes from 2,000 resamples of the problems (percentile bootstrap).
        """
        ours, other = np.asarray(ours, float), np.asarray(other, float)
        low, high = bootstrap(lambda rows: ours[rows].mean(1) / other[rows].mean(1), len(ours))
        return cls(name, ours.mean() / other.mean(), float(low), float(high), len(ours), **rest)

    @classmethod
    def of_study(cls, name: str, study: Results, ours: Pick, other: Pick, **rest) -> Claim:
        """A claim about ``ours − other`` in a many-seed study: paired by seed, t interval.

        Not run, where a row has fewer than three seeds in common with the other.
        """
        shared = set(study.seeds(ours.row, ours.evaluation))
        shared &= set(study.seeds(other.row, other.evaluation))
        if len(shared) < 3:
            return cls(name, None, None, None, 0, seeds=len(shared), **rest)
        both = study.compare(ours, other)
        rest = {"seeds": both.seeds.n, "run": study.id, **rest}
        gap = both.seeds
        return cls(name, gap.mean, gap.low, gap.high, both.problems.n, **rest)

    def saying(self, yes: str, no: str, whether: str) -> Claim:
        """With the sentences that pages quote: for its two verdicts, and of what is open.

        >>> one = Claim("x", 0.3, 0.2, 0.4, 9, at_least=0)
        >>> one.saying("It pays", "It costs", "whether it pays").answer
        'It pays (0.3 [0.2, 0.4], 9 cases).'
        """
        yes_no = dict(zip(self.words, (yes, no), strict=True))
        unknown = {"undecided": f"Undecided: {whether}", "not run": f"Not run yet: {whether}"}
        return replace(self, answers=yes_no | unknown)

    @property
    def verdict(self) -> str:
        """``reproduced`` or ``holds``, ``not reproduced`` or ``fails``, ``undecided``, ``not run``.

        >>> Claim("x", 0.3, 0.2, 0.4, 100, at_least=0.5, kind="ours").verdict
        'fails'
        """
        yes, no = self.words
        if self.judged:
            said = self.judged.verdict
            return {"reproduced": yes, "not reproduced": no}.get(said, said)
        if self.value is None or self.low is None or self.high is None:
            return "not run"
        if self.low == self.high and self.low in (self.at_least, self.at_most):
            return "undecided"  # all of it on the bound: it shows no difference to either side
        least = -math.inf if self.at_least is None else self.at_least
        most = math.inf if self.at_most is None else self.at_most
        holds = self.low >= least and self.high <= most
        fails = self.high < least or self.low > most
        return yes if holds else no if fails else "undecided"

    @property
    def needed(self) -> int | None:
        """How many seeds (of one seed: problems) would decide an undecided claim; None: no guess.

        That many have a power of 0.9 if value and spread stay as they are.
        """
        if self.judged:
            return self.judged.needed
        count = self.seeds if self.seeds > 1 else self.n
        bounds = [b for b in (self.at_least, self.at_most) if b is not None]
        gap = min(abs(self.value - bound) for bound in bounds) if self.value is not None else 0.0
        if self.verdict != "undecided" or count < 2 or not gap or self.low == self.high:
            return None
        from scipy.special import stdtrit

        sd = (self.high - self.low) / 2 * math.sqrt(count) / stdtrit(count - 1, 0.975)
        return max(count + 1, seeds_for_difference(sd, gap))

    @property
    def measured(self) -> str:
        """Value, interval and what it rests on, as prose quotes it.

        >>> Claim("x", 0.123, 0.1, 0.15, 512, at_least=0, unit="points", seeds=8).measured
        '+12.3 points [+10.0, +15.0], 8 seeds'
        """
        if self.value is None:
            return "not run"
        scale, form, unit = {
            "points": (100, "+.1f", " points"), "share": (100, ".1f", " %"), "": (1, ".3g", ""),
        }[self.unit]  # fmt: skip
        value, *interval = (
            "–" if v is None else format(scale * v, form) for v in (self.value, self.low, self.high)
        )
        rest = f"{self.seeds} seeds" if self.seeds > 1 else f"{self.n:,} cases"
        return f"{value}{unit} [{', '.join(interval)}], {rest}"

    @property
    def answer(self) -> str:
        """The sentence that goes with the verdict, with the numbers behind it."""
        verdict, needed = self.verdict, self.needed
        plain = {self.words[0]: "yes", self.words[1]: "no"}.get(verdict, verdict)
        sentence = self.answers.get(verdict, f"{self.name}: {plain}").rstrip(".")
        unit = "seeds" if self.seeds > 1 else "cases"
        wanted = f"; about {needed:,} {unit} would decide" if needed else ""
        return f"{sentence}." if verdict == "not run" else f"{sentence} ({self.measured}{wanted})."


# --- Differences between the rows of one table ----------------------------------------------------

LEVEL = 0.05  # of all the decisions of a table together (Holm)
MARGIN = 0.02  # a difference within it counts as none,
LARGE = 0.05  # where the paper has at least this much


@dataclass(frozen=True, slots=True)
class Paired:
    """A claim about the difference between two rows: accuracies of both, (n,), seed by seed."""

    ours: np.ndarray
    other: np.ndarray
    side: int  # 1 or -1: the sign that the paper's difference has, which is the claim
    size: float = 0.0  # of the paper's; from LARGE on, a difference within ±MARGIN contradicts it


@dataclass(frozen=True, slots=True)
class Decision:
    """What a table's seeds say about one step."""

    verdict: str  # reproduced, not reproduced, undecided, not run
    gap: Difference  # of the accuracies
    p: float  # the smaller p value of the two tests, adjusted for the table
    needed: int | None = None  # seeds that would decide what is undecided, tested by itself


def decide(table: Mapping[str, Paired]) -> dict[str, Decision]:
    """The verdicts of the steps of one table, from paired tests alone.

    *Reproduced*: the paired t test finds a difference on the paper's side. *Not reproduced*: it
    finds one on the other side, or, where the paper has 5 points or more, two one-sided tests find
    that the difference lies within ±2 points. The tests are those of the table together (Holm),
    and on logits where a mean is above 0.9 or below 0.1, since points are cut off there. *Not run*:
    fewer than three seeds.
    """
    run = {name: step for name, step in table.items() if len(step.ours) > 2}
    tests = {name: (p_of_zero(step), p_of_margin(step)) for name, step in run.items()}
    # One family: a step has the smaller p value of its two ways to be decided.
    smallest = holm([min(1.0, *both) for both in tests.values()])
    adjusted = dict(zip(tests, smallest, strict=True))
    decisions = {}
    for name, step in table.items():
        gap = mean_interval(step.ours - step.other)
        if name not in run:
            decisions[name] = Decision("not run", gap, math.nan)
            continue
        differs, alike = tests[name]
        sided = gap.mean * step.side > 0
        verdict, needed = "undecided", None
        if adjusted[name] <= LEVEL:
            # Small and yet on the paper's side is on the paper's side.
            holds = sided and (differs <= alike or differs <= LEVEL / len(run))
            verdict = "reproduced" if holds else "not reproduced"
        else:
            needed = seeds_to_decide(step)
        decisions[name] = Decision(verdict, gap, adjusted[name], needed)
    return decisions


def p_of_zero(step: Paired) -> float:
    """Of the two-sided paired t test; on logits near 0 and 1."""
    from scipy.special import stdtr

    ours, other = step.ours, step.other
    if any(not 0.1 <= values.mean() <= 0.9 for values in (ours, other)):
        # Kept finite by a hundredth of a point, less than a problem of any of our test sets.
        ours, other = (np.log((v + 1e-4) / (1 - v + 1e-4)) for v in (ours, other))
    gap = ours - other
    error = gap.std(ddof=1) / math.sqrt(len(gap))
    return 2 * float(stdtr(len(gap) - 1, -abs(gap.mean()) / error)) if error else float(gap[0] == 0)


def p_of_margin(step: Paired) -> float:
    """Of two one-sided t tests that the difference lies within ±MARGIN; 1 where the paper's is so
    small that this would not contradict it."""
    from scipy.special import stdtr

    if step.size < LARGE:
        return 1.0
    gap = step.ours - step.other
    error = max(gap.std(ddof=1), 1e-12) / math.sqrt(len(gap))
    return float(stdtr(len(gap) - 1, (abs(gap.mean()) - MARGIN) / error))


def seeds_to_decide(step: Paired) -> int:
    """Seeds for power 0.9 if mean and spread of the points are as seen, of this step by itself: for
    a difference, or for equivalence."""
    gap = step.ours - step.other
    sd, mean = float(gap.std(ddof=1)), float(gap.mean())
    ways = [seeds_for_difference(sd, mean)] if sd and mean else []
    if sd and step.size >= LARGE and abs(mean) < MARGIN:
        ways.append(seeds_for_equivalence(sd, MARGIN - abs(mean)))
    return max(len(gap) + 1, min(ways, default=len(gap) + 1))


def claims_table(claims: Sequence[Claim], profile: str) -> pd.DataFrame:
    """The table that ends a chapter, one row a claim.

    >>> claims_table([Claim("x", 0.9, 0.8, 0.95, 100, at_least=0.7)], "smoke").verdict.item()
    'reproduced'
    """

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    rows = []
    for claim in claims:
        if claim.at_least is None or claim.at_most is None:
            most = claim.at_least is None
            rule = f"≤ {claim.at_most:g}" if most else f"≥ {claim.at_least:g}"
        else:
            rule = f"{claim.at_least:g} to {claim.at_most:g}"
        rows.append(
            {
                "claim": claim.name,
                "measured [95 %]": (
                    f"{number(claim.value)} [{number(claim.low)}, {number(claim.high)}]"
                ),
                "bound": rule,
                "verdict": claim.verdict,
                "paper": claim.paper,
                "n": claim.n,
                "made from": f"{profile}, {claim.seeds} seed{'s' * (claim.seeds != 1)}, "
                f"β = {claim.noise:g}, {claim.run}",
            }
        )
    return pd.DataFrame(rows).set_index("claim").rename_axis(None)


MIME = "application/vnd.eqr.claims+json"


class ClaimsTable(pd.DataFrame):
    """The table of a chapter's claims; the executed notebook has them as JSON beside the HTML."""

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        html, text = self._repr_html_(), repr(self)
        return {"text/html": html, "text/plain": text, MIME: self.attrs["claims"]}


def conclude(chapter: str, claims: Sequence[Claim], profile: str) -> ClaimsTable:
    """End a chapter: the table of its claims, from which the book's pages quote."""
    end = ClaimsTable(claims_table(claims, profile))
    facts = ("verdict", "needed", "measured", "answer")
    end.attrs["claims"] = [
        {"chapter": chapter, "profile": profile}
        | asdict(replace(claim, judged=None))  # what was judged is in the facts
        | {fact: getattr(claim, fact) for fact in facts}
        for claim in claims
    ]
    return end


def claims_of(notebooks: Iterable[Path]) -> list[dict[str, Any]]:
    """The claims of executed chapters, in their order.

    Raises:
        ConfigError: two claims have the same id.
    """
    claims: dict[str, dict[str, Any]] = {}
    for path in notebooks:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", ()):
                for one in output.get("data", {}).get(MIME, ()):
                    key = one["id"] or f"{one['chapter']}: {one['name']}"
                    if key in claims:
                        raise ConfigError(f"{path}: the claim {key!r} stands twice; rename one")
                    claims[key] = one
    return list(claims.values())
