"""Torch's optimizers are made here as a configuration names them."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch

from deq_enn.training.run_files import Config


def _eager(kind: type[torch.optim.Optimizer]) -> type[Any]:
    """Returns a torch optimizer without its torch.compile wrappers, whose import takes seconds."""
    methods = "add_param_group", "load_state_dict", "state_dict", "step", "zero_grad"
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in methods}
    return type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(plain["step"])})


OPTIMIZERS = {"sgd": _eager(torch.optim.SGD), "adam": _eager(torch.optim.Adam), "adamw": _eager(torch.optim.AdamW)}


def make_optimizer(parameters: Iterable[torch.nn.Parameter | dict], config: Config) -> torch.optim.Optimizer:
    """Returns the optimizer that the configuration names, of parameters or of torch's groups of them."""
    kind = OPTIMIZERS[config.opt]
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
