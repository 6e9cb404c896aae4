"""Call the user's layer: what else its forward takes, the layers inside it, the gradients of its parameters."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Ways to make a causal mask, for a forward that takes one: of four axes, or of two.
MASKS: Mapping[str, Callable[[int, torch.dtype], Tensor]] = {
    f"{words}{shape}": partial(make, lead)
    for lead, shape in (((1, 1), ""), ((), ", [seq seq]"))
    for words, make in {
        "ones where a query may look": lambda lead, seq, _: torch.ones(*lead, seq, seq, dtype=torch.bool).tril(),
        "True where a query may not look": lambda lead, seq, _: torch.ones(*lead, seq, seq, dtype=torch.bool).triu(1),
        "-inf where a query may not look": lambda lead, seq, dtype: torch.full(
            (*lead, seq, seq), -torch.inf, dtype=dtype
        ).triu(1),
    }.items()
}


def _is_mask(name: str) -> bool:
    lower = name.lower()  # what hides heads or padding hides no future
    return "mask" in lower and "head" not in lower and "pad" not in lower


def _forward(layer: nn.Module) -> list[inspect.Parameter]:
    named = inspect.signature(layer.forward).parameters.values()
    return [
        each for each in named if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]


def masks_of(layer: nn.Module) -> list[str]:
    """Return the ways to make the mask that forward takes; first none, if it can do without."""
    taking = [each for each in _forward(layer) if _is_mask(each.name)]
    if not taking:
        return [""]
    return [*([""] if all(each.default is not each.empty for each in taking) else []), *MASKS]


def call(layer: nn.Module, given: Tensor, mask: str, extras: set[str]) -> Any:
    """Call the layer with its input, and with what else its forward needs."""
    arguments = _forward(layer)
    required = [each for each in arguments if each.default is each.empty and not _is_mask(each.name)]
    # TransformerLens's attention takes the input of queries, of keys and of values.
    positional = [given] * (3 if len(required) == 3 else 1)
    keywords = {}
    if mask:
        name = next(each.name for each in arguments if _is_mask(each.name))
        keywords[name] = MASKS[mask](given.shape[1], given.dtype)
        extras.add(f"forward was given a causal mask ({name}: {mask}), so its own masking was not judged")
    output = layer(*positional, **keywords)
    if (
        isinstance(output, tuple)
        and output
        and isinstance(output[0], Tensor)
        and not given.is_floating_point()
        and output[0].ndim == 3
        and given.shape[1] > 1
        and output[0].shape[1] == 1
        and any(each.name in ("targets", "labels") for each in arguments)
    ):
        # nanoGPT's model gives all logits only if it is asked for the loss.
        name = next(each.name for each in arguments if each.name in ("targets", "labels"))
        try:
            again = layer(*positional, **keywords, **{name: given})
        except Exception:  # then its one position is its answer
            again = None
        if isinstance(again, tuple) and isinstance(again[0], Tensor) and again[0].shape[1:2] == given.shape[1:]:
            extras.add(f"without {name}, forward returns the last position's logits only; it was judged with {name}")
            output = again
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output:
        return output[0]
    if isinstance(output, Mapping) and output:
        return output.get("logits", next(iter(output.values())))
    return getattr(output, "logits", output)


def parts_of(layer: nn.Module, state: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Return the submodules that hold one of GPT-2's layers each, by our layer's name (``blocks.0.attn``)."""
    if not any("." in leaf for leaf in leaves):
        return {}
    holds: dict[str, set[str]] = {}
    places = dict(layer.named_parameters(remove_duplicate=False))
    for name, tensor in state.items():
        if tensor.requires_grad and name in places:
            found = torch.autograd.grad(tensor.sum(), list(leaves.values()), allow_unused=True, retain_graph=True)
            ours = {leaf for leaf, gradient in zip(leaves, found, strict=True) if gradient is not None}
            path = name.rpartition(".")[0]
            while path:
                holds.setdefault(path, set()).update(ours)
                path = path.rpartition(".")[0]
    modules = dict(layer.named_modules(remove_duplicate=False))
    wanted: dict[str, set[str]] = {}
    for leaf in leaves:
        parts = leaf.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            wanted.setdefault(".".join(parts[:depth]), set()).add(leaf)
    present = set().union(*holds.values())  # the layer may lack biases
    found_parts: dict[str, nn.Module] = {}
    for ours, leaves_of in wanted.items():
        exact = [path for path, held in holds.items() if held == leaves_of & present]
        if exact and ours != "blocks":
            found_parts[ours] = modules[min(exact, key=len)]
    return found_parts


def pull_back(layer: nn.Module, state: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of the layer's parameters as gradients of those that they were made from."""
    names: dict[int, str] = {}
    for name, place in layer.named_parameters(remove_duplicate=False):
        if name in state and state[name].requires_grad and place.grad is not None:
            names.setdefault(id(place), name)  # a tied one has two names, and one gradient
    if not names:
        return {}
    # As one number: autograd.grad with several outputs imports sympy to check their shapes.
    terms = []
    for name in names.values():
        grad = layer.get_parameter(name).grad
        assert grad is not None
        terms.append((state[name] * grad).sum())
    total = torch.stack(terms).sum()
    pulled = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {name: found for name, found in zip(leaves, pulled, strict=True) if found is not None}
