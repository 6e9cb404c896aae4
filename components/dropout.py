"""Dropout, and the switch that turns it off for one thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .eager import uncompiled

_off: ContextVar[bool] = ContextVar("gptladder_dropout_off", default=False)

_OURS = __name__.split(".")[0]


def drops(layer: nn.Module) -> bool:
    """Return whether dropout acts in ``layer``: in training mode, unless `no_dropout` is on in this thread."""
    return layer.training and (torch.compiler.is_compiling() or not _off.get())


def dropout(x: Tensor, probability: float, layer: nn.Module) -> Tensor:
    """Return ``x`` with entries dropped and the others enlarged, if dropout acts in ``layer``; else ``x`` itself.

    Example:
        >>> dropout(torch.ones(3), 0.5, nn.Identity().eval())
        tensor([1., 1., 1.])
    """
    return F.dropout(x, probability) if probability and drops(layer) else x


@contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    """Turn dropout off for the block, in this thread or asyncio task alone.

    The model stays in training mode, so another thread can train it meanwhile. Only modules of other libraries inside
    the model (an ``nn.Dropout``, say), which cannot know of this switch, are put in evaluation mode for the block, and
    other threads see that.

    Example:
        >>> import torch
        >>> from gptladder import GPT2, GPT2Config
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=4, resid_dropout=0.5))
        >>> tokens = torch.tensor([[1, 2, 3]])
        >>> with no_dropout(model):
        ...     torch.equal(model(tokens), model(tokens))
        True
        >>> model.training
        True
    """
    if not model.training:
        yield
        return
    foreign = [
        module
        for module in model.modules()
        if module.training
        and not isinstance(module, nn.ModuleList | nn.Identity)
        and not any(base.__module__.split(".")[0] == _OURS for base in type(module).__mro__)
    ]
    token = _off.set(True)
    for module in foreign:
        module.training = False
    try:
        with uncompiled():
            yield
    finally:
        for module in foreign:
            module.training = True
        _off.reset(token)
