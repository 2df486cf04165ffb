"""A trained model under other conditions than it was trained in (chapter *Under shift*): weights
with noise on them, arithmetic in another precision, a board of another size.
"""

from __future__ import annotations

import copy

import torch

from eqr.config import EvalConfig
from eqr.model import Reasoner
from eqr.settings import ConfigError
from eqr.streams import stream
from eqr.task import Task


@torch.no_grad()
def perturbed(model: Reasoner, config: EvalConfig) -> Reasoner:
    """The model as ``config`` wants it run; itself where that changes nothing.

    ``weight_noise`` adds to every weight a normal draw of so many times the root mean square of its
    tensor, from a stream of ``config.seed``; ``dtype`` converts weights, and with them all latents.
    """
    if not config.weight_noise and config.dtype == "float32":
        return model
    changed = copy.deepcopy(model)
    for index, weight in enumerate(changed.parameters()):
        if config.weight_noise:
            draw = torch.randn(weight.shape, generator=stream(config.seed, "weights", index))
            size = config.weight_noise * weight.square().mean().sqrt()
            weight += size * draw.to(weight.device)
    return changed.to(getattr(torch, config.dtype))


def on_board(model: Reasoner, task: Task) -> Reasoner:
    """The model on the board of ``task``, with the same weights; itself where the size is equal.

    Raises:
        ConfigError: the vocabulary differs, or weights are bound to the number of cells.
    """
    if (model.height, model.width, model.vocab_size) == (task.height, task.width, task.vocab_size):
        return model
    moved = Reasoner.for_task(task, model.config)
    size = f"{model.height}x{model.width}"
    try:
        moved.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"a model for {size} boards cannot be asked about {task.height}x{task.width}: only "
            'model.mixer = "attention" and the same vocabulary leave the size open'
        ) from error
    return moved.to(model.device, model.lm_head.weight.dtype).eval().requires_grad_(False)
