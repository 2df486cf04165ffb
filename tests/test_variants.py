"""Training variants: unrolled steps, ways to halt, learned starts and noise, and the baselines."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from eqr import checkpoint
from eqr.layers import gaussian
from eqr.model import Reasoner, State
from eqr.optim import token_loss
from eqr.streams import stream
from eqr.train import Trainer

FULL = {"grad_cycles": 2}  # all cycles of the tiny recipe


def by_hand(trainer: Trainer) -> tuple[dict[str, torch.Tensor], State, list[int]]:
    """Gradients, last states of all starts and the winners of the step that ``trainer`` is about
    to take, written out plainly, in the type of its weights.

    With several starts, noise must be off, so that a trajectory does not depend on the others.
    """
    recipe, model = trainer.recipe, copy.deepcopy(trainer.model)
    config, carry, starts = recipe.train, trainer.carry, recipe.train.starts
    x, y = trainer.sample_batch()
    draw = stream(recipe.seed, "noise", trainer.step)
    start = model.initial_state(starts * len(x), draw)
    x = torch.where(carry.halted[:, None], x, carry.x)
    y = torch.where(carry.halted[:, None], y, carry.y).long()
    state = carry.state.replace_rows(carry.halted.repeat_interleave(starts), start)
    state = State(*(z.to(model.embed.weight.dtype) for z in (state.z_high, state.z_low)))

    def unroll(state: State, copies: int) -> tuple[State, torch.Tensor, torch.Tensor]:
        """Last state, the loss of each row's tokens, and the whole loss, over supervised steps."""
        rows, wanted = x.repeat_interleave(copies, 0), y.repeat_interleave(copies, 0)
        by_row, total = torch.zeros(len(rows)), 0.0
        for k in range(1, config.unroll + 1):
            step = model.step(state, rows, noise=recipe.model.noise, generator=draw)
            state = step.state
            if k >= config.supervise_from:
                tokens = token_loss(step.logits, wanted, config.loss)
                exact = (step.answer == wanted).all(1).to(step.halt.dtype)
                halt = F.binary_cross_entropy_with_logits(step.halt, exact)
                by_row = by_row + tokens.detach().mean(1)
                total = total + tokens.mean() + config.halt_weight * halt
        return state, by_row, total

    ends, best = None, [0] * len(x)
    if starts > 1:
        with torch.no_grad():
            ends, losses, _ = unroll(state, starts)
        best = losses.view(-1, starts).argmin(1).tolist()
        rows = [k * starts + b for k, b in enumerate(best)]
        state = State(state.z_high[rows], state.z_low[rows])
    last, _, loss = unroll(state, 1)
    (loss / (config.unroll - config.supervise_from + 1)).backward()
    return {n: p.grad for n, p in model.named_parameters()}, (ends or last).detach(), best


@pytest.mark.parametrize(
    ("unroll", "supervise_from", "model"),
    [(1, 1, {}), (1, 1, FULL), (4, 1, FULL), (4, 3, FULL), (4, 4, {})],
)
def test_a_step_is_the_loop_written_out(make_recipe, problems, unroll, supervise_from, model):
    recipe = make_recipe(
        model=model, train={"unroll": unroll, "supervise_from": supervise_from, "halt_max": 8}
    )
    trainer = Trainer(recipe, problems)
    for done in range(1, 4):
        gradients, state, _ = by_hand(trainer)
        trainer.advance()
        assert torch.equal(trainer.carry.state.z_high, state.z_high)
        for name, p in trainer.model.named_parameters():
            assert torch.equal(p.grad, gradients[name]), name
        assert trainer.carry.steps.max() <= done * unroll
        assert not trainer.carry.state.z_high.requires_grad, "the carry is detached"


@pytest.mark.parametrize("settings", [{}, {"unroll": 4, "supervise_from": 3}], ids=str)
def test_of_several_starts_the_gradient_is_that_of_the_winners_alone(
    make_recipe, problems, settings
):
    model = {"noise": 0.0, "grad_cycles": 2 if settings else 1}
    trainer = Trainer(make_recipe(model=model, train={"starts": 3} | settings), problems)
    trainer.model.double()
    trainer.ema.double()
    state = trainer.carry.state
    trainer.carry.state = State(state.z_high.double(), state.z_low.double())
    won = set()
    for _ in range(3):
        gradients, ends, best = by_hand(trainer)
        trainer.advance()
        won |= set(best)
        for name, p in trainer.model.named_parameters():
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-5, atol=1e-9, msg=name)
        torch.testing.assert_close(trainer.carry.state.z_high, ends.z_high, msg="losers go on too")
        torch.testing.assert_close(trainer.carry.state.z_low, ends.z_low)
    assert won == {0, 1, 2}, "everyone wins somewhere"


def test_an_unrolled_gradient_reaches_back_only_through_untruncated_cycles(make_recipe, problems):
    """Loss on the last of two iterations: the first one matters for it, if no cycle is cut."""
    recorded = {}
    for name, model in (("full", FULL), ("cut", {})):
        settings = {"unroll": 2, "supervise_from": 2}
        trainer = Trainer(make_recipe(model=model | {"noise": 0.0}, train=settings), problems)
        before = copy.deepcopy(trainer.model)
        trainer.advance()
        with torch.no_grad():  # the same last iteration, from a state that hides the first
            start = before.initial_state(16, stream(0, "noise", 0))
            middle = before.step(start, trainer.carry.x, noise=0.0).state
        step = before.step(middle, trainer.carry.x, noise=0.0)
        y = trainer.carry.y.long()
        exact = (step.answer == y).all(1).float()
        loss = token_loss(step.logits, y, "softmax").mean()
        (loss + 0.5 * F.binary_cross_entropy_with_logits(step.halt, exact)).backward()
        recorded[name] = torch.equal(before.embed.weight.grad, trainer.model.embed.weight.grad)
    assert recorded == {"full": False, "cut": True}


@pytest.mark.parametrize("settings", [{}, {"unroll": 2}, {"starts": 2}], ids=str)
def test_by_the_oracle_a_sample_leaves_exactly_when_its_winner_is_right(
    make_recipe, problems, learned, settings
):
    train_ = {"batch": 64, "halting": "oracle", "halt_explore": 0.0} | settings
    trainer = Trainer(make_recipe(model={"noise": 0.0}, train=train_), problems)
    trainer.model.load_state_dict(checkpoint.load_model(learned.path).model.state_dict())
    config, left, split = trainer.recipe.train, 0, 0
    for _ in range(8):
        head = copy.deepcopy(trainer.model.lm_head)
        trainer.advance()
        carry, logits = trainer.carry, head(trainer.carry.state.z_high)
        labels = carry.y.long().repeat_interleave(config.starts, 0)
        losses = token_loss(logits, labels, config.loss).mean(1).view(-1, config.starts)
        right = (logits.argmax(-1) == labels).all(1).view(-1, config.starts)
        winner = right.gather(1, losses.argmin(1, keepdim=True)).squeeze(1)
        assert torch.equal(carry.halted, winner | (carry.steps == 8))
        assert (carry.steps % config.unroll == 0).all()
        left += int((winner & (carry.steps < 8)).sum())
        split += int((right.any(1) != right.all(1)).sum())
    assert left > 10, "the model solves some problems early"
    assert split > 0 or config.starts == 1, "some are solved by one trajectory only"


def test_with_the_limit_alone_everyone_stays_and_the_head_still_learns(make_recipe, problems):
    recipe = make_recipe(train={"halting": "limit", "halt_max": 4})
    trainer = Trainer(recipe, problems)
    trainer.model.halt_head.bias.data.fill_(9.0)  # it would send everyone away
    for step in range(1, 9):
        trainer.advance()
        assert trainer.carry.halted.all() == trainer.carry.halted.any() == (step % 4 == 0)
    assert trainer.model.halt_head.bias < 9.0
    silent = Trainer(make_recipe(train={"halting": "limit", "halt_weight": 0.0}), problems)
    silent.advance()
    assert (silent.model.halt_head.weight.grad == 0).all()


@pytest.mark.parametrize("hierarchical", [True, False])
def test_a_learned_start_gets_its_exact_gradient_and_changes_no_other(
    make_recipe, problems, hierarchical
):
    """Its gradient is that of the uncut operator, the weights' that of the cut one."""
    shared = {"hierarchical": hierarchical, "noise": 0.0}
    cut, full, fixed = (
        Trainer(make_recipe(model=shared | settings), problems).model
        for settings in ({"init": "learned"}, {"init": "learned", **FULL}, {"init": "fixed"})
    )
    x = torch.as_tensor(problems.train.inputs[:5])
    for model in (cut, full, fixed):
        step = model.step(model.initial_state(5, stream(0, "unused")), x, noise=0.0)
        (step.logits.square().mean() + step.halt.mean()).backward()
    names = ["start_high", "start_low"] if hierarchical else ["start_high"]
    assert [n for n, _ in cut.named_parameters() if n.startswith("start")] == names
    for name in names:
        actual = getattr(cut, name)
        assert torch.equal(actual, getattr(fixed, name.replace("start", "fixed")))
        assert actual.grad.norm() > 0
        torch.testing.assert_close(actual.grad, getattr(full, name).grad)
    for name, p in fixed.named_parameters():
        torch.testing.assert_close(p.grad, dict(cut.named_parameters())[name].grad)
        assert p.requires_grad and dict(cut.named_parameters())[name].requires_grad


def test_a_learned_start_moves_with_the_samples_that_begin(make_recipe, problems, tmp_path):
    settings = {"halting": "limit", "halt_max": 3}
    recipe = make_recipe(model={"init": "learned"}, train=settings)
    trainer = Trainer(recipe, problems)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    for step in range(7):
        trainer.advance()
        for start in (trainer.model.start_high, trainer.model.start_low):
            assert (start.grad.abs().sum() > 0) == (step % 3 == 0), "steps 0, 3 and 6 begin"
    for name in ("start_high", "start_low"):
        assert not torch.equal(before[name], getattr(trainer.model, name))
        assert not torch.equal(before[name], getattr(trainer.ema, name))
    checkpoint.save_model(tmp_path / "model.safetensors", trainer.ema, recipe.task, {})
    loaded = checkpoint.load_model(tmp_path / "model.safetensors").model
    actual, wanted = loaded.initial_state(2, None), trainer.ema.initial_state(2, None)
    assert torch.equal(actual.z_high, wanted.z_high) and torch.equal(actual.z_low, wanted.z_low)
    assert not actual.z_high.requires_grad


def test_learned_noise_scales_each_channel_and_is_trained(make_recipe, problems):
    plain = Trainer(make_recipe(), problems)
    trainer = Trainer(make_recipe(model={"learn_noise": True}), problems)
    names = {n for n, _ in trainer.model.named_parameters()}
    assert names - {n for n, _ in plain.model.named_parameters()} == {"noise_high", "noise_low"}
    for one in (plain, trainer):
        one.advance()
    assert torch.equal(plain.carry.state.z_high, trainer.carry.state.z_high), "the gain starts at 1"
    for _ in range(3):
        trainer.advance()
    assert trainer.model.noise_high.abs().min() > 0 and trainer.model.noise_low.abs().min() > 0
    model: Reasoner = trainer.model.requires_grad_(False)
    gain = torch.linspace(-1, 1, 24)
    z = torch.zeros(500, 16, 24)
    draw = gaussian(0.2, stream(0, "n"))
    spread = (model(z, z, 0.0, draw(z), gain) - model(z, z, 0.0)).std((0, 1))
    torch.testing.assert_close(spread, 0.2 * gain.exp(), rtol=0.05, atol=0)
