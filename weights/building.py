"""Build a model from weights under our names, and take the weights out of one again.

A model that is built so is in ``eval()`` mode and has memory of its own.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..assembly.config import GPT2Config
from ..assembly.model import GPT2
from ..files import listed
from .files.tensors import check_finite, is_finite
from .layout import WeightsError, rows
from .wrapper_prefixes import unwrapped

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@torch.no_grad()
def filled_model(
    config: GPT2Config,
    state: Mapping[str, Tensor],
    source: object,
    *,
    shared: bool,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    fused: bool = True,
) -> GPT2:
    """Return a model with weights of its own, made one after the other, so that hardly any is in memory twice.

    Args:
        config: what the weights fit.
        state: the weights under our names; each is looked up once.
        source: what the weights are from, for messages.
        shared: another program holds the tensors of ``state``, so that all have to be copied.
        device, dtype: where and as what to hold the weights (default: as in ``state``).
        fused: as for `GPT2`.

    Raises:
        WeightsError: weights that are not finite, or of several dtypes without ``dtype``.

    Example:
        >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=11, n_ctx=6))
        >>> again = filled_model(model.config, weights_of(model), "the model", shared=True)
        >>> torch.equal(again.embed.W_E, model.embed.W_E)
        True
    """
    if dtype is not None and dtype not in _DTYPES:
        raise WeightsError(f"dtype is {dtype!r}; it can be {', '.join(map(str, _DTYPES))}")
    filled: dict[str, Tensor] = {}
    stored: dict[str, str] = {}
    for name, tensor in state.items():
        stored.setdefault(str(tensor.dtype), name)
        own = tensor.to(device, dtype)
        own = own.clone(memory_format=torch.contiguous_format) if own is tensor and shared else own.contiguous()
        if not is_finite(own):
            check_finite({name: tensor}, source)
            raise WeightsError(f"{name} holds numbers that are too large for {dtype}; load it in another dtype")
        filled[name] = own
    if dtype is None and len(stored) > 1:
        mixture = ", ".join(f"{name} is {its}" for its, name in sorted(stored.items()))
        raise WeightsError(f"the weights are not of one dtype ({mixture}): convert them to one")
    model = unfilled_model(config, fused=fused)
    model.load_state_dict(filled, assign=True)
    return model


def unfilled_model(config: GPT2Config, *, fused: bool = True) -> GPT2:
    """Return a model in ``eval()`` mode on the meta device: nothing is allocated, and no initial weights are drawn."""
    return GPT2(config, fused=fused, device="meta").eval()


def weights_of(model: GPT2) -> dict[str, Tensor]:
    """Return a model's weights under our names; they share its memory.

    Raises:
        WeightsError: the model has no values to save, or other layers than its configuration describes.
    """
    state = model.state_dict()
    state = {name: state[key].detach() for name, key in unwrapped(state).items()}  # blocks may be compiled one by one
    for name, tensor in state.items():
        if tensor.is_meta:
            raise WeightsError(
                f"{name} has no values to save: the model was packed for decoding, or is on the meta device"
            )
    expected = {name for name, _, _ in rows("ours", model.config)}
    if changed := sorted(expected ^ state.keys()):
        raise WeightsError(
            f"the model has other layers than its configuration describes ({listed(changed)}), which no format has a "
            "place for: save its state_dict() with torch.save"
        )
    return state
