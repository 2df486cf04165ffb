"""Which of a problem's B trajectories to trust, without a verifier (paper §4; chapter *Breadth*).

Every rule takes the records of one depth, (P, B) arrays for P problems and B restarts, and returns
the index of the chosen restart of each problem, (P,). Three are not choices, and :func:`selected`
treats them apart: the average over restarts, and two that look at the label, the better of the two
most frequent answers (``majority2``: pass@2) and the oracle (pass@B).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np

from eqr.settings import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What is known about P problems × B restarts at one depth, (P, B) each.

    Only ``exact`` and ``token`` use the label.
    """

    residual: np.ndarray  # float32, mean over the last `window` iterations
    logit_change: np.ndarray  # float32, mean over the same; see eqr.model.logit_change
    answer: np.ndarray  # int64, a hash of the decoded tokens: equal answers, equal numbers
    margin: np.ndarray  # float32, smallest gap between a token's best and second logit
    halt: np.ndarray  # float32, logit of the halting head
    halted_at: np.ndarray  # int32, first depth with a positive halting logit, or rollout.NEVER
    exact: np.ndarray  # bool
    token: np.ndarray  # float32, share of right tokens

    def first(self, breadth: int, skip: int = 0) -> Outcomes:
        """The same with the first ``breadth`` restarts only, or the first after ``skip`` others."""
        part = slice(skip, skip + breadth)
        return Outcomes(*(getattr(self, f.name)[..., part] for f in fields(Outcomes)))

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name, as a stored run holds it; what was not asked for is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


#: How outcomes are stored.
DTYPES = {"residual": np.float32, "logit_change": np.float32, "answer": np.int64,
          "margin": np.float32, "halt": np.float32, "halted_at": np.int32, "exact": bool,
          "token": np.float32}  # fmt: skip


def converged(outcomes: Outcomes) -> np.ndarray:
    """Top-1 converged: the restart with the smallest residual of the latents (the paper's rule)."""
    return outcomes.residual.argmin(1)


def logits(outcomes: Outcomes) -> np.ndarray:
    """The restart whose logits move least: what the official code calls top-1 converged."""
    return outcomes.logit_change.argmin(1)


def ballot(outcomes: Outcomes) -> np.ndarray:
    """How many restarts of its problem give the same answer, (P, B)."""
    votes = np.zeros(outcomes.answer.shape, int)
    for row, answers in enumerate(outcomes.answer):  # a (P, B, B) comparison would be large
        _, which, count = np.unique(answers, return_inverse=True, return_counts=True)
        votes[row] = count[which]
    return votes


def majority(outcomes: Outcomes) -> np.ndarray:
    """The most frequent answer; of equally frequent ones, the one with the smaller residual."""
    votes = ballot(outcomes)
    best = votes == votes.max(1, keepdims=True)
    return np.where(best, outcomes.residual, np.inf).argmin(1)


def runner_up(outcomes: Outcomes) -> np.ndarray:
    """The second most frequent answer, ties as for :func:`majority`; the first if all agree."""
    first = majority(outcomes)
    votes, answers = ballot(outcomes), outcomes.answer
    votes[answers == np.take_along_axis(answers, first[:, None], 1)] = 0
    best = (votes == votes.max(1, keepdims=True)) & (votes > 0)
    return np.where(best.any(1), np.where(best, outcomes.residual, np.inf).argmin(1), first)


def margin(outcomes: Outcomes) -> np.ndarray:
    """The restart whose least certain token is the most certain."""
    return outcomes.margin.argmax(1)


def halt(outcomes: Outcomes) -> np.ndarray:
    """The restart that the learned halting head likes best."""
    return outcomes.halt.argmax(1)


def first_to_halt(outcomes: Outcomes) -> np.ndarray:
    """The restart whose halting head fired first; ties go to the smaller residual."""
    first = outcomes.halted_at == outcomes.halted_at.min(1, keepdims=True)
    return np.where(first, outcomes.residual, np.inf).argmin(1)


#: Rules by the name that ``eqr eval --select`` takes.
RULES: dict[str, Callable[[Outcomes], np.ndarray]] = {
    "converged": converged,
    "logits": logits,
    "majority": majority,
    "margin": margin,
    "halt": halt,
    "first_to_halt": first_to_halt,
}

#: All that ``--select`` takes: the rules, the mean over restarts, pass@2 of a vote, and pass@B.
SELECTIONS = ("average", *RULES, "majority2", "oracle")


def selected(outcomes: Outcomes, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact and token accuracy and residual of each problem under a selection, each (P,)."""
    if name == "average":
        return outcomes.exact.mean(1), outcomes.token.mean(1), outcomes.residual.mean(1)
    if name == "oracle":
        chosen = outcomes.token.argmax(1)  # an exact answer if there is one
    elif name == "majority2":
        both = np.stack([RULES["majority"](outcomes), runner_up(outcomes)], axis=1)  # (P, 2)
        better = np.take_along_axis(outcomes.token, both, 1).argmax(1)
        chosen = both[np.arange(len(both)), better]
    else:
        chosen = RULES[name](outcomes)
    row = np.arange(len(chosen))
    return tuple(getattr(outcomes, k)[row, chosen] for k in ("exact", "token", "residual"))


def check_selections(names: Iterable[str], option: str = "select") -> None:
    """Refuse a selection that there is not; ConfigError names it and the near miss."""
    for name in names:
        if name not in SELECTIONS:
            raise ConfigError(f"{option} {name!r} is not known; {nearest(name, SELECTIONS)}")
