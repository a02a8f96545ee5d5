"""A model before it is trained: without dropout, and whether its router has a loss of its own."""

import re
from typing import Any

import torch

_RANDOM = re.compile(r"drop|jitter")
"""Names of what makes two passes over one text differ."""


def switch_off_dropout(model: torch.nn.Module) -> None:
    """Set every share of dropped numbers to 0: of layers, and of those that are mere attributes.

    A preference is compared with a reference, or with another response, that has no dropout; and a
    prompt that is run once for all of its pairs could have it only once.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config: Any = model.config
    for part in (*model.modules(), config, config.get_text_config()):
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and _RANDOM.search(name):
                setattr(part, name, 0.0)


def has_router_loss(model: Any, args: Any) -> bool:
    """Whether TRL adds the load-balancing loss of a mixture of experts, as it does where it can.

    Where a model only seems to have one (Doge without experts), it is switched off in args.
    """
    config = model.config.get_text_config()
    coefficient = getattr(args, "router_aux_loss_coef", 0.0)
    if coefficient is None:
        coefficient = getattr(config, "router_aux_loss_coef", 0.0)
    if not coefficient or not hasattr(config, "output_router_logits"):
        return False
    try:
        with torch.no_grad():
            ids = torch.tensor([[1, 2, 3]], device=model.device)
            if model(input_ids=ids, output_router_logits=True).aux_loss is not None:
                return True
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
        pass
    args.router_aux_loss_coef = 0.0
    return False
