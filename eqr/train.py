"""Segmented online training as a generator of events (paper §2, §3; chapter *The machine*).

    for event in train(recipe, data, directory):
        print(event.kind, event.step, event.metrics)

The optimizer steps after *every* outer iteration (or after ``unroll`` of them, back-propagated
through together) and the carry is detached. A sample leaves its slot when the halting head says so
(ACT) and a new one takes it. A batch is a function of (seed, step); so is the noise, hence a run
that was killed goes on bitwise as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from eqr.compiled import compile_operator, training_is_long, trouble
from eqr.config import EvalConfig, Recipe
from eqr.data import Dataset
from eqr.evaluate import records
from eqr.layers import at_least_float32
from eqr.model import Reasoner, State, Step
from eqr.optim import build_optimizers, learning_rate, operator_at, token_loss, update_ema, widest
from eqr.parallel import ALONE, World
from eqr.run_folder import RunFolder
from eqr.settings import UserError
from eqr.streams import Slots, stream


class TrainingError(UserError):
    """Training cannot go on; the last checkpoint is intact."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: ``log`` (means since the last one), ``eval``, ``checkpoint``."""

    kind: Literal["log", "eval", "checkpoint"]
    step: int  # optimizer steps done
    metrics: dict[str, float]


@dataclass(slots=True)
class Carry:
    """The samples in the batch's slots and where their trajectories stand.

    Of several processes each knows all slots but holds the latents of its own ones only. A slot has
    ``train.starts`` trajectories, rows that follow one another.
    """

    state: State  # (B · starts, S, H)
    x: Tensor  # (B, S) problem tokens
    y: Tensor  # (B, S) answer tokens
    steps: Tensor  # (B,) outer iterations this sample has run
    halted: Tensor  # (B,) True: a new sample takes the slot


#: What is summed between two log events, in the order of Trainer.sums.
MEANS = ("loss", "token_loss", "halt_loss", "token", "exact", "grad_norm")
SUMS = ("steps", *MEANS, "left", "left_steps")


class Trainer:
    """Weights, optimizers, EMA and carry of one run, advanced one optimizer step at a time."""

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        device: str = "cpu",
        world: World = ALONE,
        fused: bool = False,
    ) -> None:
        self.recipe, self.data, self.device, self.world = recipe, data, device, world
        batch, starts = recipe.train.batch, recipe.train.starts
        self.own = world.own(batch)  # this process's slots
        self.rows = slice(self.own.start * starts, self.own.stop * starts)  # its trajectories
        self.step = 0
        init = stream(recipe.seed, "init")
        self.model = Reasoner.for_task(recipe.task, recipe.model, init).to(device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)  # what is evaluated and saved
        self.fused = fused and compile_operator(self.model, self.ema)
        self.optimizers = build_optimizers(self.model, recipe.train)
        # All of it on the device: tokens are bytes, and a step then waits for no copy.
        self.inputs = torch.as_tensor(data.train.inputs, device=device)
        self.labels = torch.as_tensor(data.train.labels, device=device)
        blank = torch.zeros((batch, self.model.tokens), dtype=torch.uint8, device=device)
        # Every slot counts as halted: the first step fills them, so these starts are never used.
        unused = self.slots(stream(0, "unused", device=device))
        self.carry = Carry(
            state=self.model.initial_state(self.rows.stop - self.rows.start, unused).detach(),
            x=blank,
            y=blank.clone(),
            steps=torch.zeros(batch, dtype=torch.int64, device=device),
            halted=torch.ones(batch, dtype=torch.bool, device=device),
        )
        # On the device, since reading a number from a GPU waits for it.
        self.sums = torch.zeros(len(SUMS), dtype=widest(device), device=device)

    def slots(self, draw: torch.Generator) -> torch.Generator | Slots:
        """The draws for this process's trajectories, out of those for the batch."""
        whole = self.recipe.train.batch * self.recipe.train.starts
        return Slots(draw, whole, self.rows) if self.world.world_size > 1 else draw

    def each_start(self, values: Tensor) -> Tensor:
        """What belongs to a sample, once for each of its trajectories, (B, ...) -> (B K, ...)."""
        starts = self.recipe.train.starts
        return values if starts == 1 else values.repeat_interleave(starts, 0)

    def advance(self) -> None:
        """One optimizer step: ``unroll`` outer iterations of the batch, their loss, the update.

        Raises:
            TrainingError: the loss is not finite; nothing has been updated. On a GPU
                :meth:`require_finite` notices it, before anything is logged or saved.
        """
        config, carry = self.recipe.train, self.carry
        draw = stream(self.recipe.seed, "noise", self.step, device=self.device)
        self.refill(draw)
        y = carry.y[self.own].long()
        steps = self.unroll(draw)
        state = steps[-1].state.detach()  # of all starts: the losers go on too
        steps = self.best_starts(steps, y)
        means, exact = self.losses(steps, y)

        # To none: weights that get no gradient are then skipped by the optimizers, not decayed.
        self.model.zero_grad(set_to_none=True)
        means["loss"].backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.world.average_([*means.values(), *gradients], len(y) / config.batch)
        means["grad_norm"] = torch.nn.utils.get_total_norm(gradients)
        if config.clip:  # one large gradient would stay in the optimizers' second moments
            norm = means["grad_norm"]
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), config.clip, norm)
        if self.device != "cuda":  # asking a GPU waits for it; there the sums are asked in time
            self.require_finite(means["loss"] + means["grad_norm"])
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.step, config, group["initial_lr"])
            optimizer.step()
        update_ema(self.ema, self.model, config.ema)

        carry.state, carry.steps = state, carry.steps + config.unroll
        halt = steps[-1].halt.detach()
        ready = {"learned": halt, "oracle": exact.float(), "limit": torch.zeros_like(halt)}
        # Every process decides for all slots, so that the draws do not depend on their number.
        whole = self.world.gather(ready[config.halting], config.batch)
        carry.halted = self.choose_halted(whole, draw)
        self.step += 1
        left = {"left": carry.halted.sum(), "left_steps": (carry.steps * carry.halted).sum()}
        values = {"steps": 1.0, **means, **left}
        self.sums += torch.stack(
            [torch.as_tensor(values[name], device=self.device).to(self.sums) for name in SUMS]
        )

    def sample_batch(self) -> tuple[Tensor, Tensor]:
        """The new samples offered to the slots at this step: a function of (seed, step).

        Each epoch has an order of its own, so the samples of one step are distinct; what is left
        over at its end is too short for a batch, as in the authors' loader.
        """
        batch, problems = self.recipe.train.batch, len(self.inputs)
        epoch, place = divmod(self.step, max(1, problems // batch))
        order = stream(self.recipe.seed, "data order", epoch, device=self.device)
        rows = torch.randperm(problems, generator=order, device=self.device)
        # Only a batch that is larger than the data repeats problems.
        rows = rows.repeat(math.ceil(batch / problems))[place * batch : (place + 1) * batch]
        x, y = self.inputs[rows], self.labels[rows]
        if self.recipe.data.augment:
            draw = stream(self.recipe.seed, "data", self.step, device=self.device)
            x, y = self.recipe.task.augment(x, y, draw)
        return x, y

    def refill(self, draw: torch.Generator) -> None:
        """Put a new sample, at new starts, into every slot whose sample has halted."""
        carry, (x, y) = self.carry, self.sample_batch()
        # Starts are drawn for all slots, taken by some: what a slot gets depends on no other.
        halted = self.each_start(carry.halted[self.own])
        start = self.model.initial_state(len(halted), self.slots(draw))
        carry.state = carry.state.replace_rows(halted, start)
        carry.x = torch.where(carry.halted[:, None], x, carry.x)
        carry.y = torch.where(carry.halted[:, None], y, carry.y)
        carry.steps = torch.where(carry.halted, 0, carry.steps)

    def unroll(self, draw: torch.Generator) -> list[Step]:
        """The supervised ones of ``unroll`` outer iterations from the carry on, the last of all."""
        config, operator = self.recipe.train, operator_at(self.recipe, self.step)
        x, state = self.each_start(self.carry.x[self.own]), self.carry.state
        half, steps = config.dtype == "bfloat16", []
        for iteration in range(1, config.unroll + 1):
            with torch.autocast(self.device, torch.bfloat16) if half else contextlib.nullcontext():
                step = self.model.step(
                    state,
                    x,
                    noise=operator.noise,
                    generator=self.slots(draw),
                    high_cycles=operator.high_cycles,
                    low_cycles=operator.low_cycles,
                )
            state = step.state
            if iteration >= config.supervise_from:
                steps.append(step)
        return steps

    def best_starts(self, steps: list[Step], y: Tensor) -> list[Step]:
        """Of each sample's trajectories the one with the smallest token loss over ``steps``.

        The halting head has no say: its loss tells how well it knows whether an answer is right.
        """
        config = self.recipe.train
        if config.starts == 1:  # the paper's way
            return steps
        with torch.no_grad():
            labels = self.each_start(y)
            losses = sum(token_loss(step.logits, labels, config.loss).mean(1) for step in steps)
            best = losses.view(-1, config.starts).argmin(1)
            rows = best + torch.arange(len(best), device=best.device) * config.starts
        return [Step(step.state, step.logits[rows], step.halt[rows]) for step in steps]

    def losses(self, steps: list[Step], y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Means of the batch by name, and which samples' last answers are exact, (B,) bool.

        The loss is the mean over ``steps`` of ``token_loss + halt_weight · halt_loss``; the halting
        head learns whether the answer beside it is exact.
        """
        config, parts = self.recipe.train, []
        for step in steps:
            right = step.answer == y
            exact = right.all(1)
            tokens = token_loss(step.logits, y, config.loss).mean()
            logit = at_least_float32(step.halt)
            halt = F.binary_cross_entropy_with_logits(logit, exact.to(logit.dtype))
            parts.append((tokens + config.halt_weight * halt, tokens, halt))
        means = {
            name: sum(values) / len(parts)
            for name, values in zip(MEANS[:3], zip(*parts, strict=True), strict=True)
        }
        return means | {"token": right.float().mean(), "exact": exact.float().mean()}, exact

    def choose_halted(self, ready: Tensor, draw: torch.Generator) -> Tensor:
        """Which samples leave, (B,) bool: those that are ready (> 0), and all at the limit.

        Exploration holds back some: with ``halt_explore`` a sample must run a random number of
        iterations first, so that the head also sees what comes after its first yes.
        """
        config, steps = self.recipe.train, self.carry.steps
        if config.halt_max == config.unroll:  # every sample is at its limit: nothing to draw
            return torch.ones_like(self.carry.halted)
        explore = torch.rand(steps.shape, generator=draw, device=self.device) < config.halt_explore
        least = torch.randint(
            2, config.halt_max + 1, steps.shape, generator=draw, device=self.device
        )
        leaves = (ready > 0) | (steps >= config.halt_max)
        return leaves & (steps >= torch.where(explore, least, 0))

    def require_finite(self, values: Tensor) -> None:
        """TrainingError if a loss or a gradient among ``values`` is not finite."""
        if not torch.isfinite(values).all():
            raise TrainingError(
                f"a loss or a gradient is not finite at step {self.step}: lower train.lr or use "
                "float32; the last checkpoint is intact"
            )

    def read_sums(self) -> dict[str, float]:
        """Means since the last call, and start anew."""
        sums = dict(zip(SUMS, self.sums.detach().tolist(), strict=True))
        self.sums = torch.zeros_like(self.sums)
        metrics = {name: sums[name] / sums["steps"] for name in MEANS}
        metrics["left"] = sums["left"] / sums["steps"] / self.recipe.train.batch
        metrics["halt_steps"] = sums["left_steps"] / sums["left"] if sums["left"] else math.nan
        metrics["lr"] = learning_rate(self.step - 1, self.recipe.train)
        return metrics

    def evaluate(self) -> dict[str, float]:
        """Exact accuracy of the EMA weights at each power of two up to ``eval_depth``."""
        config = self.recipe.train
        powers = {2**k for k in range(config.eval_depth.bit_length())}
        depths = tuple(sorted(powers | {config.eval_depth}))
        # The seed is the run's own, so that runs of one recipe do not share their luck.
        held = EvalConfig(depths=depths, seed=self.recipe.seed, problems=config.eval_problems)
        problems = self.data.validation or self.data.test  # tuning must not see the test
        results = records(self.ema, problems.inputs, problems.labels, held, world=self.world)
        exact = results.exact.mean((1, 2))
        return {
            "problems": float(results.exact.shape[1]),
            "residual": float(results.residual[-1].mean()),
            **{f"exact_{d}": float(e) for d, e in zip(depths, exact, strict=True)},
        }

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """What the optimizers remember of each parameter, to be read or written.

        By name: a parameter's number would depend on how an optimizer forms its groups.
        """
        names = {p: name for name, p in self.model.named_parameters()}
        return {
            names[p]: optimizer.state[p]
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }

    def state_dict(self) -> dict[str, Tensor]:
        """All that a resumed run needs, by name; the same for any number of processes."""
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for name, moments in self.moments().items():
            state |= {f"optimizer.{key}.{name}": value for key, value in moments.items()}
        carry, train = self.carry, self.recipe.train
        for name in ("z_high", "z_low"):
            own = getattr(carry.state, name).unflatten(0, (-1, train.starts))
            state[f"carry.{name}"] = self.world.gather(own, train.batch).flatten(0, 1)
        state |= {f"carry.{k}": getattr(carry, k) for k in ("x", "y", "steps", "halted")}
        return state | {"sums": self.sums.detach(), "step": torch.tensor(self.step)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what :meth:`state_dict` gave."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.ema.load_state_dict(part("ema."))
        moments = self.moments()
        for key, value in part("optimizer.").items():
            kind, name = key.split(".", 1)
            # Counters stay on the CPU, moments go where their parameter is.
            moments[name][kind] = value.to("cpu" if value.ndim == 0 else self.device)
        carry = {k: v.to(self.device) for k, v in part("carry.").items()}
        latents = State(carry.pop("z_high")[self.rows], carry.pop("z_low")[self.rows])
        self.carry = Carry(state=latents, **carry)
        self.sums = state["sums"].to(self.device)
        self.step = int(state["step"])


def train(
    recipe: Recipe,
    data: Dataset,
    directory: Path | None = None,
    *,
    device: str = "cpu",
    stop_after_s: float | None = None,
    world: World = ALONE,
    fused: bool | None = None,
) -> Iterator[Event]:
    """Train ``recipe`` on ``data``; yields events as they happen.

    Args:
        recipe: what to train; ``recipe.seed`` decides weights, batches and noise.
        data: its problems.
        directory: where ``log.jsonl``, ``resume.safetensors`` and at the end ``model.safetensors``
            and ``timing.json`` go. A run that lies there is resumed, bitwise. None writes nothing.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        stop_after_s: leave after about so many seconds with a checkpoint written, to be resumed.
        world: processes that share the batch; each gets the events, the first one writes.
        fused: compile the operator where that can be done (:mod:`eqr.compiled`), which changes
            results by rounding only; None does so for runs that are long enough to gain.

    Raises:
        TrainingError: a loss that is not finite.
        CheckpointError: what lies in ``directory`` is damaged or of another recipe.
    """
    config = recipe.train
    files = RunFolder(directory, recipe, data.digest) if directory else None
    state, meta = files.load() if files else ({}, {})
    if meta:
        fused = meta["fused"]  # a run keeps the rounding that it began with
    elif fused is None:
        fused = training_is_long(recipe)
    trainer = Trainer(recipe, data, device, world, fused)
    if meta and fused and not trainer.fused:
        raise TrainingError(
            f"{files.resume}: begun with a compiled operator, which cannot be built here "
            f"({trouble(device)}); make that work, or delete {directory} to begin anew without"
        )
    if state:
        trainer.load_state_dict(state)
    writes = files if world.rank == 0 else None
    if writes:
        writes.begin(meta)
    world.share()  # all have read the checkpoint before the first may replace it
    began, earlier = time.monotonic(), meta.get("seconds", 0.0)
    rhythm = {"log": config.log_every, "eval": config.eval_every}
    rhythm["checkpoint"] = config.checkpoint_every

    while trainer.step < config.steps:
        trainer.advance()
        elapsed, last = time.monotonic() - began, trainer.step == config.steps
        # The first process's clock decides, or some would stop and others wait for them.
        stop = stop_after_s is not None and world.share(elapsed > stop_after_s)
        due = [kind for kind, every in rhythm.items() if last or trainer.step % every == 0]
        if due or stop:
            trainer.require_finite(trainer.sums)
        for kind, report in (("log", trainer.read_sums), ("eval", trainer.evaluate)):
            if kind in due:
                metrics = report()
                if writes:
                    writes.append({"kind": kind, "step": trainer.step, **metrics})
                yield Event(kind, trainer.step, metrics)
        if files and ("checkpoint" in due or stop):
            state, seconds = trainer.state_dict(), earlier + time.monotonic() - began
            if writes:
                meta = {"step": trainer.step, "seconds": seconds, "fused": trainer.fused}
                writes.save(state, meta)
            yield Event("checkpoint", trainer.step, {"seconds": seconds})
        if stop and not last:
            return
    if writes:
        seconds = earlier + time.monotonic() - began
        writes.finish(trainer.ema, trainer.model, trainer.fused, seconds)
