"""Check that what a caller passes as a model is one: anything else gets a sentence, and not an AttributeError."""

from torch import nn

__all__ = ["check_model"]

_METHODS = ("final_residual", "unembed", "new_cache")  # wrappers, as of torch.compile, have them too


def check_model(model: object, name: str = "model", instead: str = "a GPT2") -> None:
    """Raise ValueError if an argument is not a model of ours.

    >>> check_model("gpt2")
    Traceback (most recent call last):
    ValueError: model must be a GPT2, not 'gpt2': GPT2.from_pretrained loads one by its name or folder

    Args:
        model: the argument.
        name: its name, for the message.
        instead: what it can be, for the message.
    """
    if isinstance(model, nn.Module) and all(hasattr(model, method) for method in _METHODS):
        return
    shown, advice = " ".join(repr(model).split())[:60], "GPT2.from_pretrained loads one by its name or folder"
    if isinstance(model, nn.Module):
        shown = f"a {type(model).__name__}"
        advice = "gptladder.weights converts models of transformers (from_hf) and TransformerLens"
    raise ValueError(f"{name} must be {instead}, not {shown}: {advice}")
