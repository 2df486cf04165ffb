"""Segmented online training as a generator of events (paper §2, §3; chapter *Training*).

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
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from eqr import checkpoint
from eqr.compiled import compile_operator, training_is_long, trouble
from eqr.config import EvalConfig, ModelConfig, Recipe, TrainConfig
from eqr.data import Dataset
from eqr.evaluate import records
from eqr.model import Reasoner, State, Step, parameter_count
from eqr.optim import build_optimizers, learning_rate, update_average
from eqr.parallel import ALONE, World
from eqr.streams import Slots, stream


class TrainingError(RuntimeError):
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


def widest(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on Apple's MPS, which has no wider type."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def stablemax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the stablemax distribution, (B, S) (arXiv 2501.04697).

    Stablemax replaces ``exp`` by ``x + 1`` for ``x ≥ 0`` and ``1 / (1 − x)`` below: it grows only
    linearly, so that a confident model keeps a gradient. Computed in float64 where there is one.
    """
    logits = logits.to(widest(logits.device))
    mass = torch.where(logits < 0, 1 / (1 - logits.clamp(max=0)), logits + 1)
    share = mass / mass.sum(-1, keepdim=True)
    return -share.gather(-1, labels[..., None]).squeeze(-1).log()


def token_loss(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """Cross-entropy of every token, (B, S); ``kind`` is ``"stablemax"`` or ``"softmax"``."""
    if kind == "stablemax":
        return stablemax_loss(logits, labels)
    return F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")


def short_steps(config: TrainConfig) -> int:
    """How many of the first optimizer steps have the short operator.

    >>> short_steps(TrainConfig(steps=1000, short_until=0.25)), short_steps(TrainConfig(steps=9))
    (250, 0)
    """
    return round(config.short_until * config.steps)


def operator_at(recipe: Recipe, step: int) -> ModelConfig:
    """The settings of the operator at optimizer step ``step``, counted from 0.

    The short one has fewer cycles, and its gradient passes at most all of them.
    """
    train, model = recipe.train, recipe.model
    if step >= short_steps(train):
        return model
    high = train.short_high_cycles
    return replace(
        model,
        high_cycles=high,
        low_cycles=train.short_low_cycles,
        grad_cycles=min(high, model.grad_cycles),
    )


def best_device() -> str:
    """``"cuda"``, else ``"mps"``, else ``"cpu"``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


#: What is summed between two log events, in the order of Trainer.sums.
MEANS = ("loss", "token_loss", "halt_loss", "grad_norm", "token", "exact")
SUMS = ("steps", *MEANS, "left", "left_steps")


class Trainer:
    """Weights, optimizers, average and carry of one run, advanced one optimizer step at a time."""

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        device: str = "cpu",
        world: World = ALONE,
        fused: bool = False,
    ) -> None:
        self.recipe, self.data, self.device, self.world = recipe, data, device, world
        self.own = world.own(recipe.train.batch)
        starts = recipe.train.starts
        self.rows = slice(self.own.start * starts, self.own.stop * starts)  # its trajectories
        self.step = 0
        init = stream(recipe.seed, "init")
        self.model = Reasoner.for_task(recipe.task, recipe.model, init).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.fused = fused and compile_operator(self.model, self.average)
        self.optimizers = build_optimizers(self.model, recipe.train)
        self.inputs = torch.as_tensor(data.train.inputs, device=device)
        self.labels = torch.as_tensor(data.train.labels, device=device)
        batch = recipe.train.batch
        blank = torch.zeros((batch, self.model.tokens), dtype=torch.uint8, device=device)
        self.carry = Carry(
            state=self.model.initial_state(
                self.rows.stop - self.rows.start, self.slots(stream(0, "unused", device=device))
            ).detach(),
            x=blank,
            y=blank.clone(),
            steps=torch.zeros(batch, dtype=torch.int64, device=device),
            halted=torch.ones(batch, dtype=torch.bool, device=device),
        )
        self.sums = torch.zeros(len(SUMS), dtype=widest(device), device=device)

    def slots(self, draw: torch.Generator) -> torch.Generator | Slots:
        """The draws for this process's trajectories, out of those for the batch."""
        whole = self.recipe.train.batch * self.recipe.train.starts
        return Slots(draw, whole, self.rows) if self.world.size > 1 else draw

    def each_start(self, values: Tensor) -> Tensor:
        """What belongs to a sample, once for each of its trajectories, (B, ...) -> (B K, ...)."""
        starts = self.recipe.train.starts
        return values if starts == 1 else values.repeat_interleave(starts, 0)

    def fresh_samples(self) -> tuple[Tensor, Tensor]:
        """The new samples offered to the slots at this step: a function of (seed, step)."""
        draw = stream(self.recipe.seed, "data", self.step, device=self.device)
        rows = torch.randint(
            len(self.inputs), (self.recipe.train.batch,), generator=draw, device=self.device
        )
        x, y = self.inputs[rows], self.labels[rows]
        if self.recipe.data.augment:
            x, y = self.recipe.task.augment(x, y, draw)
        return x, y

    def refill(self, draw: torch.Generator) -> None:
        """Put a new sample, at new starts, into every slot whose sample has halted."""
        carry, (x, y) = self.carry, self.fresh_samples()
        halted = self.each_start(carry.halted[self.own])
        start = self.model.initial_state(len(halted), self.slots(draw))
        carry.state = carry.state.replace_rows(halted, start)
        carry.x = torch.where(carry.halted[:, None], x, carry.x)
        carry.y = torch.where(carry.halted[:, None], y, carry.y)
        carry.steps = torch.where(carry.halted, 0, carry.steps)

    def wish(self, halt_logit: Tensor, exact: Tensor) -> Tensor:
        """Positive where a sample would leave before the limit, (B,): see ``TrainConfig``."""
        kind = self.recipe.train.halting
        if kind == "learned":
            return halt_logit
        return exact.float() if kind == "oracle" else torch.zeros_like(halt_logit)

    def halting(self, wish: Tensor, draw: torch.Generator) -> Tensor:
        """Which samples leave: by wish or at the limit, unless exploration keeps them (B,)."""
        config, steps = self.recipe.train, self.carry.steps
        if config.halt_max == config.unroll:
            return torch.ones_like(self.carry.halted)
        explore = torch.rand(steps.shape, generator=draw, device=self.device) < config.halt_explore
        least = torch.randint(
            2, config.halt_max + 1, steps.shape, generator=draw, device=self.device
        )
        wants = (wish > 0) | (steps >= config.halt_max)
        return wants & (steps >= torch.where(explore, least, 0))

    def winning(self, steps: list[Step], y: Tensor) -> list[Step]:
        """Of each sample's trajectories the one with the smallest token loss over ``steps``.

        The halting head has no say: its loss tells how well it knows whether an answer is right.
        """
        config = self.recipe.train
        if config.starts == 1:
            return steps
        with torch.no_grad():
            wanted = self.each_start(y)
            losses = sum(token_loss(step.logits, wanted, config.loss).mean(1) for step in steps)
            best = losses.view(-1, config.starts).argmin(1)
            rows = best + torch.arange(len(best), device=best.device) * config.starts
        return [Step(step.state, step.logits[rows], step.halt[rows]) for step in steps]

    def advance(self) -> None:
        """``unroll`` outer iterations of the batch and one optimizer step.

        Raises:
            TrainingError: the loss is not finite; nothing has been updated. On a GPU
                :meth:`require_finite` notices it, before anything is logged or kept.
        """
        config, carry = self.recipe.train, self.carry
        draw = stream(self.recipe.seed, "noise", self.step, device=self.device)
        self.refill(draw)
        x, y, state = self.each_start(carry.x[self.own]), carry.y[self.own].long(), carry.state
        operator = operator_at(self.recipe, self.step)
        settings = {
            "noise": operator.noise,
            "generator": self.slots(draw),
            "high_cycles": operator.high_cycles,
            "low_cycles": operator.low_cycles,
        }
        half = config.dtype == "bfloat16"
        steps = []  # of the supervised iterations
        for iteration in range(1, config.unroll + 1):
            with torch.autocast(self.device, torch.bfloat16) if half else contextlib.nullcontext():
                step = self.model.step(state, x, **settings)
            state = step.state
            if iteration >= config.supervise_from:
                steps.append(step)
        losses = []  # (total, tokens, halting) of each of them
        for step in self.winning(steps, y):
            right = step.answer == y
            exact = right.all(1)
            tokens = token_loss(step.logits, y, config.loss).mean()
            halt = F.binary_cross_entropy_with_logits(step.halt.float(), exact.float())
            losses.append((tokens + config.halt_weight * halt, tokens, halt))
        loss, tokens, halt = (sum(part) / len(losses) for part in zip(*losses, strict=True))
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        token, solved = right.float().mean(), exact.float().mean()
        means = [loss, tokens, halt, token, solved, *gradients]
        self.world.average_(means, len(y) / config.batch)
        norm = torch.nn.utils.get_total_norm(gradients)
        # Asking a GPU waits for it; there the sums are asked before anything is kept.
        if self.device != "cuda" and not torch.isfinite(loss + norm):
            raise TrainingError(
                f"the loss is {loss.item()} and the gradient's norm {norm.item()} at step "
                f"{self.step}: lower train.lr or use float32; the last checkpoint is intact"
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.step, config, group["initial_lr"])
            optimizer.step()
        update_average(self.average, self.model, config.ema)

        carry.state = state.detach()
        carry.steps = carry.steps + config.unroll
        wish = self.wish(step.halt.detach(), exact)
        carry.halted = self.halting(self.world.gather(wish, config.batch), draw)
        self.step += 1
        left = carry.halted
        values = (
            1.0, loss, tokens, halt, norm, token, solved,
            left.sum(), (carry.steps * left).sum(),
        )  # fmt: skip
        self.sums += torch.stack(
            [torch.as_tensor(v, device=self.device).to(self.sums) for v in values]
        )

    def require_finite(self) -> None:
        """TrainingError if a loss or gradient since the last log event was not finite."""
        if not torch.isfinite(self.sums).all():
            raise TrainingError(
                f"a loss or a gradient was not finite before step {self.step}: lower train.lr or "
                "use float32; the last checkpoint is intact"
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
        """Exact accuracy of the averaged weights at each power of two up to ``eval_depth``."""
        config = self.recipe.train
        powers = {2**k for k in range(config.eval_depth.bit_length())}
        depths = tuple(sorted(powers | {config.eval_depth}))
        held = EvalConfig(depths, seed=self.recipe.seed, problems=config.eval_problems)
        test = self.data.test
        kept = records(self.average, test.inputs, test.labels, held, world=self.world)
        exact = kept.exact.mean((1, 2))
        return {
            "problems": float(kept.exact.shape[1]),
            "residual": float(kept.residual[-1].mean()),
            **{f"exact_{d}": float(e) for d, e in zip(depths, exact, strict=True)},
        }

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed run needs, by name; the same for any number of processes."""
        found = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        found |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, p in self.model.named_parameters():
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(p, {}).items():
                    found[f"optimizer.{key}.{name}"] = value
        carry, train = self.carry, self.recipe.train
        for name in ("z_high", "z_low"):
            own = getattr(carry.state, name).unflatten(0, (-1, train.starts))
            found[f"carry.{name}"] = self.world.gather(own, train.batch).flatten(0, 1)
        found |= {f"carry.{k}": getattr(carry, k) for k in ("x", "y", "steps", "halted")}
        return found | {"sums": self.sums.detach()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take up the state that :meth:`tensors` gave after ``step`` steps."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        parameters = dict(self.model.named_parameters())
        states = {
            p: optimizer.state
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }
        for key, value in part("optimizer.").items():
            kind, name = key.split(".", 1)
            # Counters stay on the CPU, moments go where their parameter is.
            device = "cpu" if value.ndim == 0 else self.device
            states[parameters[name]][parameters[name]][kind] = value.to(device)
        carry = {k: v.to(self.device) for k, v in part("carry.").items()}
        state = State(carry.pop("z_high")[self.rows], carry.pop("z_low")[self.rows])
        self.carry = Carry(state=state, **carry)
        self.sums = tensors["sums"].to(self.device)
        self.step = step


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
            and ``timing.json`` go. A run found there is resumed, bitwise. None keeps nothing.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        stop_after_s: leave after about so many seconds with a checkpoint written, to be resumed.
        world: processes that share the batch; each gets the events, the first one writes.
        fused: compile the operator where that can be done (:mod:`eqr.compiled`), which changes
            results by rounding only; None does so for runs that are long enough to gain.

    Raises:
        TrainingError: a loss that is not finite.
        checkpoint.CheckpointError: what lies in ``directory`` is damaged or of another recipe.
    """
    config = recipe.train
    resume = directory / "resume.safetensors" if directory else None
    tensors, meta = {}, {}
    if resume and resume.exists():
        tensors, meta = checkpoint.load_resume(resume, recipe, data.digest)
        fused = meta.get("fused", False)  # a run keeps the rounding that it began with
    fused = training_is_long(recipe) if fused is None else fused
    trainer = Trainer(recipe, data, device, world, fused)
    if meta.get("fused") and not trainer.fused:
        raise TrainingError(
            f"{resume}: begun with a compiled operator, which cannot be built here "
            f"({trouble(device)}); mend that, or delete {directory} to train without from the start"
        )
    log = RunLog(directory / "log.jsonl") if directory and world.first else None
    seconds = 0.0
    if meta:
        trainer.restore(tensors, meta["step"])
        if log:
            log.truncate(meta["log_bytes"])
        seconds = meta["seconds"]
    elif log:
        log.truncate(0)
    world.share()  # all have read the checkpoint before the first may replace it
    began = time.monotonic()

    def event(kind: str, metrics: dict[str, float]) -> Event:
        if log and kind != "checkpoint":
            log.append({"kind": kind, "step": trainer.step, **metrics})
        return Event(kind, trainer.step, metrics)

    while trainer.step < config.steps:
        trainer.advance()
        last = trainer.step == config.steps
        elapsed = time.monotonic() - began
        pause = stop_after_s is not None and world.share(elapsed > stop_after_s)
        due = {
            kind: trainer.step % every == 0 or last
            for kind, every in (("log", config.log_every), ("eval", config.eval_every))
        }
        keep = resume and (trainer.step % config.checkpoint_every == 0 or last or pause)
        if keep or any(due.values()):
            trainer.require_finite()
        if due["log"]:
            yield event("log", trainer.read_sums())
        if due["eval"]:
            yield event("eval", trainer.evaluate())
        if keep:
            tensors, spent = trainer.tensors(), seconds + time.monotonic() - began
            if log:
                meta = {"step": trainer.step, "log_bytes": log.size(), "seconds": spent}
                meta["fused"] = trainer.fused
                checkpoint.save_resume(resume, tensors, recipe, data.digest, meta)
            yield event("checkpoint", {"seconds": spent})
        if pause and not last:
            return
    if log:
        checkpoint.save_model(
            directory / "model.safetensors",
            trainer.average,
            recipe,
            {
                "step": trainer.step,
                "data": data.digest,
                "parameters": parameter_count(trainer.model),
            },
        )
        total = seconds + time.monotonic() - began
        timing = {"seconds": round(total, 1), "fused": trainer.fused}
        (directory / "timing.json").write_text(json.dumps(timing) + "\n")


class RunLog:
    """Rows of JSON, one a line; can be cut back to where a checkpoint left it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def size(self) -> int:
        return self.path.stat().st_size

    def truncate(self, size: int) -> None:
        if self.size() < size:
            raise checkpoint.CheckpointError(
                f"{self.path}: shorter than its checkpoint says ({self.size()} < {size} bytes); "
                "delete the run's folder to start it anew"
            )
        with self.path.open("r+b") as file:
            file.truncate(size)

    def append(self, row: dict) -> None:
        # NaN is not JSON: a mean over nothing is written as null.
        clean = {k: None if v != v else v for k, v in row.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(clean) + "\n")
            file.flush()
            os.fsync(file.fileno())
