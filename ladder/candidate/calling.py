"""Call the user's layer: what else its forward takes, the layers inside it, the gradients of its parameters."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .aliases import decides, flag
from .masks import HIDING_NOTHING, MASKS, ConstructorsMask, is_mask

# What else than tokens the forward of a position embedding may take, and how its answer is read then.
_NUMBER, _INDICES = "the number of positions", "the positions' indices"
_ADDED, _SHAPE = "embeddings, which were subtracted again", "embeddings, of which it uses the shape"
_NUMBER_NAMES = re.compile(
    r"^(n|num|number)_?(of_)?(pos(itions?)?|tokens)$|^(n|t|l|s|length|size)$|(seq|sequence|context|ctx|input)_?(len|length|size)$",
    re.I,
)
_INDEX_NAMES = re.compile(r"^(pos|position)(s|_?ids?|_?ind(ex|ices)?)?$", re.I)
_TOKEN_NAMES = re.compile(r"tok|ids?$|idx", re.I)


def _forward(layer: nn.Module) -> list[inspect.Parameter]:
    named = inspect.signature(layer.forward).parameters.values()
    return [
        each for each in named if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]


def ways_to_call(layer: nn.Module, rung: str, takes_mask: bool = False) -> list[str]:
    """Return the ways to call forward: what it is given beside, or in place of, its input; the plain way is empty.

    Args:
        takes_mask: its constructor takes a mask.
    """
    arguments = _forward(layer)
    if rung == "pos-embed" and arguments:
        name, annotation = arguments[0].name, arguments[0].annotation
        if annotation is int or annotation == "int" or _NUMBER_NAMES.search(name):
            return [_NUMBER, ""]
        if _INDEX_NAMES.search(name):
            return [_INDICES]
        return [""] if _TOKEN_NAMES.search(name) else ["", _NUMBER, _ADDED, _SHAPE]
    taking = [each for each in arguments if _takes_mask(each)]
    if not taking:
        return ["", *(MASKS if takes_mask else ())]
    if all(each.default is not each.empty for each in taking):
        return ["", *MASKS]
    return [*MASKS, *HIDING_NOTHING]


def _positions(layer: nn.Module, tokens: Tensor, way: str) -> Any:
    """Return the position embeddings of a forward that does not take tokens."""
    if way == _NUMBER:
        return layer(tokens.shape[1])
    if way == _INDICES:
        return layer(torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape))
    table = next(layer.parameters())
    # Small numbers of their own, so that nothing is lost when they are subtracted from what they were added to.
    count = tokens.shape[0] * tokens.shape[1] * table.shape[-1]
    embeddings = torch.arange(count, dtype=table.dtype, device=table.device).sin().view(*tokens.shape, -1)
    output = layer(embeddings)
    return output - embeddings if way == _ADDED and isinstance(output, Tensor) else output


# What forward may ask for beside its input, in order to go on with a text: nothing came before.
_NOTHING = re.compile(
    r"cache|past|kv|pad(ding)?_mask|head_mask|^(return|output|need)_|^(is_)?training$|^(verbose|debug)$", re.I
)
_FLAG = re.compile(r"^(use|return|output|need|is|training|verbose|debug)(_|$)", re.I)
_FIRST_POSITION = re.compile(
    r"^((start|current|cur|cache|past|seq)_?)?(pos(ition)?|offset|start)(_?(idx|offset))?$", re.I
)
_TARGETS = ("targets", "labels")


def _nothing_before(arguments: list[inspect.Parameter]) -> dict[str, Any]:
    """Return values for arguments that forward requires beside its input, for a text that begins with it.

    Example:
        >>> def forward(x, kv_cache, start_pos, use_cache): ...
        >>> _nothing_before(list(inspect.signature(forward).parameters.values()))
        {'kv_cache': None, 'start_pos': 0, 'use_cache': False}
    """
    found: dict[str, Any] = {}
    for each in arguments[1:]:
        if each.default is not each.empty or each.kind == each.POSITIONAL_ONLY:
            continue
        if _takes_indices(each):
            continue
        if _FIRST_POSITION.search(each.name):
            found[each.name] = 0
        elif _NOTHING.search(each.name) and not is_mask(each.name):
            found[each.name] = False if each.annotation is bool or _FLAG.search(each.name) else None
    return found


def _takes_indices(argument: inspect.Parameter) -> bool:
    """Return whether an argument that forward requires beside tokens is the index of each position."""
    annotation = str(getattr(argument.annotation, "__name__", argument.annotation))
    return (
        argument.default is argument.empty
        and bool(_INDEX_NAMES.search(argument.name))
        and (argument.annotation is argument.empty or "Tensor" in annotation)
    )


def _is_flag(argument: inspect.Parameter) -> bool:
    return argument.annotation in (bool, "bool") or isinstance(argument.default, bool)


def _takes_mask(argument: inspect.Parameter) -> bool:
    return is_mask(argument.name) and not _is_flag(argument)


def _is_choice(argument: inspect.Parameter) -> bool:
    """Return whether an argument is a flag that decides what GPT-2 does in one way."""
    return _is_flag(argument) and decides(argument.name)


def _required(layer: nn.Module) -> tuple[list[inspect.Parameter], list[str]]:
    """Return what forward takes as its input, and the names of what else it requires that is not known."""
    arguments = _forward(layer)
    beside = _nothing_before(arguments)
    open_ones = [
        each
        for each in arguments
        if each.default is each.empty and not is_mask(each.name) and each.name not in beside and not _is_choice(each)
    ]
    open_ones = open_ones[:1] + [each for each in open_ones[1:] if not _takes_indices(each)]
    # TransformerLens's attention takes the input of queries, of keys and of values.
    thrice = len(open_ones) == 3 and all(
        re.search(f"(^|_){letter}", each.name, re.I) for letter, each in zip("qkv", open_ones, strict=True)
    )
    inputs = open_ones[: 3 if thrice else 1]
    return inputs, [each.name for each in open_ones[len(inputs) :] if each.name not in _TARGETS]


def unknown_arguments(layer: nn.Module) -> list[str]:
    """Return the names of arguments that forward requires and that are not known."""
    return _required(layer)[1]


def call(
    layer: nn.Module,
    given: Tensor,
    way: str,
    extras: set[str],
    seq: int | None = None,
    own_mask: ConstructorsMask | None = None,
) -> Any:
    """Call the layer with its input, and with what else its forward needs.

    Args:
        way: what it is given beside, or in place of, its input.
        extras: filled with notes on what it was given.
        seq: how many positions the input has (default: the length of its second axis).
        own_mask: the mask that its constructor was given.
    """
    arguments = _forward(layer)
    if way and way not in MASKS and way not in HIDING_NOTHING:
        extras.add(f"forward was given {way}")
        return _positions(layer, given, way)
    # What else its forward requires: nothing that came before, positions, targets, and a mask if the way is one.
    inputs = _required(layer)[0]
    by_name = [each for each in inputs if each.kind == each.KEYWORD_ONLY]
    positional = [] if by_name else [given] * max(1, len(inputs))
    beside = _nothing_before(arguments)
    keywords: dict[str, Any] = beside | {each.name: given for each in by_name}
    for name, value in beside.items():
        extras.add(f"forward was given {name}={value}")
    for each in arguments[1:]:
        if _takes_indices(each) and not given.is_floating_point():
            keywords[each.name] = torch.arange(given.shape[1], device=given.device)[None]
            extras.add(f"forward was given {_INDICES} ({each.name})")
    keywords |= {each.name: given for each in arguments[1:] if each.default is each.empty and each.name in _TARGETS}
    for each in arguments[1:]:
        if _is_choice(each) and flag(each.name) not in (None, each.default):
            keywords[each.name] = flag(each.name)
            extras.add(f"forward was given {each.name}={flag(each.name)}")
    if way in HIDING_NOTHING:
        name = next(each.name for each in arguments if _takes_mask(each))
        keywords[name] = HIDING_NOTHING[way](given, seq or given.shape[1], next(layer.parameters()).dtype)
        extras.add(f"forward was given a mask that hides nothing ({name}: {way})")
    elif way:
        name, taker = next((each.name for each in arguments if _takes_mask(each)), ""), "forward"
        mask = MASKS[way](seq or given.shape[1], given.dtype)
        if name:
            keywords[name] = mask
        elif own_mask:
            own_mask.put(mask)
            name, taker = own_mask.name, "the constructor"
        extras.add(f"{taker} was given a causal mask ({name}: {way}), so its own masking was not judged")
    elif own_mask:
        own_mask.put(None)
    output = layer(*positional, **keywords)
    targets = next((each.name for each in arguments if each.name in _TARGETS and each.name not in keywords), None)
    if targets and _is_last_position_only(output, given):
        # nanoGPT's model gives all logits only if it is asked for the loss.
        try:
            again = layer(*positional, **keywords, **{targets: given})
        except Exception:  # then its one position is its answer
            again = None
        if isinstance(again, tuple) and isinstance(again[0], Tensor) and again[0].shape[1:2] == given.shape[1:]:
            note = "forward returns the last position's logits only; it was judged with"
            extras.add(f"without {targets}, {note} {targets}")
            output = again
    # The answer may stand in a tuple, in a dictionary or in an object of transformers'.
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and output:
        return _of_several(output, given, extras)
    if isinstance(output, Mapping) and output:
        return output.get("logits", next(iter(output.values())))
    if is_dataclass(output) and not hasattr(output, "logits"):
        return _of_several([getattr(output, field.name) for field in fields(output)], given, extras)
    return getattr(output, "logits", output)


def _of_several(output: Sequence[Any], given: Tensor, extras: set[str]) -> Any:
    """Return what stands first of several outputs, or the one that has a vector at each position."""
    vectors = {
        place: each.shape
        for place, each in enumerate(output)
        if isinstance(each, Tensor) and each.is_floating_point()
        if each.ndim == 3 and each.shape[:2] == given.shape[:2]
    }
    places = [place for place, shape in vectors.items() if shape == given.shape] or list(vectors)
    if len(places) != 1 or not places[0]:
        return output[0]
    extras.add(f"forward returns {len(output)} things; number {places[0] + 1} was judged")
    return output[places[0]]


def _is_last_position_only(output: Any, tokens: Tensor) -> bool:
    """Return whether a model gave the logits of one position for tokens of several."""
    if tokens.is_floating_point() or tokens.shape[1] < 2:
        return False
    logits = output[0] if isinstance(output, tuple) and output else None
    return isinstance(logits, Tensor) and logits.ndim == 3 and logits.shape[1] == 1


_LISTS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


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
            # A module around a layer norm may do more than that: a residual connection, say.
            inner = [path for path in exact if not isinstance(modules[path], _LISTS)]
            norm = ours.rpartition(".")[2].startswith("ln") and inner
            found_parts[ours] = modules[max(inner, key=len) if norm else min(exact, key=len)]
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


def unused(layer: nn.Module, state: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the names of the parameters that no number of the layer's comes from."""
    places = dict(layer.named_parameters(remove_duplicate=False))
    used = [tensor.sum() for name, tensor in state.items() if name in places and tensor.requires_grad]
    if not used:
        return frozenset(leaves)
    reached = torch.autograd.grad(used, list(leaves.values()), allow_unused=True, retain_graph=True)
    return frozenset(name for name, found in zip(leaves, reached, strict=True) if found is None)


def batch_first(value: Tensor, given: Tensor, is_turned: bool) -> Tensor:
    """Return a part's input or output as [batch seq …]: a model may turn the axes for its blocks.

    Args:
        given: the layer's input, as [batch seq …].
        is_turned: the layer takes [seq batch …].
    """
    turned = value.ndim > 1 and value.shape[:2] == given.shape[1::-1]
    alike = value.shape[:2] == value.shape[1::-1]
    return value.transpose(0, 1) if turned and (is_turned or not alike) else value
