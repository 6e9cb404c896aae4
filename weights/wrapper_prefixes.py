"""Names of parameters without the prefixes that wrappers of a model add."""

import re
from collections.abc import Iterable

from .layout import WeightsError

# torch.compile, DistributedDataParallel, FSDP, activation checkpointing and Opacus, in the order of any nesting. They
# may wrap the model or a layer of it.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|module|_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Return the names without the prefixes of wrappers -> the names with them.

    Raises:
        WeightsError: a name that is there twice, with and without a prefix.

    Example:
        >>> unwrapped(["module._orig_mod.embed.W_E", "module.blocks.0._orig_mod.ln1.w"])
        {'embed.W_E': 'module._orig_mod.embed.W_E', 'blocks.0.ln1.w': 'module.blocks.0._orig_mod.ln1.w'}
    """
    bare: dict[str, str] = {}
    for key in names:
        name = _WRAPPERS.sub("", key)
        if name in bare:
            raise WeightsError(f"{name} is there twice, as {bare[name]} and as {key}")
        bare[name] = key
    return bare
