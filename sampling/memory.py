"""Check that a generation fits into the machine's memory."""

import os

from ..assembly import GPT2

__all__ = ["check_memory", "machine_memory"]


def check_memory(model: GPT2, *, rows: int, positions: int, name: str = "n") -> None:
    """Raise ValueError if the keys and values of all rows need more memory than the machine has.

    >>> from gptladder import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(d_model=8, n_layers=1, n_heads=2, d_vocab=5, n_ctx=16))
    >>> check_memory(model, rows=2, positions=16)

    Args:
        model: the model.
        rows: number of texts that are generated together.
        positions: largest number of tokens of a text.
        name: name of the option that sets the number of texts, for the message.
    """
    config = model.config
    weight = model.embed.W_E
    if weight.device.type != "cpu":  # the allocator of an accelerator raises an error by itself
        return
    for_each = positions * config.n_layers * 2 * config.n_heads * config.d_head + config.d_vocab
    needed, memory = rows * for_each * weight.element_size(), machine_memory()
    if needed > memory:
        raise ValueError(
            f"{name} is too large: {rows:,} texts of up to {positions:,} tokens need {needed / 1e9:,.0f} GB for keys "
            f"and values, and this machine has {memory / 1e9:,.0f} GB"
        )


def machine_memory() -> int:
    """Return the machine's memory in bytes, or a very large number if the system does not report it.

    >>> machine_memory() > 0
    True
    """
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 2**63
