"""Adaptive compute: when a trajectory has settled, and a queue that settled rows leave (paper §4,
Table 5 and Fig. 7; chapter *Depth*).

:func:`eqr.rollout.rollout` gives every (problem, restart) the same depth. :func:`adaptive` runs the
same trajectories, each for as long as a rule asks: a row that has settled makes room for the next
pair, so that the batch stays full until the pairs run out, and shrinks then.

A rule judges from inside, by three numbers a row, none of which comes from a label or a checker.
Its condition must hold in ``patience`` iterations on end, and a row runs at least ``min_depth``.
As text (:func:`parse_rule`): ``residual:1e-3``, ``stable:8,min_depth=4``.

==============  ==================================================================================
``head:0``      the learned halting head's logit is above ``threshold`` (the paper's ACT)
``residual:t``  the residual is below ``tolerance``; noise β > 0 keeps it above a floor of the size
                of β, and a tolerance under that floor halts nothing
``stable:8``    the decoded answer has not changed
``fixed``       never: every row runs to the depth limit, the budget the other rules are held to
==============  ==================================================================================
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from eqr.config import Count, EvalConfig, Positive
from eqr.evaluate import measures, sampling
from eqr.layers import require_rows
from eqr.model import Reasoner, State, Step, logit_change, residual
from eqr.recipes import parse_overrides
from eqr.rollout import NEVER, WINDOW, Iteration, record
from eqr.select import DTYPES, Outcomes
from eqr.settings import ConfigError, nearest, require_memory, settings
from eqr.streams import stream

#: The settings of each kind of rule; the first may follow the colon without its name.
KINDS = {
    "head": ("threshold", "patience", "min_depth"),
    "residual": ("tolerance", "patience", "min_depth"),
    "stable": ("patience", "min_depth"),
    "fixed": (),
}


@settings
class Halting:
    """A rule; ``str(rule)`` is the text that :func:`parse_rule` reads, and part of a run's id."""

    section: ClassVar[str] = "halting"
    kind: Literal["head", "residual", "stable", "fixed"]
    threshold: float = 0.0  # of "head"
    tolerance: Positive = 1e-2  # of "residual"
    patience: Count = 1
    min_depth: Count = 1

    def settles(self, halt: Tensor, residual: Tensor, unchanged: Tensor) -> Tensor:
        """Whether each row looks settled in this iteration, (R,) bool.

        Args:
            halt: (R,) logit of the halting head.
            residual: (R,) root-mean-square change of the latents in this iteration.
            unchanged: (R,) bool, the decoded answer is that of the iteration before.
        """
        match self.kind:
            case "head":
                return halt > self.threshold
            case "residual":
                return residual < self.tolerance
            case "stable":
                return unchanged
        return torch.zeros_like(unchanged)

    def __str__(self) -> str:
        names, plain = settings_of(self.kind), Halting(self.kind)
        settings = [repr(getattr(self, name)) for name in names[:1]]
        for name in names[1:]:
            if getattr(self, name) != getattr(plain, name):
                settings.append(f"{name}={getattr(self, name)!r}")
        return f"{self.kind}:{','.join(settings)}" if settings else self.kind


def parse_rule(text: str) -> Halting:
    """``"name"``, ``"name:value"`` or ``"name:value,key=value"`` to a rule.

    >>> parse_rule("residual:1e-3,patience=2").tolerance
    0.001
    >>> str(parse_rule("stable:patience=4")), str(parse_rule("head"))
    ('stable:4', 'head:0.0')

    Raises:
        ConfigError: an unknown name or setting (with the near miss), or a value it cannot take.
    """
    kind, _, rest = text.strip().partition(":")
    names, given = settings_of(kind), rest.split(",") if rest else []
    if given and not names:
        raise ConfigError(f"halting {text!r}: {kind} has no settings")
    if given and "=" not in given[0]:
        given[0] = f"{names[0]}={given[0]}"
    values = parse_overrides(given)
    if len(values) < len(given):
        raise ConfigError(f"halting {text!r} gives a setting twice")
    for name in values:
        if name not in names:
            raise ConfigError(f"halting.{name} is not a known setting; {nearest(name, names)}")
    return Halting(kind, **({"patience": 8} if kind == "stable" else {}) | values)


def settings_of(kind: str) -> tuple[str, ...]:
    """The names of a rule's settings; ConfigError suggests a fix for an unknown rule."""
    if kind not in KINDS:
        raise ConfigError(f"halting rule {kind!r} is not known; {nearest(kind, KINDS)}")
    return KINDS[kind]


@dataclass(slots=True)
class Flight:
    """The rows in flight (R of them); every field is indexed by row."""

    problem: Tensor  # (R,)
    restart: Tensor  # (R,)
    depth: Tensor  # (R,) iterations done
    held: Tensor  # (R,) iterations on end in which the rule's condition held
    moved: Tensor  # (R, window, 2) how far latents and logits moved lately; NaN before that
    logits: Tensor  # (R, S, V) of the latest iteration, or of the start
    x: Tensor  # (R, S)
    z_high: Tensor  # (R, S, H)
    z_low: Tensor  # (R, S, H), or (R, 0, H)
    own: list[torch.Generator]  # R streams

    def tensors(self) -> dict[str, Tensor]:
        """All fields but the streams."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "own"}

    def pick(self, rows: Tensor) -> Flight:
        """The rows where ``rows`` (R,) holds."""
        own = [self.own[row] for row in rows.nonzero().squeeze(1).tolist()]
        return Flight(**{name: value[rows] for name, value in self.tensors().items()}, own=own)

    def join(self, other: Flight) -> Flight:
        """These rows and then the others."""
        both = {k: torch.cat((v, getattr(other, k))) for k, v in self.tensors().items()}
        return Flight(**both, own=self.own + other.own)


def launch(
    model: Reasoner, inputs: Tensor, pairs: list[tuple[int, int]], seed: int, window: int
) -> Flight:
    """Rows at the start of their trajectories, as :func:`eqr.rollout.rollout` starts them."""
    problem, restart = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    x = inputs[problem].to(model.device)
    own = [stream(seed, "evaluation", p, r) for p, r in pairs]
    state = model.initial_state(len(pairs), own)
    count = torch.zeros(len(pairs), dtype=torch.long, device=model.device)
    return Flight(
        problem=problem.to(model.device),
        restart=restart.to(model.device),
        depth=count,
        held=count,
        moved=torch.full((len(pairs), window, 2), torch.nan, device=model.device),
        logits=model.read_logits(state.z_high),
        x=x,
        z_high=state.z_high,
        z_low=state.z_low,
        own=own,
    )


@torch.no_grad()
def adaptive(
    model: Reasoner,
    inputs: Tensor,
    *,
    depth: int,
    halting: Halting,
    breadth: int = 1,
    noise: float = 0.0,
    damping: float | None = None,
    seed: int = 0,
    rows: int = 256,
    window: int = WINDOW,
    first_settled: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Iteration]:
    """Run ``breadth`` trajectories of every problem, each until ``halting`` or ``depth`` ends it.

    A trajectory is that of :func:`eqr.rollout.rollout` with the same ``seed``, cut at its own
    depth: its start and noise come from the stream of (seed, index in ``inputs``, restart), so it
    does not depend on ``rows`` or on its neighbours (up to the rounding of matrix products of
    another size). Memory grows with ``rows`` only. First restarts come first.

    Args:
        model, inputs, breadth, noise, damping, seed, window: as for :func:`eqr.rollout.rollout`.
        depth: the limit D at which a row leaves unsettled.
        halting: the rule, see :func:`parse_rule`.
        rows: the most (problem, restart) pairs in flight.
        first_settled: a confidence tolerance. The restarts of a problem then run one after the
            other, and the next one starts only if no earlier one settled with a (mean) residual
            below it. So what is run does not depend on ``rows`` either. None runs all restarts.
        progress: called with (trajectories finished, of at most).

    Yields:
        The last iteration of the rows that left, after every iteration in which some did; in all,
        every pair that was started, once. ``Iteration.depth`` is the (R,) iterations that each has
        run, and ``halted_at`` the same or, of a row that the limit stopped, NEVER.

    Raises:
        ValueError: ``depth``, ``breadth``, ``rows`` or ``window`` below 1.
    """
    if min(depth, breadth, rows, window) < 1:
        raise ValueError("depth, breadth, rows and window must be at least 1")
    inputs = torch.as_tensor(inputs)
    starts = 1 if first_settled is not None else breadth
    fresh = ((p, r) for r in range(starts) for p in range(len(inputs)))
    again: deque[tuple[int, int]] = deque()  # next restarts of problems not yet settled

    def take(room: int) -> list[tuple[int, int]]:
        """The pairs to start next; the longest chains of restarts go first."""
        taken = [again.popleft() for _ in range(min(room, len(again)))]
        return taken + list(islice(fresh, room - len(taken)))

    finished = 0
    flight = launch(model, inputs, take(rows), seed, window)
    while flight.own:
        before = State(flight.z_high, flight.z_low)
        step = model.step(before, flight.x, noise=noise, generator=flight.own, damping=damping)
        change = residual(before, step.state)
        unchanged = (step.answer == flight.logits.argmax(-1)).all(1) & (flight.depth > 0)
        settles = halting.settles(step.halt, change, unchanged)
        moved = torch.stack((change, logit_change(flight.logits, step.logits).to(change)), 1)
        flight = replace(
            flight,
            depth=flight.depth + 1,
            held=torch.where(settles, flight.held + 1, 0),
            moved=torch.cat((flight.moved[:, 1:], moved[:, None]), dim=1),
            logits=step.logits,
            z_high=step.state.z_high,
            z_low=step.state.z_low,
        )
        settled = (flight.held >= halting.patience) & (flight.depth >= halting.min_depth)
        leaves = settled | (flight.depth >= depth)
        if not leaves.any():
            continue
        gone = flight.pick(leaves)
        recent, logits_moved = gone.moved.nanmean(1).T
        state = State(gone.z_high, gone.z_low)
        left = Iteration(
            problem=gone.problem.cpu().numpy(),
            restart=gone.restart.cpu().numpy(),
            depth=gone.depth.cpu().numpy(),
            step=Step(state, gone.logits, step.halt[leaves]),
            residual=change[leaves],
            recent=recent,
            logit_change=logits_moved,
            halted_at=torch.where(settled[leaves], gone.depth, NEVER),
        )
        finished += len(left.problem)
        if progress:
            progress(finished, len(inputs) * breadth)
        yield left
        if first_settled is not None:
            doubtful = ~(settled[leaves] & (recent < first_settled)).cpu().numpy()
            more = doubtful & (left.restart + 1 < breadth)
            pairs = zip(left.problem[more].tolist(), (left.restart[more] + 1).tolist(), strict=True)
            again.extend(pairs)
        flight = flight.pick(~leaves)
        if pairs := take(rows - len(flight.own)):
            flight = flight.join(launch(model, inputs, pairs, seed, window))


@dataclass(frozen=True, slots=True, kw_only=True)
class Halted(Outcomes):
    """What one rule did on P labelled problems × B restarts; ``halted_at`` is where it did."""

    depth: np.ndarray  # (P, B) int32, iterations run: the NFE; 0 where the restart never started
    seconds: float  # wall time of the whole queue
    cpu_seconds: float  # processor time of this process meanwhile: steadier where others compute

    @property
    def nfe(self) -> np.ndarray:
        """Outer iterations spent on each problem, all its restarts together, (P,)."""
        return self.depth.sum(1)


def halting_records(
    model: Reasoner,
    inputs: np.ndarray,
    labels: np.ndarray,
    config: EvalConfig,
    halting: Halting,
    *,
    first_settled: float | None = None,
    rows: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Halted:
    """Run the queue on labelled problems and record how each trajectory ended.

    A restart that never started has an infinite residual, an answer of its own, and is not exact,
    so that no selection rule takes it.

    Args:
        inputs, labels: (P, S) tokens; ``config.problems`` keeps the first so many.
        config: its largest depth is the limit.
        halting, first_settled, rows, progress: as for :func:`adaptive`.

    Raises:
        ConfigError: symmetry restarts, which the queue does not run.
    """
    if config.symmetry:
        raise ConfigError("halting rules do not run with eval.symmetry: leave one of them out")
    began, cpu_began = time.perf_counter(), time.process_time()
    inputs, labels = inputs[: config.problems], labels[: config.problems]
    shape = (len(inputs), config.breadth)
    require_memory(44 * shape[0] * shape[1], "their records", "lower the breadth or the problems")
    require_rows(model, rows, shape[0] * shape[1])
    arrays = {name: np.zeros(shape, dtype) for name, dtype in DTYPES.items()}
    unstarted = {"residual": np.inf, "logit_change": np.inf, "margin": -np.inf, "halt": -np.inf}
    for name, value in (unstarted | {"halted_at": NEVER}).items():
        arrays[name].fill(value)
    arrays["answer"][:] = np.arange(-len(inputs) * config.breadth, 0).reshape(shape)
    arrays["depth"] = np.zeros(shape, np.int32)
    truth = torch.as_tensor(labels, device=model.device).long()
    leaving = adaptive(
        model,
        torch.as_tensor(inputs),
        **sampling(config),
        halting=halting,
        rows=rows,
        first_settled=first_settled,
        progress=progress,
    )
    record(leaving, arrays, lambda it: measures(it, truth) | {"depth": it.depth})
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    return Halted(**arrays, seconds=seconds, cpu_seconds=cpu_seconds)
